"""Demo page for pictures and videos."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from starlette.middleware import Middleware

from gmdf_hf.common.images import SUFFIXES as IMAGE_SUFFIXES
from gmdf_hf.common.memory import share_heaps
from gmdf_hf.data.drawn.domains import draw_domain
from gmdf_hf.evaluation.tables import escaped
from gmdf_hf.evaluation.training_data import describe_training
from gmdf_hf.preparation.media import Media, open_media
from gmdf_hf.preparation.video import SUFFIXES as VIDEO_SUFFIXES
from gmdf_hf.serving.demo_page import answer_page, message
from gmdf_hf.serving.download import DownloadError, downloaded
from gmdf_hf.serving.inputs import INPUT_ERRORS, is_url, open_input
from gmdf_hf.serving.isolated import IsolatedReader
from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline
from gmdf_hf.serving.uploads import UploadDeadline, UploadFolder

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
MAX_UPLOAD = "100mb"
MAX_SECONDS = 20  # for reading one picture or the frames of one video
MAX_WAITING = 20  # visitors processed or waiting; Gradio queues as many more and rejects the rest
NUM_FRAMES = 16
DELETE_AFTER = 20.0  # seconds between an answer and the deletion of its file
UPLOAD_SECONDS = 120.0  # for a whole upload
FORGET_AFTER = 60.0  # seconds between the last byte of an unused upload and its deletion
MAX_UPLOADS = 2 * 2**30  # total bytes of all uploads
UPLOADS = "GRADIO_TEMP_DIR"  # Gradio's variable for the folder of uploads

LIMITS = """\
### What it cannot know

The score is a model's opinion of faces, not evidence. It fails on forgeries unlike those of its training, on strong
compression and on small faces; it may err more often for some groups of people than for others. It knows nothing of
sound, text, the rest of the picture, or who is shown. A low score does not prove that a picture is real. Do not let a
score alone decide about a person.

Pictures and videos are deleted within half a minute of their analysis.
"""


def about(detect: DeepfakeDetectionPipeline) -> str:
    """What the detector was trained on, and its operating point."""
    point = detect.operating_point
    at = f"fake from {detect.default_threshold:.2f}, its false-positive rate is not measured (gmdf calibrate)"
    return (
        f"Training data: {describe_training(detect.model.config)}. "
        f"Operating point: {at if point is None else point.describe()}."
    )


def answer(
    detect: DeepfakeDetectionPipeline,
    source: str | None,
    address: str | None = None,
    open_file: Callable[..., Media] = open_media,
) -> str:
    """Analyse a file and return the result as self-contained HTML with embedded pictures.

    Args:
        detect: The pipeline `deepfake-detection`.
        source: Path of the file; None if no file was given.
        address: URL of the file; None for an upload.
        open_file: Function that opens files.

    Returns:
        HTML of the verdict, or of an error message.
    """
    if not source:
        return message("Choose a picture or a video first, or give its address.")
    suffix = Path(source).suffix.lower()
    if address is None and suffix not in SUFFIXES:
        return message(f"Files of the type {suffix or 'unknown'} are not analysed, only pictures and videos.")
    bounds: dict[str, Any] = {"max_seconds": MAX_SECONDS, "open_file": open_file}
    try:
        result = detect(source, num_frames=NUM_FRAMES, return_heatmap=True, **bounds)
        if not result["face_found"]:
            return message("No face was found, so there is no verdict.")
        numbers = sorted({face["frame"] for face in result["faces"]})
        with open_input(source, NUM_FRAMES, **bounds) as media:
            frames = {frame.number: frame.pixels for frame in media.read(numbers)}
        result["source"] = address or Path(source).name
        return answer_page(result, frames, about(detect))
    except INPUT_ERRORS as error:
        return message(str(error).replace(source, address or Path(source).name))


def example(detect: DeepfakeDetectionPipeline, label: int) -> str:
    """Analyse a drawn face, 0 real or 1 forged; it is a crop already."""
    row = next(row for row in draw_domain("swap", "test", 2, 1) if row["label"] == label)
    face = np.asarray(row["image"].convert("RGB"))
    result = detect(face, detector="none", return_heatmap=True)
    result["source"] = f"a drawn face, {'forged' if label else 'real'}"
    return answer_page(result, {0: face}, about(detect))


class Visits:
    """Analyses one file at a time; files are downloaded and decoded before they wait for their turn.

    Args:
        detect: The pipeline `deepfake-detection`.
        uploads: Folder of the uploads.
        reader: Reader of untrusted files.
    """

    def __init__(self, detect: DeepfakeDetectionPipeline, uploads: UploadFolder, reader: IsolatedReader) -> None:
        self.detect, self.uploads, self.reader = detect, uploads, reader
        self.turn = threading.Lock()

    def example(self, label: int) -> str:
        """Answer with a drawn face."""
        with self.turn:
            return example(self.detect, label)

    def look(self, upload: str | None, address: str) -> str:
        """Answer one visitor, who gave a file or a URL."""
        address = (address or "").strip()
        if upload:
            with self.uploads.in_use(Path(upload)), self.reader.ahead(upload, NUM_FRAMES), self.turn:
                return answer(self.detect, upload, None, self.reader.open)
        if not address:
            return answer(self.detect, None)
        if not is_url(address):
            return message("An address begins with https:// or http://.")
        try:
            with downloaded(address) as path, self.reader.ahead(path, NUM_FRAMES), self.turn:
                return answer(self.detect, str(path), address, self.reader.open)
        except DownloadError as error:
            return message(str(error))


def build(detect: DeepfakeDetectionPipeline) -> gradio.Blocks:
    """Build the page, with its own upload folder of limited age and size.

    Args:
        detect: The pipeline `deepfake-detection`.
    """
    if UPLOADS not in os.environ:
        os.environ[UPLOADS] = tempfile.mkdtemp(prefix="gmdf-uploads-")
        atexit.register(shutil.rmtree, os.environ[UPLOADS], ignore_errors=True)
    reader = IsolatedReader(MAX_SECONDS)
    uploads = UploadFolder(Path(os.environ[UPLOADS]), SUFFIXES, DELETE_AFTER, FORGET_AFTER, MAX_UPLOADS)
    with gradio.Blocks(title="GM-DF", analytics_enabled=False) as page:
        gradio.Markdown(f"# Are these faces forged?\n\n**{escaped(about(detect))}**")
        upload = gradio.File(
            label=f"Picture or video, at most {MAX_UPLOAD}",
            file_types=list(SUFFIXES),
            type="filepath",
        )
        address = gradio.Textbox(label="or its address", placeholder="https://", max_lines=1, max_length=2000)
        button = gradio.Button("Analyse", variant="primary")
        with gradio.Row():
            examples = [gradio.Button(f"Example: {word} drawn face", size="sm") for word in ("a real", "a forged")]
        shown = gradio.HTML(elem_id="answer", label="Result")
        gradio.Markdown(LIMITS)
        visits = Visits(detect, uploads, reader)
        looked = button.click(visits.look, [upload, address], shown, concurrency_limit=MAX_WAITING, api_name="look")
        looked.then(lambda: (None, ""), None, [upload, address], queue=False, api_visibility="private")
        for label, try_it in enumerate(examples):
            try_it.click(partial(visits.example, label), None, shown, api_visibility="private")
    return page.queue(max_size=MAX_WAITING)


def settings(host: str, port: int | None) -> dict[str, Any]:
    """Arguments of `gradio.Blocks.launch`: upload limits, no public tunnel, no run history."""
    return {
        "server_name": host,
        "server_port": port,
        "max_file_size": MAX_UPLOAD,
        "state_session_capacity": 100,  # the page keeps no state; Gradio's 10,000 sessions of 20 KB would pile up
        "share": False,
        "footer_links": [],
        "run_history": False,
        "app_kwargs": {"middleware": [Middleware(UploadDeadline, seconds=UPLOAD_SECONDS)]},
    }


def launch(detect: DeepfakeDetectionPipeline, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until interrupted.

    Args:
        detect: The pipeline `deepfake-detection`.
        host: Address to listen on.
        port: Port to listen on.
    """
    share_heaps(2, large=2**22)
    build(detect).launch(**settings(host, port))
