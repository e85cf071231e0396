"""The HTTP service: answers, bounds, jobs that survive kill -9."""

import io
import json
import logging
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.serving.engine import FaceBatcher
from gmdf_hf.serving.jobs import JobStore
from gmdf_hf.serving.loading import load_pipeline
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import tiny_model
from tests.media import numbered, write_video

pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient

from gmdf_hf.serving import gate as gates
from gmdf_hf.serving import service
from gmdf_hf.serving.service import Settings, build, keys_of

KEY = {"Authorization": "Bearer one"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service") / "model"
    save_model(folder, tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    return folder


@pytest.fixture(scope="module")
def detect(model):
    return load_pipeline(str(model), "none", device="cpu")


@pytest.fixture(scope="module")
def client(detect, tmp_path_factory):
    settings = Settings("tiny", tmp_path_factory.mktemp("jobs"), ("one", "two"), max_waiting=8, job_frames=5)
    with TestClient(build(detect, settings)) as client:
        yield client


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def predict(client, name="face.png", content=None, **options):
    return client.post(
        "/v1/predict", files={"file": (name, png() if content is None else content)}, headers=KEY, **options
    )


def test_a_picture_gets_the_score_of_the_pipeline(client, detect):
    answer = predict(client)
    assert answer.status_code == 200
    found = answer.json()
    assert found["score"] == pytest.approx(detect(Image.open(io.BytesIO(png())))["score"], abs=1e-5)
    assert found["source"] == "face.png" and found["model"] == "tiny" and found["training_data"]
    assert found["label"] == ("fake" if found["score"] >= 0.25 else "real")
    assert client.get("/v1/model", headers=KEY).json()["threshold"] == 0.25


def test_requests_at_the_same_time_share_batches_and_keep_their_own_scores(client, detect):
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seed: predict(client, content=png(seed)), range(6)))
    for seed, answer in enumerate(answers):
        expected = detect(Image.open(io.BytesIO(png(seed))))["score"]
        assert answer.json()["score"] == pytest.approx(expected, abs=1e-5)


def test_the_batcher_joins_what_waits_and_answers_errors():
    sizes, gate = [], threading.Event()

    def forward(inputs):
        gate.wait(5)
        if inputs["pixel_values"].max() > 100:
            raise RuntimeError("broken")
        return {"score": inputs["pixel_values"].mean((1, 2, 3))}

    batcher = FaceBatcher(forward, sizes.append, max_batch=4)
    futures = [batcher.submit(torch.full((1, 3, 2, 2), float(number))) for number in range(7)]
    gate.set()
    assert [future.result(5)["score"].item() for future in futures] == list(range(7))
    assert sum(sizes) == 7 and max(sizes) == 4 and len(sizes) <= 4
    with pytest.raises(RuntimeError, match="broken"):
        batcher.submit(torch.full((1, 3, 2, 2), 200.0)).result(5)
    assert batcher.submit(torch.ones(1, 3, 2, 2)).result(5)["score"].item() == 1
    batcher.close()


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"files": {"file": ("a.png", b"not a picture")}}, 422, "a.png: not a readable image"),
        ({"files": {"file": ("a.mp4", b"not a video")}}, 422, "a.mp4"),
        ({"files": {"file": ("a.exe", b"MZ")}}, 415, "Files of the type .exe"),
        ({"files": {"file": ("../../etc/a.png", b"x")}}, 422, "a.png: not a readable image"),
        ({"data": {"url": "http://127.0.0.1/a.png"}}, 422, "not an address of the public internet"),
        ({"data": {"url": "file:///etc/passwd"}}, 422, "only http: and https:"),
        ({"data": {"url": "/etc/passwd"}}, 422, "An address begins with"),
        ({"data": {"url": "http://[::1"}}, 422, "not a valid address"),
        ({"data": {}}, 422, "Give a file or an address"),
        ({"data": {"url": "http://a.b/c"}, "files": {"file": ("a.png", b"x")}}, 422, "Give a file or an address"),
    ],
)
def test_hostile_input_is_one_sentence_without_our_paths(client, request_, status, words):
    for route in ("/v1/predict", "/v1/jobs"):
        answer = client.post(route, headers=KEY, **request_)
        if route == "/v1/jobs" and answer.status_code == 202:  # read when its turn comes
            answer = finished(client, answer.json()["id"])
            assert answer["status"] == "failed" and words in answer["error"]
            text = answer["error"]
        else:
            assert answer.status_code == status and words in answer.json()["detail"]
            text = answer.text
        assert "/tmp" not in text and "Traceback" not in text


def finished(client, key: str) -> dict:
    for _ in range(300):
        job = client.get(f"/v1/jobs/{key}", headers=KEY).json()
        if job["status"] not in ("queued", "running"):
            return job
        time.sleep(0.1)
    raise AssertionError(job)


def test_keys_are_needed_and_jobs_belong_to_them(client, tmp_path):
    assert client.post("/v1/predict", files={"file": ("a.png", png())}).status_code == 401
    assert client.get("/v1/model", headers={"Authorization": "Bearer three"}).status_code == 401
    write_video(tmp_path / "v.mp4", numbered(9))
    with (tmp_path / "v.mp4").open("rb") as file:
        created = client.post("/v1/jobs", files={"file": ("v.mp4", file)}, headers=KEY)
    assert created.status_code == 202
    key = created.json()["id"]
    assert client.get(f"/v1/jobs/{key}", headers={"Authorization": "Bearer two"}).status_code == 404
    assert client.delete(f"/v1/jobs/{key}", headers={"Authorization": "Bearer two"}).status_code == 404
    job = finished(client, key)
    assert job["status"] == "done" and job["result"]["frames_read"] == 5 and job["result"]["source"] == "v.mp4"
    assert client.delete(f"/v1/jobs/{key}", headers=KEY).json()["status"] == "done"
    assert keys_of(" a,b  c,a ") == ("a", "b", "c") and keys_of(None) == ()


def test_bodies_are_bounded(client, monkeypatch):
    (gate,) = [cell for cell in _gates(client.app) if isinstance(cell, gates.Gate)]
    monkeypatch.setattr(gate, "max_body", 1000)
    assert predict(client, content=b"x" * 2000).status_code == 413

    def chunks():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(20):
            yield b"x" * 100

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/v1/predict", content=chunks(), headers=KEY | kind).status_code == 413
    monkeypatch.setattr(gate, "max_waiting", 0)
    full = predict(client, content=b"x")
    assert full.status_code == 503 and int(full.headers["Retry-After"]) >= 1


def _gates(app):
    while app is not None:
        yield app
        app = getattr(app, "middleware_stack", None) or getattr(app, "app", None)


def test_health_metrics_and_openapi(client):
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    predict(client)
    text = client.get("/metrics").text
    assert 'gmdf_answers_total{route="/v1/predict",status="200"}' in text and "gmdf_batch_faces_bucket" in text
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.") and set(document["paths"]) == {
        *("/v1/predict", "/v1/jobs", "/v1/jobs/{key}", "/v1/model", "/health", "/ready", "/metrics")
    }
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(operations)) == len(operations)
    assert "Retry-After" in document["paths"]["/v1/predict"]["post"]["responses"]["503"]["description"]
    # What clients generated from the document need: a file that is one, and where the key goes.
    for body in ("Body_predict", "Body_create_job"):
        file = document["components"]["schemas"][body]["properties"]["file"]
        assert (file["type"], file["format"]) == ("string", "binary")
    guarded = {path for path, actions in document["paths"].items() if all("security" in a for a in actions.values())}
    assert guarded == {path for path in document["paths"] if path.startswith("/v1/")}


def test_logs_hold_no_name_no_address_and_no_key(client, caplog):
    with caplog.at_level(logging.INFO, "gmdf"):
        predict(client, name="my-secret-name.png")
        client.post("/v1/predict", data={"url": "http://127.0.0.1/secret"}, headers=KEY)
    lines = [record.getMessage() for record in caplog.records if record.name == "gmdf.service"]
    assert [json.loads(line)["status"] for line in lines] == [200, 422]
    assert not any(word in line for line in lines for word in ("secret", "127.0.0.1", "one"))


def test_a_crash_of_the_model_is_an_answer(client, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("at /secret/place")

    monkeypatch.setattr(service, "_score", broken)
    with TestClient(client.app, raise_server_exceptions=False) as other:
        answer = predict(other)
    assert answer.status_code == 500 and "secret" not in answer.text


def test_job_states_survive_a_crash(tmp_path):
    upload = tmp_path / "a.mp4"
    upload.write_bytes(b"x")
    store = JobStore(tmp_path / "jobs")
    first, second, third, fourth = (store.add("me", "a.mp4", upload, None) for _ in range(4))
    assert store.start_next().id == first.id
    store.finish(first.id, {"error": None, "score": 0.5})
    assert store.start_next().id == second.id
    assert store.cancel(fourth.id, "me").status == "cancelled" and store.cancel(third.id, "you") is None
    # Killed here: no close. The running job is tried again, then lost.
    again = JobStore(tmp_path / "jobs")
    assert again.get(first.id, "me").result == {"error": None, "score": 0.5}
    assert again.get(second.id, "me").status == "queued" and again.get(third.id, "me").status == "queued"
    assert again.start_next().id == second.id
    last = JobStore(tmp_path / "jobs")
    assert last.get(second.id, "me").status == "lost" and "ended 2 times" in last.get(second.id, "me").error
    assert last.start_next().id == third.id
    last.put_back(third.id)  # a graceful stop is no attempt
    assert last.get(third.id, "me").attempts == 0
    assert sorted(file.stem for file in last.files.iterdir()) == [third.id]
    last.upload_of(last.get(third.id, "me")).unlink()
    assert JobStore(tmp_path / "jobs").get(third.id, "me").status == "lost"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(model, folder, port: int) -> processes.Process:
    words = ["serve", "--model", str(model), "--detector", "none", "--port", str(port), "--jobs", str(folder / "jobs")]
    code = "from gmdf_hf.scripts.gmdf import main; main()"
    with (folder / "log").open("ab") as log:
        words += ["--job_frames", "20"]
        process = processes.start("-c", code, *words, env=os.environ | {"GMDF_API_KEYS": "one"}, stderr=log)
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                return process
        except httpx.TransportError:
            pass
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        time.sleep(0.1)
    raise AssertionError("not ready")


@pytest.mark.slow
def test_after_kill_9_every_job_is_done_or_lost_and_sigterm_is_graceful(model, tmp_path):
    port = free_port()
    write_video(tmp_path / "v.mp4", numbered(40))
    process = start(model, tmp_path, port)
    jobs = []
    for _ in range(8):
        with (tmp_path / "v.mp4").open("rb") as file:
            jobs.append(
                httpx.post(f"http://127.0.0.1:{port}/v1/jobs", files={"file": ("v.mp4", file)}, headers=KEY).json()[
                    "id"
                ]
            )
    for _ in range(2):
        time.sleep(0.7)
        process.kill()
        process.wait()
        process = start(model, tmp_path, port)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        states = [finished(client, key)["status"] for key in jobs]
    assert set(states) <= {"done", "lost"} and states.count("done") >= 6
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert '"event": "stopped"' in (tmp_path / "log").read_text()


def test_a_public_address_needs_keys(model, monkeypatch):
    from tests.scripts.test_predict import gmdf

    monkeypatch.delenv("GMDF_API_KEYS", raising=False)
    found = gmdf("serve", "--model", model, "--host", "0.0.0.0")
    assert found.exit_code == 1 and "GMDF_API_KEYS is not set" in found.stderr
