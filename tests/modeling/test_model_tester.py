"""transformers' own tests of a model class, its `ModelTesterMixin`, on a tiny detector.

They are only in the source distribution of transformers. `.ci/run` unpacks it; `TRANSFORMERS_TESTS` is its folder
`tests`.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import pytest
import torch

from gmdf_hf import GMDFConfig, GMDFModel
from tests.conftest import tiny_config

FOLDER = os.environ.get("TRANSFORMERS_TESTS")
if not FOLDER:
    pytest.skip("TRANSFORMERS_TESTS is not set: it names the tests of transformers' sources", allow_module_level=True)
pytest.importorskip("parameterized")


def model_tester_mixin() -> type:
    """Import the mixin from the unpacked sources; the modules that the distribution leaves out become empty classes."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(Path(FOLDER or ""))]
    sys.modules["transformers_tests"] = package
    for module, name in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        stub = types.ModuleType(f"transformers_tests.{module}")
        setattr(stub, name, type(name, (), {}))
        sys.modules[f"transformers_tests.{module.split('.')[0]}"] = types.ModuleType(module)
        sys.modules[f"transformers_tests.{module}"] = stub
    return importlib.import_module("transformers_tests.test_modeling_common").ModelTesterMixin


class DetectorTester:
    """What the mixin asks of a model's test: a configuration and inputs."""

    batch_size, is_training, image_size, patch_size = 3, True, 32, 8
    seq_length, num_masks, mask_length = 17, 4, 16  # 16 patches and the class token
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.fields: dict[str, Any] = {}

    def prepare_config_and_inputs_for_common(self) -> tuple[GMDFConfig, dict[str, Any]]:
        """A tiny detector's configuration, and images."""
        return tiny_config(**self.fields), {"pixel_values": torch.randn(self.batch_size, 3, 32, 32)}


class TestDetector(model_tester_mixin(), unittest.TestCase):  # type: ignore[misc]
    """The mixin's tests."""

    all_model_classes = (GMDFModel,)
    has_attentions = True
    is_encoder_decoder = False
    test_resize_embeddings = False

    def setUp(self) -> None:
        """Make the tester."""
        self.model_tester = DetectorTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # The mixin adds labels only for the classes that it knows.
        labels = {"labels": torch.tensor([0, 1, 1])} if return_labels else {}
        return super()._prepare_for_class(inputs_dict, model_class) | labels

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        """The classification loss does not reach the masked-image head, which the slim form lacks."""
        self.model_tester.fields = {"slim": True}
        super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    @unittest.skip("images have no table of embeddings")
    def test_model_get_set_embeddings(self):
        """Skipped."""

    @unittest.skip("a checkpoint that lacks its weights is refused, not filled at random")
    def test_model_weights_reload_no_missing_tied_weights(self):
        """Skipped."""
