import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from gmdf_hf.common.errors import UserError
from gmdf_hf.modeling.detectors import DETECTORS
from gmdf_hf.training.protocol import Figure, Protocol, Run, Scale, Setting, distortions_of, plan, read_yaml, value_of
from gmdf_hf.training.protocol_table import PAPER_RESULTS, Cell, columns_of, paper_results, table_of

RECIPES = Path(__file__).parents[2] / "scripts" / "recipes"
PROTOCOLS = {path.stem: path for path in sorted((RECIPES / "protocols").glob("*.yaml"))}
OF_THE_PAPER = [name for name in PROTOCOLS if not name.startswith(("real_", "pretrained_"))]


def planned(name: str, scale_name: str, folder: Path, seeds=(0,)):
    scale = read_yaml(RECIPES / "scales" / f"{scale_name}.yaml", Scale)
    protocol = read_yaml(PROTOCOLS[name], Protocol)
    return plan(protocol, scale, RECIPES / "scales" / scale.recipe, seeds, folder)


def test_every_table_and_figure_with_figures_has_a_protocol():
    assert set(OF_THE_PAPER) == {f"table{n}" for n in (2, 3, 4, 5, 7, 8, 9, 10)} | {"fig4", "fig7", "fig8", "today"}
    assert set(yaml.safe_load(PAPER_RESULTS.read_text())) == {f"table{n}" for n in (2, 3, 4, 5, 7, 8, 9, 10)}


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name.startswith("table")])
def test_the_papers_figures_fit_their_protocol(name):
    protocol = read_yaml(PROTOCOLS[name], Protocol)
    paper = paper_results(protocol.paper)
    assert set(paper["columns"]) <= set(columns_of(protocol))
    for row, values in paper["rows"].items():
        assert len(values) == len(paper["columns"]), row
        assert all(value is None or 20 < value <= 100 for value in values), row
    named = {row.paper for row in protocol.rows if row.paper}
    assert named and named <= set(paper["rows"])


def test_some_figures_of_the_paper():
    """Compare with the claims in the paper's text, copied by hand."""
    table2, table8 = paper_results("table2"), paper_results("table8")
    columns = [table2["columns"].index(f"FF++ & Celeb & DFF: {domain} AUC") for domain in ("DFDC", "WDF")]
    ours, theirs = (np.mean([table2["rows"][row][column] for column in columns]) for row in ("GM-DF", "UCF"))
    assert ours - theirs == pytest.approx(8.87)  # "an average AUC improvement of 8.87% over UCF"
    assert table8["rows"]["num2"][0] - table8["rows"]["num1"][0] == pytest.approx(0.91)
    assert table8["rows"]["num3"][0] - table8["rows"]["num1"][0] == pytest.approx(1.66)


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_real_recipes_find_their_data_or_say_what_is_missing(name, tmp_path, monkeypatch):
    monkeypatch.delenv("GMDF_DOMAINS", raising=False)
    with pytest.raises(UserError, match=r"data of domain .* are missing: .* variable GMDF_DOMAINS, which is not set"):
        planned(name, "paper", tmp_path)
    monkeypatch.setenv("GMDF_DOMAINS", str(tmp_path / "data"))
    with pytest.raises(UserError, match=f"are missing: no file or folder {tmp_path}/data/"):
        planned(name, "paper", tmp_path)
    for path in yaml.safe_load((RECIPES / "scales" / "paper.yaml").read_text())["domains"].values():
        (tmp_path / "data" / Path(path).name).mkdir(parents=True)
    for run in planned(name, "paper", tmp_path):
        assert (run.config is None) == (run.refused is not None)
        if run.config is not None:
            step_size = run.row.set.get("learning_rate", 3e-6)
            assert (run.config.epochs, run.config.learning_rate, run.config.batch_size) == (40, step_size, 32)
            assert set(run.config.train_domains) == set(run.setting.train)
            assert set(run.config.test_only_domains) == set(run.setting.test) - set(run.setting.train)
    assert any(run.config is not None for run in planned(name, "paper", tmp_path))


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name.startswith("real_")])
def test_the_three_real_domains_are_found(name, tmp_path, monkeypatch, real_data):
    monkeypatch.setenv("GMDF_REAL_DATA", str(real_data.parent))
    assert any(run.config is not None for run in planned(name, "real", tmp_path))


def test_every_row_has_the_same_schedule(tmp_path):
    """No baseline has a worse schedule: rows differ only in the compared component.

    Rows that train few weights of CLIP, such as the linear probe, share one larger step size.
    """
    step_sizes: dict[tuple[bool, str], float] = {}
    own = {"gend": 3e-4, "effort": 2e-4, "lora": 2e-4}  # of systems that train few weights
    about = {"method", "model", "alignment_weight", "mim_weight", "output_dir", "train_tower", "self_blended"}
    for name in PROTOCOLS:
        if name in ("real_variants", "real_step_sizes", "pretrained_settings"):  # rows differ in them
            continue
        configs = {}
        for run in planned(name, "mini", tmp_path):
            if run.config is not None and run.row.backbone is not None:  # CNNs share a larger step size
                method = {"LTW": "ltw", "DCL": "dcl", "RFM": "rfm"}.get(run.row.label, "direct_merge")
                assert run.row.set == {"method": method, "learning_rate": 2e-4}, (name, run.row.label)
            elif run.config is not None:
                fields = run.config.model_dump(mode="json", exclude=about)
                if name == "pretrained_equal_time":  # rows have equal time, not equal steps
                    del fields["max_steps"]
                if run.config.method in own:
                    assert fields["learning_rate"] == own[run.config.method]
                    fields["learning_rate"] = 3e-4
                elif "learning_rate" in run.row.set:
                    trained = "none" if run.config.method == "linear_probe" else run.config.train_tower
                    assert trained != "all" and fields["learning_rate"] > 3e-4
                    group = name.startswith("pretrained_"), trained  # another backbone has another step size
                    assert step_sizes.setdefault(group, fields["learning_rate"]) == fields["learning_rate"]
                    fields["learning_rate"] = 3e-4
                assert configs.setdefault(run.setting.label, fields) == fields, (name, run.row.label)


@pytest.mark.parametrize("name", ["table2", "table3", "table4", "table5", "table10"])
def test_a_row_with_a_backbone_of_its_own(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GMDF_DOMAINS", str(tmp_path / "data"))
    for path in yaml.safe_load((RECIPES / "scales" / "paper.yaml").read_text())["domains"].values():
        (tmp_path / "data" / Path(path).name).mkdir(parents=True)

    def rows(scale: str) -> dict[str, Run]:
        return {run.row.label: run for run in planned(name, scale, tmp_path) if run.row.backbone}

    installed = {"timm", "torchvision"}
    monkeypatch.setattr(
        "gmdf_hf.training.classifiers.find_spec", lambda package: package if package in installed else None
    )
    for run in rows("paper").values():
        method = {"LTW": "ltw", "DCL": "dcl", "RFM": "rfm"}.get(run.row.label, "direct_merge")
        assert (run.config.method, run.config.learning_rate, run.config.image_size) == (method, 2e-4, None)
        if run.row.backbone == "efficientnet_b4":
            assert run.config.backbone == "timm/efficientnet_b4.ra2_in1k"
        else:
            weights = dict.fromkeys(("local_relation", "mat", "m2tr"), "google/efficientnet-b4")
            weights |= dict.fromkeys(("f3net", "recce", "srm", "ucf", "xception"), "timm/legacy_xception.tf_in1k")
            pretrained = weights.get(run.row.backbone)
            assert run.config.backbone == run.row.backbone in DETECTORS
            assert run.config.detector == ({} if pretrained is None else {"pretrained": pretrained})
    installed.remove("torchvision")
    assert {run.refused for run in rows("paper").values() if run.config is None} <= {
        "backbone: timm/efficientnet_b4.ra2_in1k needs torchvision, not installed here"
    }
    for run in rows("mini").values():
        assert run.config.backbone == run.row.backbone in DETECTORS and run.config.detector["width"] < 0.1


@pytest.mark.parametrize("installed", [False, True])
def test_the_row_of_lora_needs_peft_and_the_others_do_not(installed, tmp_path, monkeypatch):
    monkeypatch.setattr("gmdf_hf.training.protocol.find_spec", lambda package: package if installed else None)
    refused = {run.row.label: run.refused for run in planned("today", "mini", tmp_path) if not run.row.missing}
    reason = None if installed else "method: lora needs peft, not installed here"
    assert {label for label, found in refused.items() if found == reason} == (set(refused) if installed else {"LoRA"})


@pytest.mark.parametrize("name", ["table2", "table3", "table4", "table5", "table10"])
def test_every_row_of_the_paper_is_a_row_here_with_a_run_or_a_reason(name, tmp_path):
    runs = planned(name, "mini", tmp_path)
    assert paper_results(name)["rows"].keys() <= {run.row.paper for run in runs}
    for run in runs:
        assert (run.refused is not None) is (run.row.missing is not None) or "at least two" in run.refused
        assert run.row.missing is None or run.refused == f"not implemented: {run.row.missing}"


def test_tables_share_their_runs(tmp_path):
    full = [run for run in planned("table8", "mini", tmp_path) if run.row.label == "+DA +MIM +Meta-MoE"]
    shown = [run for run in planned("table3", "mini", tmp_path) if run.row.label == "GM-DF"]
    assert full[0].config.output_dir not in {run.config.output_dir for run in shown}  # other test domains
    fig8 = [run for run in planned("fig8", "mini", tmp_path) if run.row.label == "GM-DF"]
    assert fig8[0].config.output_dir == shown[0].config.output_dir


def test_a_row_that_names_a_default_shares_its_run(tmp_path):
    joint = {run.row.label: run.config.output_dir for run in planned("pretrained_joint", "mini", tmp_path)}
    variants = {run.row.label: run.config.output_dir for run in planned("pretrained_dil", "mini", tmp_path)}
    assert variants["Affine"] == joint["GM-DF"] and len(set(variants.values())) == 3


def test_only_the_same_run_is_done(tmp_path):
    first, second = planned("table9", "mini", tmp_path, seeds=(0, 1))[:2]
    assert (first.seed, second.seed) == (0, 1)
    assert first.config.output_dir.parent == second.config.output_dir.parent
    assert not first.done
    first.config.output_dir.mkdir(parents=True)
    stored = first.config.model_dump(mode="json") | {"output_dir": "elsewhere"}
    (first.config.output_dir / "train_config.yaml").write_text(yaml.safe_dump(stored))
    assert not first.done
    (first.config.output_dir / "results.json").write_text("{}")
    assert first.done and not second.done
    (first.config.output_dir / "train_config.yaml").write_text(yaml.safe_dump(stored | {"max_steps": 9}))
    assert not first.done


DOMAINS = {
    "a": {"frame": {"auc": 0.9, "m": 0.1}, "video": {"auc": 1.0, "m": 0.0}},
    "b": {"frame": {"auc": 0.7, "m": 0.4}, "video": {"auc": None, "m": 0.5}},
    "c": {"frame": {"auc": 0.2, "m": 0.9}, "video": {"auc": 0.1, "m": 0.9}},
}


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ({"figure": "auc"}, 0.8),
        ({"figure": "m_eer"}, 0.4),
        ({"figure": "auc", "domain": "c"}, 0.2),
        ({"figure": "m_eer", "level": "video"}, 0.5),
        ({"figure": "auc", "level": "video"}, float("nan")),
    ],
)
def test_figures_of_a_run(figure, value):
    setting = Setting(label="", train=("c",), test=("a", "b"))
    assert value_of(Figure(label="", **figure), setting, DOMAINS) == pytest.approx(value, nan_ok=True)


def test_cells_and_their_table():
    assert str(Cell("x", "y", (0.5, 0.7), 61.234)) == "60.00 ± 14.14 (61.23)"
    assert str(Cell("x", "y", (0.5,), None)) == "50.00"
    assert str(Cell("x", "y", (), 61.2)) == "- (61.20)"
    protocol = read_yaml(PROTOCOLS["table9"], Protocol)
    cells = {
        (row.label, column): Cell("", "", (0.5,), None) for row in protocol.rows for column in columns_of(protocol)
    }
    table = table_of(protocol, cells)
    assert table[0] == ["", "Celeb & DFF: WDF ACC", "Celeb & DFF: WDF AUC"]
    assert len(table) == 4
    protocol = read_yaml(PROTOCOLS["table5"], Protocol)
    protocol = protocol.model_copy(update={"rows": protocol.rows[:1]})
    others = table_of(
        protocol, {(protocol.rows[0].label, column): Cell("", "", (), None) for column in columns_of(protocol)}
    )
    assert ["Implicit, paper", "(82.04)", "-"] in others


def test_distortions_of_a_figure():
    assert distortions_of(Figure(label="", figure="auc")) == []
    assert distortions_of(Figure(label="", figure="auc", distortion="blur")) == [f"blur:{n}" for n in range(1, 6)]
    assert len(distortions_of(Figure(label="", figure="auc", distortion="all"))) == 25


def test_what_is_wrong_in_a_protocol_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="Unknown name 'table1', expected one of fig4, fig7"):
        read_yaml(RECIPES / "protocols" / "table1.yaml", Protocol)
    (tmp_path / "odd.yaml").write_text(json.dumps({"title": "t", "rows": [], "settings": [], "figure": []}))
    with pytest.raises(UserError, match="odd"):
        read_yaml(tmp_path / "odd.yaml", Protocol)
    protocol = read_yaml(PROTOCOLS["table9"], Protocol)
    scale = Scale(recipe="", domains={"celebdf": "drawn:swap"})
    with pytest.raises(UserError, match="no domain 'deepfakeface'; it has celebdf"):
        plan(protocol, scale, RECIPES / "drawn.yaml", [0], tmp_path)
    scale = Scale(
        recipe="", domains={"celebdf": "drawn:swap", "deepfakeface": "drawn:swap", "wilddeepfake": "drawn:swap"}
    )
    with pytest.raises(UserError, match="max_steps: Input should be greater than or equal to 1"):
        plan(protocol, scale.model_copy(update={"set": {"max_steps": 0}}), RECIPES / "drawn.yaml", [0], tmp_path)
