"""What is installed: tree -> source distribution -> wheel, and the wheel at work in an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import processes

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, f'build_{sys.argv[1]}')(sys.argv[2]))"
DOMAINS = "{swap: {path: 'drawn:swap', max_videos: 4}, reenact: {path: 'drawn:reenact', max_videos: 4}}"


def build(kind: str, tree: Path, output: Path) -> Path:
    output.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, kind, str(output)]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return output / result.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the installed wheel, and nothing of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT,
        folder / "tree",
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "site"),
    )
    sdist = build("sdist", folder / "tree", folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = build("wheel", unpacked, folder / "wheels")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site"), wheel]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


def gmdf(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(site), "HF_DATASETS_CACHE": str(folder / "cache")}
    return processes.run(site / "bin" / "gmdf", *words, cwd=folder, env=environment, warm=processes.LIBRARIES)


@pytest.mark.slow
def test_the_wheel_alone_trains_predicts_evaluates_and_prepares(site, tmp_path):
    assert {path.name for path in (site / "gmdf_hf" / "scripts" / "recipes").iterdir()} >= {"drawn.yaml", "protocols"}
    train = gmdf(
        site,
        tmp_path,
        *("train", "--source_domains", DOMAINS, "--unseen_domains", "{}", "--max_steps", "2", "--batch_size", "2"),
        *("--image_tokenizer_steps", "2", "--output_dir", "run"),
    )
    assert train.returncode == 0, train.stderr[-3000:]
    assert (tmp_path / "run" / "model" / "pipeline_gmdf.py").is_file()
    assert (tmp_path / "run" / "model" / "README.md").is_file()

    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "face.png")
    predict = gmdf(site, tmp_path, "predict", "face.png", "--detector", "none", "--model", "run/model")
    assert predict.returncode == 0, predict.stderr[-3000:]
    assert predict.stdout.split()[0] in ("fake", "real")

    words = ("evaluate", "--model", "run/model", "--domains", "swap=drawn:swap", "--replicates", "10")
    evaluate = gmdf(site, tmp_path, *words, "--output_dir", "scores")
    assert evaluate.returncode == 0, evaluate.stderr[-3000:]
    assert (tmp_path / "scores" / "results.json").is_file()

    prepare = gmdf(site, tmp_path, "prepare", "--help")
    assert prepare.returncode == 0 and "--push_to_hub" in prepare.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "face.png", "scores", "cache"}
