"""Results of the pipeline as lines of text, CSV or JSON, in a file that a later run can continue."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import torch

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.files import printable, write_json
from gmdf_hf.common.schema import SCHEMA_VERSION
from gmdf_hf.evaluation.classifier import weights_digest

COLUMNS = (
    *("source", "label", "score", "threshold", "face_found", "persons", "faces", "frames_read", "error"),
    *("faces_found", "notes", "schema_version", "model", "revision", "probability", "uncertain_from", "person_score"),
)
Form = Literal["json", "csv", "text"]


def csv_cell(text: str | None) -> str:
    """Escape text that a spreadsheet would read as a formula."""
    shown = printable(text or "")
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def verdict(result: dict[str, Any]) -> str:
    """Return `fake`, `uncertain`, `real`, `no face` or `error`."""
    return "error" if result["error"] is not None else result["label"] or "no face"


def settings_of(model: torch.nn.Module, threshold: float, detector: str, frames: int) -> dict[str, Any]:
    """Settings that results depend on besides the files: hash of the weights, threshold, detector, frames."""
    return {"weights": weights_digest(model), "threshold": threshold, "detector": detector, "frames": frames}


class ResultFile:
    """Context manager that writes each result immediately.

    An existing file is continued; its settings, stored in `<file>.settings.json`, must be the same. Error lines and a
    truncated last line are removed, and their files are processed again.

    Args:
        path: File to write; None is the standard output.
        form: `json`, `csv` or `text`.
        settings: See `settings_of`.
        model: Name of the model, written to every line.
        revision: Its revision.

    Raises:
        UserError: If the file has other content or results of other settings.
    """

    def __init__(
        self, path: Path | None, form: Form, settings: dict[str, Any], model: str, revision: str | None = None
    ) -> None:
        self.path, self.form = path, form
        self._about: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "model": model, "revision": revision}
        self._done: set[str] = set()
        self._file: IO[str] = sys.stdout
        if path is None:
            return
        beside = path.with_name(f"{path.name}.settings.json")
        if path.exists() and path.stat().st_size:
            self._check(beside, settings)
            self._done = self._read(path)
        else:
            write_json(beside, settings)

    def has(self, source: str) -> bool:
        """Whether the file has a result for a source."""
        return bool(self._done) and self._key(source) in self._done

    def __enter__(self) -> ResultFile:
        if self.path is not None:
            self._file = self.path.open("a", encoding="utf-8", newline="")
        if self.form == "csv" and not (self.path is not None and self.path.stat().st_size):
            csv.writer(self._file).writerow(COLUMNS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            self._file.close()

    def write(self, result: dict[str, Any]) -> None:
        """Write one result as a line.

        Raises:
            UserError: If the line cannot be written.
        """
        try:
            self._write(result)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            place = "the standard output" if self.path is None else self.path
            raise UserError(f"The results cannot be written to {place}: {error.strerror}.") from error

    def _write(self, result: dict[str, Any]) -> None:
        if self.form == "json":
            pictures = ("heatmap", "crop")
            faces = [{name: value for name, value in face.items() if name not in pictures} for face in result["faces"]]
            self._file.write(
                json.dumps(self._about | result | {"faces": faces}) + "\n"
            )  # ASCII only, including file names
        elif self.form == "csv":
            shown = self._about | result | {"persons": len(result["persons"]), "faces": len(result["faces"])}
            shown |= {name: csv_cell(result[name]) for name in ("source", "label", "error")}
            shown |= {"model": csv_cell(self._about["model"]), "notes": csv_cell(" ".join(result["notes"]))}
            csv.writer(self._file).writerow([shown[name] for name in COLUMNS])
        else:
            score = "" if result["score"] is None else f"{result['score']:.3f}"
            self._file.write(f"{verdict(result):<9} {score:<6} {printable(result['error'] or result['source'])}\n")

    def _key(self, source: str) -> str:
        return source if self.form == "json" else csv_cell(source)

    def _check(self, beside: Path, settings: dict[str, Any]) -> None:
        try:
            found = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} exists and {beside.name}, which says how it was made, cannot be read.",
                "Choose another --output, or delete the file.",
            ) from error
        changed = [name for name in settings if not isinstance(found, dict) or found.get(name) != settings[name]]
        if changed:
            name = changed[0]
            before = found.get(name) if isinstance(found, dict) else None
            raise UserError(
                f"{self.path} holds results of other settings: {name} was {before}, now {settings[name]}.",
                "Choose another --output, or delete the file.",
            )

    def _read(self, path: Path) -> set[str]:
        """Return the sources with a result; rewrite the file without errors and without a truncated last line."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            text = whole.decode()
            kept = io.StringIO(newline="")
            if self.form == "json":
                lines = [(json.loads(line), line) for line in text.splitlines()]
                good = [(result["source"], line) for result, line in lines if result["error"] is None]
                kept.writelines(f"{line}\n" for _, line in good)
                done = {source for source, _ in good}
            else:
                rows = list(csv.DictReader(io.StringIO(text, newline="")))
                good_rows = [row for row in rows if not row["error"]]
                writer = csv.DictWriter(kept, COLUMNS)
                writer.writeheader()
                writer.writerows(good_rows)
                done = {row["source"] for row in good_rows}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} exists and holds no results of `gmdf predict` in this form.", "Choose another --output."
            ) from error
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(kept.getvalue().encode())
        os.replace(new, path)
        return done
