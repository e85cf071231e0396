from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from gmdf_hf.evaluation import intervals
from gmdf_hf.evaluation.intervals import RATES, measure, point_figures
from gmdf_hf.evaluation.metrics import binary_metrics
from gmdf_hf.evaluation.score_table import DomainScores


def draw_table(
    videos: int = 60, frames: int = 5, domains: tuple[str, ...] = ("x", "y"), digits: int = 2, seed: int = 0
):
    """Scores with a part that a video's frames share, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    parts = []
    for shift, name in enumerate(domains):
        labels = np.repeat(np.arange(videos) % 2, frames)
        common = np.repeat(rng.normal(size=videos), frames)
        values = common + labels + 0.3 * shift + 0.7 * rng.normal(size=len(labels))
        scores = (1 / (1 + np.exp(-values))).round(digits)
        ids = np.repeat([f"{number:03}" for number in range(videos)], frames)
        parts.append(pd.DataFrame({"domain": name, "video_id": ids, "label": labels, "score": scores}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("threshold", [0.37, 0.5, 1.5])
def test_replicate_matches_table_of_drawn_videos(threshold):
    """The histograms' figures are those of a table in which each drawn video stands as often as it was drawn."""
    table = draw_table(domains=("x",))
    samples = DomainScores(
        table["label"].to_numpy(), table["score"].to_numpy(), pd.factorize(table["video_id"])[0].astype(int)
    )
    edges = intervals.bin_edges([samples], threshold)
    binned = intervals.bin_samples(samples, edges)
    rng = np.random.default_rng(1)
    weights = [intervals.draw_weights(30, 4, rng) for _ in range(2)]
    assert all((of_class.sum(0) == 30).all() for of_class in weights)
    histograms = [(counts @ of_class).astype(float) for counts, of_class in zip(binned.counts, weights, strict=True)]
    found = intervals._figures(*histograms, binned, edges, threshold, None)
    for replicate in range(4):
        times = np.zeros(60, dtype=int)
        for label in (0, 1):
            numbers = pd.unique(samples.videos[samples.labels == label])
            times[numbers] = weights[label][:, replicate]
        rows = np.repeat(np.arange(len(table)), times[samples.videos])
        expected = asdict(binary_metrics(samples.labels[rows], samples.scores[rows], threshold))
        for rate in RATES:
            assert found[rate][replicate] == pytest.approx(expected[rate], abs=1e-6), rate


def test_intervals_contain_point_estimate_and_are_deterministic():
    table = draw_table()
    figures = measure(table, threshold=0.6, replicates=200)
    assert {key: figures[key] for key in figures if key not in ("intervals", "coverage")} == point_figures(table, 0.6)
    found = figures["intervals"]
    for level in ("frame", "video"):
        for name in ("x", "y"):
            for rate in set(RATES) - {"ece"}:  # a resampled calibration error is larger: noise counts as error
                low, high = found["domains"][name][level][rate]
                assert low <= figures["domains"][name][level][rate] <= high, (name, level, rate)
                assert low < high
            low, high = found["cross_auc"][level][name]["x"]
            assert low < figures["cross_auc"][level][name]["x"] < high
        for key in ("pooled_auc", "m_eer"):
            low, high = found[key][level]
            assert low <= figures[key][level] <= high
    assert measure(table, threshold=0.6, replicates=200) == figures
    other_order = table.sample(frac=1, random_state=0).sort_values(["domain", "video_id"])
    again = measure(other_order, threshold=0.6, replicates=200)["intervals"]
    for rate in RATES:
        assert again["domains"]["x"]["frame"][rate] == pytest.approx(found["domains"]["x"]["frame"][rate])


def test_interval_of_a_fraction_matches_normal_approximation():
    """Accuracy of videos of one frame: a mean of independent hits, whose interval has a closed form."""
    table = draw_table(videos=800, frames=1, domains=("x",))
    figures = measure(table, replicates=1000)
    accuracy = figures["domains"]["x"]["frame"]
    spread = np.sqrt((accuracy["fpr"] * (1 - accuracy["fpr"]) + accuracy["fnr"] * (1 - accuracy["fnr"])) / 2 / 800)
    low, high = figures["intervals"]["domains"]["x"]["frame"]["acc"]
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_correlated_frames_widen_the_interval():
    table = draw_table(frames=20)
    whole = measure(table, replicates=300)["intervals"]["domains"]["x"]["frame"]["auc"]
    lone = measure(table.assign(video_id=[str(row) for row in range(len(table))]), replicates=300)
    low, high = lone["intervals"]["domains"]["x"]["frame"]["auc"]
    assert whole[1] - whole[0] > 2 * (high - low)


def test_binning_barely_changes_intervals(monkeypatch):
    table = draw_table(videos=200, digits=12)
    exact = measure(table, replicates=1000)["intervals"]
    monkeypatch.setattr(intervals, "MAX_BINS", 200)
    binned = measure(table, replicates=1000)["intervals"]
    for level in ("frame", "video"):
        for rate in RATES:
            ends = binned["domains"]["x"][level][rate]
            assert ends == pytest.approx(exact["domains"]["x"][level][rate], abs=0.012), rate
        assert binned["pooled_auc"][level] == pytest.approx(exact["pooled_auc"][level], abs=0.006)


def test_domain_of_one_class_keeps_intervals_of_others():
    table = draw_table()
    table = table[(table["domain"] == "x") | (table["label"] == 1)]
    with pytest.warns(UserWarning, match="'y' has 0 real"):
        figures = measure(table, replicates=20)
    assert np.isnan(figures["intervals"]["domains"]["y"]["frame"]["auc"]).all()
    assert np.isnan(figures["intervals"]["m_eer"]["frame"]).all()
    assert np.isfinite(figures["intervals"]["domains"]["x"]["video"]["auc"]).all()


def test_too_few_replicates_raise():
    with pytest.raises(ValueError, match="at least 2, found 1"):
        measure(draw_table(), replicates=1)


def test_drawing_bins_matches_drawing_single_frame_videos():
    """Mean and spread of every bin are the multinomial's, and so are they when whole videos are drawn."""
    counts = csr_array(np.repeat(np.eye(3), [5, 1, 14], axis=1).astype(np.float32))
    draws = intervals.draw_histograms(counts, 20_000, np.random.default_rng(0))
    weights = counts @ intervals.draw_weights(20, 20_000, np.random.default_rng(1))
    shares = np.array([5, 1, 14]) / 20
    for drawn in (draws, weights):
        assert (drawn.sum(0) == 20).all()
        np.testing.assert_allclose(drawn.mean(1), 20 * shares, rtol=0.02)
        np.testing.assert_allclose(drawn.var(1), 20 * shares * (1 - shares), rtol=0.05)
    twice = intervals.draw_histograms(2 * counts, 50, np.random.default_rng(0))
    assert (twice % 2 == 0).all()  # two frames of a video come and go together


def test_method_intervals_contain_point_estimate_and_leave_others_unchanged():
    table = draw_table(digits=12)  # no ties, which the last bit of a mean would decide
    number = table["video_id"].astype(int)
    methods = np.where(table["label"] == 0, "real", np.where(number % 4 == 1, "a", "b"))
    plain = measure(table, replicates=100)
    figures = measure(table.assign(method=methods), replicates=100)
    forgeries = figures.pop("method_auc"), figures["intervals"].pop("method_auc")
    assert plain.pop("method_auc") == plain["intervals"].pop("method_auc") == {"frame": {}, "video": {}}
    assert figures == plain
    exact, ends = forgeries
    for level in ("frame", "video"):
        for name in ("x", "y"):
            assert list(exact[level][name]) == list(ends[level][name]) == ["a", "b"]
            for method, value in exact[level][name].items():
                low, high = ends[level][name][method]
                assert low < value < high
    # A forgery's own table, measured alone, has nearly the same interval.
    alone = measure(table[(methods != "a") & (table["domain"] == "x")], replicates=1000)
    whole = measure(table.assign(method=methods), replicates=1000)["intervals"]["method_auc"]["video"]["x"]["b"]
    assert whole == pytest.approx(alone["intervals"]["domains"]["x"]["video"]["auc"], abs=0.03)


def test_one_class_everywhere_gives_nan_without_error():
    table = draw_table(domains=("x",))
    with pytest.warns(UserWarning, match="'x' has 0 real"):
        figures = measure(table[table["label"] == 1], replicates=20)
    assert np.isnan(figures["pooled_auc"]["frame"]) and np.isnan(figures["m_eer"]["video"])
    assert np.isnan(figures["intervals"]["pooled_auc"]["frame"]).all()
    assert 0 <= figures["domains"]["x"]["frame"]["acc"] <= 1
