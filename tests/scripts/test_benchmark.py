"""The literal reference of the benchmark is correct, and the benchmark runs."""

import json
from pathlib import Path

import pytest
import torch

from gmdf_hf.scripts.benchmark_literal import frechet, views_attended
from gmdf_hf.training.losses import alignment_loss
from tests import processes
from tests.conftest import tiny_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_the_literal_attention_equals_the_reduced_one(aggregation):
    experts = tiny_model(aggregation=aggregation).vision_model.encoder.layers[0].experts
    views = torch.randn(10, 3, 8)
    for ours, literal in zip(experts._aggregate(views), views_attended(experts, views), strict=True):
        torch.testing.assert_close(ours, literal, atol=1e-5, rtol=1e-4)


def test_the_literal_distance_is_that_of_the_nuclear_norm():
    source, target = torch.randn(12, 6), torch.randn(9, 6) * 2 + 1
    assert float(frechet(source, target)) == pytest.approx(float(alignment_loss([source], target)), rel=1e-4)


@pytest.mark.slow
def test_every_figure_is_a_line_of_json():
    done = processes.run(ROOT / "scripts" / "benchmark.py", "--backbone", "tiny", "--repeats", "1", check=True)
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(figures) == 10
    assert all(figure["value"] > 0 and figure["backbone"] == "tiny" and figure["goal"] for figure in figures)
