"""Streaming evaluation gives the same scores as evaluation of stored data."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmdf_hf.common.columns import FEATURES
from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.data.streams import Stream
from gmdf_hf.evaluation import score_parts, scoring
from gmdf_hf.evaluation.score_table import read_scores
from gmdf_hf.modeling import GMDFImageProcessor
from gmdf_hf.scripts import evaluate
from gmdf_hf.training.checkpoint import save_model
from gmdf_hf.training.config import DomainSource
from tests import processes
from tests.conftest import tiny_model
from tests.domains import write_domain, write_methods, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parents[2]
RESULTS = ("scores.parquet", "results.json", "skipped.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    write_methods(folder / "ff", broken=(7,))
    write_domain(folder / "x", 0)
    save_model(folder / "model", tiny_model(), GMDFImageProcessor.of_size(32))
    return folder


def evaluation(folder: Path, output: Path, *names: str, **fields) -> evaluate.Evaluation:
    domains = {name: DomainSource(path=str(folder / name)) for name in names}
    settings = {"domains": domains, "batch_size": 4, "replicates": 20, "streaming": True} | fields
    return evaluate.Evaluation(model=str(folder / "model"), output_dir=output, **settings)


def test_sorted_data_have_the_same_scores_to_the_last_bit(folder, tmp_path):
    """18 frames in batches of 4, one of them broken."""
    evaluate.main(evaluation(folder, tmp_path / "rest", "ff", streaming=False))
    evaluate.main(evaluation(folder, tmp_path / "stream", "ff"))
    evaluate.main(evaluation(folder, tmp_path / "workers", "ff", num_workers=2))
    for name in RESULTS:
        content = (tmp_path / "rest" / name).read_bytes()
        assert (tmp_path / "stream" / name).read_bytes() == content, name
        assert (tmp_path / "workers" / name).read_bytes() == content, name
    assert "ff, video 033, frame 1" in (tmp_path / "stream" / "skipped.csv").read_text()
    assert len(read_scores(tmp_path / "stream" / "scores.parquet")) == 17


def test_data_in_another_order_have_the_same_scores_and_the_same_order_in_the_table(folder, tmp_path):
    """`x` has neither frame numbers nor methods, and its videos are interleaved."""
    tables = []
    for streaming in (False, True):
        output = tmp_path / str(streaming)
        evaluate.main(evaluation(folder, output, "x", "ff", streaming=streaming))
        tables.append(read_scores(output / "scores.parquet"))
    rest, stream = tables
    pd.testing.assert_frame_equal(stream.drop(columns="score"), rest.drop(columns="score"))
    np.testing.assert_allclose(stream["score"], rest["score"], atol=1e-6)
    assert stream["method"].isna().tolist() == [False] * 17 + [True] * 16
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("False", "True")]
    for level in ("frame", "video"):
        for name in ("x", "ff"):
            one, other = (result["domains"][name][level]["auc"] for result in results)
            assert one == pytest.approx(other)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(folder, tmp_path):
    evaluate.main(evaluation(folder, tmp_path / "one", "ff", "x"))
    command = ["scripts/evaluate.py", "--streaming", "--batch_size", "4", "--replicates", "20"]
    command += ["--model", str(folder / "model"), "--domains", f"ff={folder / 'ff'}", f"x={folder / 'x'}"]
    result = processes.run_two(*command, "--output_dir", tmp_path / "two")
    assert result.returncode == 0, result.stderr[-3000:]
    parts = sorted(path.name for path in (tmp_path / "two" / "parts" / "ff").glob("*.parquet"))
    assert parts == ["00000000-00000004.parquet", "00000001-00000003.parquet"]
    for name in RESULTS:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def killed(folder: Path, output: Path, monkeypatch, frames: int, **fields) -> list[str]:
    """Kill an evaluation after it has decoded `frames` frames; return the list of the names decoded from now on."""
    monkeypatch.setattr(score_parts, "BATCHES_IN_A_PART", 2)
    decoded: list[str] = []
    read_frame = scoring.read_frame

    def dying(frame, *arguments):
        if len(decoded) == frames:
            decoded.append("killed")
            raise KeyboardInterrupt
        decoded.append(f"{frame} of {frame.method}")
        return read_frame(frame, *arguments)

    monkeypatch.setattr(scoring, "read_frame", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(evaluation(folder, output, "ff", **fields))
    return decoded


def test_a_killed_run_goes_on_and_decodes_only_what_is_left(folder, tmp_path, monkeypatch):
    evaluate.main(evaluation(folder, tmp_path / "whole", "ff"))
    decoded = killed(folder, tmp_path / "killed", monkeypatch, 10)
    assert not (tmp_path / "killed" / "scores.parquet").exists()
    assert len(decoded) == 11
    evaluate.main(evaluation(folder, tmp_path / "killed", "ff"))
    assert len(decoded) == 11 + 18 - 8  # two batches were written
    for name in RESULTS:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    # Another threshold needs neither new scores nor the stream.
    monkeypatch.setattr(Stream, "read", lambda *arguments: pytest.fail("the stream was read"))
    evaluate.main(evaluation(folder, tmp_path / "killed", "ff", threshold=0.9))
    assert len(decoded) == 21


def test_a_stream_that_changed_is_an_error_and_no_mixture(folder, tmp_path, monkeypatch):
    copied = tmp_path / "data"
    write_methods(copied / "ff")
    (copied / "model").symlink_to(folder / "model")
    # Replaced local files are noticed by size and time; data of the hub by the frames that come.
    monkeypatch.setattr(evaluate, "local_stamp", lambda path: None)
    killed(copied, tmp_path / "killed", monkeypatch, 10)
    write_methods(copied / "ff", range(1, 18))
    with pytest.raises(UserError, match=r"The data of domain 'ff' changed since .* batch 0 holds other frames"):
        evaluate.main(evaluation(copied, tmp_path / "killed", "ff"))
    write_methods(copied / "ff")
    evaluate.main(evaluation(copied, tmp_path / "killed", "ff"))
    with pytest.raises(UserError, match="with another streaming: found True, expected False"):
        evaluate.main(evaluation(copied, tmp_path / "killed", "ff", streaming=False))
    (tmp_path / "killed" / "parts" / "ff" / "00000002-00000003.parquet").unlink()
    write_methods(copied / "ff", [*range(18), 17, 17])  # the last batch alone differs
    with pytest.raises(UserError, match="batch 4 holds other frames"):
        evaluate.main(evaluation(copied, tmp_path / "killed", "ff"))


def test_one_class_has_no_auc_and_says_so(folder, tmp_path):
    write_methods(tmp_path / "fakes" / "ff", [row for row in range(18) if row % 9 < 6], split="validation")
    (tmp_path / "fakes" / "model").symlink_to(folder / "model")
    asked = evaluation(tmp_path / "fakes", tmp_path / "scores", "ff", split="validation")
    with pytest.warns(UserWarning, match="Domain 'ff' has 0 real and 4 fake videos"):
        results = evaluate.main(asked)
    assert results["domains"]["ff"]["frame"]["auc"] is None
    assert results["pooled_auc"]["video"] is None
    assert results["domains"]["ff"]["frame"]["fnr"] is not None
    assert "crossing_threshold" not in results


def test_what_cannot_be_streamed_is_one_sentence(folder, tmp_path):
    few = {"ff": DomainSource(path=str(folder / "ff"), max_videos=3)}
    with pytest.raises(DomainError, match="`max_videos` needs the whole domain, which a stream does not have"):
        evaluate.main(evaluation(folder, tmp_path / "few", domains=few))
    images = [{"bytes": b"no image", "path": None}] * 8
    broken = {"b": DomainSource(path=str(write_parquet(tmp_path / "b", "test", image=images)))}
    with pytest.raises(UserError, match="No image could be read: b, video b/test/0/real, frame 0"):
        evaluate.main(evaluation(folder, tmp_path / "broken", domains=broken))
    both = broken | {"ff": DomainSource(path=str(folder / "ff"))}
    results = evaluate.main(evaluation(folder, tmp_path / "both", domains=both))
    assert results["unread_domains"] == ["b"] and list(results["domains"]) == ["ff"]


MEMORY = """
import re, sys, torch
from pathlib import Path
from gmdf_hf.evaluation.classifier import Classifier
from gmdf_hf.training.config import DomainSource
from gmdf_hf.modeling import GMDFImageProcessor
from gmdf_hf.scripts import evaluate

class Mean(torch.nn.Linear):
    config = type("Config", (), {})()
    def forward(self, pixel_values):
        level = pixel_values.mean((1, 2, 3))
        return type("Output", (), {"logits": torch.stack([-level, level], 1)})

evaluate.load_classifier = lambda *options: Classifier(Mean(1, 1), GMDFImageProcessor.of_size(8), 1)
domains = {"x": DomainSource(path=sys.argv[1])}
# A folder, because a name would be looked up on the hub.
options = {"model": sys.argv[1], "domains": domains, "output_dir": sys.argv[2], "streaming": True, "replicates": 2}
evaluate.main(evaluate.Evaluation(**options))
print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak_mib(tmp_path: Path, rows: int) -> float:
    """Peak memory of scoring noise pictures of 192 KiB, with two videos per hundred frames and row groups of 20."""
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)).save(image, "BMP")
    path = tmp_path / f"{rows}" / "test.parquet"
    path.parent.mkdir()
    with pq.ParquetWriter(path, FEATURES.arrow_schema) as writer:
        for start in range(0, rows, 100):
            numbers = range(start, start + 100)
            columns = {
                "image": [{"bytes": image.getvalue() + n.to_bytes(4, "big"), "path": None} for n in numbers],
                "label": [n % 2 for n in numbers],
                "video_id": [f"{n // 100}-{n % 2}" for n in numbers],
                "frame": [n % 100 for n in numbers],
                "method": ["real", "swap"] * 50,
                "group": [f"{n // 100}" for n in numbers],
            }
            writer.write_table(pa.table(columns, schema=FEATURES.arrow_schema), row_group_size=20)
    result = processes.run("-c", MEMORY, path.parent, tmp_path / f"scores-{rows}", cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(read_scores(tmp_path / f"scores-{rows}" / "scores.parquet")) == rows
    return int(re.search(r"peak (\d+)", result.stdout)[1]) / 2**10


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    """1,300 more pictures are 244 MiB more data; what is read ahead reaches its size within the first 100 MiB."""
    many, few = peak_mib(tmp_path, 2000), peak_mib(tmp_path, 700)
    assert many - few < 50, (many, few)
