"""Every protocol end to end, on drawn domains with one step per run; protocols share runs, as in real use.

Every method and setting of the recipes is trained once. A protocol whose rows were trained with other domains before is
run with its first row, GM-DF's and those that are new.
"""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from gmdf_hf.common.errors import UserError
from gmdf_hf.data import loading
from gmdf_hf.data.drawn.domains import draw_domain
from gmdf_hf.scripts import meta_train, protocol
from gmdf_hf.training.protocol import Protocol, Row, Run, Scale, plan, read_yaml
from gmdf_hf.training.protocol_table import columns_of, paper_results
from tests import processes

ROOT = Path(__file__).parents[2]
QUICK = ("table9", "fig4")
TRAINED: set[str] = set()  # methods with their settings, of the protocols run so far


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("protocols") / "mini"


@pytest.fixture(autouse=True)
def one_level_of_each_distortion(monkeypatch):
    """Of the five, which differ in a number only: the table of distortions would take a minute more."""
    monkeypatch.setattr("gmdf_hf.training.protocol.LEVELS", 1)


@pytest.fixture(scope="module", autouse=True)
def each_domain_is_small_and_loaded_once():
    """Half of the time of a run of one step; the runs of all protocols draw the same few domains."""
    loaded, load = {}, loading.load_domain

    def load_once(*arguments, **fields):
        key = repr((arguments, sorted(fields.items())))
        if key not in loaded:
            loaded[key] = load(*arguments, **fields)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_domain", load_once)
        patch.setattr(draw_domain, "__defaults__", (1, 0))  # one frame of each video
        yield


def read_protocol(name: str) -> Protocol:
    return read_yaml(ROOT / "scripts" / "recipes" / "protocols" / f"{name}.yaml", Protocol)


def signs(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a run, of a number only whether it is 0: a run of one step is the same with another one."""
    return {
        name: signs(value) if isinstance(value, dict) else bool(value) if isinstance(value, int | float) else value
        for name, value in fields.items()
    }


def rows_to_train(described: Protocol) -> tuple[Row, ...]:
    """Rows without a run, the first, the compared one, GM-DF's, and those that no protocol trained before."""
    needed = {described.rows[0].label, described.compare, "GM-DF"}
    chosen = []
    for row in described.rows:
        what = json.dumps([row.backbone, signs(row.set), signs(described.settings[0].set)], sort_keys=True)
        if row.missing or row.label in needed or what not in TRAINED:
            chosen.append(row)
        TRAINED.add(what)
    return tuple(chosen)


def check(name: str, folder: Path) -> list[list[str]]:
    described = read_protocol(name)
    described = described.model_copy(update={"rows": rows_to_train(described)})
    with pytest.MonkeyPatch.context() as patch:
        read = protocol.read_yaml
        patch.setattr(protocol, "read_yaml", lambda path, kind: described if kind is Protocol else read(path, kind))
        table = protocol.main(name, "mini", [0], folder)
    settings = described.settings[:1]
    assert table[0] == ["", *columns_of(described.model_copy(update={"settings": settings}))]
    text = (folder / f"{name}.md").read_text()
    assert text.startswith(f"# {described.title}\n")
    assert f"`python scripts/protocol.py {name} --scale mini --seeds 0`" in text
    assert "These figures say nothing about the method." in text
    with (folder / f"{name}.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == len(described.rows) * len(settings) * len(described.figures)
    reasons = (": method: ", ": not implemented: ")
    refused = {line.split(",")[0].removeprefix("- ") for line in text.splitlines() if any(r in line for r in reasons)}
    assert refused >= {row.label for row in described.rows if row.missing}
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


@pytest.mark.parametrize("name", protocol.protocol_names())
def test_every_run_of_a_protocol_can_be_configured(name, tmp_path):
    scale = read_yaml(protocol.RECIPES / "scales" / "mini.yaml", Scale)
    described = read_protocol(name)
    runs = plan(described, scale, protocol.RECIPES / "scales" / scale.recipe, [0, 1], tmp_path)
    assert len(runs) == 2 * len(described.rows) * len(described.settings)
    reasons = ("not implemented: ", "method: ", "backbone: ", "training needs at least two source domains")
    assert all(run.refused is None or run.refused.startswith(reasons) for run in runs)


@pytest.mark.parametrize("name", QUICK)
def test_a_protocol_runs_and_is_not_run_again(name, folder, monkeypatch):
    table = check(name, folder)
    monkeypatch.setattr(meta_train, "main", lambda config: pytest.fail("a done run was run again"))
    assert protocol.main(name, "mini", [0], folder) == table


@pytest.mark.slow
def test_seeds_give_mean_and_deviation(folder):
    table = protocol.main("table9", "mini", [0, 1], folder)
    assert all("±" in cell for row in table[1:] for cell in row[1:])
    rows = list(csv.DictReader((folder / "table9.csv").open()))
    assert all(cell["seeds"] == "2" and cell["seed 0"] and cell["seed 1"] for cell in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in protocol.protocol_names() if name not in QUICK])
def test_every_protocol_runs(name, folder, monkeypatch):
    monkeypatch.setattr(meta_train, "plot_history", lambda *_: None)  # a quarter of the time of a run of one step
    check(name, folder)


def test_data_that_are_not_there_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("GMDF_DOMAINS", str(tmp_path / "none"))
    words = ("scripts/protocol.py", "table3", "--scale", "paper", "--output_dir", tmp_path)
    result = processes.run(*words, cwd=ROOT)
    assert result.returncode == UserError.exit_code
    assert "Traceback" not in result.stderr
    said, hint = result.stderr.strip().splitlines()[-2:]
    assert said.startswith("protocol.py: The data of domain ") and hint.startswith("hint: ")


@pytest.mark.slow
def test_a_scale_may_pretrain_the_backbone_of_each_setting(tmp_path, monkeypatch):
    scale = yaml.safe_load((protocol.RECIPES / "scales" / "mini.yaml").read_text()) | {"pretraining_steps": 1}
    real = protocol.read_yaml

    def read(path, kind):
        if path.stem == "mini":
            return kind(**scale)
        found = real(path, kind)
        return found.model_copy(update={"rows": found.rows[:2]}) if kind is Protocol else found

    monkeypatch.setattr(protocol, "read_yaml", read)
    protocol.main("real_joint", "mini", [0], tmp_path)
    backbone = tmp_path / "backbones" / "dfdc+stylegan+photoshop-1"
    configs = [yaml.safe_load(path.read_text()) for path in (tmp_path / "runs").glob("*/*/train_config.yaml")]
    assert {config["backbone"] for config in configs} == {str(backbone)}
    assert len(configs) == 2
    monkeypatch.setattr(protocol.pretrain_faces, "pretrain", lambda *_: pytest.fail("pre-trained twice"))
    shutil.rmtree(configs[0]["output_dir"])
    protocol.main("real_joint", "mini", [0], tmp_path)
    scale["pretraining_steps"] = 2  # another backbone
    with pytest.raises(pytest.fail.Exception, match="pre-trained twice"):
        protocol.main("real_joint", "mini", [0], tmp_path)


def test_methods_are_compared_in_each_setting_and_over_all(tmp_path):
    described = read_yaml(ROOT / "scripts" / "recipes" / "protocols" / "real_leave_one_out.yaml", Protocol)
    rows, runs, rng = [described.rows[1], described.rows[4]], [], np.random.default_rng(0)
    for row, gain in zip(rows, (0.5, 2.0), strict=True):
        for setting in described.settings:
            for seed in range(2):
                config = SimpleNamespace(output_dir=tmp_path / f"{row.label}-{setting.label}-{seed}")
                config.output_dir.mkdir()
                labels = np.arange(200) % 2
                table = {"domain": setting.test[0], "video_id": np.arange(200).astype(str), "label": labels}
                scores = 1 / (1 + np.exp(-rng.normal(size=200) - gain * labels))
                pd.DataFrame(table | {"score": scores}).to_parquet(config.output_dir / "scores.parquet")
                runs.append(Run(row, setting, seed, config))
    text, table = protocol.comparisons(described, runs, 200)
    assert "the mean over test domains and seeds" in text
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [(row[0], row[1]) for row in found[::2]] == [
        ("CLIP", label) for label in (*(setting.label for setting in described.settings), "mean")
    ]
    aucs = np.array([float(row[2]) for row in found]).reshape(4, 2)
    np.testing.assert_allclose(aucs[:3].mean(0), aucs[3], atol=0.02)
    assert [row[4] == "" for row in found] == [True, False] * 4
    low, high = (float(end) for end in found[-1][5].split(" to "))
    assert 0 < low < float(found[-1][4]) < high
    assert len(protocol.comparisons(described, runs[:-2], 200)[1].splitlines()) == 2 + 2 + 2 + 1 + 1
