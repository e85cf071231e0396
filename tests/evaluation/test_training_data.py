"""The record of a model's training data, and the line that shows it."""

from types import SimpleNamespace

import pytest

from gmdf_hf import GMDFConfig
from gmdf_hf.evaluation.training_data import describe_training, training_data
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("recipe", "record", "words"),
    [
        ({"source_domains": {"swap": "drawn:swap", "x": "/data/x"}}, ("drawn", "none"), "drawings, not photographs"),
        ({"source_domains": {"x": {"path": "/tests/faces/x"}}}, ("test data", "none"), "a small set of test data (x)"),
        (
            {"source_domains": {"x": "user/x"}},
            ("real", "source"),
            "real data (x); scored on the domains of its",
        ),
        (
            {"source_domains": {"x": "user/x", "y": "user/y"}, "hold_out": ["y"]},
            ("real", "unseen"),
            "real data (x); scored on domains left out",
        ),
    ],
)
def test_the_record_travels_with_the_configuration(recipe, record, words, monkeypatch, tmp_path):
    monkeypatch.setenv("GMDF_REAL_DATA", "/tests")
    found = training_data(recipe)
    assert (found["kind"], found["evidence"]) == record
    tiny_config(training_data=found).save_pretrained(tmp_path)
    assert words in describe_training(GMDFConfig.from_pretrained(tmp_path))


def test_a_model_without_a_record_says_what_is_known():
    assert describe_training(SimpleNamespace()).startswith("unknown")
    assert describe_training(SimpleNamespace(domains=["swap", "inpaint"])).startswith("drawings, by the names")
    assert "not recorded" in describe_training(SimpleNamespace(domains=["swap", "dfdc"]))
    assert "evidence not recorded" in describe_training(SimpleNamespace(training_data={"kind": 3}, domains=["x"]))
