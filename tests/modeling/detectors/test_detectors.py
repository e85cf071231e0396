"""What every detector does: counts its parameters, learns, is trained, saved, loaded and exported as the others are."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from gmdf_hf.common.errors import UserError
from gmdf_hf.data.drawn.domains import draw_domain
from gmdf_hf.evaluation.classifier import load_classifier
from gmdf_hf.modeling.detectors import DETECTORS, Detector, hrnet, image_processor_of, m2tr, xception
from gmdf_hf.modeling.detectors.xception import Xception, timm_name
from gmdf_hf.scripts import meta_train
from gmdf_hf.training.classifiers import image_side, new_detector
from gmdf_hf.training.config import TrainConfig
from gmdf_hf.training.setup import check_method, trains_gmdf
from tests import processes
from tests.domains import write_domain

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parents[3]
SIDE = 64
PARAMETERS = {
    "efficientnet_b4": 17_552_202,
    "face_xray": 65_325_845,
    "f3net": 42_686_277,
    "forensic_transfer": 197_798,
    "local_relation": 48_600_848,
    "m2tr": 18_615_035,
    "mat": 18_332_882,
    "meso_inception4": 28_615,
    "multi_task": 304_949,
    "recce": 22_225_001,
    "srm": 53_199_919,
    "ucf": 46_528_791,  # with one method
    "xception": 20_811_050,
}
WIDTHS = {"forensic_transfer": 0.5, "meso_inception4": 1.0, "multi_task": 0.5}  # small anyway
TINY = {name: {"image_size": SIDE, "width": WIDTHS.get(name, 0.0625)} for name in DETECTORS}
RUNS = [
    "meso_inception4",
    "multi_task",
    "ucf",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("face_xray", "m2tr", "mat")),
]


def tiny(name: str) -> torch.nn.Module:
    """The detector with few channels, with running statistics of real features."""
    torch.manual_seed(0)
    model = DETECTORS[name](**TINY[name]).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(4, 3, SIDE, SIDE))
    return model.eval()


def take_one_block_of_each_kind(monkeypatch) -> None:
    """Where the papers of Face X-ray and M2TR repeat a block, which adds time and no other operators."""
    for module, constant in ((hrnet, "BLOCKS"), (m2tr, "DEPTH")):
        monkeypatch.setattr(module, constant, 1)


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", DETECTORS)
def test_parameters_are_counted(name):
    """The page beside these counts has the published ones."""
    with torch.device("meta"):
        model = DETECTORS[name]().eval()
        side = model.config.image_size
        assert model(torch.zeros(1, 3, side, side)).logits.shape == (1, 2)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[name]
    page = (ROOT / "docs" / "detectors.md").read_text()
    assert f"| `{name}` |" in page and f"| {count:,} |" in page


@pytest.fixture(scope="module")
def faces() -> tuple[list[Image.Image], torch.Tensor]:
    """Sixteen real and sixteen forged drawn faces."""
    rows = list(draw_domain("swap", "train", num_videos=32, frames_per_video=1))
    return [row["image"] for row in rows], torch.tensor([row["label"] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_thirty_two_faces_are_learned_by_heart(name, faces, monkeypatch):
    take_one_block_of_each_kind(monkeypatch)
    model, (pictures, labels) = tiny(name).train(), faces
    assert len(labels) == 2 * labels.sum() == 32
    inputs = image_processor_of(model.config)(images=pictures, return_tensors="pt")["pixel_values"]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # the running statistics follow so few steps
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    forged = torch.zeros(32, SIDE, SIDE)
    forged[labels == 1, 16:48, 16:48] = 0.6  # forged, and on the boundary
    for step in range(200):
        output = model(inputs, labels=labels, **({"forged": forged} if getattr(model, "needs_masks", False) else {}))
        assert output.loss.isfinite()
        if step % 5 == 4 and torch.equal(output.logits.argmax(1), labels):
            with torch.no_grad():
                right = torch.equal(model.eval()(inputs).logits.argmax(1), labels)
            if right:
                return
            model.train()
        optimizer.zero_grad()
        output.loss.backward()
        if step == 1:
            assert not [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
        optimizer.step()
    pytest.fail(f"{name} did not learn 32 faces in 200 steps: the loss is {output.loss:.3f}")


@pytest.mark.parametrize("name", RUNS)  # the protocols of the tables train all of them
def test_a_run_trains_saves_and_scores(name, tmp_path, capsys):
    for seed, domain in enumerate("xy"):
        write_domain(tmp_path / domain, seed)
    config = TrainConfig(
        source_domains={domain: str(tmp_path / domain) for domain in "xy"},
        backbone=name,
        detector=TINY[name],
        method="balanced_erm",
        epochs=1,
        max_steps=2,
        batch_size=4,
        learning_rate=1e-3,
        output_dir=tmp_path / "run",
    )
    results = meta_train.main(config)
    assert results["steps"] == 2 and set(results["domains"]) == {"x", "y"}
    logged = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])
    assert ({"specific", "reconstruction", "contrast"} <= logged.keys()) is (name == "ucf")
    assert ({"segmentation", "reconstruction"} <= logged.keys()) is (name == "multi_task")
    assert ({"segmentation", "contrast"} <= logged.keys()) is (name == "m2tr")
    assert ({"independence", "augmented"} <= logged.keys()) is (name == "mat")
    assert ("boundary" in logged) is (name == "face_xray")
    note = "no column `mask` in x, y: what the masks teach is left out for their fakes"
    assert capsys.readouterr().out.count(note) == (name in ("m2tr", "multi_task"))
    found = load_classifier(str(tmp_path / "run" / "model"))
    assert found.fake == 1 and found.model.config.domains == ["x", "y"]
    assert image_side(found.processor) == SIDE


@pytest.mark.slow
def test_checkpoints_open_with_and_without_the_package(tmp_path):
    """Without it, the code beside the weights is used."""
    expected = {}
    for name in DETECTORS:
        model = tiny(name)
        model.save_pretrained(tmp_path / name)
        image_processor_of(model.config).save_pretrained(tmp_path / name)
        with torch.no_grad():
            expected[name] = model(pixels()).logits
            again = AutoModelForImageClassification.from_pretrained(tmp_path / name)
            assert type(again) is type(model)
            torch.testing.assert_close(again(pixels()).logits, expected[name])
    save_file({**expected, "pixels": pixels()}, tmp_path / "expected.safetensors")
    code = """
import sys
sys.modules["gmdf_hf"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification
expected = load_file("expected.safetensors")
pixels = expected.pop("pixels")
for name, logits in expected.items():
    model = AutoModelForImageClassification.from_pretrained(f"./{name}", trust_remote_code=True)
    AutoImageProcessor.from_pretrained(f"./{name}")
    torch.testing.assert_close(model.eval()(pixels).logits.detach(), logits)
    print(name, model.config.id2label[1])
"""
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = processes.run("-c", code, cwd=tmp_path, env=environment, warm=processes.LIBRARIES)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [word for name in sorted(DETECTORS) for word in (name, "fake")]


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_onnx_gives_the_same_logits(name, tmp_path, monkeypatch):
    take_one_block_of_each_kind(monkeypatch)
    if name != "recce":  # it counts Xception's blocks
        monkeypatch.setattr(xception, "MIDDLE", 1)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Logits(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=pixel_values).logits

    model = tiny(name)
    # Tracing takes a tenth of the time, but lacks others' operators.
    if name in ("face_xray", "forensic_transfer", "local_relation"):
        axes = {"pixel_values": {0: "batch"}}
        options = {"dynamo": False, "input_names": ["pixel_values"], "dynamic_axes": axes}
    else:
        options = {"dynamo": True, "verbose": False, "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    torch.onnx.export(Logits(model).eval(), (pixels(),), tmp_path / "model.onnx", **options)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    logits = session.run(None, {"pixel_values": pixels(3).numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(pixels(3)).logits, rtol=1e-3, atol=1e-4)


def test_a_detector_goes_on_from_its_folder_with_a_new_head(tmp_path):
    from gmdf_hf.training.classifiers import load_classifier as load_backbone

    model = tiny("xception")
    model.save_pretrained(tmp_path)
    image_processor_of(model.config).save_pretrained(tmp_path)
    loaded, processor = load_backbone(str(tmp_path), ["x"])
    assert isinstance(loaded, Detector) and image_side(processor) == SIDE
    before = load_file(tmp_path / "model.safetensors")
    changed = {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", ["f3net", "recce", "srm", "ucf", "xception"])
def test_networks_inside_start_from_pretrained_weights(name, tmp_path):
    torch.manual_seed(1)
    source = Xception(TINY[name]["width"])
    tensors = {timm_name(key): tensor.contiguous() for key, tensor in source.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    model, _ = new_detector(name, ["x"], fields=TINY[name] | {"pretrained": str(tmp_path)})
    networks = [module for module in model.modules() if isinstance(module, Xception)]
    assert len(networks) == (1 if name in ("recce", "xception") else 2)
    for network in networks:
        for key, tensor in source.named_parameters():
            own = dict(network.named_parameters())[key]
            if own.shape == tensor.shape:
                assert torch.equal(own, tensor), key
    if name == "f3net":  # the three components of an image give the response to the image
        images = pixels()
        parts = torch.stack([images / 2, images / 3, images / 6], 1).flatten(1, 2)
        torch.testing.assert_close(networks[0].conv1(parts), source.conv1(images))


def test_what_cannot_be_made_is_one_sentence(tmp_path):
    for fields, message in (
        ({"widht": 2}, "widht"),
        ({"width": 0.0}, "`width` must be above 0"),
        ({"pretrained": str(tmp_path)}, "model.safetensors"),
        ({"image_size": 100}, "multiple of 32, found 100"),
    ):
        with pytest.raises(UserError, match=f"The detector 'meso_inception4' cannot be made: .*{message}") as caught:
            new_detector("meso_inception4", ["x"], fields=fields)
        assert "\n" not in str(caught.value)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="MesoInception4 has no network inside with pre-trained weights"):
        new_detector("meso_inception4", ["x"], fields={"pretrained": str(tmp_path)})
    with pytest.raises(UserError, match=r"no weights of timm's legacy_xception: conv1\.weight, bn1\.weight"):
        new_detector("xception", ["x"], fields=TINY["xception"] | {"pretrained": str(tmp_path)})
    with pytest.raises(UserError, match=r"'xception', which trains with direct_merge, .*; found the method 'gmdf'"):
        check_method("xception", "gmdf", "all")
    for baseline_model in ("classifier", "gmdf"):  # a recipe for backbones can train a detector, too
        check_method("xception", "direct_merge", "all", baseline_model)
        assert not trains_gmdf("xception", "direct_merge", baseline_model)
    with pytest.raises(UserError):
        check_method("xception", "gmdf", "all", "gmdf")


@pytest.mark.slow
def test_code_beside_a_checkpoint_is_that_of_the_detector(tmp_path):
    tiny("xception").save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {"detector.py", "xception.py"}
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "real", "1": "fake"}
