"""Score tables of other programs."""

from pathlib import Path

import pytest

from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.evaluation.foreign_scores import read_foreign_scores
from tests.scripts.command import gmdf


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_two_columns_are_enough(tmp_path):
    table = read_foreign_scores(write(tmp_path / "a.csv", "label,score\nFAKE,0.9\nreal,0.2\nreal,\n"))
    assert table["label"].tolist() == [1, 0, 0] and table["video_id"].tolist() == ["0", "1", "2"]
    assert table["face_found"].tolist() == [True, True, False] and set(table["domain"]) == {"scores"}


def test_all_columns_are_kept(tmp_path):
    text = "domain,video_id,method,label,score\nx,007,swap,1,0.9\nx,007,swap,1,0.7\ny,1,,0,0.1\n"
    table = read_foreign_scores(write(tmp_path / "a.csv", text))
    assert table["video_id"].tolist() == ["007", "007", "1"] and table["frame"].tolist() == [0, 1, 0]
    assert table["method"].tolist()[:2] == ["swap", "swap"]
    table.to_parquet(tmp_path / "a.parquet")
    assert read_foreign_scores(tmp_path / "a.parquet")["score"].tolist() == [0.9, 0.7, 0.1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,prob\n1,0.5\n", "has no column 'score', found"),
        ("label,score\n1,3.5\n0,0.1\n", "row 1: the score is .*3.5.*, expected 0 to 1"),
        ("label,score\n0,0.1\n1,high\n", "row 2: the score is 'high'"),
        ("label,score\n", "has no rows"),
        ("label,score\n1,\n", "has no score in any row"),
        ("", "cannot be read"),
        ("label,score,domain\n1,0.5,<b>\n", "the domain name '<b>' must begin"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read_foreign_scores(write(tmp_path / "a.csv", text))


def test_unknown_labels_are_refused(tmp_path):
    with pytest.raises(DomainError, match="labels must be real and fake"):
        read_foreign_scores(write(tmp_path / "a.csv", "label,score\ncat,0.5\n"))


def test_evaluate_and_report_take_them(tmp_path):
    lines = [f"x,{number},{number % 2},{'' if number == 5 else (number % 7) / 7}" for number in range(40)]
    path = write(tmp_path / "a.csv", "\n".join(["domain,video_id,label,score", *lines]) + "\n")
    found = gmdf("evaluate", "--scores", path, "--output_dir", tmp_path / "out", "--replicates", 20)
    assert found.exit_code == 0, found.stderr
    assert "97.50" in found.stdout and "Videos without a score" in found.stdout
    report = gmdf("report", tmp_path / "out", "--output_dir", tmp_path / "report", "--replicates", 20)
    assert report.exit_code == 0, report.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Videos without a score, in four readings" in page
    both = gmdf("evaluate", "--scores", path, "--model", "x", "--domains", "a=b")
    assert both.exit_code == 2 and "leave out --model" in both.stderr
