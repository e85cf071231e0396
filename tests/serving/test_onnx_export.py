"""An exported detector gives the same scores as the original."""

import importlib.util
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gmdf_hf import GMDFImageProcessor, GMDFModel
from gmdf_hf.common.errors import UserError
from gmdf_hf.common.images import open_image
from gmdf_hf.evaluation.classifier import weights_digest
from gmdf_hf.serving.loading import load_pipeline
from gmdf_hf.serving.runtimes import OnnxDetector, OpenVinoDetector
from gmdf_hf.training.adapters import add_domain
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import tiny_model

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")
onnx_export = pytest.importorskip("gmdf_hf.serving.onnx_export", reason="needs the extra `export`")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model, processor = tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32)
    save_model(folder / "model", model, processor)
    onnx_export.export_onnx(model, processor, folder / "model.onnx")
    onnx_export.quantize(folder / "model.onnx", folder / "model.int8.onnx")
    return folder


@pytest.mark.parametrize("dil", ["affine", "affine_bias", "cross_attention"])
def test_torch_export_takes_any_number_of_images(pixel_values, dil):
    model = tiny_model(dil=dil)
    program = onnx_export.export_program(model).module()
    for count in (1, 2, 5):
        torch.testing.assert_close(program(pixel_values[:count]), model(pixel_values[:count]).logits)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnx_scores_like_the_model(exported, pixel_values, count):
    model = GMDFModel.from_pretrained(exported / "model")
    logits = OnnxDetector(exported / "model.onnx")(pixel_values[:count]).logits
    torch.testing.assert_close(logits, model(pixel_values[:count]).logits, atol=1e-4, rtol=0)


def test_the_file_needs_nothing_else_and_knows_its_threshold(exported):
    file = onnx.load(exported / "model.onnx")
    facts = {entry.key: json.loads(entry.value) for entry in file.metadata_props if entry.value[:1] in '[".0123456789'}
    assert facts["threshold"] == 0.25
    assert facts["domains"] == ["a", "b", "c"]
    assert facts["image_size"] == 32
    assert facts["labels"] == ["real", "fake"]
    names = [tensor.name for tensor in file.graph.initializer]
    assert not [name for name in names if "text" in name or "prompt_embeds" in name or "mim" in name]
    assert not list(exported.glob("*.data"))


def test_a_grown_or_full_model_is_exported_as_it_is(pixel_values, tmp_path):
    model = tiny_model()
    add_domain(model, "d")
    with torch.no_grad():
        model.text_projection.weight.mul_(-1)
    model.update_prompt_embeds()
    onnx_export.export_onnx(model, GMDFImageProcessor.of_size(32), tmp_path / "grown.onnx")
    logits = OnnxDetector(tmp_path / "grown.onnx")(pixel_values).logits
    torch.testing.assert_close(logits, model(pixel_values).logits, atol=1e-4, rtol=0)


def test_eight_bits_are_smaller_and_close(exported, pixel_values):
    assert (exported / "model.int8.onnx").stat().st_size < (exported / "model.onnx").stat().st_size
    assert not list(exported.glob("*.prepared.onnx"))
    exact = OnnxDetector(exported / "model.onnx")(pixel_values).logits
    rounded = OnnxDetector(exported / "model.int8.onnx")(pixel_values).logits
    assert 0 < (exact - rounded).abs().max() < 0.5


def test_parity_on_real_faces(exported, real_data):
    model, processor = (kind.from_pretrained(exported / "model") for kind in (GMDFModel, GMDFImageProcessor))
    stored = pd.read_parquet(real_data / "faces" / "dfdc" / "test.parquet")["image"][:32]
    pictures = [open_image(image["bytes"]) for image in stored]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    logits = OnnxDetector(exported / "model.onnx")(pixels).logits
    assert (logits - model(pixels).logits).abs().max() <= 1e-4


def test_prediction_runs_the_export_beside_the_model(exported, tmp_path):
    model = shutil.copytree(exported / "model", tmp_path / "model")
    generator = np.random.default_rng(0)
    faces = [Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(5)]
    plain = load_pipeline(str(model), "none", device="cpu")(faces)
    runtimes = [("onnx", "model.onnx", 1e-4), ("onnx-int8", "model.int8.onnx", 0.05), ("openvino", "model.onnx", 1e-4)]
    for runtime, file, tolerance in runtimes[: None if importlib.util.find_spec("openvino") else -1]:
        (model / file).unlink(missing_ok=True)
        with pytest.raises(UserError, match=f"has no {file}") as missing:
            load_pipeline(str(model), "none", runtime=runtime)
        assert f"gmdf export --model {model} --output {model}" in missing.value.hint
        shutil.copy(exported / file, model)
        results = load_pipeline(str(model), "none", runtime=runtime)(faces)
        for result, expected in zip(results, plain, strict=True):
            assert abs(result["score"] - expected["score"]) < tolerance
            assert result["label"] == expected["label"] or abs(expected["score"] - expected["threshold"]) < tolerance
            assert result["expert_weights"] == {}


def test_an_export_of_other_weights_is_refused(exported, tmp_path):
    save_model(tmp_path, tiny_model(logit_scale_init_value=4.0), GMDFImageProcessor.of_size(32))
    shutil.copy(exported / "model.onnx", tmp_path)
    with pytest.raises(UserError, match="is an export of other weights"):
        load_pipeline(str(tmp_path), "none", runtime="onnx")


def test_options_that_a_runtime_does_not_have_are_refused(exported, monkeypatch):
    model = str(exported / "model")
    with pytest.raises(UserError, match=r"in its own precision: .* found 'bfloat16'"):
        load_pipeline(model, "none", runtime="onnx", dtype="bfloat16")
    with pytest.raises(UserError, match=r"float32, bfloat16 or auto, found 'float16'"):
        load_pipeline(model, "none", runtime="openvino", dtype="float16")
    monkeypatch.setattr("gmdf_hf.evaluation.precision.has_bfloat16_units", lambda: False)
    with pytest.raises(UserError, match="no units for it: expected --dtype float32 or auto"):
        load_pipeline(model, "none", runtime="openvino", dtype="bfloat16")
    with pytest.raises(UserError, match=r"scores on a CPU: .* found 'cuda'"):
        load_pipeline(model, "none", runtime="openvino", device="cuda")


def test_a_missing_runtime_is_named_with_its_extra(exported, tmp_path, monkeypatch):
    model = shutil.copytree(exported / "model", tmp_path / "model")
    shutil.copy(exported / "model.onnx", model)
    for runtime, package, extra in (("onnx", "onnxruntime", "export"), ("openvino", "openvino", "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"needs {package}: pip install 'gmdf-hf\[{extra}\]'"):
            load_pipeline(str(model), "none", runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_damaged_export_is_one_sentence(exported, tmp_path, runtime):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    model = shutil.copytree(exported / "model", tmp_path / "model")
    whole = (exported / "model.onnx").read_bytes()
    for content in (b"garbage", whole[: len(whole) // 2]):
        (model / "model.onnx").write_bytes(content)
        with pytest.raises(UserError, match=f"model.onnx cannot be read by {runtime}: ") as error:
            load_pipeline(str(model), "none", runtime=runtime)
        assert "\n" not in str(error.value) and "gmdf export" in error.value.hint


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("place", ["../secret.bin", "{folder}/secret.bin"])
def test_an_export_reads_no_file_outside_of_its_folder(exported, tmp_path, runtime, place):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    model = shutil.copytree(exported / "model", tmp_path / "model")
    file = onnx.load(exported / "model.onnx")
    tensor = max(file.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (tmp_path / "secret.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place.format(folder=tmp_path))
    (model / "model.onnx").write_bytes(file.SerializeToString())
    with pytest.raises(UserError, match=f"model.onnx cannot be read by {runtime}: ") as error:
        load_pipeline(str(model), "none", runtime=runtime)
    assert "secret.bin" in str(error.value) or "External data path" in str(error.value)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_openvino_scores_like_the_model(exported, pixel_values, count):
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    model, pixels = GMDFModel.from_pretrained(exported / "model"), pixel_values[:count]
    detector = OpenVinoDetector(exported / "model.onnx")
    torch.testing.assert_close(detector(pixels).logits, model(pixels).logits, atol=1e-4, rtol=0)
    assert detector.weights == weights_digest(model)
    assert detector.threads == torch.get_num_threads() == len(detector.requests)
    # float32 on a processor without units for it
    half = OpenVinoDetector(exported / "model.onnx", torch.bfloat16)(pixels).logits
    torch.testing.assert_close(half, model(pixels).logits, atol=0.1, rtol=0)


def test_openvino_answers_several_threads_at_once(exported):
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    detector = OpenVinoDetector(exported / "model.onnx", threads=2)
    batches = torch.randn(24, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = [detector(pixels).logits for pixels in batches]
    with ThreadPoolExecutor(4) as threads:
        for found, alone in zip(threads.map(lambda pixels: detector(pixels).logits, batches), expected, strict=True):
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


TELEMETRY = """
import sys
from pathlib import Path
from gmdf_hf.serving.runtimes import OpenVinoDetector
OpenVinoDetector(Path(sys.argv[1]))
print(sys.modules.get("openvino_telemetry"))
"""


def test_openvino_sends_no_statistics(exported, tmp_path):
    """Its telemetry notes each import in the home folder, except where the variable CI is set."""
    pytest.importorskip("openvino_telemetry", reason="comes with the extra `openvino`")
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    result = processes.run("-c", TELEMETRY, exported / "model.onnx", env=environment)
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_script_measures_what_it_writes(exported, tmp_path, capsys):
    from gmdf_hf.scripts import export

    settings = {"model": str(exported / "model"), "output": tmp_path, "int8": True, "domain": "drawn:swap"}
    rows = export.main(export.ExportOptions(**settings, batch_size=4))
    assert [row["variant"] for row in rows] == ["PyTorch", "ONNX", "ONNX int8"]
    assert rows[1]["difference"] <= 1e-4 < rows[2]["difference"]
    assert rows[1]["auc"] == pytest.approx(rows[0]["auc"], abs=1e-3)
    assert rows[2]["bytes"] < rows[1]["bytes"]
    cells = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert cells[0][-3:-1] == [f"{100 * rows[0]['auc']:.2f}", f"{100 * rows[0]['accuracy']:.2f}"]


def test_benchmark_counts_faces_a_second():
    from gmdf_hf.scripts import benchmark_predict

    variants = {"slow": lambda pixels: time.sleep(0.02), "fast": lambda pixels: time.sleep(0.005)}
    rates = benchmark_predict.faces_per_second(variants, torch.zeros(4, 1), rounds=3, seconds=0.1)
    assert rates["slow"] == pytest.approx(4 / 0.02, rel=0.3)
    assert 2 < rates["fast"] / rates["slow"] < 5
