import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from gmdf_hf.evaluation.comparison import auc_replicates, compare
from gmdf_hf.evaluation.intervals import measure


def draw_tables(gain: float, seeds: int, first_seed: int = 0, videos: int = 120) -> list[pd.DataFrame]:
    """Runs on the same videos, whose hardness all runs share; a higher gain tells the classes better apart."""
    hardness = np.random.default_rng(99).normal(size=(2, videos))
    tables = []
    for seed in range(first_seed, first_seed + seeds):
        rng = np.random.default_rng(seed)
        parts = []
        for number, name in enumerate(("x", "y")):
            labels = np.repeat(np.arange(videos) % 2, 3)
            values = np.repeat(hardness[number], 3) + gain * labels + 0.3 * rng.normal(size=3 * videos)
            ids = np.repeat([f"{video:03}" for video in range(videos)], 3)
            scores = (1 / (1 + np.exp(-values))).round(3)
            parts.append(pd.DataFrame({"domain": name, "video_id": ids, "label": labels, "score": scores}))
        tables.append(pd.concat(parts, ignore_index=True).sample(frac=1, random_state=seed))
    return tables


def test_auc_matches_scikit_learn_and_tables_share_draws():
    tables = draw_tables(1.0, 2)
    means, drawn = auc_replicates([*tables, tables[0]], ["x", "y"], replicates=70)
    for table, mean in zip(tables, means, strict=False):
        parts = [roc_auc_score(of["label"], of["score"]) for _, of in table.groupby("domain")]
        assert mean == pytest.approx(np.mean(parts))
    assert drawn.shape == (3, 70)
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert np.corrcoef(drawn[0], drawn[1])[0, 1] > 0.9


def test_interval_of_one_run_matches_measure():
    (table,) = draw_tables(1.0, 1)
    _, drawn = auc_replicates([table], ["x"], replicates=1000)
    expected = measure(table, replicates=1000)["intervals"]["domains"]["x"]["frame"]["auc"]
    np.testing.assert_allclose(np.quantile(drawn[0], [0.025, 0.975]), expected, atol=0.01)


def test_paired_difference_is_significant_with_overlapping_intervals():
    found = compare([(draw_tables(1.3, 3), draw_tables(0.9, 3, first_seed=10), ["x", "y"])], replicates=300)
    assert found.difference.value == pytest.approx(found.method.value - found.other.value)
    assert found.method.interval[0] < found.other.interval[1]
    assert 0 < found.difference.interval[0] < found.difference.value < found.difference.interval[1]
    again = compare([(draw_tables(1.3, 3), draw_tables(0.9, 3, first_seed=10), ["x", "y"])], replicates=300)
    assert again == found


def test_mean_over_settings_has_narrower_interval():
    settings = [(draw_tables(1.3, 2), draw_tables(0.9, 2, first_seed=10), [domain]) for domain in ("x", "y")]
    alone = [compare([setting], replicates=300) for setting in settings]
    both = compare(iter(settings), replicates=300)
    for name in ("method", "other", "difference"):
        assert getattr(both, name).value == pytest.approx(np.mean([getattr(found, name).value for found in alone]))
    widths = [found.method.interval[1] - found.method.interval[0] for found in (*alone, both)]
    assert widths[2] < 0.85 * min(widths[:2])  # the domains are drawn independently of each other
    same = compare([settings[0], settings[0]], replicates=300).method.interval
    assert same[1] - same[0] > 0.9 * widths[0]  # the same videos are drawn wherever a domain stands


def test_equal_tables_have_zero_difference():
    found = compare([(draw_tables(1.0, 3), draw_tables(1.0, 3, first_seed=10), ["x"])], replicates=300)
    low, high = found.difference.interval
    assert low < 0 < high


def test_seeds_widen_the_interval():
    apart = [draw_tables(0.6, 1)[0], draw_tables(1.4, 1)[0]]
    alike = [draw_tables(1.0, 1)[0], draw_tables(1.0, 1)[0]]
    wide, narrow = (compare([(tables, tables, ["x"])], replicates=300).method.interval for tables in (apart, alike))
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def test_comparison_of_different_videos_raises():
    table, other = draw_tables(1.0, 2)
    with pytest.raises(ValueError, match="hold different videos of domain 'x'"):
        compare([([table], [other[other["video_id"] != "003"]], ["x"])])
    with pytest.raises(ValueError, match="has no domain 'z'"):
        compare([([table], [other], ["z"])])


def test_tables_with_and_without_methods_are_comparable():
    """Scores from before a data set named its methods, or of domains that have none."""
    first, second = draw_tables(1.0, 2)
    plain, _ = auc_replicates([first, second], ["x"], replicates=10)
    mixed, _ = auc_replicates([first.assign(method="m"), second], ["x"], replicates=10)
    assert mixed.tolist() == plain.tolist()
