"""Several processes compute what one does with larger batches (decision D15), in gloo processes on the CPU."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from gmdf_hf.common.processes import agree, gather_counts, gather_features, sum_gradients, sum_over_processes
from gmdf_hf.scripts import meta_train
from gmdf_hf.training.config import load_recipe
from gmdf_hf.training.image_tokenizer import GMDFImageTokenizer, GMDFImageTokenizerConfig
from tests import processes
from tests.domains import write_domain

ROOT = Path(__file__).parents[2]


def start(code: str, *arguments: object) -> str:
    """Run Python code in two processes and return what the first of them prints."""
    done = processes.run_two(code, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_one_process_needs_nothing():
    features = torch.randn(5, 3, requires_grad=True)
    assert [len(part) for part in gather_features(features, ((2, 3),))] == [2, 3]
    assert gather_counts([2, 3], torch.device("cpu")) == ((2, 3),)
    assert sum_over_processes([features])[0] is features
    sum_gradients([torch.nn.Parameter(features)])
    values, stopped = agree({"source": torch.tensor(2.0)}, torch.tensor(3.0), stop=True)
    assert values == {"source": 2.0, "gradient_norm": 3.0} and stopped


CHECK = """
import json
import torch
from accelerate import Accelerator
from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling.detectors import DETECTORS
from gmdf_hf.training.losses import alignment_loss
from gmdf_hf.training.methods.merged import equal_shares, merged_step
from gmdf_hf.common.processes import *

accelerator = Accelerator(cpu=True)
rank, world = process_index(), num_processes()
counts = [[2, 3], [4, 2]]  # processes may have different numbers of images
torch.manual_seed(0)
weight = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
inputs = [torch.randn(5, 4, dtype=torch.double), torch.randn(6, 4, dtype=torch.double)]

def joined(weight):
    a, b = [(x @ weight).split(c) for x, c in zip(inputs, counts)]
    return [torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])]

source, target = joined(weight)
expected, = torch.autograd.grad(alignment_loss([source], target), weight)

ours = inputs[rank] @ weight
assert gather_counts(counts[rank], accelerator.device) == ((2, 3), (4, 2))
source, target = gather_features(ours, counts)
parameter = torch.nn.Parameter(weight.detach().clone())
parameter.grad, = torch.autograd.grad(alignment_loss([source], target), weight)
idle = torch.nn.Parameter(torch.ones(2, dtype=torch.double))  # has a gradient in one process only
if rank == 1:
    idle.grad = torch.full((2,), 3.0, dtype=torch.double)
sum_gradients([parameter, idle])

x = torch.tensor([1.0 + rank], requires_grad=True)
total, = sum_over_processes([x ** 2])
total.pow(2).sum().backward()  # each process has the loss (1 + 4)^2 = 25
values, stopped = agree({"loss": torch.tensor(1.0 + rank)}, torch.tensor(4.0), stop=rank == 1)
weights = torch.full((3,), float(rank))
same_on_all([weights])
means = [torch.full((2,), 1.0 + rank), torch.full((1,), 3.0 * rank)]
average_over_processes(means)

# The losses of a detector: each process has some of the images.
images, forged = torch.randn(8, 3, 32, 32), torch.rand(8, 32, 32)
labels, ids = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0]), torch.tensor([0] * 5 + [1] * 3)
detector = DETECTORS["multi_task"](image_size=32, width=0.25).eval()  # eval: batch statistics would differ
losses = detector.losses(detector.classify(images), images, labels, ids, forged)
shares = torch.tensor([0.1] * 5 + [1 / 6] * 3)  # the mean of both domains' means
sum((loss * shares).sum() for loss in losses.values()).backward()
whole = [parameter.grad.clone() for parameter in detector.parameters()]
detector.zero_grad()
part = [[0, 1, 5], [2, 3, 4, 6, 7]][rank]
episode = Episode.of(images[part], labels[part], ids[part], forged=forged[part])
merged_step(detector, episode, accelerator, equal_shares(2))
sum_gradients(detector.parameters())
of_losses = max(float((p.grad - g).abs().max() / g.abs().max()) for p, g in zip(detector.parameters(), whole))
wait_for_all()
if rank == 0:
    print(json.dumps({
        "world": world,
        "error": float((parameter.grad - expected).abs().max()),
        "idle": idle.grad.tolist(),
        "slope": x.grad.tolist(),
        "values": values,
        "stopped": stopped,
        "weights": weights.tolist(),
        "means": [mean.tolist() for mean in means],
        "losses": sorted(losses),
        "of_losses": of_losses,
    }))
accelerator.end_training()
"""


def test_sums_and_gathers_with_their_gradients(tmp_path):
    code = tmp_path / "check.py"
    code.write_text(CHECK)
    found = json.loads(start(code).splitlines()[-1])
    assert found["world"] == 2
    assert found["error"] < 1e-12
    assert found["idle"] == [3.0, 3.0]
    # d/dx of the two processes' losses together: 2 * 2 * (1 + 4) * 2 x, x = 1
    assert found["slope"] == [40.0]
    assert found["values"] == {"loss": 3.0, "gradient_norm": 4.0}
    assert found["stopped"] is True
    assert found["weights"] == [0.0, 0.0, 0.0]
    assert found["means"] == [[1.5, 1.5], [1.5]]
    assert found["losses"] == ["classification", "reconstruction", "segmentation"]
    assert found["of_losses"] < 1e-4


def recipe(tmp_path: Path, name: str, batch_size: int, **fields) -> Path:
    """Five meta-iterations with all three losses, on the same visual codes."""
    if not (tmp_path / "codes").exists():
        torch.manual_seed(0)
        codes = GMDFImageTokenizerConfig(image_size=32, patch_size=8, hidden_size=16, codebook_size=16)
        GMDFImageTokenizer(codes).save_pretrained(tmp_path / "codes")
        for seed, domain in enumerate("xyz"):
            # Unreadable images leave the processes with different numbers of images.
            write_domain(tmp_path / domain, seed, broken=(3, 9) if domain == "y" else ())
    settings = {
        "source_domains": {domain: str(tmp_path / domain) for domain in "xyz"},
        "backbone": "tiny_clip",
        "model": {"codebook_size": 16, "expert_bottleneck_size": 4, "prompt_size": 4},
        "image_tokenizer": str(tmp_path / "codes"),
        "image_size": 32,
        "epochs": 1,
        "steps_per_epoch": 5,
        "max_steps": 5,
        "batch_size": batch_size,
        "learning_rate": 1e-5,
        "source_weight": 1.0,
        "alignment_queue": 24,
        "save_slim": False,
        "output_dir": str(tmp_path / name),
    }
    path = tmp_path / f"{name}.yaml"
    path.write_text(json.dumps(settings | fields))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("order", ["first_order", "second_order"])
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path, order):
    script = ROOT / "scripts" / "meta_train.py"
    fields: dict = {"meta_gradient": order}
    if order == "second_order":
        fields |= {"align_gradient": "both", "inner_optimizer": "sgd", "inner_learning_rate": 0.1}
    meta_train.main(load_recipe(recipe(tmp_path, "one", 8, **fields), {}))
    start(script, "--recipe", recipe(tmp_path, "two", 4, **fields))
    states = [sorted((tmp_path / run / "checkpoints").iterdir())[-1] for run in ("one", "two")]
    assert [state.name for state in states] == ["step-00000005"] * 2
    # The second run really had two processes: the same joined batch out of half of it each.
    assert [json.loads((state / "state.json").read_text())["joined_batch"] for state in states] == [8, 8]
    one, two = (load_file(state / "state.safetensors") for state in states)
    first = load_file(ROOT / "gmdf_hf" / "training" / "tiny_clip" / "model.safetensors")
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert (one[f"model.{name}"] - first[name]).abs().max() > 2e-5  # it has moved
    assert one.keys() == two.keys()
    for key in one:
        # A key's bias cancels in the softmax: its gradient is rounding, which Adam scales up to whole steps.
        if key == "method.alignment.source.counts":
            assert torch.equal(one[key], two[key]) and one[key].any()
        elif key.startswith(("method.alignment.source.features", "method.alignment.target.features")):
            # The same images in another order: their statistics are what L_sis reads.
            assert (one[key].sum(2) - two[key].sum(2)).abs().max() <= 1e-4, key
        elif key.startswith(("model.", "method.")) and not key.endswith("k_proj.bias"):
            assert (one[key] - two[key]).abs().max() <= 1e-5, key
    histories = [
        [json.loads(line) for line in (tmp_path / run / "history.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    for ours, theirs in zip(*histories, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() & {"source", "classification", "alignment", "masked_image", "gradient_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    # The processes share the scoring, and no frame is lost or doubled.
    scores = [pd.read_parquet(tmp_path / run / "scores.parquet") for run in ("one", "two")]
    columns = ["domain", "video_id", "frame", "label"]
    assert scores[0][columns].equals(scores[1][columns]) and len(scores[0]) == 3 * 16
    np.testing.assert_allclose(scores[0]["score"], scores[1]["score"], atol=1e-3)
    assert (tmp_path / "one" / "skipped.csv").read_text() == (tmp_path / "two" / "skipped.csv").read_text()
