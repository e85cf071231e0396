"""A plain folder: `root/[<split>/]<class>/[<video>/]<image or video file>`, classes by name (`real`, `Fake`, `AI`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from gmdf_hf.common import images
from gmdf_hf.common.errors import EmptySourceError, SourceError
from gmdf_hf.common.files import readable
from gmdf_hf.common.labels import class_of, describe
from gmdf_hf.common.schema import FAKE, REAL, REAL_METHOD
from gmdf_hf.preparation import video
from gmdf_hf.preparation.sources.record import Listing, Record, hash_split, natural, need_folder, some

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def list_records(root: str | Path, labels: Mapping[str, str] | None = None) -> Listing:
    """List images, videos and folders of frames.

    Files and folders with the same relative name in the folders of two classes are treated as a pair and share a leak
    unit. Without split folders the split is 80/10/10 by the hash of the leak unit. A linked folder is followed once.

    Args:
        root: The folder.
        labels: `real` or `fake` for folder names without a clear class (see `labels.class_of`).

    Raises:
        SourceError: If a class is missing and the class of some folder names is unknown, or no image or video is found.
    """
    root = need_folder(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    splits = [(SPLIT_NAMES[path.name.casefold()], path) for path in folders if path.name.casefold() in SPLIT_NAMES]
    listing = Listing()
    if splits:
        bases = {path for _, path in splits}
        listing.left_out += [(readable(p.name), "in no split folder") for p in sorted(root.iterdir()) if p not in bases]
    read_as: dict[str, int] = {}
    bases_in_order: list[tuple[str | None, Path]] = [(None, root)]
    if splits:
        bases_in_order = sorted(splits, key=lambda item: list(SPLIT_NAMES).index(item[1].name.casefold()))
    for split, base in bases_in_order:
        classes = _classes(base, labels, listing, root)
        for folder, label in sorted(classes.items(), key=lambda item: (item[1], item[0])):
            read_as[readable(folder.name)] = label
            _list_class(root, base, folder, label, split, listing)
    if not listing.records:
        raise EmptySourceError(
            f"No image or video found in {readable(root)}, expected {readable(root)}/[train|validation|test/]"
            "{real,fake}/…."
        )
    listing.notes.append(f"{describe(read_as)}.")
    return listing


def _classes(base: Path, labels: Mapping[str, str] | None, listing: Listing, root: Path) -> dict[Path, int]:
    """Class folders in a folder and their labels.

    Raises:
        SourceError: If a class is missing and the class of some folder name is unknown.
    """
    classes, unknown = {}, []
    for path in sorted(base.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            label = class_of(path.name, labels)
            if label is None:
                unknown.append(readable(path.name))
            else:
                classes[path] = label
        else:
            listing.left_out.append((readable(path.relative_to(root)), "in no class folder"))
    if unknown and set(classes.values()) != {REAL, FAKE}:
        raise SourceError(
            f"{readable(base)}: the folders {some(unknown)} do not say whether they are real or fake. Expected names "
            f"such as real and fake; or state them: --labels {unknown[0]}=fake."
        )
    listing.left_out += [
        (readable((base / name).relative_to(root)), "folder name says neither real nor fake") for name in unknown
    ]
    return classes


def _list_class(root: Path, base: Path, folder: Path, label: int, split: str | None, listing: Listing) -> None:
    units: dict[Path, list[Path]] = {}
    for path in _files(folder, root, listing):
        if path.suffix.lower() in images.SUFFIXES:
            # Images directly in the class folder are single images; images in a subfolder are a video's frames.
            units.setdefault(path if path.parent == folder else path.parent, []).append(path)
        elif path.suffix.lower() in video.SUFFIXES:
            units[path] = [path]
        else:
            listing.left_out.append((readable(path.relative_to(root)), "neither image nor video by its name"))
    prefix = f"{readable(base.name)}/" if split else ""
    names = {unit: _name(unit, folder) for unit in units}
    count = Counter(names.values())
    for unit, files in units.items():
        # `1.png` and `1.jpg` are two pictures but one leak unit, as one may be made from the other.
        name = names[unit] if count[names[unit]] == 1 else readable(unit.relative_to(folder))
        group = f"{prefix}{names[unit]}"
        members = () if unit.is_file() else tuple(file.name for file in files)
        method = "fake" if label else REAL_METHOD
        video_id = f"{prefix}{readable(folder.name)}/{name}"
        listing.records.append(Record(unit, label, method, video_id, group, split or hash_split(group), members))


def _name(unit: Path, folder: Path) -> str:
    name = unit.relative_to(folder)
    return readable(name.with_suffix("") if unit.is_file() else name)


def _files(folder: Path, root: Path, listing: Listing) -> list[Path]:
    """Files below a folder, in natural order; a linked folder is followed once."""
    found: list[Path] = []
    met = {root.resolve(), folder.resolve()}

    def note(error: OSError) -> None:
        where = readable(Path(str(error.filename)).relative_to(root))
        listing.left_out.append((where, f"cannot be listed ({error.strerror})"))

    for place, folders, names in os.walk(folder, onerror=note, followlinks=True):
        kept = []
        for name in sorted(folders, key=natural):
            path = Path(place, name)
            target = path.resolve()
            if target in met or (path.is_symlink() and target.is_relative_to(root.resolve())):
                listing.left_out.append((readable(path.relative_to(root)), f"link to {readable(target)}, listed there"))
            else:
                met.add(target)
                kept.append(name)
        folders[:] = kept
        found += [Path(place, name) for name in names if Path(place, name).is_file()]
    return sorted(found, key=lambda path: natural(path.as_posix()))
