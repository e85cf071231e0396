from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from gmdf_hf.evaluation.report import caveat, data_rows, markdown_table, print_results, public_recipe, write_model_card
from gmdf_hf.preparation.manifests import manifest_digest

TEMPLATE = Path(__file__).parents[2] / "model_card.md"
FIGURES = {"real": 3, "fake": 5, "acc": 0.5, "auc": 0.75, "ap": 0.8, "eer": 0.25, "m": 0.3}
RESULTS = {
    "method": "gmdf",
    "seed": 0,
    "steps": 7,
    "images": 70,
    "train_seconds": 1.5,
    "threshold": 0.4321,
    "source_domains": ["x", "y"],
    "unseen_domains": ["z"],
    "skipped": 2,
    "domains": {"x": {"frame": FIGURES, "video": FIGURES}, "z": {"frame": FIGURES | {"m": 0.41}, "video": FIGURES}},
}


def test_table_has_one_row_per_domain():
    lines = markdown_table(RESULTS).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| x | source | 8 | 50.00 | 75.00 | 25.00 | 30.00 | 75.00 |"
    assert lines[3].startswith("| z | unseen |")


def test_unreadable_domain_has_a_row_without_metrics():
    rows = markdown_table(RESULTS | {"unread_domains": ["y", "w"], "unseen_domains": ["z", "w"]}).splitlines()
    assert rows[-2:] == ["| y | source | 0 | - | - | - | - | - |", "| w | unseen | 0 | - | - | - | - | - |"]


def test_printed_results_name_the_worst_domain(capsys):
    print_results(RESULTS)
    printed = capsys.readouterr().out
    assert "M_EER, the worst domain (Eq. 13): 41.00 %" in printed
    assert "2 unreadable ones skipped" in printed


def test_model_card_is_filled_and_valid(tmp_path):
    recipe = {"seed": 0, "source_domains": {"x": "drawn:swap"}}
    for drawn in (True, False):
        write_model_card(TEMPLATE, tmp_path, RESULTS, recipe, 64, "gmdf", drawn)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license == "apache-2.0"
        assert card.data.pipeline_tag == "image-classification"
        assert "{{" not in card.content
        assert "{%" not in card.content
        assert markdown_table(RESULTS) in card.content
        assert yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0]) == recipe
        first = card.text.strip().splitlines()[2]
        assert ("Trained on drawings, not on photographs" in first) is drawn
        assert "Trained on drawings, not photographs (x); it demonstrates the software" in card.text


def test_public_recipe_has_no_local_directories():
    recipe = {
        "source_domains": {"x": {"path": "/home/me/faces", "splits": {}}, "y": "user/faces"},
        "backbone": "~/clip",
        "output_dir": "runs/x",
        "windows": "C:\\Users\\me\\faces",
        "hold_out": ("../up/z",),
        "learning_rate": 0.1,
    }
    assert public_recipe(recipe) == {
        "source_domains": {"x": {"path": "faces", "splits": {}}, "y": "user/faces"},
        "backbone": "clip",
        "output_dir": "runs/x",
        "windows": "faces",
        "hold_out": ["z"],
        "learning_rate": 0.1,
    }


@pytest.mark.parametrize(
    ("sources", "drawn", "words"),
    [
        ({"x": "drawn:swap"}, True, "Trained on drawings"),
        ({"x": "/data/for/tests/faces/dfdc"}, False, "small set of test data"),
        ({"x": {"path": "user/faces", "splits": {"train": "test"}}}, False, "test split"),
        ({"x": {"path": "user/faces", "splits": {"test": "test"}}}, False, None),
        ({"x": "user/faces", "held": {"path": "user/other", "splits": {"train": "test"}}}, False, None),
    ],
)
def test_card_warns_of_drawings_and_test_data(monkeypatch, sources, drawn, words):
    monkeypatch.setenv("GMDF_REAL_DATA", "/data/for/tests")
    found = caveat({"source_domains": sources, "hold_out": ["held"]}, drawn)
    assert found is None if words is None else words in found


def test_data_rows_identify_training_data(tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "1.png").write_bytes(b"x")
    pinned = {"path": "user/faces", "revision": "abc"}
    rows = data_rows({"source_domains": {"x": str(tmp_path / "faces"), "y": pinned, "z": "drawn:swap"}})
    assert rows[0] == ("x", "faces", f"sha256 of the manifest {manifest_digest(tmp_path / 'faces')}")
    assert rows[1] == ("y", "user/faces", "revision abc")
    assert rows[2][2].startswith("drawn by gmdf-hf ")
