"""The report of runs, on tiny data."""

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import datasets
import pytest
from pydantic import ValidationError

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.options import parse_options
from gmdf_hf.evaluation.intervals import measure
from gmdf_hf.evaluation.tables import percent
from gmdf_hf.modeling import GMDFImageProcessor
from gmdf_hf.scripts import evaluate, meta_train, report
from gmdf_hf.training.checkpoint import save_model
from gmdf_hf.training.config import DomainSource
from tests.conftest import tiny_model
from tests.domains import write_domain, write_methods
from tests.scripts.test_meta_train import miniature


@pytest.fixture
def evaluated(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    domains = {name: DomainSource(path=write_domain(tmp_path / name, seed)) for seed, name in enumerate("xy")}
    save_model(tmp_path / "model", tiny_model(), GMDFImageProcessor.of_size(32))
    asked = evaluate.Evaluation(
        model=str(tmp_path / "model"), domains=domains, output_dir=tmp_path / "scores<1>", replicates=20
    )
    evaluate.main(asked)
    return tmp_path / "scores<1>"


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.sources, self.words, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href", "link")]

    def handle_data(self, data):
        self.words.append(data.strip())


def test_a_page_is_one_file_and_says_what_the_scores_say(evaluated, tmp_path):
    words = [f"ours={evaluated}", str(evaluated), "--output_dir", str(tmp_path / "report"), "--replicates", "20"]
    options = parse_options(report.ReportOptions, words, None)
    runs = options.scored()
    assert [run.label for run in runs] == ["ours", "scores<1>"]
    path = report.main(runs, options.output_dir, not options.no_faces)
    page = Page(path.read_text())
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    pictures = [base64.b64decode(source.split(",")[1]) for source in page.sources if source.startswith("data:")]
    assert all(picture.startswith((b"\x89PNG", b"\xff\xd8")) for picture in pictures)
    assert "script" not in page.tags
    assert "Deepfake detection: ours and scores<1>" in page.words
    figures = measure(runs[0].scores, 0.5, replicates=20)
    assert percent(figures["domains"]["y"]["frame"]["auc"]) in page.words
    assert percent(figures["cross_auc"]["frame"]["x"]["y"]) in page.words
    text = (tmp_path / "report" / "report.md").read_text()
    for link in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / "report" / link).exists()
    for section in ("Runs beside each other", "ROC curves", "Reliability", "Attention", "Worst mistakes"):
        assert f"## {section}" in text
    assert "No attention maps" not in text


def test_the_worst_mistakes_are_the_worst(evaluated, tmp_path):
    run = report.Scored("ours", evaluated, 20)
    run.results["threshold"] = 1.1  # every fake is classified as real, and no real as fake
    reals, fakes = report.mistakes_section(run, {"x": run.load_domain("x")}, tmp_path).parts
    assert (reals.title, reals.text, reals.faces) == ("x: reals called fake, 0 of 8", "None.", [])
    assert fakes.title == "x: fakes called real, 8 of 8"
    scores = run.scores[(run.scores["domain"] == "x") & (run.scores["label"] == 1)]
    lowest = scores.groupby("video_id", observed=True)["score"].min().sort_values()
    assert [face.caption.split(" ")[0] for face in fakes.faces] == [f"{score:.3f}" for score in lowest]
    assert [face.caption.split(" ")[1].rstrip(",") for face in fakes.faces] == list(lowest.index)


def test_a_run_of_the_training_script_is_shown_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    meta_train.main(miniature(tmp_path, max_steps=1, mim_weight=0))
    report.main([report.Scored("run", tmp_path / "run", 20)], tmp_path / "report", faces=False)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| z | unseen | frame | 100.00 | 8 | 8 |" in text
    assert "a threshold chosen on validation videos of the source domains" in text
    assert "Worst mistakes" not in text
    shutil.rmtree(tmp_path / "run" / "model")
    section = report.attention_section(report.Scored("run", tmp_path / "run", 20), {}, tmp_path)
    assert section.parts[0].text.startswith("No attention maps: ")


def test_a_folder_without_scores_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no scores"):
        report.main([report.Scored("x", tmp_path)], tmp_path / "report")
    with pytest.raises(ValidationError, match="a label of its own, found a, a"):
        report.ReportOptions(runs=("a=x", "a=y"))


def test_forgeries_have_figures_and_mistakes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sources = {"ff": write_methods(tmp_path / "ff"), "x": write_domain(tmp_path / "x", 0)}
    domains = {name: DomainSource(path=path) for name, path in sources.items()}
    save_model(tmp_path / "model", tiny_model(), GMDFImageProcessor.of_size(32))
    asked = evaluate.Evaluation(
        model=str(tmp_path / "model"), domains=domains, output_dir=tmp_path / "scores", replicates=20
    )
    evaluate.main(asked)
    run = report.Scored("ours", tmp_path / "scores", 20)
    rows = report.method_table(run.results)
    assert [row[:2] for row in rows[1:]] == [["ff", "Deepfakes"], ["ff", "FaceSwap"]]
    assert rows[2][2] == percent(run.results["method_auc"]["frame"]["ff"]["FaceSwap"])
    assert rows[2][4] == percent(run.results["method_auc"]["video"]["ff"]["FaceSwap"])
    report.main([run], tmp_path / "report")
    assert "Fakes of each forgery: AUC in %" in (tmp_path / "report" / "report.md").read_text()
    run.results["threshold"] = 1.1
    loaded = {name: run.load_domain(name) for name in domains}
    parts = report.mistakes_section(run, loaded, tmp_path).parts
    assert [len(part.faces) for part in parts] == [0, 4, 0, 4]  # ff: 2 names in 2 forgeries
