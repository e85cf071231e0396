"""Demo page for pictures and videos."""

from __future__ import annotations

import atexit
import base64
import html
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
from PIL import Image
from starlette.middleware import Middleware

from gmdf_hf.common.images import SUFFIXES as IMAGE_SUFFIXES
from gmdf_hf.evaluation.training_data import describe_training
from gmdf_hf.preparation.video import SUFFIXES as VIDEO_SUFFIXES
from gmdf_hf.serving.download import DownloadError, downloaded
from gmdf_hf.serving.inputs import INPUT_ERRORS, is_url, open_input
from gmdf_hf.serving.isolated import IsolatedReader
from gmdf_hf.serving.overlays import draw_faces, overlay
from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline
from gmdf_hf.serving.uploads import UploadDeadline, UploadFolder

MAX_UPLOAD = "100mb"
MAX_SECONDS = 20  # for reading one picture or the frames of one video
MAX_WAITING = 20  # visitors processed or waiting; Gradio queues as many more and rejects the rest
NUM_FRAMES = 16
SHOWN_SIDE = 720  # pixels of the longer side of a picture in the answer
DELETE_AFTER = 20.0  # seconds between an answer and the deletion of its file
UPLOAD_SECONDS = 120.0  # for a whole upload
FORGET_AFTER = 60.0  # seconds between the last byte of an unused upload and its deletion
MAX_UPLOADS = 2 * 2**30  # total bytes of all uploads
UPLOADS = "GRADIO_TEMP_DIR"  # Gradio's variable for the folder of uploads

LIMITS = """\
### What it cannot know

The score is a model's opinion of faces, not evidence. Training data: {domains}. It fails on forgeries unlike
those, on strong compression and on small faces; it may err more often for some groups of people than for others. It
knows nothing of sound, text, the rest of the picture, or who is shown. A low score does not prove that a picture is
real. Do not let a score alone decide about a person.

Pictures and videos are deleted within half a minute of being looked at.
"""


def answer(detect: DeepfakeDetectionPipeline, source: str | None, address: str | None = None) -> str:
    """Analyse a file and return the result as self-contained HTML with embedded pictures.

    Args:
        detect: The pipeline `deepfake-detection`.
        source: Path of the file; None if no file was given.
        address: URL of the file; None for an upload.

    Returns:
        HTML of the verdict, or of an error message.
    """
    if not source:
        return _message("Drop a picture or a video first, or give its address.")
    suffix = Path(source).suffix.lower()
    if address is None and suffix not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        return _message(f"Files of the type {suffix or 'unknown'} are not looked at, only pictures and videos.")
    try:
        result = detect(source, num_frames=NUM_FRAMES, return_heatmap=True, max_seconds=MAX_SECONDS)
        if not result["face_found"]:
            return _message("No face was found, so there is no verdict.")
        worst = max(result["faces"], key=lambda face: face["score"])
        return _verdict(result, worst, _frame(detect, source, worst["frame"]))
    except INPUT_ERRORS as error:
        return _message(str(error).replace(source, address or Path(source).name))


def _frame(detect: DeepfakeDetectionPipeline, source: str, number: int) -> Image.Image:
    with open_input(source, NUM_FRAMES, max_seconds=MAX_SECONDS, open_file=detect.open_file) as media:
        return Image.fromarray(next(iter(media.read([number]))).pixels)


def _verdict(result: dict[str, Any], worst: dict[str, Any], frame: Image.Image) -> str:
    share = sorted(result["expert_weights"].items(), key=lambda item: -item[1])
    parts = [
        f"<h2 class='gmdf-{result['label']}'>{result['label']}: {result['score']:.2f}</h2>",
        f"<p>Probability of fake, called fake from {result['threshold']:.2f}. "
        f"{len(result['persons'])} person(s), {len(result['faces'])} face(s) in {result['frames_read']} frame(s).</p>",
    ]
    shown = draw_faces(frame, [face for face in result["faces"] if face["frame"] == worst["frame"]])
    parts.append(_picture(shown, "faces found" + (f" in frame {worst['frame']}" if worst["frame"] else "")))
    for person in result["persons"]:
        own = [face for face in result["faces"] if face["person"] == person["person"]]
        face = max(own, key=lambda face: face["score"])
        title = f"person {person['person'] + 1}: {person['label']} {person['score']:.2f}"
        parts.append(_picture(overlay(face["crop"].resize((256, 256)), face["heatmap"]), title))
    parts.append("<p>Red speaks for fake, blue for real, compared with the rest of the face.</p>")
    if result["frames_read"] > 1:
        parts.append(timeline(result["faces"], result["threshold"]))
    if share:
        experts = ", ".join(f"{html.escape(name)} {weight:.0%}" for name, weight in share)
        parts.append(f"<p>Shares of the domain experts: {experts}</p>")
    return "\n".join(parts)


def timeline(faces: Sequence[dict[str, Any]], threshold: float) -> str:
    """Plot the scores of a video's frames over time as SVG: one line per person, the threshold dashed."""
    width, height, margin = 640, 160, 24
    last = max(max(face["frame"] for face in faces), 1)

    def place(frame: float, score: float) -> tuple[str, str]:
        x, y = margin + frame / last * (width - 2 * margin), height - margin - score * (height - 2 * margin)
        return f"{x:.1f}", f"{y:.1f}"

    lines = []
    for person in sorted({face["person"] for face in faces}):
        own = sorted((face["frame"], face["score"]) for face in faces if face["person"] == person)
        color = f"hsl({person * 67 % 360} 70% 40%)"
        points = " ".join(",".join(place(*point)) for point in own)
        lines.append(f"<polyline fill='none' stroke='{color}' stroke-width='2' points='{points}'/>")
        for frame, score in own:
            x, y = place(frame, score)
            title = f"<title>frame {frame}: {score:.2f}</title>"
            lines.append(f"<circle r='3' fill='{color}' cx='{x}' cy='{y}'>{title}</circle>")
    dashed = f"points='{','.join(place(0, threshold))} {','.join(place(last, threshold))}'"
    return (
        f"<svg viewBox='0 0 {width} {height}' width='100%' role='img' aria-label='scores of the frames'>"
        f"<rect width='{width}' height='{height}' fill='white'/>"
        f"<polyline fill='none' stroke='black' stroke-dasharray='4' {dashed}/>{''.join(lines)}"
        f"<text x='2' y='{margin}' font-size='11'>fake</text>"
        f"<text x='2' y='{height - margin}' font-size='11'>real</text>"
        f"<text x='{width - margin}' y='{height - 6}' font-size='11' text-anchor='end'>frame {last}</text></svg>"
    )


def _picture(image: Image.Image, title: str) -> str:
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    title = html.escape(title)
    return (
        f"<figure style='display:inline-block;margin:4px'><img alt='{title}' src='data:image/jpeg;base64,{data}'>"
        f"<figcaption>{title}</figcaption></figure>"
    )


def _message(text: str) -> str:
    return f"<p role='alert'><b>{html.escape(text)}</b></p>"


class Visits:
    """Analyses one file at a time; files are downloaded and decoded before they wait for their turn.

    Args:
        detect: The pipeline `deepfake-detection`.
        uploads: Folder of the uploads.
        reader: Reader of `detect.open_file`.
    """

    def __init__(self, detect: DeepfakeDetectionPipeline, uploads: UploadFolder, reader: IsolatedReader) -> None:
        self.detect, self.uploads, self.reader = detect, uploads, reader
        self.turn = threading.Lock()

    def look(self, upload: str | None, address: str) -> str:
        """Answer one visitor, who gave a file or a URL."""
        address = (address or "").strip()
        if upload:
            with self.uploads.in_use(Path(upload)), self.reader.ahead(upload, NUM_FRAMES), self.turn:
                return answer(self.detect, upload)
        if not address:
            return answer(self.detect, None)
        if not is_url(address):
            return _message("An address begins with https:// or http://.")
        try:
            with downloaded(address) as path, self.reader.ahead(path, NUM_FRAMES), self.turn:
                return answer(self.detect, str(path), address)
        except DownloadError as error:
            return _message(str(error))


def build(detect: DeepfakeDetectionPipeline) -> gradio.Blocks:
    """Build the page, with its own upload folder of limited age and size.

    Args:
        detect: The pipeline `deepfake-detection`.
    """
    if UPLOADS not in os.environ:
        os.environ[UPLOADS] = tempfile.mkdtemp(prefix="gmdf-uploads-")
        atexit.register(shutil.rmtree, os.environ[UPLOADS], ignore_errors=True)
    reader = IsolatedReader(MAX_SECONDS)
    detect.open_file = reader.open
    types = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    uploads = UploadFolder(Path(os.environ[UPLOADS]), types, DELETE_AFTER, FORGET_AFTER, MAX_UPLOADS)
    with gradio.Blocks(title="GM-DF", analytics_enabled=False) as page:
        gradio.Markdown("# Are these faces forged?")
        upload = gradio.File(
            label=f"Picture or video, at most {MAX_UPLOAD}",
            file_types=list(types),
            type="filepath",
        )
        address = gradio.Textbox(label="or its address", placeholder="https://", max_lines=1, max_length=2000)
        button = gradio.Button("Look at it", variant="primary")
        shown = gradio.HTML(elem_id="answer")
        gradio.Markdown(LIMITS.format(domains=html.escape(describe_training(detect.model.config))))
        visits = Visits(detect, uploads, reader)
        looked = button.click(visits.look, [upload, address], shown, concurrency_limit=MAX_WAITING, api_name="look")
        looked.then(lambda: (None, ""), None, [upload, address], queue=False, api_visibility="private")
    return page.queue(max_size=MAX_WAITING)


def settings(host: str, port: int | None) -> dict[str, Any]:
    """Arguments of `gradio.Blocks.launch`: upload limits, no public tunnel, no run history."""
    return {
        "server_name": host,
        "server_port": port,
        "max_file_size": MAX_UPLOAD,
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
    build(detect).launch(**settings(host, port))
