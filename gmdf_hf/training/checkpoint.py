"""Output of a run: the model folder and the files for reproducing the run."""

from __future__ import annotations

import csv
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from gmdf_hf.common.files import replace_folder
from gmdf_hf.data.frames import Skipped

PACKAGES = ("gmdf-hf", "torch", "transformers", "datasets", "accelerate", "safetensors", "huggingface_hub", "numpy")
MAX_LISTED = 10_000


def save_model(folder: Path, model: PreTrainedModel, processor: BaseImageProcessor, **kwargs) -> None:
    """Write model, processor and their code to a folder, atomically.

    Args:
        folder: Output folder; an existing one is replaced after the new files are complete.
        model: The detector.
        processor: Its image processor.
        **kwargs: For the model's `save_pretrained`.
    """
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new, **kwargs)
    processor.save_pretrained(new)
    replace_folder(new, folder)


def environment() -> dict[str, Any]:
    """Versions, machine, commit and command line, for reproducing the run."""
    return {
        "packages": {name: version(name) for name in PACKAGES if _installed(name)},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "command": sys.argv,
    }


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


def _commit() -> str | None:
    """Commit of the code, with `-dirty` if there are uncommitted changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return result.stdout.strip() or None


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> int:
    """Write the list of unreadable images: each once, at most `MAX_LISTED`.

    Returns:
        Number of unreadable images.
    """
    unique = sorted({(item.domain, item.row, item.reason) for item in skipped})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["domain", "row", "reason"])
        writer.writerows(unique[:MAX_LISTED])
    return len(unique)
