"""Checkpoints to go on from: everything a killed run needs to end as if it had not been killed.

A checkpoint is a folder `checkpoints/step-<n>` with `state.safetensors` and `state.json`; nothing in it is unpickled.
It is written beside its place, brought to the disk and renamed, so that a folder of that name is always whole. There is
no state of random numbers in it: all that is random in an iteration follows from the seed and the iteration's number.
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
# What may change when a run goes on: nothing of it touches the numbers. (Of the batch size, the joined one is held.)
FREE_TO_CHANGE = {"resume", "num_workers", "keep", "save_steps", "report_to", "output_dir", "batch_size"}


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: Meta-iterations done.
        epoch: Epoch they are in.
        iteration: Those of them in this epoch.
        best: Highest mean AUC on the validation splits so far; -1 before the first.
        threshold: Score at that point's equal error rate.
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
        folder: Where checkpoints are kept.
        progress: How far the run has come.
        model: Its parameters and buffers are kept.
        optimizer: Of the shared parameters.
        states: Objects whose `state_dict` holds plain numbers: scheduler, gradient scaler.
        of_method: The training method's own tensors.
        joined_batch: Images of each domain in an iteration of all processes together.
        keep: Checkpoints to keep, this one included.

    Returns:
        The checkpoint.

    Raises:
        UserError: If it cannot be written; the ones before it are untouched.
    """
    place, new = folder / f"step-{progress.step:08d}", folder / f"new-{progress.step:08d}"
    if place.exists():  # of the same run, so the same to the last bit
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
    except Exception as error:  # safetensors has an exception of its own for a full disk
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
    """Put a checkpoint back; the arguments are those of `save_state`.

    Returns:
        How far the run had come.

    Raises:
        UserError: If the checkpoint is of another model, or of batches of another size.
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
    """The newest complete checkpoint in a folder; None where there is none."""
    states = _states(folder)
    return states[-1] if states else None


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob("new-*"):
        shutil.rmtree(path, ignore_errors=True)


def open_run(folder: Path, config: Mapping[str, Any], resume: bool, main: bool = True) -> Path | None:
    """Find the checkpoint a run goes on from, or make the folder ready for a new run.

    Args:
        folder: Folder of the run.
        config: Fields of this run's configuration.
        resume: Whether to go on from what is there.
        main: Whether this is the first of the processes, which makes the folder ready for all.

    Returns:
        The newest complete checkpoint; None for a run from the beginning.

    Raises:
        UserError: If there is an unfinished run that this one would overwrite, or the one to go on with has other
            settings.
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
    """SIGTERM came, as clusters send it before they end a job; everything done so far is saved."""

    exit_code = 75  # "try again later" in sysexits.h
    hint = "The same command with --resume true goes on."


class StopSignal:
    """Notes a SIGTERM, for the loop to stop at a good place; a context manager.

    Attributes:
        received: Whether it came.
    """

    def __enter__(self) -> StopSignal:
        self.received, self._at_once = False, False
        # Only the main thread may handle signals; elsewhere there is none to wait for.
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
        """While everything is saved, as it is while scoring: raise `Stopped` as soon as the signal comes.

        Raises:
            Stopped: If it has come.
        """
        self._at_once = True
        self._stop_if_saved()
        yield
        self._at_once = False


class History:
    """The run's `history.jsonl`, a record a line, written by the first process alone.

    Args:
        path: File to add to.
        active: Whether this is the first process.
    """

    def __init__(self, path: Path, active: bool):
        self.path, self.active = path, active

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Forget what was added after it had `size` bytes."""
        if self.active and self.path.exists():
            os.truncate(self.path, size)
