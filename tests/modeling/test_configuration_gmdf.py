"""The configuration of a detector: what it refuses, and what is read from it."""

import json
from pathlib import Path

import pytest

import gmdf_hf
from gmdf_hf import GMDFConfig
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dil": "film"}, "'dil' expected one of"),
        ({"aggregation": "max"}, "'aggregation' expected one of"),
        ({"prompt": "P8"}, "'prompt' expected one of"),
        ({"domains": ["a", "a"]}, "distinct names"),
        ({"domains": []}, "at least one"),
        ({"domains": "ab"}, "expected a list, got str"),
        ({"mask_ratio": 1.0}, "between 0 and 1, found 1.0"),
        ({"num_labels": 3}, "two classes"),
        ({"prompt_size": 6}, "multiple of `num_prompt_tokens`"),
        ({"prompt_ids": [[1, 2], [3, 400]]}, r"must lie in \[0, 99\)"),
        ({"expert_bottleneck_size": 0}, "at least 1, found 0"),
    ],
)
def test_wrong_configurations_are_named(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_configuration_round_trip(tmp_path):
    config = tiny_config(dil="cross_attention", id2label={0: "genuine", 1: "forged"}, mask_strategy="block")
    config.save_pretrained(tmp_path)
    loaded = GMDFConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.id2label == {0: "genuine", 1: "forged"}
    assert GMDFConfig().id2label == GMDFConfig(num_labels=2).id2label == {0: "real", 1: "fake"}
    assert GMDFConfig().num_labels == 2


def test_every_field_of_the_configuration_is_read():
    """Every option has an effect: each field's name occurs in the code outside of its definition."""
    package = Path(gmdf_hf.__file__).parent
    readers = [path for path in (package / "modeling").glob("*_gmdf.py") if "configuration" not in path.name]
    code = "".join(
        path.read_text() for path in [*readers, package / "data" / "episodes.py", package / "scripts" / "meta_train.py"]
    )
    fields = set(json.loads(GMDFConfig().to_json_string(use_diff=False))) & set(GMDFConfig.__dataclass_fields__)
    own = [name for name in GMDFConfig.__annotations__ if name in fields]
    assert len(own) > 12
    for name in own:
        read = name.removesuffix("_config")  # `vision` and `text` are the sub-configurations as objects
        assert f"config.{read}" in code or f"{name}=" in code, name
