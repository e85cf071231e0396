"""Demo page: answers, rejected inputs, and remaining files."""

import base64
import itertools
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.preparation.video import VideoError
from gmdf_hf.training.checkpoint import save_model
from tests.conftest import tiny_model
from tests.media import numbered, write_video

pytest.importorskip("gradio", reason="needs the extra `demo`")
gradio_client = pytest.importorskip("gradio_client")

from gmdf_hf.serving import demo, demo_page  # noqa: E402
from gmdf_hf.serving.isolated import IsolatedReader  # noqa: E402
from gmdf_hf.serving.uploads import UploadFolder  # noqa: E402


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector") / "model"
    save_model(folder, tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    return pipeline("deepfake-detection", model=str(folder), trust_remote_code=False, detector="none")


@pytest.fixture
def picture(tmp_path) -> str:
    path = tmp_path / "face.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_a_pictures_answer_has_verdict_boxes_map_and_experts(detect, picture):
    text = demo.answer(detect, picture)
    result = detect(picture)
    assert f"{result['label']}: {result['score']:.2f}</h2>" in text
    assert text.count("<img") == 3 == text.count("<img alt=")  # the picture with its boxes, the face, its map
    assert all(f"{name} {share:.0%}" in text for name, share in result["expert_weights"].items())
    assert "<svg" not in text


def downloads(text: str) -> dict[str, str]:
    found = re.findall(r"<a download='([^']+)' href='data:[^;]+;base64,([^']+)'", text)
    return {name: base64.b64decode(data).decode() for name, data in found}


def test_a_videos_answer_has_a_timeline_in_seconds_whose_points_lead_to_frames(detect, tmp_path):
    text = demo.answer(detect, str(write_video(tmp_path / "video.mp4", numbered(5))))
    assert text.count("<circle") == 5 and "in 5 frames" in text and " s: " in text
    links, places = (
        set(re.findall(pattern, text)) for pattern in (r"href='#(gmdf-frame-\d+)'", r"id='(gmdf-frame-\d+)'")
    )
    assert links == places and len(places) == 5
    assert text.count("class='frame first'") == 1
    assert all("aria-label='person 1 at" in link for link in re.findall(r"<a [^>]*aria-label[^>]*>", text))
    files = downloads(text)
    result = json.loads(files["result.json"])
    assert len(result["faces"]) == 5 and "heatmap" not in result["faces"][0] and "Training data" in result["about"]
    page = files["report.html"]
    assert page.startswith("<!DOCTYPE html>") and "lang='en'" in page and page.count("<circle") == 5
    assert "viewport" in page and "Training data" in page and str(tmp_path) not in page


def test_the_timeline_is_to_scale():
    common = {"person": 0, "label": "real", "seconds": None}
    faces = [common | {"frame": frame, "score": score} for frame, score in ((0, 0.0), (5, 1.0), (10, 0.5))]
    points = re.findall(r"cx='([\d.]+)' cy='([\d.]+)'", demo_page.timeline(faces, 0.5))
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point)) for point in points]
    assert x1 - x0 == x2 - x1 > 0
    assert y0 - y1 == 2 * (y0 - y2) > 0


def test_the_page_says_what_the_detector_was_trained_on_and_its_operating_point(detect):
    assert "Training data: not recorded" in demo.about(detect) and "gmdf calibrate" in demo.about(detect)


@pytest.mark.parametrize("label", [0, 1])
def test_an_example_is_a_drawn_face(detect, label):
    text = demo.example(detect, label)
    assert "<h2" in text and ("forged" if label else "real") in downloads(text)["result.json"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "Choose a picture or a video first"),
        ("/tmp/program.exe", "Files of the type .exe are not analysed"),
        ("/etc/passwd", "not analysed"),
        ("/no/such/place/face.png", "<b>face.png: no such file."),
    ],
)
def test_files_that_are_refused(detect, source, words):
    text = demo.answer(detect, source)
    assert words in text and "role='alert'" in text
    assert "/no/such/place" not in text


@pytest.fixture
def visits(detect, tmp_path) -> demo.Visits:
    uploads = UploadFolder(tmp_path / "uploads", (".png",), 0.0, 60.0, 2**30)
    return demo.Visits(detect, uploads, IsolatedReader(demo.MAX_SECONDS))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1/face.png", "not an address of the public internet"),
        ("http://169.254.169.254/latest/meta-data/face.png", "not an address of the public internet"),
        ("http://[::1]:8000/face.png", "not an address of the public internet"),
        ("file:///etc/passwd", "only http: and https: addresses"),
        ("face.png", "An address begins with"),
        (" ", "Choose a picture"),
    ],
)
def test_addresses_that_are_refused(visits, address, words):
    text = visits.look(None, address)
    assert words in text and "role='alert'" in text


def test_an_address_is_fetched_before_the_turn_is_taken(visits, picture, monkeypatch):
    """A slow server does not block other visitors."""

    @contextmanager
    def slow(address):
        assert not visits.turn.locked()
        yield Path(picture)

    monkeypatch.setattr(demo, "downloaded", slow)
    text = visits.look(None, "https://example.org/picture")
    assert "<h2" in text and "data:image/jpeg" in text


def test_names_cannot_write_html(detect, tmp_path):
    (tmp_path / "<img src=x onerror=alert(1)>.png").write_bytes(b"no picture")
    text = demo.answer(detect, str(tmp_path / "<img src=x onerror=alert(1)>.png"))
    assert "<img" not in text and "&lt;img" in text


def test_no_face_is_no_verdict(detect, picture, monkeypatch):
    monkeypatch.setattr(detect, "_finders", {("none", None): lambda media: ([], {"frames_read": 1})})
    assert "No face was found, so there is no verdict" in demo.answer(detect, picture)


@pytest.fixture
def server(detect, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MAX_UPLOAD", "1mb")
    monkeypatch.setattr(demo, "UPLOAD_SECONDS", 3.0)
    monkeypatch.setattr(demo, "DELETE_AFTER", 5.0)
    monkeypatch.setattr(demo, "FORGET_AFTER", 10.0)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = demo.build(detect)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.settings("127.0.0.1", None))
    yield url
    page.close()


def test_five_visitors_are_served_and_nothing_is_kept(server, picture, tmp_path):
    answers = []

    def visit():
        client = gradio_client.Client(server, verbose=False)
        answers.append(client.predict(gradio_client.handle_file(picture), "", api_name="/look"))

    visitors = [threading.Thread(target=visit) for _ in range(5)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert len(answers) == 5 and all("data:image/jpeg" in text for text in answers)

    def kept() -> list[Path]:
        return [path for path in (tmp_path / "uploads").rglob("*") if path.is_file() and path.stat().st_size]

    deadline = time.monotonic() + 30
    while kept() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert kept() == []
    assert Path(picture).exists()


def upload(url: str, size: int, name: str = "face.png") -> int:
    body = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body += b"x" * size + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(f"{url}gradio_api/upload", body, headers)
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_uploads_nobody_asks_about_are_deleted(server, tmp_path):
    """Executables are deleted immediately, pictures and interrupted uploads some seconds later."""
    assert upload(server, 1000, "program.exe") == 200 and upload(server, 1000) == 200
    host, port = server.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        body = '--b\r\nContent-Disposition: form-data; name="files"; filename="face.png"\r\n\r\n' + "x" * 1000
        connection.sendall(f"{head}Content-Length: 900000\r\n\r\n{body}".encode())
        time.sleep(0.5)

    def kept() -> set[str]:
        return {path.name for path in (tmp_path / "uploads").rglob("*") if path.is_file()}

    time.sleep(1.5)
    assert "program.exe" not in kept() and "face.png" in kept()
    deadline = time.monotonic() + 25
    while kept() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert kept() == set()


def test_an_upload_that_drips_is_ended(server, tmp_path):
    host, port = server.removeprefix("http://").rstrip("/").split(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        body = '--b\r\nContent-Disposition: form-data; name="files"; filename="face.png"\r\n\r\n'
        connection.sendall(f"{head}Content-Length: 900000\r\n\r\n{body}".encode())
        connection.settimeout(0.5)
        while time.monotonic() - started < 15:
            try:
                connection.sendall(b"x")
                if not connection.recv(1000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert 2.5 < time.monotonic() - started < 12


def test_a_large_upload_is_refused(server):
    assert upload(server, 1000) == 200
    assert upload(server, 3_000_000) == 413


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:9/face.png", "file:///etc/passwd"])
def test_files_and_addresses_of_the_server_cannot_be_asked_for(server, path):
    client = gradio_client.Client(server, verbose=False)
    file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match=r".+"):
        client.predict(file, "", api_name="/look")
    assert "public internet" in client.predict(None, "http://127.0.0.1:9/face.png", api_name="/look")


def resident_megabytes() -> float:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with some bytes changed, truncated, or with a part duplicated."""
    kind = rng.integers(3)
    if kind == 0:
        values = bytearray(data)
        for place in rng.integers(len(values), size=rng.integers(1, 40)):
            values[place] = rng.integers(256)
        return bytes(values)
    cut = int(rng.integers(1, len(data)))
    return data[:cut] if kind == 1 else data[:cut] + data[cut // 2 :]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_damaged_uploads_neither_crash_it_nor_make_it_grow(detect, picture, tmp_path):
    """GMDF_SOAK_SECONDS=600 runs the long version."""
    seconds = float(os.environ.get("GMDF_SOAK_SECONDS", "20"))
    sources = [
        Path(picture),
        write_video(tmp_path / "a.mp4", numbered(20)),
        write_video(tmp_path / "b.mkv", numbered(9)),
    ]
    for suffix in (".jpg", ".webp", ".gif", ".bmp", ".tif"):
        sources.append(tmp_path / f"c{suffix}")
        Image.open(picture).save(sources[-1])
    whole = [source.read_bytes() for source in sources]
    rng = np.random.default_rng(0)
    uploads = UploadFolder(tmp_path / "uploads", (*demo.IMAGE_SUFFIXES, *demo.VIDEO_SUFFIXES), 0.0, 60.0, 2**30)
    visits = demo.Visits(detect, uploads, IsolatedReader(demo.MAX_SECONDS))
    started, count, verdicts, after_warm_up = time.monotonic(), 0, 0, None
    while time.monotonic() - started < seconds:
        index = int(rng.integers(len(sources)))
        upload = tmp_path / "uploads" / sources[index].name
        upload.parent.mkdir(exist_ok=True)
        upload.write_bytes(damaged(whole[index], rng))
        text = visits.look(str(upload), "")
        assert ("role='alert'" in text) != ("<h2" in text)
        assert not upload.exists()
        count, verdicts = count + 1, verdicts + ("<h2" in text)
        if after_warm_up is None and time.monotonic() - started > seconds / 4:
            after_warm_up = resident_megabytes()
    assert 0 < verdicts < count
    assert resident_megabytes() - after_warm_up < 60
    print(f"{count} uploads, {verdicts} verdicts, {resident_megabytes() - after_warm_up:.1f} MB more")


@pytest.mark.slow
def test_a_video_of_100_000_frames_is_bounded(detect, tmp_path):
    path = write_video(tmp_path / "long.mp4", itertools.repeat(np.zeros((16, 16, 3), np.uint8), 100_000), codec="mpeg4")
    before, started = resident_megabytes(), time.monotonic()
    result = detect(path, num_frames=4)
    assert result["frames_read"] == 4
    assert time.monotonic() - started < 60
    assert resident_megabytes() - before < 100
    with pytest.raises(VideoError, match=r"not read within 0\.01 seconds, 100000 frames"):
        detect(path, num_frames=4, max_seconds=0.01)
