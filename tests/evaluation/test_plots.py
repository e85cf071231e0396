import numpy as np
import pytest
from PIL import Image

from gmdf_hf.evaluation import plots
from gmdf_hf.evaluation.score_table import DomainScores


def scores(seed: int, frames: int = 200) -> DomainScores:
    rng = np.random.default_rng(seed)
    labels = np.arange(frames) % 2
    return DomainScores(labels, np.clip(0.3 + 0.4 * labels + 0.3 * rng.normal(size=frames), 0, 1), np.arange(frames))


def test_roc_curves_contain_their_points():
    samples = scores(0)
    only_fakes = DomainScores(np.ones(4, int), np.linspace(0, 1, 4), np.arange(4))
    figure = plots.roc_curves({"x": {"ours": samples, "theirs": scores(1)}, "y": {"ours": only_fakes}})
    first, second = figure.axes[:2]
    assert [line.get_label().rsplit(" ", 1)[0] for line in first.lines[1:]] == ["ours", "theirs"]
    for false_fake, found in zip(*first.lines[1].get_data(), strict=True):
        gaps = [
            abs((samples.scores[samples.labels == 0] >= t).mean() - false_fake)
            + abs((samples.scores[samples.labels == 1] >= t).mean() - found)
            for t in [*samples.scores, 2]
        ]
        assert min(gaps) < 1e-9
    assert len(second.lines) == 1  # one class has no curve


def test_reliability_points_match_bin_fractions():
    samples = DomainScores(np.array([0, 1, 1, 1]), np.array([0.1, 0.1, 0.95, 0.99]), np.arange(4))
    (points,) = plots.reliability({"x": samples}).axes[0].collections
    np.testing.assert_allclose(points.get_offsets(), [[0.1, 0.5], [0.97, 1.0]])


def test_histograms_are_normalised_per_class():
    axis = plots.score_histograms({"x": scores(0)}, 0.4).axes[0]
    heights = np.array([patch.get_height() for patch in axis.patches]).reshape(2, 30)
    np.testing.assert_allclose(heights.sum(1), 100)
    assert axis.lines[0].get_xdata()[0] == 0.4


@pytest.mark.parametrize("panels", [1, 4, 5, 9])
def test_every_domain_has_a_panel(panels, tmp_path):
    figure = plots.score_histograms({str(number): scores(number) for number in range(panels)}, 0.5)
    assert sum(axis.axison for axis in figure.axes) == panels
    plots.save(figure, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5  # not blank


def test_bars_label_missing_rows():
    none = np.nan
    means, paper = np.array([[50, 60], [none, none]]), np.array([[none, 61], [none, none]])
    figure = plots.bars(["a", "b"], ["x", "y"], means, np.full((2, 2), none), paper)
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["not run", "not run"]
    assert [patch.get_width() for patch in figure.axes[0].patches] == [50, 0]


def test_lines_and_attention_grid_have_all_elements():
    figure = plots.lines(["a", "b"], ["1", "2", "3"], np.ones((2, 3)), np.ones((2, 3)), "AUC", "title")
    assert len(figure.axes[0].containers) == 2
    faces = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    figure = plots.attention_grid(faces, ["x, real", "x, fake"], {"last": np.random.default_rng(0).random((2, 4, 4))})
    assert len(figure.axes) == 4
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 2, 2]
