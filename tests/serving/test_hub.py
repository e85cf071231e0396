"""Publishing a run on a local test hub, and loading it from there by name."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image
from transformers import pipeline

from gmdf_hf import GMDFImageProcessor, GMDFModel, add_domain, save_expert
from gmdf_hf.common.errors import UserError
from gmdf_hf.common.files import write_json
from gmdf_hf.evaluation.report import write_model_card
from gmdf_hf.serving.hub import expert_files, publish, published_files
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import redraw_zeros, tiny_model
from tests.evaluation.test_report import RESULTS, TEMPLATE
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a finished run, as written by `meta_train.py`."""
    folder = tmp_path / "secret_place" / "run"
    save_model(folder / "model", tiny_model(threshold=RESULTS["threshold"]), GMDFImageProcessor.of_size(32), slim=True)
    recipe = {
        "source_domains": {"x": {"path": str(tmp_path / "secret_place" / "faces")}, "y": "user/faces"},
        "backbone": str(tmp_path / "secret_place" / "clip"),
        "output_dir": str(folder),
    }
    (folder / "train_config.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder / "results.json", RESULTS)
    write_json(folder / "environment.json", {"packages": {"torch": "2"}, "command": [str(folder / "meta_train.py")]})
    write_model_card(TEMPLATE, folder / "model", RESULTS, recipe, 32, "gmdf", drawn=False)
    (folder / "model" / "optimizer.bin").write_bytes(b"not to be published")
    return folder


def content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def test_what_is_published_loads_tells_the_truth_and_names_no_place(run):
    files = published_files(run, "user/name")
    assert {"model.safetensors", "config.json", "pipeline_gmdf.py", "README.md", "results.json"} < set(files)
    assert {"train_config.yaml", "environment.json", "preprocessor_config.json"} < set(files)
    assert "optimizer.bin" not in files
    for name, file in files.items():
        assert b"secret_place" not in content(file), name
    assert json.loads(content(files["config.json"]))["threshold"] == RESULTS["threshold"]
    recipe = yaml.safe_load(content(files["train_config.yaml"]))
    assert recipe["backbone"] == "clip" and recipe["source_domains"]["y"] == "user/faces"
    card = content(files["README.md"]).decode()
    assert 'model="user/name"' in card and "<this repository>" not in card


@pytest.mark.parametrize("name", ["model", "two/many/parts", "user/na me", "-user/x"])
def test_a_name_that_cannot_be_one_is_refused(run, name):
    with pytest.raises(UserError, match="--repo"):
        published_files(run, name)


def test_an_unfinished_run_is_refused(run):
    (run / "results.json").unlink()
    with pytest.raises(UserError, match=r"not the folder of a finished run: it lacks results\.json"):
        published_files(run, "user/name")


def test_a_baseline_is_published_with_what_its_kind_has(run):
    model = run / "model"
    for file in [*model.glob("*.py"), model / "preprocessor_config.json"]:
        file.unlink()
    with pytest.raises(UserError, match=r"lacks model/preprocessor_config\.json, model/pipeline_gmdf\.py"):
        published_files(run, "user/name")
    write_json(model / "config.json", {"model_type": "vit"})
    with pytest.raises(UserError, match=r"lacks model/preprocessor_config\.json\.$"):
        published_files(run, "user/name")
    write_json(model / "config.json", {"model_type": "timm_wrapper", "pretrained_cfg": {}})  # its processor's settings
    assert "model.safetensors" in published_files(run, "user/name")


def launch(hub: HubServer, home: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess:
    environment = os.environ | hub.environment(home) | changes
    return processes.run(
        ROOT / "scripts" / "publish.py", *arguments, env=environment, cwd=ROOT, warm=processes.LIBRARIES
    )


def test_the_script_lists_everything_and_sends_nothing_unless_told_to(run, tmp_path):
    with HubServer() as hub:
        result = launch(hub, tmp_path, "--run", str(run), "--repo", "user/name")
        assert result.returncode == 0, result.stderr
        assert "Nothing was sent" in result.stderr
        for name in published_files(run, "user/name"):
            assert name in result.stderr
        assert hub.repositories == {}
        hub.failing = {"whoami": 401}
        result = launch(hub, tmp_path, "--run", str(run), "--repo", "user/name", "--yes")
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        message, hint = result.stderr.strip().splitlines()[-2:]
        assert message.startswith("publish.py: Nothing was published to user/name. Log in with a token that may write")
        assert hint.startswith("hint: ")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as hub:
        hub.api = HfApi(endpoint=hub.url, token=hub.token)
        yield hub


def push(run: Path, repo: str, hub: HubServer, **options) -> str:
    return publish(published_files(run, repo), repo, "Publish a run", api=hub.api, **options)


def test_one_commit_private_and_tagged(run, hub):
    address = push(run, "user/name", hub, tag="v1")
    repository = hub.repositories["models/user/name"]
    assert address.endswith(repository.head)
    assert repository.private
    assert len(repository.commits) == 2  # the initial commit of the hub, and the published one
    assert repository.tags == {"v1": repository.head}
    stored = repository.commits[repository.head]
    for name, file in published_files(run, "user/name").items():
        assert stored[name].content == content(file)
    with pytest.raises(UserError, match="already has the tag 'v1'"):
        push(run, "user/name", hub, tag="v1")
    assert len(repository.commits) == 2
    push(run, "user/open", hub, private=False)
    assert not hub.repositories["models/user/open"].private


FAILURES = {
    "token": ({"whoami": 401}, "Log in with a token that may write"),
    "create": ({"create": 403}, "no right to write to user/name"),
    "gated": ({"commit": 403}, "no right to write to user/name"),
    "cut_off": ({"lfs_put": 400}, "The same command tries again"),
    "preupload": ({"preupload": 400}, "The same command tries again"),
}


@pytest.mark.parametrize(("failing", "advice"), FAILURES.values(), ids=FAILURES)
def test_a_failed_push_leaves_nothing_half_done(run, hub, failing, advice):
    hub.failing = failing
    with pytest.raises(UserError, match=f"Nothing was published to user/name.*{advice}"):
        push(run, "user/name", hub)
    assert hub.repositories == {}  # not even an empty repository

    hub.failing = {}
    push(run, "user/name", hub)
    repository = hub.repositories["models/user/name"]
    before = dict(repository.commits)
    # Another model: its weights must be uploaded.
    other = run / "other"
    save_model(other, tiny_model(domains=["x", "y"]), GMDFImageProcessor.of_size(32), slim=True)
    (other / "model.safetensors").rename(run / "model" / "model.safetensors")
    hub.failing = failing
    if failing == {"create": 403}:  # the repository exists, so none is created
        push(run, "user/name", hub)
    else:
        with pytest.raises(UserError, match="Nothing was published to user/name"):
            push(run, "user/name", hub)
        assert repository.commits == before


def test_an_interrupted_push_takes_its_repository_away_again(run, hub, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub.api, "create_commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        push(run, "user/name", hub)
    assert hub.repositories == {}


def test_a_card_the_hub_does_not_accept_is_not_published(run, hub):
    card = run / "model" / "README.md"
    card.write_text(card.read_text().replace("pipeline_tag: image-classification", "pipeline_tag: deepfakes"))
    with pytest.raises(UserError, match=r"The card is not valid.*pipeline_tag"):
        push(run, "user/name", hub)
    assert hub.repositories == {}


def test_model_index_has_the_figures_of_the_results(run):
    card = ModelCard(content(published_files(run, "user/name")["README.md"]).decode())
    found = {
        (entry.dataset_name.split(" (")[0], entry.metric_name): entry.metric_value for entry in card.data.eval_results
    }
    assert len(found) == len(card.data.eval_results) == 16
    for domain, levels in RESULTS["domains"].items():
        for level in ("frame", "video"):
            for key, name in (("acc", "Accuracy"), ("auc", "AUC"), ("eer", "Equal error rate")):
                assert found[domain, f"{name} ({level} level)"] == levels[level][key]


# Each runs in a separate process, because clients read their settings at import.
SCORES = """
import json, sys
from transformers import pipeline
arguments = json.loads(sys.argv[1])
{before}
options = dict(model=arguments["model"], trust_remote_code={trust}, **arguments["more"])
detect = pipeline("deepfake-detection", detector="none", **options)
classify = pipeline("image-classification", **options)
scores = [result["score"] for result in detect(arguments["files"])]
scores += [[row["score"] for row in classify(arguments["files"][0]) if row["label"] == "fake"][0]]
print(json.dumps(dict(scores=scores, threshold=detect(arguments["files"][0])["threshold"])))
"""
WITHOUT = SCORES.format(before='sys.modules["gmdf_hf"] = None', trust=True)
WITH = SCORES.format(
    before="from gmdf_hf import GMDFModel; GMDFModel.from_pretrained(arguments['model'], **arguments['more'])",
    trust=False,
)
UNTRUSTED = """
import sys, json
sys.modules["gmdf_hf"] = None
from transformers import pipeline
pipeline("deepfake-detection", model=json.loads(sys.argv[1])["model"], trust_remote_code=False)
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_scores_of_the_one_that_pushed(run, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [str(tmp_path / f"{number}.png") for number in range(6)]
    for file in pictures:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file)
    files = [pictures[0], pictures[1:]]  # a picture, and the frames of a video

    def scores(code, model, home, more=None, **changes):
        arguments = json.dumps({"model": str(model), "files": files, "more": more or {}})
        environment = os.environ | hub.environment(tmp_path / home) | {"PYTHONPATH": str(ROOT)} | changes
        result = processes.run("-c", code, arguments, env=environment, cwd=tmp_path, warm=processes.LIBRARIES)
        if result.returncode:
            return result.stderr
        return json.loads(result.stdout.strip().splitlines()[-1])

    def scores_here(model):
        """The same scores in this process."""
        detect = pipeline("deepfake-detection", model=str(model), detector="none", trust_remote_code=False)
        classify = pipeline("image-classification", model=str(model), trust_remote_code=False)
        rows = classify(files[0])
        return [row["score"] for row in detect(files)] + [row["score"] for row in rows if row["label"] == "fake"]

    with HubServer() as hub:
        expected = scores_here(run / "model")
        launched = launch(hub, tmp_path / "one", "--run", str(run), "--repo", "user/name", "--yes", "--tag", "v1")
        assert launched.returncode == 0, launched.stderr
        for code in (WITHOUT, WITH):
            found = scores(code, "user/name", "two")
            np.testing.assert_allclose(found["scores"], expected, atol=1e-6)
            assert found["threshold"] == RESULTS["threshold"]
        assert "trust_remote_code=True" in scores(UNTRUSTED, "user/name", "three")
        assert not list((tmp_path / "three").rglob("modeling_gmdf.py"))  # not even fetched

        save_model(run / "model2", tiny_model(logit_scale_init_value=4.0), GMDFImageProcessor.of_size(32), slim=True)
        (run / "model2" / "model.safetensors").rename(run / "model" / "model.safetensors")
        changed = scores_here(run / "model")
        assert launch(hub, tmp_path / "one", "--run", str(run), "--repo", "user/name", "--yes").returncode == 0
        pinned = scores(WITHOUT, "user/name", "four", {"revision": "v1"})
        np.testing.assert_allclose(pinned["scores"], expected, atol=1e-6)
        newest = scores(WITHOUT, "user/name", "two")
        np.testing.assert_allclose(newest["scores"], changed, atol=1e-6)
        assert not np.allclose(newest["scores"], pinned["scores"], atol=1e-3)
    # The hub is no longer running; models loaded before are in the cache.
    offline = scores(WITHOUT, "user/name", "two", HF_HUB_OFFLINE="1")
    np.testing.assert_allclose(offline["scores"], newest["scores"], atol=1e-6)
    assert re.search("connect|offline|cache", str(scores(WITHOUT, "user/name", "five", HF_HUB_OFFLINE="1")))


LOAD_EXPERT = """
import sys, torch
from gmdf_hf import GMDFModel, load_expert
model = GMDFModel.from_pretrained("user/name")
index = load_expert(model, "user/expert")
print(model(torch.ones(1, 3, 32, 32), domain_ids=torch.tensor([index])).logits.tolist())
"""


def test_an_expert_is_loaded_onto_its_base_by_name(run, hub, tmp_path):
    push(run, "user/name", hub)
    grown = GMDFModel.from_pretrained(run / "model")
    add_domain(grown, "d")
    redraw_zeros(grown)
    grown.config.name_or_path = "user/name"
    save_expert(grown, "d", tmp_path / "expert")
    files = expert_files(tmp_path / "expert", "user/expert")
    assert "base_model: user/name" in content(files["README.md"]).decode()
    publish(files, "user/expert", "Publish an expert", api=hub.api)
    environment = os.environ | hub.environment(tmp_path / "home")
    result = processes.run("-c", LOAD_EXPERT, env=environment, cwd=ROOT, warm=processes.LIBRARIES)
    assert result.returncode == 0, result.stderr[-3000:]
    expected = grown(torch.ones(1, 3, 32, 32), domain_ids=torch.tensor([3])).logits
    np.testing.assert_allclose(json.loads(result.stdout), expected.detach(), atol=1e-5)
    with pytest.raises(UserError, match="holds no expert"):
        expert_files(run, "user/expert")
