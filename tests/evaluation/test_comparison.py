import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from gmdf_hf.evaluation.comparison import auc_replicates, compare, delong, difference_table, holm
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


def slow_delong(labels, one, other):
    """The estimator of DeLong et al., pair by pair."""
    components = []
    for scores in (one, other):
        fake, real = scores[labels == 1], scores[labels == 0]
        wins = np.array([[1.0 if f > r else 0.5 if f == r else 0.0 for r in real] for f in fake])
        components.append((wins.mean(1), wins.mean(0), wins.mean()))
    (fake_1, real_1, auc_1), (fake_2, real_2, auc_2) = components
    variance = np.cov(fake_1, fake_2) / len(fake_1) + np.cov(real_1, real_2) / len(real_1)
    z = (auc_1 - auc_2) / np.sqrt(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1])
    return 2 * norm.sf(abs(z))


@pytest.mark.parametrize("steps", [1000, 10])
def test_delong_against_a_loop(steps):
    rng = np.random.default_rng(steps)
    labels = rng.permutation(np.repeat([0, 1], [40, 30]))
    base = rng.normal(size=70)
    one, other = (np.round((base + labels * gap + rng.normal(size=70)) * steps) / steps for gap in (1.5, 0.5))
    assert delong(labels, one, other) == pytest.approx(slow_delong(labels, one, other))
    assert delong(labels, one, one) == 1.0


def test_delong_is_uniform_where_methods_are_equal():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    values = []
    for _ in range(400):
        base = rng.normal(size=200) + labels
        values.append(delong(labels, base + rng.normal(size=200), base + rng.normal(size=200)))
    assert 0.02 <= np.mean(np.asarray(values) < 0.05) <= 0.09


def test_holm_against_its_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_the_table_of_differences_corrects_for_all_rows():
    (first,), (other,), (third,) = draw_tables(1.5, 1), draw_tables(0.8, 1, 1), draw_tables(1.5, 1, 2)
    third = third[third["domain"] == "x"]
    missing = third[third["video_id"] != "001"]
    rows, notes = difference_table(first, {"other": other, "third": third, "missing": missing}, 50)
    assert [row[:2] for row in rows[1:]] == [["x", "other"], ["y", "other"], ["x", "third"]] or len(rows) == 4
    p_values, adjusted = ([float(row[column]) for row in rows[1:]] for column in (4, 5))
    assert adjusted == pytest.approx(holm(p_values), rel=0.05)
    assert all(high >= low for low, high in zip(p_values, adjusted, strict=True))
    assert len(notes) == 1 and "missing: The score tables hold different videos" in notes[0]
