"""Results of the pipeline as lines of text, CSV or JSON, in a file that a later run can continue."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.files import file_stamp, printable
from gmdf_hf.common.resume import begin, write_whole
from gmdf_hf.common.schema import SCHEMA_VERSION
from gmdf_hf.evaluation.classifier import weights_digest
from gmdf_hf.evaluation.precision import name_of

if TYPE_CHECKING:
    from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline

COLUMNS = (
    *("source", "label", "score", "threshold", "face_found", "persons", "faces", "frames_read", "error"),
    *("faces_found", "notes", "schema_version", "model", "revision", "file_stamp"),
    *("probability", "uncertain_from", "person_score"),
)
Form = Literal["json", "csv", "text"]
EARLIER = {"dtype": "float32", "runtime": "torch"}  # of all results of earlier versions, which do not state them


def csv_cell(text: str | None) -> str:
    """Escape text that a spreadsheet would read as a formula."""
    shown = printable(text or "")
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def stamp_of(source: str) -> str:
    """Size and modification time of a file; empty for URLs and missing files."""
    return file_stamp(Path(source)) if os.path.exists(source) else ""


def verdict(result: dict[str, Any]) -> str:
    """Return `fake`, `uncertain`, `real`, `no face` or `error`."""
    return "error" if result["error"] is not None else result["label"] or "no face"


def settings_of(
    detect: DeepfakeDetectionPipeline, runtime: str, threshold: float, detector: str, frames: int
) -> dict[str, Any]:
    """Settings that results depend on besides the files: weights, precision, runtime, threshold, detector, frames."""
    about = {"weights": weights_digest(detect.model), "dtype": name_of(detect.scoring_dtype), "runtime": runtime}
    return about | {"threshold": threshold, "detector": detector, "frames": frames}


class ResultFile:
    """Context manager that writes each result immediately.

    An existing file is continued; its settings, stored in `<file>.settings.json`, must be the same. Lines that are
    errors, truncated, or of files that were replaced since, are removed, and their files are processed again.

    Args:
        path: File to write; None is the standard output.
        form: `json`, `csv` or `text`.
        settings: See `settings_of`.
        model: Name of the model, written to every line.
        revision: Its revision.
        sources: Files and URLs of this run; results of files that were replaced since are removed.

    Raises:
        UserError: If the file has other content or results of other settings.
    """

    def __init__(
        self,
        path: Path | None,
        form: Form,
        settings: dict[str, Any],
        model: str,
        revision: str | None = None,
        sources: Iterable[str] = (),
    ) -> None:
        self.path, self.form = path, form
        self._about: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "model": model, "revision": revision}
        self._stamps = {self._key(source): stamp_of(source) for source in sources}
        self._done: set[str] = set()
        self._file: IO[str] = sys.stdout
        if path is None:
            return
        beside = path.with_name(f"{path.name}.settings.json")
        if not path.exists() or not path.stat().st_size:
            beside.unlink(missing_ok=True)
        elif not beside.exists():
            raise UserError(
                f"{path} exists without {beside.name}, which would say how it was made.",
                "Choose another --output, or delete the file.",
            )
        unknown = [name for name, value in EARLIER.items() if settings.get(name) == value]
        for change in begin(beside, settings, unknown):
            raise UserError(
                f"{path} holds results of other settings: {change.name} was {change.found}, now {change.expected}.",
                "Choose another --output, or delete the file.",
            )
        if path.exists():
            self._done = self._read(path)

    def has(self, source: str) -> bool:
        """Whether the file has a result for a source."""
        return self._key(source) in self._done

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
        about = self._about | {"file_stamp": self._stamps.get(self._key(result["source"]), "")}
        if self.form == "json":
            pictures = ("heatmap", "crop")
            faces = [{name: value for name, value in face.items() if name not in pictures} for face in result["faces"]]
            self._file.write(json.dumps(about | result | {"faces": faces}) + "\n")  # ASCII only, also file names
        elif self.form == "csv":
            shown = about | result | {"persons": len(result["persons"]), "faces": len(result["faces"])}
            shown |= {name: csv_cell(result[name]) for name in ("source", "label", "error")}
            shown |= {"model": csv_cell(self._about["model"]), "notes": csv_cell(" ".join(result["notes"]))}
            csv.writer(self._file).writerow([shown[name] for name in COLUMNS])
        else:
            score = "" if result["score"] is None else f"{result['score']:.3f}"
            self._file.write(f"{verdict(result):<9} {score:<6} {printable(result['error'] or result['source'])}\n")

    def _key(self, source: str) -> str:
        return source if self.form == "json" else csv_cell(source)

    def _read(self, path: Path) -> set[str]:
        """Return the sources with a current result, and rewrite the file with their lines only."""
        data = path.read_bytes()
        text, kept, done = "", io.StringIO(newline=""), set()
        try:
            text = data[: data.rfind(b"\n") + 1].decode()  # the last line may be truncated
            if self.form == "json":
                for line in text.splitlines():
                    if self._is_current(row := json.loads(line)):
                        done.add(row["source"])
                        kept.write(f"{line}\n")
            else:
                writer = csv.DictWriter(kept, COLUMNS)
                writer.writeheader()
                for row in csv.DictReader(io.StringIO(text, newline="")):
                    if self._is_current(row):
                        done.add(row["source"])
                        writer.writerow(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} exists and holds no results of `gmdf predict` in this form.", "Choose another --output."
            ) from error
        write_whole(path, lambda new: new.write_bytes(kept.getvalue().encode()))
        return done

    def _is_current(self, row: dict[str, Any]) -> bool:
        """Whether a row has no error and its file was not replaced; earlier versions did not write the stamp."""
        stamp = row.get("file_stamp")
        return not row["error"] and (not stamp or stamp == self._stamps.get(row["source"], stamp))
