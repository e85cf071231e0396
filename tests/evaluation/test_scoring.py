import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from gmdf_hf.common.labels import fake_class
from gmdf_hf.data.dataset import Domain, load_domain
from gmdf_hf.evaluation.scoring import fixed_batches, score_domain
from gmdf_hf.modeling import GMDFImageProcessor
from tests.conftest import tiny_model
from tests.domains import write_domain, write_methods


@pytest.fixture
def domain(tmp_path, monkeypatch) -> Domain:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return load_domain("x", "train", write_domain(tmp_path / "x", 3, broken=(2, 5)))


def shuffled(domain: Domain, seed: int) -> Domain:
    order = np.random.default_rng(seed).permutation(len(domain))
    return Domain(
        name=domain.name,
        split=domain.split,
        frames=domain.frames.select(order),
        labels=domain.labels[order],
        video_ids=[domain.video_ids[row] for row in order],
        frame_numbers=domain.frame_numbers[order],
        groups=[domain.groups[row] for row in order],
        captions=None,
    )


@pytest.mark.parametrize(
    ("names", "fake_label", "fake"),
    [
        ({0: "real", 1: "fake"}, None, 1),
        ({0: "Fake", 1: "Real"}, None, 0),
        ({0: "Deep-Fake", 1: "REALISM"}, None, 0),
        ({"0": "human", "1": "artificial"}, None, 1),
        ({0: "LABEL_0", 1: "LABEL_1"}, "LABEL_0", 0),
    ],
)
def test_fake_class_from_class_names(names, fake_label, fake):
    assert fake_class(names, fake_label) == fake


@pytest.mark.parametrize(
    ("names", "fake_label", "message"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, None, "do not tell real from fake"),
        ({0: "fake", 1: "deepfake"}, None, "do not tell real from fake"),
        ({0: "real", 1: "swap", 2: "reenact"}, None, "needs two classes, real and fake, found"),
        ({0: "real", 1: "fake"}, "ai", r"one of the model's \['real', 'fake'\], found 'ai'"),
    ],
)
def test_ambiguous_class_names_raise(names, fake_label, message):
    with pytest.raises(ValueError, match=message):
        fake_class(names, fake_label)


def test_scores_are_bitwise_independent_of_data_order(domain):
    """Also where two frames of a video have the same number: then their bytes order them."""
    domain.frame_numbers[:] = 0
    model, processor = tiny_model(), GMDFImageProcessor.of_size(32)
    table, skipped = score_domain(model, domain, processor, batch_size=3)
    assert len(table) == 14
    assert {item.row for item in skipped} == {2, 5}
    assert table["video_id"].is_monotonic_increasing
    for seed in range(3):
        other, _ = score_domain(model, shuffled(domain, seed), processor, batch_size=3)
        pd.testing.assert_frame_equal(other, table, check_exact=True)


def test_each_frame_gets_its_own_score(domain):
    """Whatever the batch size, unreadable frames in between."""
    model, processor = tiny_model(), GMDFImageProcessor.of_size(32)
    table = score_domain(model, domain, processor, batch_size=16)[0]
    rows = [row for rows in fixed_batches(domain, 1) for row in rows if row not in (2, 5)]
    for row, score in zip(rows, table["score"], strict=True):
        image = datasets.Image().decode_example(domain.frames[row]["image"])
        with torch.no_grad():
            logits = model(**processor(images=image, return_tensors="pt")).logits
        assert score == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-5)
    assert table["score"].nunique() == 14


def test_all_batches_have_one_size(domain):
    sizes = []
    model = tiny_model()
    model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True)
    score_domain(model, domain, GMDFImageProcessor.of_size(32), batch_size=5)
    assert sizes == [5, 5, 5, 5]


def test_extreme_scores_do_not_tie(domain):
    class Sure(torch.nn.Linear):
        def forward(self, pixel_values):
            level = 20 + pixel_values.mean((1, 2, 3))
            return type("Output", (), {"logits": torch.stack([torch.zeros_like(level), level], 1)})

    table = score_domain(Sure(1, 1), domain, GMDFImageProcessor.of_size(32))[0]
    assert table["score"].nunique() == 14


def test_methods_are_a_column_and_sort_key(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load = lambda name, order: load_domain("m", "test", write_methods(tmp_path / name, order))  # noqa: E731
    table, _ = score_domain(tiny_model(), load("m", None), GMDFImageProcessor.of_size(32), batch_size=4)
    assert table["method"].tolist() == (["Deepfakes"] * 3 + ["FaceSwap"] * 3 + ["real"] * 3) * 2
    order = np.random.default_rng(0).permutation(18)
    other, _ = score_domain(tiny_model(), load("n", order), GMDFImageProcessor.of_size(32), batch_size=4)
    pd.testing.assert_frame_equal(other, table, check_exact=True)
