"""The training script end to end, on tiny data."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from gmdf_hf import GMDFModel, load_expert
from gmdf_hf.common.errors import UserError
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.evaluation.metrics import domain_metrics
from gmdf_hf.evaluation.score_table import read_about
from gmdf_hf.scripts import meta_train
from gmdf_hf.training.config import TrainConfig, load_recipe
from gmdf_hf.training.methods.gmdf import GMDF
from tests.domains import write_domain

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parents[2]


def miniature(tmp_path: Path, **fields) -> TrainConfig:
    sources = {name: write_domain(tmp_path / name, seed) for seed, name in enumerate(("x", "y"))}
    return TrainConfig(
        **{
            "source_domains": sources,
            "unseen_domains": {"z": write_domain(tmp_path / "z", 9)},
            "backbone": "tiny_clip",
            "model": {"codebook_size": 16, "expert_bottleneck_size": 4, "prompt_size": 4},
            "epochs": 3,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "image_tokenizer_steps": 2,
            "output_dir": tmp_path / "run",
        }
        | fields
    )


def test_a_second_training_in_one_folder_is_refused(tmp_path):
    config = miniature(tmp_path)
    with locked_folder(tmp_path / "run"), pytest.raises(UserError, match="run is in use by process"):
        meta_train.main(config)
    assert not (tmp_path / "run" / "train_config.yaml").exists()


def test_a_run_leaves_all_that_is_needed_to_repeat_it(tmp_path):
    config = miniature(tmp_path, source_weight=1.0)
    results = meta_train.main(config)
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {
        "model",
        "image_tokenizer",
        "train_config.yaml",
        "environment.json",
        "history.jsonl",
        "history.png",
        "checkpoints",
        "scores.parquet",
        "skipped.csv",
        "results.json",
    }
    assert results == json.loads((run / "results.json").read_text())
    assert results["steps"] == 6
    about = {"schema_version": 1, "model": str(run / "model"), "revision": None, "threshold": results["threshold"]}
    about |= {"dtype": "float32"}
    assert results.items() >= about.items() and read_about(run / "scores.parquet") == about
    assert list(results["domains"]) == ["x", "y", "z"]
    assert results["unseen_domains"] == ["z"]
    scores = pd.read_parquet(run / "scores.parquet")
    assert list(scores) == ["domain", "video_id", "frame", "label", "score", "face_found"]
    assert domain_metrics(scores, results["threshold"]) == results["domains"]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history if "validation_auc" in line] == [0, 1, 2]
    assert GMDFModel.from_pretrained(run / "model").config.domains == ["x", "y"]
    card = (run / "model" / "README.md").read_text()
    assert "| z | unseen | 16 |" in card
    assert "drawings" not in card
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["transformers"]

    again = load_recipe(run / "train_config.yaml", {"output_dir": str(tmp_path / "again")})
    repeated = meta_train.main(again)
    assert repeated["domains"] == results["domains"]
    first, second = (GMDFModel.from_pretrained(folder / "model") for folder in (run, tmp_path / "again"))
    for (name, ours), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert (ours == other).all(), name


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "direct_merge"},
        {"method": "linear_probe"},
        {"method": "mldg"},
        {"method": "merged_losses"},
        {"train_tower": "none", "gradient_checkpointing": True},
        {"train_tower": "layer_norms", "meta_gradient": "second_order", "inner_optimizer": "sgd"},
        {"align_gradient": "both", "outer_experts": "all", "model": {"dil": "affine_bias", "mask_strategy": "block"}},
        # bfloat16 takes eleven seconds where the processor has no units for it.
        pytest.param({"mim_weight": 0, "alignment_weight": 0, "mixed_precision": "bf16"}, marks=pytest.mark.slow),
        {"model": {"prompt": "P3", "codebook_size": 16}},
        {
            "streaming": True,
            "steps_per_epoch": 3,
            "gradient_checkpointing": True,
            "max_grad_norm": 0.1,
            "lr_scheduler": "cosine",
            "warmup_steps": 2,
            "attn_implementation": "eager",
        },
        {"hold_out": "y", "source_domains": "three", "report_to": "tensorboard", "image_size": 32, "num_workers": 2},
    ],
    ids=[
        "direct_merge",
        "linear_probe",
        "mldg",
        "merged_losses",
        "frozen_tower",
        "layer_norms",
        "both_all",
        "no_extra_losses",
        "captions",
        "streaming",
        "hold_out",
    ],
)
def test_every_setting_runs_and_trains(tmp_path, fields):
    if fields.get("source_domains") == "three":
        sources = {name: write_domain(tmp_path / "more" / name, seed) for seed, name in enumerate(("x", "y", "w"))}
        fields = fields | {"source_domains": sources}
    results = meta_train.main(miniature(tmp_path, **{"epochs": 1} | fields))
    assert 0 <= results["domains"]["z"]["frame"]["auc"] <= 1
    model = GMDFModel.from_pretrained(tmp_path / "run" / "model")
    if "method" in fields:
        assert all(not layer.experts.alpha.any() for layer in model.vision_model.encoder.layers)
    else:
        assert all(layer.experts.alpha.any() for layer in model.vision_model.encoder.layers)
    assert model.config.slim is (model.config.prompt != "P3")
    if "report_to" in fields:
        assert list((tmp_path / "run" / "gmdf").rglob("events.out.*"))
        assert results["unseen_domains"] == ["y", "z"]
        assert model.config.vision_config.image_size == 32


@pytest.mark.slow
def test_a_trained_detector_learns_one_more_domain(tmp_path, monkeypatch):
    published = []
    monkeypatch.setattr(meta_train, "publish", lambda files, repo, message: published.append((repo, sorted(files))))
    first = meta_train.main(miniature(tmp_path, epochs=1, push_to_hub="user/base"))
    assert published[0][0] == "user/base" and {"model.safetensors", "README.md", "results.json"} <= set(published[0][1])
    base = GMDFModel.from_pretrained(tmp_path / "run" / "model").eval()
    assert base.config.threshold == pytest.approx(min(first["threshold"], 1))
    AcceleratorState._reset_state(reset_partial_state=True)
    fields = {
        "method": "add_domain",
        "backbone": str(tmp_path / "run" / "model"),
        "source_domains": {"w": write_domain(tmp_path / "w", 5)},
        "unseen_domains": {},
        "learning_rate": 1e-2,
        "output_dir": tmp_path / "grown",
    }
    results = meta_train.main(miniature(tmp_path / "again", **fields))
    assert list(results["domains"]) == ["w"]
    grown = GMDFModel.from_pretrained(tmp_path / "grown" / "model").eval()
    assert grown.config.domains == ["x", "y", "w"]
    assert grown.config.threshold == base.config.threshold
    assert "added to a trained detector" in (tmp_path / "grown" / "model" / "README.md").read_text()
    images, old, new = torch.randn(2, 3, 64, 64), torch.tensor([0, 1]), torch.tensor([2, 2])
    with torch.no_grad():
        assert torch.equal(grown(images, domain_ids=old).logits, base(images, domain_ids=old).logits)
        expected = grown(images, domain_ids=new).logits
        assert not torch.equal(expected, grown(images, domain_ids=old).logits)
        assert load_expert(base, tmp_path / "grown" / "expert") == 2
        loaded = base(images, domain_ids=new).logits
    torch.testing.assert_close(loaded, expected, atol=1e-6, rtol=1e-5)  # batched products round by alignment
    for name, parameter in grown.expert_parameters().items():
        assert torch.equal(base.expert_parameters()[name], parameter), name


def test_broken_images_are_listed(tmp_path):
    sources = {"x": write_domain(tmp_path / "bad", 3, broken=(2, 5)), "y": write_domain(tmp_path / "good", 4)}
    results = meta_train.main(miniature(tmp_path, source_domains=sources, batch_size=8, epochs=4))
    listed = pd.read_csv(tmp_path / "run" / "skipped.csv")
    assert results["skipped"] == len(listed) > 0
    assert set(listed["row"]) <= {2, 5}
    assert set(listed["domain"]) == {"x"}


def test_accelerate_launch_prints_the_table(tmp_path):
    config = miniature(tmp_path, max_steps=2, mim_weight=0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", str(ROOT / "scripts" / "meta_train.py")]
    command += ["--recipe", str(recipe), "--seed", "4"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    for text in ("seed 4", "unseen", "M_EER", f"model: {tmp_path / 'run' / 'model'}"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learn_rate": 1}, "learn_rate: unknown key"),
        ({"source_domains": {"x": "drawn:swap"}}, "at least two source domains, found 1: x"),
        ({"source_domains": {"x": "one_class", "y": "drawn:swap"}}, "needs real and fake images, found 16 real"),
        ({"backbone": "/no/such/folder"}, "The backbone '/no/such/folder' cannot be used"),
        (
            {"backbone": "not_a_clip"},
            "has the model type 'gmdf', which trains with add_domain; found the method 'gmdf'",
        ),
        ({"unseen_domains": {"z": "/no/such/data"}}, "Domain 'z': cannot load '/no/such/data'"),
    ],
    ids=["key", "domains", "class", "backbone", "checkpoint", "data"],
)
def test_a_users_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = miniature(tmp_path).model_dump(mode="json") | change
    if "one_class" in str(change):
        config["source_domains"]["x"] = write_domain(tmp_path / "one", 0, classes=1)
    if change.get("backbone") == "not_a_clip":
        from tests.conftest import tiny_model

        tiny_model().save_pretrained(tmp_path / "gmdf")
        config["backbone"] = str(tmp_path / "gmdf")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config))
    for setting in ("set_verbosity_error", "disable_progress_bar"):  # they would last beyond the test
        monkeypatch.setattr(meta_train.transformers_logging, setting, lambda: None)
    with pytest.raises(SystemExit) as stopped:
        meta_train.run(["--recipe", str(recipe)])
    assert stopped.value.code in (1, 4)  # a setting, a domain
    said, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    assert said.startswith("meta_train.py: ") and hint.startswith("hint: ")
    assert message in said


def test_an_overflow_undoes_the_iteration_lowers_the_scale_and_is_counted(tmp_path, monkeypatch):
    """The gradient scaler in the training loop, with an initial scale that overflows single precision."""
    scalers, seen = [], []

    class Scaled(Accelerator):
        """Single precision with a scaler: half precision needs a GPU."""

        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-40)
            scalers.append(self.scaler)

    step = GMDF.step

    def spy(self, model, episode, accelerator):
        seen.append({name: value.clone() for name, value in {**model.state_dict(), **self.state()}.items()})
        return step(self, model, episode, accelerator)

    monkeypatch.setattr(meta_train, "Accelerator", Scaled)
    monkeypatch.setattr(GMDF, "step", spy)
    meta_train.main(miniature(tmp_path, max_steps=4, alignment_queue=8))
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    overflows = [line["overflows"] for line in lines if "overflows" in line][-1]
    assert 1 <= overflows <= 2
    assert scalers[0].get_scale() == 2.0 ** (127 - 40 * overflows)
    for name, value in seen[0].items():
        assert torch.equal(value, seen[1][name]), name  # weights, moments and queues are restored
    alphas = [value for name, value in seen[-1].items() if name.endswith(".alpha")]
    assert all(alpha.any() for alpha in alphas)  # the later iterations learn
