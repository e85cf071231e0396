"""The way of the data, and the direction of imports: modeling <- gmdf_hf <- scripts <- tests."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gmdf_hf.config import TrainConfig

ROOT = Path(__file__).parent.parent

# A module imports only from those before it. The README prints this list; nowhere else does it stand.
DATAS_WAY = (
    "archives",  # reading zip and tar files from strangers
    "sources",  # what the official data sets hold: one importer a file
    "faces",  # face detectors and their weights
    "retinaface",  # the network of one of them
    "tracking",  # following one person through a video
    "crops",  # a record's frames to encoded face crops
    "finding",  # the faces of a picture and the people of a video, for the pipeline
    "parts",  # the file that a unit of work leaves
    "units",  # units of work, over processes or Ray
    "shards",  # the Parquet files of a prepared domain
    "duplicates",  # near-duplicate pictures between splits
    "manifests",  # what identifies the data of a domain
    "domain_card",  # a prepared domain's card, and its way to the hub
    "prepare",  # records in, a prepared domain out
    "contact_sheet",  # a prepared domain at a glance
    "export",  # a prepared domain for DeepfakeBench
    "people",  # drawn faces: who they are,
    "portraits",  # what they look like,
    "forgeries",  # how they are forged,
    "drawings",  # and the five domains of them
    "config",  # a run's settings, from recipe and command line
    "dataset",  # a domain's frames, from drawings, hub, folder or Parquet
    "frames",  # reading, mirroring and batching them
    "processes",  # several processes as one
    "episodes",  # which frames make a meta-iteration, and their tensors
    "streams",  # the same for domains that are streamed
    "loading",  # the domains of a run, and the loader of its episodes
    "losses",  # the three losses of Eq. 11
    "checkpoint",  # what a run leaves behind
    "training_state",  # and what it goes on from after a kill
    "codes",  # visual codes for masked-image modelling
    "meta",  # the two half steps of a meta-iteration
    "classifiers",  # any image classifier in the place of CLIP
    "baselines",  # what it is compared with
    "health",  # what broke an iteration, and a run's curves
    "distortions",  # the five of Table 10
    "scoring",  # frames to a table of scores
    "score_parts",  # what several processes have scored so far
    "score_table",  # a table of scores, by domain and by video
    "metrics",  # a table of scores to figures
    "intervals",  # and how sure they are
    "comparison",  # two methods on the same videos
    "tables",  # figures for terminal, Markdown and CSV
    "protocol",  # the paper's tables and figures as runs
    "attention",  # where a transformer looks
    "plots",  # pictures of all that
    "report_page",  # and a page of them
    "setup",  # from a run's settings to what it trains with
    "selection",  # which epoch is kept
    "report",  # figures for people to read
    "onnx_export",  # a detector as an ONNX file
    "hub",  # a run's way to the hub
    "overlays",  # verdicts drawn onto pictures
    "demo",  # a page to drop a picture or a video on
    "cli",  # the command `gmdf`
)


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            modules |= {f"gmdf_hf.{alias.name}" for alias in node.names} if module == "gmdf_hf" else {module}
    return modules


def test_every_module_has_its_place():
    modules = {path.stem for path in (ROOT / "gmdf_hf").glob("*.py")} - {"__init__"} | {"sources"}
    assert modules == set(DATAS_WAY)


@pytest.mark.parametrize("module", DATAS_WAY)
def test_modules_import_only_from_earlier_ones(module):
    allowed = {*DATAS_WAY[: DATAS_WAY.index(module)], "modeling"}
    path = ROOT / "gmdf_hf" / f"{module}.py"
    files = [path] if path.exists() else list((ROOT / "gmdf_hf" / module).glob("*.py"))
    for name in set().union(*map(imports_of, files)):
        assert not name.startswith(("scripts", "tests", ".")), f"{module} imports {name}"
        if name.startswith("gmdf_hf.") and name.split(".")[1] != module:
            # `retinaface` is loaded by `faces` when it is asked for, and builds on it.
            lazy = (module, name) == ("faces", "gmdf_hf.retinaface")
            assert name.split(".")[1] in allowed or lazy, f"{module} imports {name}"


def test_cutting_faces_needs_no_torch():
    """Every worker process of `prepare` imports this much."""
    code = "import sys, gmdf_hf.units; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


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
    files = readme[readme.index("\ngmdf_hf/ ") : readme.index("\nscripts/\n")]
    places = [re.search(rf"[ \n]{name}{'/' if name == 'sources' else '.py'}[ ,]", files) for name in DATAS_WAY]
    assert None not in places, [name for name, place in zip(DATAS_WAY, places, strict=True) if place is None]
    positions = [place.start() for place in places]
    assert positions == sorted(positions)


def test_no_module_is_long():
    for folder in ("gmdf_hf", "modeling", "scripts"):
        for path in (ROOT / folder).glob("*.py"):
            assert len(path.read_text().splitlines()) <= 320, path


def test_every_setting_of_a_run_is_read():
    """No option without effect."""
    readers = [*(ROOT / "scripts").glob("*.py"), ROOT / "gmdf_hf" / "config.py", ROOT / "gmdf_hf" / "setup.py"]
    code = "".join(path.read_text() for path in readers)
    for name in TrainConfig.model_fields:
        assert re.search(rf"(config|arguments|self)\.{name}\b", code), name
