"""DFDC: the training parts, the test set, or the preview (DFDCP).

Layouts: `dfdc_train_part_<N>/{metadata.json,*.mp4}`; `test/{labels.csv or metadata.json,*.mp4}` or that folder itself;
`dataset.json` with `method_A/…`, `method_B/…` and `original_videos/…`.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from gmdf_hf.common.errors import EmptySourceError, SourceError
from gmdf_hf.common.labels import class_of
from gmdf_hf.common.schema import FAKE, REAL, REAL_METHOD
from gmdf_hf.preparation.sources.record import Listing, Record, carve_validation, drop_leaks, need_folder, some

METHOD = "DFDC"
OFFICIAL_PARTS = 50
OFFICIAL_TEST = 5000


def list_records(root: str | Path) -> Listing:
    """List the records of the release in `root`, one of the three.

    Of the training parts, 0-34 are training, 35-39 validation and 40-49 test, the common split; the leak unit is the
    original video. The preview has an official split by person.

    Args:
        root: Folder with the parts, the test set, or the preview.

    Raises:
        SourceError: If `root` has none or more than one of the three releases, or a metadata file is broken.
    """
    root = need_folder(root)
    parts = sorted(root.glob("dfdc_train_part_*/"), key=lambda path: int(re.sub(r"\D", "", path.name) or -1))
    with_labels = ((folder, _test_labels(folder)) for folder in (root, root / "test"))
    test = next(((folder, labels) for folder, labels in with_labels if labels is not None), None)
    preview = (root / "dataset.json").is_file()
    found = [name for name, there in (("training parts", parts), ("test set", test), ("preview", preview)) if there]
    if len(found) != 1:
        raise SourceError(
            f"{root} holds {' and '.join(found) or 'no DFDC release'}, expected exactly one of: dfdc_train_part_<N>/ "
            "folders, a test set with labels.csv or metadata.json, dataset.json of the preview."
        )
    listing = Listing()
    if parts:
        _list_parts(root, parts, listing)
    elif test:
        _list_test(*test, listing)
    else:
        _list_preview(root, listing)
    if not listing.records:
        raise EmptySourceError(f"No video of the {found[0]} found in {root}. {' '.join(listing.notes[:3])}")
    return listing


def part_split(number: int) -> str:
    """Return the split of a training part."""
    return "train" if number < 35 else "validation" if number < 40 else "test"


def _list_parts(root: Path, parts: list[Path], listing: Listing) -> None:
    listing.expect("DFDC training parts", len(parts), OFFICIAL_PARTS)
    absent = []
    for part in parts:
        number = re.fullmatch(r"dfdc_train_part_(\d+)", part.name)
        if number is None:
            raise SourceError(f"{part}: expected dfdc_train_part_ and a number.")
        metadata = _read_json(part / "metadata.json")
        for name, entry in sorted(metadata.items()):
            label = _label(entry.get("label"), part / "metadata.json", name)
            if label == FAKE and not entry.get("original"):
                raise SourceError(
                    f"{part / 'metadata.json'}: fake {name} names no original, expected the name of a real video."
                )
            if not (part / _plain(name, part)).is_file():
                absent.append(f"{part.name}/{name}")
                continue
            original = Path(entry["original"] if label == FAKE else name).stem
            listing.records.append(
                Record(
                    part / name,
                    label,
                    METHOD if label else REAL_METHOD,
                    Path(name).stem,
                    original,
                    part_split(int(number[1])),
                )
            )
        extra = sorted(path.name for path in part.glob("*.mp4") if path.name not in metadata)
        listing.left_out += [(f"{part.name}/{name}", "not in metadata.json") for name in extra]
        if extra:
            listing.notes.append(f"{part.name}: {len(extra)} videos not in metadata.json: {some(extra)}.")
    listing.missing("DFDC training parts", absent)
    drop_leaks(listing)


def _test_labels(folder: Path) -> Path | None:
    return next((folder / name for name in ("labels.csv", "metadata.json") if (folder / name).is_file()), None)


def _list_test(folder: Path, file: Path, listing: Listing) -> None:
    if file.suffix == ".csv":
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        if not rows or not {"filename", "label"} <= set(rows[0]):
            raise SourceError(
                f"{file}: expected the header filename,label, found {list(rows[0]) if rows else 'nothing'}."
            )
        labels = {row["filename"]: row["label"] for row in rows}
    else:
        labels = {name: entry.get("label", entry.get("is_fake")) for name, entry in _read_json(file).items()}
    listing.expect("DFDC test set", len(labels), OFFICIAL_TEST)
    absent = []
    for name, value in sorted(labels.items()):
        label = _label(value, file, name)
        stem = Path(name).stem
        if (folder / _plain(name, file)).is_file():
            record = Record(folder / name, label, METHOD if label else REAL_METHOD, stem, stem, "test")
            listing.records.append(record)
        else:
            absent.append(name)
    listing.missing("DFDC test set", absent)


def _list_preview(root: Path, listing: Listing) -> None:
    absent = []
    for name, entry in sorted(_read_json(root / "dataset.json").items()):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 3:
            raise SourceError(f"{root / 'dataset.json'}: {name!r}, expected e.g. method_A/<person>/<video>.mp4.")
        label = _label(entry.get("label"), root / "dataset.json", name)
        if entry.get("set") not in ("train", "test"):
            raise SourceError(f"{root / 'dataset.json'}: {name} has set {entry.get('set')!r}, expected train or test.")
        if not (root / path).is_file():
            absent.append(name)
            continue
        method = f"DFDCP {path.parts[0]}" if label else REAL_METHOD
        listing.records.append(
            Record(root / path, label, method, str(path.with_suffix("")), f"person_{path.parts[1]}", entry["set"])
        )
    listing.missing("DFDC preview", absent)
    drop_leaks(listing)
    listing.records = carve_validation(listing.records)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise SourceError(f"{file} not found.")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise SourceError(f"{file}: no JSON ({error}).") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise SourceError(f"{file}: expected an object of one object per video.")
    return content


def _label(value: object, file: Path, name: str) -> int:
    label = {"0": REAL, "1": FAKE}.get(str(value), class_of(str(value)))
    if label is None:
        raise SourceError(f"{file}: {name} has label {value!r}, expected REAL or FAKE, or 0 or 1.")
    return label


def _plain(name: str, file: Path) -> str:
    if Path(name).name != name:
        raise SourceError(f"{file}: video name {name!r}, expected a plain file name.")
    return name
