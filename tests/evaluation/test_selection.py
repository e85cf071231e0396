import pandas as pd
import pytest

from gmdf_hf.common.errors import DomainError
from gmdf_hf.evaluation.selection import select


def scores_of(**domains) -> pd.DataFrame:
    """A row a frame; a domain is given as pairs of label and score."""
    rows = [(name, str(i), i, *pair, True) for name, pairs in domains.items() for i, pair in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["domain", "video_id", "frame", "label", "score", "face_found"])


def test_selection_averages_domains_and_pools_the_threshold():
    large = [(0, 0.1)] * 30 + [(1, 0.9)] * 30  # AUC 1
    small = [(0, 0.8), (1, 0.2)]  # AUC 0
    auc, threshold = select(scores_of(large=large, small=small), ["large", "small"])
    assert auc == 0.5
    assert 0.1 < threshold <= 0.9


@pytest.mark.parametrize(("left", "found"), [([(1, 0.5)] * 3, "0 real and 3 fake"), ([], "0 real and 0 fake")])
def test_domain_without_readable_class_raises(left, found):
    scores = scores_of(a=[(0, 0.1), (1, 0.9)], b=left)
    with pytest.raises(DomainError, match=f"Domain 'b', split 'validation'.*found {found}"):
        select(scores, ["a", "b"])
