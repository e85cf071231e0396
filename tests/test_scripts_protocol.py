"""Every protocol from end to end, on drawn domains with one step a run; the runs are shared as in real use."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gmdf_hf.protocol import Protocol, columns_of, paper_results, read_yaml
from scripts import meta_train, protocol

ROOT = Path(__file__).parent.parent
QUICK = ("table9", "fig4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("protocols") / "mini"


def check(name: str, folder: Path) -> list[list[str]]:
    table = protocol.main(name, "mini", [0], folder)
    described = read_yaml(ROOT / "scripts" / "recipes" / "protocols" / f"{name}.yaml", Protocol)
    settings = described.settings[:1]
    assert table[0] == ["", *columns_of(described.model_copy(update={"settings": settings}))]
    text = (folder / f"{name}.md").read_text()
    assert text.startswith(f"# {described.title}\n")
    assert f"`python scripts/protocol.py {name} --scale mini --seeds 0`" in text
    assert "These figures say nothing about the method." in text
    with (folder / f"{name}.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == len(described.rows) * len(settings) * len(described.figures)
    reasons = (": method: ", ": backbone: ")
    refused = {line.split(",")[0].removeprefix("- ") for line in text.splitlines() if any(r in line for r in reasons)}
    assert refused >= {row.label for row in described.rows if row.backbone}  # of which this scale has none
    for cell in cells:
        if cell["row"] not in refused and ": at least two" not in text:
            assert cell["seeds"] == "0" or 0 <= float(cell["mean"]) <= 100, cell
    assert {cell["row"] for cell in cells if cell["seeds"] == "1"} >= {row.label for row in described.rows} - refused
    printed = {cell["column"]: cell["paper"] for cell in cells if cell["row"] == "GM-DF"}
    for column, value in zip(paper_results(described.paper)["columns"], paper_results(described.paper)["rows"].get("GM-DF", []), strict=False):  # noqa: E501  # fmt: skip
        if column in printed and value is not None:
            assert float(printed[column]) == value
    if described.compare:
        assert f"| minus {described.compare} |" in text
    with Image.open(folder / f"{name}.png") as picture:
        assert min(picture.size) > 100
    return table


@pytest.mark.parametrize("name", QUICK)
def test_a_protocol_runs_and_is_not_run_again(name, folder, monkeypatch):
    table = check(name, folder)
    monkeypatch.setattr(meta_train, "main", lambda config: pytest.fail("a done run was run again"))
    assert protocol.main(name, "mini", [0], folder) == table


def test_seeds_give_mean_and_deviation(folder):
    table = protocol.main("table9", "mini", [0, 1], folder)
    assert all("±" in cell for row in table[1:] for cell in row[1:])
    rows = list(csv.DictReader((folder / "table9.csv").open()))
    assert all(cell["seeds"] == "2" and cell["seed 0"] and cell["seed 1"] for cell in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in protocol.protocol_names() if name not in QUICK])
def test_every_protocol_runs(name, folder):
    check(name, folder)


def test_data_that_are_not_there_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("GMDF_DOMAINS", str(tmp_path / "none"))
    command = [sys.executable, "scripts/protocol.py", "table3", "--scale", "paper", "--output_dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("protocol.py: The data of domain ")
