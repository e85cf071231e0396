"""A plain folder: `root/[<split>/]{real,fake}/[<video>/]<image or video file>`."""

from __future__ import annotations

from pathlib import Path

from gmdf_hf.common.errors import SourceError
from gmdf_hf.common.schema import FAKE, REAL, REAL_METHOD
from gmdf_hf.modeling import images_gmdf as images
from gmdf_hf.preparation import video
from gmdf_hf.preparation.sources.record import Listing, Record, hash_split, natural, need_folder

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


def list_records(root: str | Path) -> Listing:
    """List images, videos and folders of frames.

    Files and folders of the same relative name in `real/` and `fake/` are taken for a pair and share a leak unit.
    Without split folders the split is 80/10/10 by the hash of the leak unit.

    Args:
        root: The folder.

    Raises:
        SourceError: If neither `real/` nor `fake/` is found, or nothing in them.
    """
    root = need_folder(root)
    named = [(split, root / name) for name, split in SPLIT_NAMES.items() if (root / name).is_dir()]
    listing = Listing()
    for split, base in named or [(None, root)]:
        for kind, label in (("real", REAL), ("fake", FAKE)):
            if (base / kind).is_dir():
                _list_class(root, base, kind, label, split, listing)
    if not listing.records:
        raise SourceError(
            f"No image or video found in {root}, expected {root}/[train|validation|test/]{{real,fake}}/…."
        )
    return listing


def _list_class(root: Path, base: Path, kind: str, label: int, split: str | None, listing: Listing) -> None:
    folder = base / kind
    units: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: natural(path.as_posix())):
        if not path.is_file():
            continue
        if path.suffix.lower() in images.SUFFIXES:
            # Images right in the class folder are single ones; in a folder of their own they are a video's frames.
            units.setdefault(path if path.parent == folder else path.parent, []).append(path)
        elif path.suffix.lower() in video.SUFFIXES:
            units[path] = [path]
        else:
            listing.left_out.append((str(path.relative_to(root)), "neither image nor video by its name"))
    for unit, files in units.items():
        name = unit.relative_to(folder)
        name = (name.with_suffix("") if unit.is_file() else name).as_posix()
        prefix = f"{base.name}/" if split else ""
        group = f"{prefix}{name}"
        members = () if unit.is_file() else tuple(file.name for file in files)
        method = "fake" if label else REAL_METHOD
        listing.records.append(
            Record(unit, label, method, f"{prefix}{kind}/{name}", group, split or hash_split(group), members)
        )
