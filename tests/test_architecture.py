"""The direction of imports between the folders of the package, and limits that keep files readable."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from gmdf_hf.training.config import TrainConfig

ROOT = Path(__file__).parent.parent

# A folder imports only from those before it. The README prints this list.
FOLDERS = ("modeling", "common", "preparation", "data", "evaluation", "training", "serving", "scripts")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    paths = [path for folder in FOLDERS for path in (ROOT / "gmdf_hf" / folder).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports_of(path: Path, names: Iterable[str]) -> set[str]:
    """Modules that a file imports, inside functions too; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # files of modeling/ and modeling/detectors/ import their siblings so
                base = ".".join(["gmdf_hf", *path.parent.relative_to(ROOT / "gmdf_hf").parts, base]).rstrip(".")
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in names else base for alias in node.names}
    return found


def turned_arrows(graph: dict[str, set[str]]) -> list[str]:
    """Imports that go against the order of `FOLDERS`."""
    wrong = []
    for module, imported in graph.items():
        place = FOLDERS.index(module.split(".")[1])
        for name in imported:
            parts = name.split(".")
            if parts[0] == "gmdf_hf" and len(parts) > 1 and parts[1] in FOLDERS and FOLDERS.index(parts[1]) > place:
                wrong.append(f"{module} imports {name}")
    return wrong


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = modules()
    return {name: imports_of(path, found) for name, path in found.items()}


def test_every_folder_has_its_place():
    entries = {path.name for path in (ROOT / "gmdf_hf").iterdir() if path.name != "__pycache__"}
    assert entries == {*FOLDERS, "__init__.py", "py.typed"}
    assert len(entries) <= 10


def test_folders_import_only_from_earlier_ones(graph):
    assert turned_arrows(graph) == []
    for module, imported in graph.items():
        for name in imported:
            assert name.split(".")[0] not in ("scripts", "tests", "modeling"), f"{module} imports {name}"


def test_a_turned_arrow_is_found(graph):
    assert turned_arrows(graph | {"gmdf_hf.data.frames": {"gmdf_hf.training.meta"}}) == [
        "gmdf_hf.data.frames imports gmdf_hf.training.meta"
    ]


def test_no_import_circle(graph):
    inside = {module: {name for name in names if name in graph} - {module} for module, names in graph.items()}
    # A package's __init__ names its parts for type checkers.
    inside = {module: names for module, names in inside.items() if not graph_is_package(module)}
    TopologicalSorter(inside).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(
            inside
            | {"gmdf_hf.common.errors": {"gmdf_hf.common.processes"}}
            | {"gmdf_hf.common.processes": {"gmdf_hf.common.errors"}}
        ).prepare()


def graph_is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def test_tests_stand_in_the_folders_of_what_they_test():
    for path in (ROOT / "tests").iterdir():
        if path.is_dir() and path.name not in ("__pycache__", "media"):
            assert path.name in FOLDERS, path


def test_cutting_faces_needs_no_torch():
    """Every worker process of `prepare` imports this much."""
    code = (
        "import sys, gmdf_hf.preparation.workers\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_modeling_imports_nothing_of_ours_but_its_siblings():
    """These files are copied flat beside every checkpoint and must work there."""
    for path in (ROOT / "modeling").rglob("*.py"):
        sibling = r"\.\w+" if path.parent.name == "detectors" else r"\.\w+_gmdf"
        if path.name == "auto_gmdf.py":  # stays in the package
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = ["." * node.level + (node.module or "")]
            for name in names:
                assert not name.startswith(("gmdf_hf", "scripts", "tests", "..")), f"{path.name} imports {name}"
                if name.startswith("."):
                    assert re.fullmatch(sibling, name), f"{path.name} imports {name}"


@pytest.mark.parametrize(("link", "target"), [("gmdf_hf/modeling", "../modeling"), ("gmdf_hf/scripts", "../scripts")])
def test_links_are_relative(link, target):
    assert (ROOT / link).readlink() == Path(target)


def test_readme_shows_the_folders_in_order():
    readme = (ROOT / "README.md").read_text()
    paths = [name if name in ("modeling", "scripts") else f"gmdf_hf/{name}" for name in FOLDERS]
    places = [readme.index(f"\n| `{path}/` |") for path in paths]
    assert places == sorted(places)


def test_no_module_is_long():
    for path in modules().values():
        assert len(path.read_text().splitlines()) <= 320, path


def test_every_setting_of_a_run_is_read():
    """No option without effect."""
    readers = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "gmdf_hf" / "training").rglob("*.py")]
    code = "".join(path.read_text() for path in readers)
    for name in TrainConfig.model_fields:
        assert re.search(rf"(config|arguments|self)\.{name}\b", code), name
