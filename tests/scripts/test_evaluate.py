"""The evaluation script end to end, on tiny data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer, ViTConfig, ViTForImageClassification, ViTImageProcessor

from gmdf_hf import TINY_CLIP, GMDFModel
from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.common.options import parse_options
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.data.frames import caption_encoder
from gmdf_hf.evaluation import score_parts
from gmdf_hf.evaluation.intervals import measure
from gmdf_hf.evaluation.score_table import SCORE_COLUMNS, read_about, read_scores
from gmdf_hf.evaluation.scoring import score_domain
from gmdf_hf.modeling import GMDFImageProcessor
from gmdf_hf.scripts import evaluate
from gmdf_hf.training.checkpoint import save_model
from gmdf_hf.training.config import DomainSource
from tests.conftest import tiny_model
from tests.domains import write_domain, write_methods, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(("c", "z")):
        write_domain(folder / name, seed)
    save_model(folder / "run" / "model", tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32))
    return folder


def evaluation(folder: Path, output: Path, **fields) -> evaluate.Evaluation:
    domains = {name: DomainSource(path=str(folder / name)) for name in ("z", "c")}
    settings = {"batch_size": 3, "replicates": 20, "output_dir": output} | fields
    return evaluate.Evaluation(model=str(folder / "run" / "model"), domains=domains, **settings)


def replace(options: evaluate.Evaluation, **changes) -> evaluate.Evaluation:
    return options.model_copy(update=changes)


def parse(arguments: list[str]) -> evaluate.Evaluation:
    return parse_options(evaluate.Evaluation, arguments, None)


@pytest.fixture
def scored(folder, tmp_path) -> Path:
    evaluate.main(evaluation(folder, tmp_path / "one"))
    return tmp_path / "one"


def test_results_are_functions_of_the_scores(folder, scored):
    scores = read_scores(scored / "scores.parquet")
    assert tuple(scores) == SCORE_COLUMNS
    assert len(scores) == 32
    assert scores["domain"].tolist() == ["c"] * 16 + ["z"] * 16
    results = json.loads((scored / "results.json").read_text())
    assert results["threshold"] == 0.25
    assert results["threshold_source"].startswith("the model's own")
    assert results["source_domains"] == ["a", "b", "c"]
    assert results["unseen_domains"] == ["z"]
    for key, value in measure(scores, 0.25, replicates=20).items():
        assert results[key] == value, key


def test_twice_the_same_to_the_last_bit(folder, scored, tmp_path):
    evaluate.main(evaluation(folder, tmp_path / "two"))
    assert (tmp_path / "two" / "scores.parquet").read_bytes() == (scored / "scores.parquet").read_bytes()
    assert (tmp_path / "two" / "results.json").read_bytes() == (scored / "results.json").read_bytes()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(folder, scored, tmp_path):
    """16 frames in batches of 3, and 2 domains: the division has remainders, and no row is lost or duplicated.

    This one starts by the real launcher; other tests of two processes set its variables.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "scripts/evaluate.py"]
    command += ["--model", str(folder / "run" / "model"), "--domains", f"z={folder / 'z'}", f"c={folder / 'c'}"]
    command += ["--batch_size", "3", "--replicates", "20", "--output_dir", str(tmp_path / "two")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("test split, in %") == 1
    parts = sorted(path.name for path in (tmp_path / "two" / "parts" / "c").glob("*.parquet"))
    assert parts == ["00000000-00000004.parquet", "00000001-00000005.parquet"]
    assert (tmp_path / "two" / "scores.parquet").read_bytes() == (scored / "scores.parquet").read_bytes()
    assert (tmp_path / "two" / "results.json").read_bytes() == (scored / "results.json").read_bytes()


def test_the_order_of_the_input_makes_no_difference_to_the_table(folder, tmp_path):
    """Bit-identical, with and without methods and frame numbers."""
    write_methods(tmp_path / "sorted" / "z")
    write_methods(tmp_path / "mixed" / "z", np.random.default_rng(0).permutation(18))
    for name, order in (("sorted", range(16)), ("mixed", np.random.default_rng(1).permutation(16))):
        rows = datasets.load_dataset(str(folder / "c"), split="test").add_column("frame", list(range(16)))
        (tmp_path / name / "c").mkdir()
        rows.select(order).to_parquet(tmp_path / name / "c" / "test.parquet")
        domains = {domain: DomainSource(path=str(tmp_path / name / domain)) for domain in ("z", "c")}
        evaluate.main(replace(evaluation(folder, tmp_path / f"scores-{name}"), domains=domains))
    one, other = (tmp_path / f"scores-{name}" for name in ("sorted", "mixed"))
    assert (one / "scores.parquet").read_bytes() == (other / "scores.parquet").read_bytes()
    assert (one / "results.json").read_bytes() == (other / "results.json").read_bytes()


def test_videos_of_one_name_in_two_methods_are_two_videos(folder, tmp_path):
    """Also with a second domain without methods; the test recomputes every video figure from the frames."""
    domains = {"c": DomainSource(path=str(folder / "c")), "ff": DomainSource(path=write_methods(tmp_path / "ff"))}
    results = evaluate.main(replace(evaluation(folder, tmp_path / "scores"), domains=domains))
    scores = pd.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert tuple(scores) == (*SCORE_COLUMNS, "method")
    assert scores.loc[scores["domain"] == "c", "method"].isna().all()
    assert scores.groupby("domain").size().to_dict() == {"c": 16, "ff": 18}
    counts = {name: (of["video"]["real"], of["video"]["fake"]) for name, of in results["domains"].items()}
    assert counts == {"c": (4, 4), "ff": (2, 4)}
    videos: dict[tuple, list[float]] = {}
    for row in scores[scores["domain"] == "ff"].itertuples():
        videos.setdefault((row.method, row.video_id), []).append(row.score)
    means = {key: np.mean(values) for key, values in videos.items()}
    reals = [mean for (method, _), mean in means.items() if method == "real"]
    for method, found in results["method_auc"]["video"]["ff"].items():
        fakes = [mean for (of_method, _), mean in means.items() if of_method == method]
        assert found == pytest.approx(np.mean([fake > real for fake in fakes for real in reals]))
    assert list(results["method_auc"]["video"]["ff"]) == ["Deepfakes", "FaceSwap"]
    fakes = [mean for (method, _), mean in means.items() if method != "real"]
    auc = np.mean([fake > real for fake in fakes for real in reals])
    assert results["domains"]["ff"]["video"]["auc"] == pytest.approx(auc)


def test_a_killed_run_goes_on(folder, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(score_parts, "BATCHES_IN_A_PART", 2)
    seen = []

    def dying(*arguments, kill_at=None, **options):
        for item in score_batches(*arguments, **options):
            if len(seen) == kill_at:
                raise KeyboardInterrupt
            seen.append(item)
            yield item

    score_batches = evaluate.score_batches
    monkeypatch.setattr(evaluate, "score_batches", lambda *a: dying(*a, kill_at=9))
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(evaluation(folder, tmp_path / "killed"))
    assert not (tmp_path / "killed" / "scores.parquet").exists()
    monkeypatch.setattr(evaluate, "score_batches", lambda *a: dying(*a))
    evaluate.main(evaluation(folder, tmp_path / "killed"))
    assert len(seen) == 9 + 12 - 8  # the ninth batch was scored but not written
    assert (tmp_path / "killed" / "scores.parquet").read_bytes() == (scored / "scores.parquet").read_bytes()


def test_another_evaluation_in_the_same_folder_is_refused(folder, scored):
    with pytest.raises(UserError, match="with another batch_size: found 3, expected 4"):
        evaluate.main(evaluation(folder, scored, batch_size=4))
    with pytest.raises(UserError, match="with another dtype: found 'float32', expected 'bfloat16'"):
        evaluate.main(evaluation(folder, scored, dtype="bfloat16"))
    part = next((scored / "parts" / "z").iterdir())
    shutil.copy(part, part.with_name("twice.parquet"))
    with pytest.raises(UserError, match="each of the 16 frames of domain 'z' once, found 32 rows of 16 frames"):
        evaluate.main(evaluation(folder, scored))


def test_half_precision_is_recorded_and_agrees(folder, scored, tmp_path):
    results = evaluate.main(evaluation(folder, tmp_path / "half", dtype="bfloat16"))
    assert results["dtype"] == read_about(tmp_path / "half" / "scores.parquet")["dtype"] == "bfloat16"
    half, single = (read_scores(path / "scores.parquet")["score"] for path in (tmp_path / "half", scored))
    assert 0 < (half - single).abs().max() < 0.02


def test_replaced_files_are_noticed(folder, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    evaluate.main(evaluation(data, tmp_path / "scores"))
    file = next(data.rglob("*.parquet"))
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match="with another data"):
        evaluate.main(evaluation(data, tmp_path / "scores"))


def test_a_folder_in_use_is_refused(folder, tmp_path):
    with locked_folder(tmp_path / "scores"), pytest.raises(UserError, match="is in use by process"):
        evaluate.main(evaluation(folder, tmp_path / "scores"))


def test_other_thresholds_need_no_new_scores(folder, scored, monkeypatch):
    monkeypatch.setattr(evaluate, "score_batches", lambda model, source, batches, *rest: iter(batches))
    results = evaluate.main(evaluation(folder, scored, threshold=0.75, real_share=0.5))
    assert results["threshold_source"] == "given"
    figures = results["domains"]["z"]["frame"]
    assert figures["m"] == pytest.approx(figures["eer"])


def test_a_distortion_changes_the_scores(folder, scored, tmp_path):
    evaluate.main(evaluation(folder, tmp_path / "blur", distortion="blur:5"))
    blurred, clean = read_scores(tmp_path / "blur" / "scores.parquet"), read_scores(scored / "scores.parquet")
    assert (blurred["video_id"].astype(str) == clean["video_id"].astype(str)).all()
    assert (blurred["score"] != clean["score"]).all()


def test_validation_gives_the_threshold_for_the_test_split(folder, tmp_path):
    results = evaluate.main(evaluation(folder, tmp_path / "validation", split="validation"))
    scores = read_scores(tmp_path / "validation" / "scores.parquet")
    called = scores["score"] >= results["crossing_threshold"]
    assert (called[scores["label"] == 0].mean() + (~called[scores["label"] == 1]).mean()) / 2 <= 0.5


def test_any_image_classifier_is_scored(folder, tmp_path):
    """With its own image processor and its own class order."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=24,
        patch_size=8,
        id2label={0: "Fake", 1: "Real"},
        label2id={"Fake": 0, "Real": 1},
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "vit")
    asked = replace(evaluation(folder, tmp_path / "scores"), model=str(tmp_path / "vit"))
    results = evaluate.main(asked)
    turned = evaluate.main(replace(asked, fake_label="Real", output_dir=tmp_path / "turned"))
    assert results["threshold"] == 0.5
    assert results["unseen_domains"] == []
    scores, other = (read_scores(tmp_path / name / "scores.parquet")["score"] for name in ("scores", "turned"))
    np.testing.assert_allclose(scores + other, 1)
    assert scores.nunique() > 16
    assert turned["domains"]["z"]["frame"]["auc"] == pytest.approx(1 - results["domains"]["z"]["frame"]["auc"])


def test_captions_need_the_tokenizer_beside_the_model(folder, tmp_path):
    fields = {"expert_bottleneck_size": 4, "prompt_size": 4, "codebook_size": 16, "prompt": "P3"}
    model = GMDFModel.from_clip(TINY_CLIP, domains=["a", "b"], **fields)
    save_model(tmp_path / "model", model, GMDFImageProcessor.of_size(64))
    asked = replace(evaluation(folder, tmp_path / "scores"), model=str(tmp_path / "model"))
    with pytest.raises(UserError, match="has the prompt P3, which takes captions, and no tokenizer"):
        evaluate.main(asked)
    AutoTokenizer.from_pretrained(TINY_CLIP).save_pretrained(tmp_path / "model")
    evaluate.main(asked)
    domain = load_domain("c", "test", str(folder / "c"))
    processor, encode = GMDFImageProcessor.of_size(64), caption_encoder(str(TINY_CLIP))
    table, _ = score_domain(model, domain, processor, batch_size=3, encode_captions=encode)
    scores = read_scores(tmp_path / "scores" / "scores.parquet")
    np.testing.assert_allclose(scores.loc[scores["domain"] == "c", "score"], table["score"], rtol=1e-5)
    without, _ = score_domain(model, domain, processor, batch_size=3)
    assert not np.allclose(without["score"], table["score"], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--domains", "x"], "--domains takes name=value pairs, each name once, found 'x'"),
        ([], "nothing to score: name domains with --domains or --recipe"),
        (["--recipe", "no.yaml"], "the recipe no.yaml cannot be read"),
        (["--domains", "x=${NO_SUCH_VARIABLE}/x"], "needs the environment variable NO_SUCH_VARIABLE"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        parse(["--model", "m", *arguments])
    assert raised.value.code == 2 and message in capsys.readouterr().err


def test_a_model_that_is_none_is_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match="The model '/no/such/model' cannot be used"):
        evaluate.main(replace(evaluation(folder, tmp_path / "none"), model="/no/such/model"))


def test_labels_can_be_stated_on_the_command_line(folder, tmp_path):
    """As in `train` and `prepare`; the recipe of a domain has priority."""
    write_parquet(tmp_path / "odd", "test", label=["ai_art", "camera"] * 4)
    words = ["--model", str(folder / "run" / "model"), "--domains", f"odd={tmp_path / 'odd'}", "--replicates", "20"]
    with pytest.raises(DomainError, match="found 'camera'") as caught:
        evaluate.main(parse([*words, "--output_dir", str(tmp_path / "none")]))
    assert "--labels" in f"{caught.value} {caught.value.hint}"
    evaluate.main(parse([*words, "--output_dir", str(tmp_path / "said"), "--labels", "camera=real", "ai_art=fake"]))
    assert read_scores(tmp_path / "said" / "scores.parquet")["label"].tolist() == [1, 0] * 4
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"unseen_domains: {{odd: {{path: {tmp_path / 'odd'}, labels: {{camera: fake, ai_art: real}}}}}}")
    asked = parse(["--model", "m", "--recipe", str(recipe), "--labels", "camera=real", "other=fake"])
    assert asked.domains["odd"].labels == {"camera": "fake", "ai_art": "real", "other": "fake"}


def test_a_recipe_names_domains():
    recipe = ROOT / "scripts" / "recipes" / "drawn.yaml"
    found = parse(["--model", "m", "--recipe", str(recipe), "--domains", "more=drawn:swap"])
    assert list(found.domains) == ["swap", "reenact", "upsample", "inpaint", "compress", "more"]


def test_every_option_of_the_command_line_is_a_field():
    found = parse(["--model", "m", "--domains", "x=drawn:swap", "--threads", "3"])
    assert found == evaluate.Evaluation(model="m", domains={"x": DomainSource(path="drawn:swap")}, threads=3)


def test_nan_is_null_in_json():
    figures = {"a": [float("nan"), 1.0], "b": {"c": float("nan")}}
    assert evaluate.null_for_nan(figures) == {"a": [None, 1.0], "b": {"c": None}}
    assert pd.isna(figures["b"]["c"])
