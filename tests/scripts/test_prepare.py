import csv
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from tests import processes
from tests.domains import build_folder, build_masked
from tests.media import fill, numbered, write_video
from tests.preparation.test_prepare import digests, rows_of

SCRIPT = Path(__file__).parents[2] / "scripts/prepare.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
KILLS = int(os.environ.get("GMDF_KILLS", "6"))
SMALL = ("--detector", "none", "--size", "32", "--frames", "4", "--processes", "1")


def run(*arguments, check=True, **options):
    done = processes.run(SCRIPT, *arguments, env=ENVIRONMENT, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


def real_data():
    root = os.environ.get("GMDF_REAL_DATA")
    if not root:
        pytest.skip("GMDF_REAL_DATA is not set")
    return Path(root)


def copy_videos(root, target, names):
    for name in names:
        kind = "fake" if name.startswith("fake/") else "real"
        (target / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "data/videos" / name, target / kind)
    return target


def test_errors_are_one_sentence(tmp_path):
    data = build_folder(tmp_path / "mine", videos=1, images=1)
    (tmp_path / "empty").mkdir()
    for arguments, message, code in (
        (("folder", "absent"), "absent is no folder", 5),
        (("celebdf", tmp_path / "empty"), "List_of_testing_videos.txt not found", 5),
        (("folder", tmp_path / "empty"), "No image or video found in", 6),
        (("folder", data, "--methods", "FaceSwap"), "--source folder takes no --methods", 1),
        (("folder", data, "--shard", "5"), "--shard is '5', expected i/n", 1),
        (("folder", data, "--crop", "aligned"), "Aligned crops need landmarks", 1),
    ):
        source, root, *rest = arguments
        done = run("--source", source, "--root", root, "--output", tmp_path / "out", *SMALL, *rest, check=False)
        assert done.returncode == code and "Traceback" not in done.stderr
        lines = done.stderr.splitlines()
        assert message in done.stderr and lines[-2].startswith("error: ") and lines[-1].startswith("hint: ")


def test_missing_package_is_one_sentence(tmp_path):
    (tmp_path / "av.py").write_text("raise ImportError('No module named av', name='av')")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.stderr == "error: package av is missing: pip install 'gmdf-hf[prepare]'.\n" and done.returncode == 1


def test_one_person_is_followed_and_what_has_no_face_is_listed(tmp_path):
    root = real_data()
    names = (
        "no_face.mp4",
        "several_faces.mp4",
        "real/dfdc_track_aayrffkzxn_0_0.mp4",
        "fake/dfdc_track_aaqaifqrwn_0_0.mp4",
    )
    data = copy_videos(root, tmp_path / "videos", names)
    options = (
        "--detector_weights",
        root / "models/yunet_n_dynamic.onnx",
        "--processes",
        1,
        "--contact_sheet",
        tmp_path / "a.png",
    )
    done = run("--source", "folder", "--root", data, "--output", tmp_path / "out", *options, check=False)
    assert done.returncode == 9 and "1 of 4 videos or images gave no face" in done.stderr
    assert not list((tmp_path / "out").glob("data/*"))
    run("--source", "folder", "--root", data, "--output", tmp_path / "out", *options, "--max_skipped", 0.25)
    with (tmp_path / "out/skipped.csv").open(newline="") as file:
        rows = {row["video_id"]: row for row in csv.DictReader(file)}
    assert rows["real/no_face"]["frames"] == "all" and rows["real/no_face"]["reason"] == "no face"
    frames = {}
    for table in load_dataset(str(tmp_path / "out")).values():
        for video, frame in zip(table["video_id"], table["frame"], strict=True):
            frames.setdefault(video, []).append(frame)
    assert {video: len(found) for video, found in frames.items()} == {
        "real/several_faces": 14,
        "real/dfdc_track_aayrffkzxn_0_0": 32,
        "fake/dfdc_track_aaqaifqrwn_0_0": 32,
    }
    # Only the singer's close-up: not the audience of the last shot, not the head in the second shot.
    assert min(frames["real/several_faces"]) >= 81 and max(frames["real/several_faces"]) <= 205
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "crop"), [("real", "box"), ("fake", "aligned")])
def test_every_face_video_has_a_face_in_every_frame(tmp_path, kind, crop):
    root = real_data()
    names = [f"{kind}/{path.name}" for path in (root / "data/videos" / kind).iterdir()]
    data = copy_videos(root, tmp_path / "videos", names)
    weights = ("--detector_weights", root / "models/yunet_n_dynamic.onnx")
    run("--source", "folder", "--root", data, "--output", tmp_path / "out", "--crop", crop, *weights)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 32 * len(names) and len({row[0] for row in rows}) == len(names)
    assert (tmp_path / "out/skipped.csv").read_text().splitlines() == ["file,video_id,frames,reason"]


# One process imports the modules and forks a child per attempt, which saves the start-up time of Python. The kill times
# cover work and finish; a run that finishes before its kill time starts a new domain.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from gmdf_hf.scripts import prepare

def attempt(name, seconds=None):
    child = os.fork()
    if child == 0:
        prepare.run([*sys.argv[3:], "--output", str(Path(sys.argv[1]) / name)])
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

if __name__ == "__main__":  # workers import this file
    started = time.monotonic()
    assert attempt("whole") == 0
    whole = time.monotonic() - started
    chance = random.Random(0)
    kills, runs, wanted = 0, 0, int(sys.argv[2])
    while kills < wanted:
        runs += 1
        while status := attempt(f"killed{runs}", chance.uniform(0.1, 1) * whole if kills < wanted else None):
            assert status == signal.SIGKILL, status
            kills += 1
    print(runs)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("source", "workers"), [("folder", 2), ("faceforensics", 1)])
def test_kills_lose_and_double_nothing(tmp_path, source, workers):
    if source == "folder":
        data, options = build_folder(tmp_path / "mine", videos=30, frames=25), ()
    else:
        data, options = build_masked(tmp_path / "mine", videos=30), ("--methods", "DeepFakeDetection")
    code = tmp_path / "killer.py"
    code.write_text(KILLER)
    arguments = ("--source", source, *options, "--root", data, *SMALL[:-1], workers)
    kills = -(-KILLS // 5) if workers == 2 else KILLS - KILLS // 5  # starting workers takes long
    done = processes.run(code, tmp_path, kills, *arguments, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    for number in range(1, int(done.stdout.splitlines()[-1]) + 1):
        assert rows_of(tmp_path / f"killed{number}") == rows_of(tmp_path / "whole")
        assert digests(tmp_path / f"killed{number}") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_videos(tmp_path):
    video = write_video(tmp_path / "a.mp4", numbered(60, 180, 320))
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory of a process is read from /proc")
    program = (
        "import re, runpy, sys; sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    peaks = []
    for number in (10, 120):
        data = tmp_path / f"data{number}"
        fill(data / "train/real", [f"{n}.mp4" for n in range(number)], video)
        arguments = ["--source", "folder", "--root", str(data), "--output", str(tmp_path / f"out{number}")]
        arguments += ["--detector", "none", "--processes", "1"]
        done = processes.run("-c", program, SCRIPT, *arguments, env=ENVIRONMENT, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 2**10)
    assert peaks[1] - peaks[0] < 50, peaks


@pytest.mark.slow
def test_ray_makes_the_same_domain(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    data = build_folder(tmp_path / "mine", videos=4)
    for engine in ("processes", "ray"):
        run("--source", "folder", "--root", data, *SMALL[:-1], 2, "--engine", engine, "--output", tmp_path / engine)
    assert digests(tmp_path / "ray") == digests(tmp_path / "processes")


def test_missing_ray_is_one_sentence(tmp_path):
    if importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed")
    data = build_folder(tmp_path / "mine", videos=1, images=1)
    done = run(
        "--source", "folder", "--root", data, *SMALL, "--engine", "ray", "--output", tmp_path / "out", check=False
    )
    assert "gmdf-hf[ray]" in done.stderr and "Traceback" not in done.stderr
