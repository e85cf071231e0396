"""The demo over HTTP with hostile and honest visitors for twenty seconds; `GMDF_SOAK_SECONDS=600` for ten minutes."""

import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.preparation.media import open_media
from gmdf_hf.training.checkpoint import save_model
from tests.conftest import tiny_model

pytest.importorskip("gradio", reason="needs the extra `demo`")
gradio_client = pytest.importorskip("gradio_client")

SECONDS = float(os.environ.get("GMDF_SOAK_SECONDS", "20"))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def empty_chunks(count: int) -> bytes:
    """A small valid picture with millions of empty parts."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + png_chunk(b"IDAT", b"") * count + data[33:]


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few kilobytes."""
    head = side.to_bytes(4, "big") * 2 + b"\1\0\0\0\0"
    rows = zlib.compress(bytes((side // 8 + 2) * 2000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def animation() -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (900, 1200, 3), np.uint8)) for _ in range(4)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:] * 4, compress_level=0)
    return buffer.getvalue()


class Town:
    """The visitors of one server.

    Args:
        url: Address of the demo.
        until: Time at which they stop.
    """

    def __init__(self, url: str, until: float):
        self.url, self.until = url, until
        self.waits: list[tuple[float, float]] = []  # of honest visitors: when, seconds
        self.hostile = 0
        self.errors: list[str] = []

    def honest(self, files: list[Path], pause: float) -> None:
        client = gradio_client.Client(self.url, verbose=False)
        for turn in range(10**6):
            if time.monotonic() > self.until:
                return
            started = time.monotonic()
            try:
                text = client.predict(gradio_client.handle_file(files[turn % len(files)]), "", api_name="/look")
                if "data:image/jpeg" not in text:
                    self.errors.append(re.sub("<[^>]*>", " ", text)[:200])
            except Exception as error:  # a visitor tells what the page said
                self.errors.append(f"{type(error).__name__}: {error}")
            self.waits.append((started, time.monotonic() - started))
            time.sleep(pause)

    def sender(self, files: list[Path]) -> None:
        client = gradio_client.Client(self.url, verbose=False)
        for turn in range(10**6):
            if time.monotonic() > self.until:
                return
            with suppress(Exception):  # refused uploads
                text = client.predict(gradio_client.handle_file(files[turn % len(files)]), "", api_name="/look")
                if "<script" in text:
                    self.errors.append(text)
            self.hostile += 1

    def addresses(self) -> None:
        client = gradio_client.Client(self.url, verbose=False)
        for address in [
            "http://127.0.0.1:1/a.png",
            "http://[::1",
            "file:///etc/passwd",
            "https://x" * 200,
            "gopher://a",
        ] * 10**6:
            if time.monotonic() > self.until:
                return
            with suppress(Exception):
                client.predict(None, address, api_name="/look")
            self.hostile += 1
            time.sleep(0.2)

    def uploader(self) -> None:
        """Uploads that are broken off, of another type, never asked about, or dripped."""
        host, port = self.url.removeprefix("http://").rstrip("/").split(":")
        open_connections = []
        for turn in range(10**6):
            if time.monotonic() > self.until:
                break
            with suppress(OSError):
                connection = socket.create_connection((host, int(port)), timeout=10)
                name = ("face.png", "program.exe", "<script>.png", "video.mp4")[turn % 4]
                head = (
                    "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                )
                body = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n' + "x" * 200_000
                end = "\r\n--b--\r\n"
                size = len(body) + len(end) + (10_000_000 if turn % 2 else 0)
                connection.sendall(f"{head}Content-Length: {size}\r\n\r\n{body}{'' if turn % 2 else end}".encode())
                if turn % 20 == 1:
                    open_connections.append(connection)
                else:
                    connection.close()
            for connection in open_connections:
                with suppress(OSError):
                    connection.sendall(b"x")
            self.hostile += 1
            time.sleep(0.2)
        for connection in open_connections:
            connection.close()


def memory(process: int) -> tuple[float, float]:
    """Resident MB of a process, and of its children."""

    def of(one: int) -> float:
        with suppress(OSError, IndexError):
            return int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        return 0.0

    children = [
        int(child) for task in Path(f"/proc/{process}/task").glob("*/children") for child in task.read_text().split()
    ]
    return of(process), sum(map(of, children))


@pytest.fixture
def server(real_data, tmp_path):
    folder = tmp_path / "model"
    save_model(folder, tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    weights = real_data.parent / "models/yunet_n_dynamic.onnx"
    command = [sys.executable, "-m", "gmdf_hf.scripts.gmdf", "demo", "--model", folder, "--port", port]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    process = subprocess.Popen([*map(str, command), "--detector_weights", str(weights)], env=environment)
    for _ in range(300):
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
            break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/", process.pid
    process.terminate()
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_hostile_visitors_delay_nobody_and_leave_nothing(server, real_data, tmp_path):
    url, process = server
    videos = sorted((real_data / "videos/real").glob("*.mp4"))
    faces = [tmp_path / f"face{number}.jpg" for number in range(len(videos))]
    for face, video in zip(faces, videos, strict=True):
        Image.fromarray(next(open_media(video, 1).read(None)).pixels).save(face)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "chunks.png").write_bytes(empty_chunks(3_000_000))
    (bad / "bomb.png").write_bytes(bomb(60_000))
    (bad / "large.png").write_bytes(bomb(7_000))
    (bad / "animation.png").write_bytes(animation())
    (bad / "<script>alert(1)<script>.png").write_bytes(b"no picture")
    rng = np.random.default_rng(0)
    for number, whole in enumerate([*faces, *videos] * 3):
        data = bytearray(whole.read_bytes())
        for place in rng.integers(len(data), size=20):
            data[place] = rng.integers(256)
        (bad / f"{number}{whole.suffix}").write_bytes(bytes(data[: rng.integers(len(data) // 2, len(data))]))
    scans = real_data / "cases/hostile/jpgscans500.jpg"
    town = Town(url, time.monotonic() + SECONDS)
    visitors = [
        threading.Thread(target=town.honest, args=(faces, 2.0)),
        threading.Thread(target=town.honest, args=([*faces[::-1], *videos], 3.0)),
        threading.Thread(target=town.honest, args=(videos, 5.0)),
        threading.Thread(target=town.sender, args=([scans],)),
        threading.Thread(target=town.sender, args=([scans, bad / "chunks.png"],)),
        threading.Thread(target=town.sender, args=(sorted(bad.iterdir()),)),
        threading.Thread(target=town.addresses),
        threading.Thread(target=town.uploader),
    ]
    for visitor in visitors:
        visitor.start()
    samples: list[tuple[float, float, float]] = []
    began = time.monotonic()
    while any(visitor.is_alive() for visitor in visitors):
        samples.append((time.monotonic() - began, *memory(process)))
        time.sleep(2)
    uploads = tmp_path / "uploads"

    def kept() -> list[Path]:
        return [path for path in uploads.rglob("*") if path.is_file()]

    deadline = time.monotonic() + 90
    while kept() and time.monotonic() < deadline:
        time.sleep(1)
    waits = np.array([wait for _, wait in town.waits])
    second = [(server, children) for when, server, children in samples if SECONDS / 2 <= when <= SECONDS]
    third, fourth = np.array(second[: len(second) // 2]), np.array(second[len(second) // 2 :])
    print(f"\n{len(waits)} honest visits: 95 % in {np.quantile(waits, 0.95):.2f} s, median {np.median(waits):.2f} s")
    print(f"{len(town.errors)} errors {town.errors[:3]}; {town.hostile} hostile visits; {len(kept())} uploads kept")
    print(f"server {third[:, 0].mean():.0f} MB in the third and {fourth[:, 0].mean():.0f} MB in the fourth quarter")
    print(f"decoders {third[:, 1].mean():.0f} and {fourth[:, 1].mean():.0f} MB")
    Path(os.environ.get("GMDF_SOAK_LOG", os.devnull)).write_text(
        "\n".join(f"{when:.0f} {server:.0f} {children:.0f}" for when, server, children in samples) + "\n"
    )
    assert not town.errors and not kept()
    # In twenty seconds the slowest visit decides, and the server still loads. Without deadlines a hostile file takes
    # more than a minute, and 200 MB are two large pictures that were not given back.
    assert np.quantile(waits, 0.95) < (10 if SECONDS >= 600 else 30)
    assert fourth[:, 0].mean() - third[:, 0].mean() < (50 if SECONDS >= 600 else 200)
