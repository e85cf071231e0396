import numpy as np
import pandas as pd
import pytest

from gmdf_hf.evaluation.score_table import (
    read_about,
    read_scores,
    split_domains,
    split_methods,
    video_scores,
    write_scores,
)


def test_equal_names_are_different_videos():
    """In two domains, in two methods of one domain, and as a real and a fake one."""
    table = pd.DataFrame(
        {
            "domain": ["x", "x", "y", "y", "y", "y"],
            "method": ["real", "real", "Deepfakes", "real", "FaceSwap", "FaceSwap"],
            "video_id": ["000", "000", "000", "000", "000", "000"],
            "label": [0, 0, 1, 0, 1, 1],
            "score": [0.0, 0.5, 1.0, 0.2, 0.4, 0.6],
        }
    )
    videos = video_scores(table)
    assert videos[["domain", "method", "score"]].values.tolist() == [
        ["x", "real", 0.25],
        ["y", "Deepfakes", 1.0],
        ["y", "FaceSwap", 0.5],
        ["y", "real", 0.2],
    ]
    by_video = split_domains(table)["y"].by_video()
    assert sorted(zip(by_video.labels, by_video.scores, strict=True)) == [(0, 0.2), (1, 0.5), (1, 1.0)]
    assert len(video_scores(table.drop(columns="method"))) == 3


def test_domains_are_in_order_of_first_appearance():
    table = pd.DataFrame({"domain": list("bab"), "video_id": list("uuv"), "label": [0, 1, 1], "score": [0.1, 0.2, 0.3]})
    domains = split_domains(table)
    assert list(domains) == ["b", "a"]
    np.testing.assert_array_equal(domains["b"].scores, [0.1, 0.3])
    np.testing.assert_array_equal(domains["b"].videos, [0, 1])


def test_read_table_has_the_same_videos(tmp_path):
    table = pd.DataFrame({"domain": list("bab"), "video_id": list("uuv"), "label": [0, 1, 1], "score": [0.1, 0.2, 0.3]})
    table.to_parquet(tmp_path / "scores.parquet")
    read = read_scores(tmp_path / "scores.parquet")
    assert isinstance(read["video_id"].dtype, pd.CategoricalDtype)
    assert sorted(video_scores(read)["score"]) == sorted(video_scores(table)["score"])


def test_invalid_score_table_raises():
    with pytest.raises(ValueError, match="needs the column 'video_id', found"):
        split_domains(pd.DataFrame({"domain": ["x"], "label": [0], "score": [0.1]}))
    with pytest.raises(ValueError, match="needs rows, found none"):
        split_domains(pd.DataFrame({"domain": [], "video_id": [], "label": [], "score": []}))


def mixed_table() -> pd.DataFrame:
    """A domain with methods and one without, as they come together in one table."""
    return pd.concat(
        [
            pd.DataFrame({"domain": "x", "video_id": ["a", "a", "b"], "label": [0, 0, 1], "score": [0.1, 0.3, 0.9]}),
            pd.DataFrame(
                {
                    "domain": "y",
                    "video_id": ["a", "a", "a", "b"],
                    "label": [0, 1, 1, 1],
                    "score": [0.2, 0.4, 0.6, 0.8],
                    "method": ["real", "Deepfakes", "FaceSwap", ""],
                }
            ),
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize("read", [False, True])
def test_null_methods_keep_videos_apart(tmp_path, read):
    table = mixed_table()
    if read:
        table.to_parquet(tmp_path / "scores.parquet")
        table = read_scores(tmp_path / "scores.parquet")
    domains = split_domains(table)
    np.testing.assert_array_equal(domains["x"].videos, [0, 0, 1])
    np.testing.assert_array_equal(domains["x"].by_video().scores, [0.2, 0.9])
    np.testing.assert_array_equal(domains["y"].videos, [0, 1, 2, 3])
    assert sorted(video_scores(table)["score"]) == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 0.9])
    methods = split_methods(table)
    assert list(methods) == [("y", "Deepfakes"), ("y", "FaceSwap")]
    np.testing.assert_array_equal(methods["y", "FaceSwap"].labels, [0, 1])
    np.testing.assert_array_equal(methods["y", "FaceSwap"].scores, [0.2, 0.6])


def test_single_method_gives_no_method_auc():
    table = mixed_table()
    assert split_methods(table[table["method"] != "FaceSwap"]) == {}
    assert split_methods(table.drop(columns="method")) == {}


def test_a_table_says_what_made_it(tmp_path):
    table = pd.DataFrame({"domain": ["a"], "video_id": ["v"], "frame": [0], "label": [1], "score": [0.5]})
    write_scores(tmp_path / "scores.parquet", table, {"model": "user/name", "revision": "v1", "threshold": 0.4})
    about = {"schema_version": 1, "model": "user/name", "revision": "v1", "threshold": 0.4}
    assert read_about(tmp_path / "scores.parquet") == about
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "scores.parquet"), table)
    table.to_parquet(tmp_path / "old.parquet")
    assert read_about(tmp_path / "old.parquet") == {}
