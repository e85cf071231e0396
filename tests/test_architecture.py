"""The way of the data, and the direction of imports: modeling <- gmdf_hf <- scripts <- tests."""

import ast
import re
from pathlib import Path

import pytest

from gmdf_hf.config import TrainConfig

ROOT = Path(__file__).parent.parent

# A module imports only from those before it. The README prints this list; nowhere else does it stand.
DATAS_WAY = (
    "people",  # drawn faces: their attributes,
    "portraits",  # their pixels,
    "forgeries",  # how they are forged,
    "drawings",  # and the five domains of them
    "images",  # opening image files that nobody vouches for
    "config",  # a run's settings, from recipe and command line
    "dataset",  # a domain's frames, from drawings, hub, folder or Parquet
    "episodes",  # which frames make a meta-iteration
    "losses",  # the three losses of Eq. 11
    "codes",  # visual codes for masked-image modelling
    "meta",  # the two half steps of a meta-iteration
    "scoring",  # frames to a table of scores
    "metrics",  # a table of scores to figures
    "report",  # figures for people to read
    "checkpoint",  # what a run leaves behind
)


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add("." * node.level + (node.module or ""))
    return modules


def test_every_module_has_its_place():
    modules = {path.stem for path in (ROOT / "gmdf_hf").glob("*.py")} - {"__init__"}
    assert modules == set(DATAS_WAY)


@pytest.mark.parametrize("module", DATAS_WAY)
def test_modules_import_only_from_earlier_ones(module):
    earlier = {f"gmdf_hf.{name}" for name in DATAS_WAY[: DATAS_WAY.index(module)]}
    for name in imports_of(ROOT / "gmdf_hf" / f"{module}.py"):
        if name.startswith("gmdf_hf.") and not name.startswith("gmdf_hf.modeling"):
            assert name in earlier, f"{module} imports {name}"
        assert not name.startswith(("scripts", "tests", "."))


def test_modeling_imports_nothing_of_ours_but_its_siblings():
    """These files are copied flat beside every checkpoint and must work there."""
    for path in (ROOT / "modeling").glob("*.py"):
        for name in imports_of(path):
            assert not name.startswith(("gmdf_hf", "scripts", "tests", "..")), f"{path.name} imports {name}"
            if name.startswith("."):
                assert re.fullmatch(r"\.\w+_gmdf", name), f"{path.name} imports {name}"


def test_the_link_to_modeling_is_relative():
    assert (ROOT / "gmdf_hf" / "modeling").readlink() == Path("../modeling")


def test_readme_prints_the_way_of_the_data():
    readme = (ROOT / "README.md").read_text()
    positions = [readme.find(f"{name}.py") for name in DATAS_WAY]
    assert min(positions) > 0
    assert positions == sorted(positions)


def test_no_module_is_long():
    for folder in ("gmdf_hf", "modeling", "scripts"):
        for path in (ROOT / folder).glob("*.py"):
            assert len(path.read_text().splitlines()) <= 320, path


def test_every_setting_of_a_run_is_read():
    """No option without effect."""
    code = "".join(path.read_text() for path in [*(ROOT / "scripts").glob("*.py"), ROOT / "gmdf_hf" / "config.py"])
    for name in TrainConfig.model_fields:
        assert re.search(rf"(config|arguments|self)\.{name}\b", code), name
