"""Checkpoints of training: a resumed run gives the same result as an uninterrupted one.

A checkpoint is a folder `checkpoints/step-<n>` with `state.safetensors` and `state.json`; nothing in it is unpickled.
It is written under a temporary name, flushed to disk and renamed, so that a folder of that name is always complete. It
has no random state, because the random numbers of an iteration depend only on the seed and the iteration's number.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from gmdf_hf.common.errors import GMDFError, UserError
from gmdf_hf.common.files import replace_folder
from gmdf_hf.data.frames import Skipped

TENSORS, VALUES = "state.safetensors", "state.json"
# Fields that may change on resume, because they do not affect the result. (The total batch size must not change.)
FREE_TO_CHANGE = {"resume", "num_workers", "keep", "save_steps", "report_to", "output_dir", "batch_size"}


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        step: Meta-iterations done.
        epoch: Current epoch.
        iteration: Meta-iterations done in this epoch.
        best: Highest mean AUC on the validation splits so far; -1 before the first.
        threshold: Threshold at the equal error rate of the best model.
        history: Bytes of `history.jsonl` so far.
        seconds: Time spent so far.
        overflows: Iterations undone because a gradient overflowed half precision.
        skipped: Images that could not be read so far.
    """

    step: int = 0
    epoch: int = 0
    iteration: int = 0
    best: float = -1.0
    threshold: float = 0.5
    history: int = 0
    seconds: float = 0.0
    overflows: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def save_state(
    folder: Path,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    states: Mapping[str, Any],
    of_method: Mapping[str, torch.Tensor],
    joined_batch: int,
    keep: int,
) -> Path:
    """Write a checkpoint and remove the oldest ones.

    Args:
        folder: Folder of the checkpoints.
        progress: Progress of the run.
        model: Its parameters and buffers are saved.
        optimizer: Of the shared parameters.
        states: Objects whose `state_dict` holds plain numbers: scheduler, gradient scaler.
        of_method: The training method's own tensors.
        joined_batch: Images per domain and iteration, summed over processes.
        keep: Checkpoints to keep, this one included.

    Returns:
        The checkpoint.

    Raises:
        UserError: If the checkpoint cannot be written; earlier checkpoints are unchanged.
    """
    place, new = folder / f"step-{progress.step:08d}", folder / f"new-{progress.step:08d}"
    if place.exists():  # of the same run, therefore bit-identical
        return place
    state = optimizer.state_dict()
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, of_parameter in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in of_parameter.items()}
    tensors |= {f"method.{name}": value for name, value in of_method.items()}
    values = {
        "progress": asdict(progress),
        "param_groups": state["param_groups"],
        "states": {name: kept.state_dict() for name, kept in states.items()},
        "joined_batch": joined_batch,
    }
    try:
        remove_unfinished(folder)
        new.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, new / TENSORS)
        (new / VALUES).write_text(json.dumps(values, indent=2) + "\n")
        replace_folder(new, place)
    except Exception as error:  # safetensors raises its own exception for a full disk
        shutil.rmtree(new, ignore_errors=True)
        last = last_state(folder)
        raise UserError(
            f"The checkpoint {place} could not be written: {error}. "
            + (f"The last complete one is {last}; free some space and go on with --resume true." if last else "")
        ) from error
    for old in _states(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def load_state(
    place: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    states: Mapping[str, Any],
    of_method: Mapping[str, torch.Tensor],
    joined_batch: int,
) -> Progress:
    """Load a checkpoint; the arguments are those of `save_state`.

    Returns:
        Progress of the run.

    Raises:
        UserError: If the checkpoint has another model or another batch size.
    """
    values = json.loads((place / VALUES).read_text())
    if values["joined_batch"] != joined_batch:
        raise UserError(
            f"The run was started with {values['joined_batch']} images of each domain in an iteration of all "
            f"processes together, found {joined_batch}: batch_size times processes must stay the same."
        )
    tensors = load_file(place / TENSORS)
    of_model = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(of_model)
    except RuntimeError as error:
        raise UserError(f"The checkpoint {place} is of another model: {str(error).splitlines()[-1].strip()}") from error
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if match := re.fullmatch(r"optimizer\.(\d+)\.(\w+)", name):
            state.setdefault(int(match[1]), {})[match[2]] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})
    with torch.no_grad():
        for name, tensor in of_method.items():
            tensor.copy_(tensors[f"method.{name}"])
    for name, kept in states.items():
        kept.load_state_dict(values["states"][name])
    fields = values["progress"]
    return Progress(**fields | {"skipped": [Skipped(*item) for item in fields["skipped"]]})


def last_state(folder: Path) -> Path | None:
    """Newest complete checkpoint in a folder; None if there is none."""
    states = _states(folder)
    return states[-1] if states else None


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def remove_unfinished(folder: Path) -> None:
    """Remove incomplete files of a killed process."""
    for path in folder.glob("new-*"):
        shutil.rmtree(path, ignore_errors=True)


def open_run(folder: Path, config: Mapping[str, Any], resume: bool, main: bool = True) -> Path | None:
    """Find the checkpoint to resume from, or prepare the folder for a new run.

    Args:
        folder: Folder of the run.
        config: Fields of this run's configuration.
        resume: Whether to resume an existing run.
        main: Whether this is the main process, which prepares the folder.

    Returns:
        Newest complete checkpoint; None for a new run.

    Raises:
        UserError: If this run would overwrite an unfinished run, or the run to resume has other settings.
    """
    checkpoint = last_state(folder / "checkpoints")
    settings = folder / "train_config.yaml"
    if checkpoint is not None and resume:
        before = yaml.safe_load(settings.read_text())
        names = [name for name in sorted({*before, *config} - FREE_TO_CHANGE) if before.get(name) != config.get(name)]
        if names:
            changes = "; ".join(f"{name} was {before.get(name)!r}, is {config.get(name)!r}" for name in names)
            raise UserError(f"The run in {folder} has other settings: {changes}. Only the same run can go on.")
        return checkpoint
    if not main:
        return None
    if checkpoint is not None and not (folder / "results.json").exists():
        raise UserError(
            f"{folder} holds a run that was not finished, at iteration {int(checkpoint.name.split('-')[1])}: go on "
            "with --resume true, choose another --output_dir, or remove that folder."
        )
    for name in ("checkpoints", "image_tokenizer"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("results.json", "history.jsonl", "failure.json"):
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return None


class Stopped(GMDFError):
    """The process received SIGTERM, which clusters send before they end a job; the progress is saved."""

    exit_code = 75  # "try again later" in sysexits.h
    hint = "The same command with --resume true goes on."


class StopSignal:
    """Context manager that records a SIGTERM, so that the loop can stop between iterations.

    Attributes:
        received: Whether a SIGTERM was received.
    """

    def __enter__(self) -> StopSignal:
        self.received, self._at_once = False, False
        # Only the main thread may handle signals.
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._in_main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: object) -> None:
        self.received = True
        self._stop_if_saved()

    def _stop_if_saved(self) -> None:
        if self.received and self._at_once:
            raise Stopped("SIGTERM while scoring: go on with --resume true")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Stopped` as soon as the signal arrives; for phases without unsaved progress, such as scoring.

        Raises:
            Stopped: If a SIGTERM was received.
        """
        self._at_once = True
        self._stop_if_saved()
        yield
        self._at_once = False


class History:
    """The run's `history.jsonl`, one record per line, written by the main process only.

    Args:
        path: File to append to.
        active: Whether this is the main process.
    """

    def __init__(self, path: Path, active: bool):
        self.path, self.active = path, active

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record."""
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def size(self) -> int:
        """Size of the file in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Truncate the file to `size` bytes."""
        if self.active and self.path.exists():
            os.truncate(self.path, size)
