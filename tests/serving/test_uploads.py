"""The disk space of uploads is limited in all cases."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect

from gmdf_hf.serving.uploads import UploadDeadline, UploadFolder


@pytest.fixture
def uploads(tmp_path, monkeypatch) -> UploadFolder:
    monkeypatch.setattr("gmdf_hf.serving.uploads.SWEEP_EVERY", 3600.0)  # the tests call `sweep` themselves
    return UploadFolder(tmp_path, (".png", ".mp4"), delete_after=0.2, forget_after=100, max_bytes=1000)


def put(folder: Path, name: str, size: int = 10, age: float = 0) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_broken_off_uploads_and_files_nobody_asks_about_go_by_age(uploads, tmp_path):
    put(tmp_path, "tmpabc", age=101)
    put(tmp_path, "tmpdef", age=50)  # upload in progress
    put(tmp_path, "hash/face.png", age=101)
    put(tmp_path, "other/face.png", age=50)
    uploads.sweep()
    assert files(tmp_path) == {"tmpdef", "other", "other/face.png"}


def test_other_file_types_are_deleted_at_once(uploads, tmp_path):
    put(tmp_path, "hash/program.exe")
    put(tmp_path, "hash2/noname")
    put(tmp_path, "hash3/FACE.PNG")
    uploads.sweep()
    assert files(tmp_path) == {"hash3", "hash3/FACE.PNG"}


def test_an_answered_file_stays_a_little_for_others(uploads, tmp_path):
    path = put(tmp_path, "hash/face.png")
    with uploads.in_use(path):
        uploads.sweep()
        with uploads.in_use(path):  # a second visitor with the same content
            pass
        time.sleep(0.3)
        uploads.sweep()
        assert path.exists()
    uploads.sweep()
    assert path.exists()
    time.sleep(0.3)
    uploads.sweep()
    assert files(tmp_path) == set()


def test_a_file_that_was_uploaded_again_is_not_deleted_by_the_earlier_answer(uploads, tmp_path):
    path = put(tmp_path, "hash/face.png")
    with uploads.in_use(path):
        pass
    time.sleep(0.1)
    put(tmp_path, "hash/face.png")  # the same content has the same path
    time.sleep(0.3)
    uploads.sweep()
    assert path.exists()
    with uploads.in_use(path):
        pass
    time.sleep(0.3)
    uploads.sweep()
    assert files(tmp_path) == set()


def test_the_oldest_go_when_there_is_too_much(uploads, tmp_path):
    for number in range(5):
        put(tmp_path, f"hash{number}/face.png", size=400, age=10 - number)
    used = tmp_path / "hash0/face.png"
    with uploads.in_use(used):
        assert used.exists()
        uploads.sweep()
        # The file in use is not counted and not deleted; of the others two fit.
        assert {path.parent.name for path in tmp_path.rglob("*.png")} == {"hash0", "hash3", "hash4"}


def test_an_upload_that_takes_too_long_is_answered():
    """Without an answer the server would log an error for each."""
    sent: list[dict] = []

    async def app(scope, receive, send):
        if (await receive())["type"] == "http.disconnect":
            raise ClientDisconnect

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/gradio_api/upload"}
    asyncio.run(UploadDeadline(app, 0.01)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]
