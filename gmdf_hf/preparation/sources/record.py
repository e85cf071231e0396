"""Records: the metadata that an importer returns for each video or image."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gmdf_hf.common.errors import SourceError
from gmdf_hf.common.files import readable
from gmdf_hf.common.schema import SPLITS


@dataclass(frozen=True)
class Record:
    """One video (a file, a folder of frames, frames in an archive) or one image.

    Attributes:
        path: The file, or the folder or archive that holds `members`.
        label: 0 real, 1 fake.
        method: Forgery method; `real` for real videos and images.
        video_id: Unique in the data set.
        group: Leak unit: all records of a group must be in one split.
        split: One of `SPLITS`.
        members: Frames in order of time, as names below `path`; empty if `path` is the video or image itself.
        mask: Video of the forgery masks, white on black, frame by frame; None if there is none.
        mask_members: Mask file name of each member, empty for members without a mask; `()` if there are no masks.

    Ids and groups are valid UTF-8 text, even if the file's name is not.
    """

    path: Path
    label: int
    method: str
    video_id: str
    group: str
    split: str
    members: tuple[str, ...] = ()
    mask: Path | None = None
    mask_members: tuple[str, ...] = ()

    @property
    def has_mask(self) -> bool:
        """Whether the record has forgery masks."""
        return self.mask is not None or any(self.mask_members)

    def __post_init__(self) -> None:
        object.__setattr__(self, "video_id", readable(self.video_id))
        object.__setattr__(self, "group", readable(self.group))

    @property
    def files(self) -> list[Path]:
        """Files on disk of the record: the video, image or archive, or each frame of a folder."""
        return [self.path / name for name in self.members] if self.path.is_dir() else [self.path]


@dataclass
class Listing:
    """All records of a data set, and its defects.

    Attributes:
        records: Records in the order of preparation.
        left_out: `(file, reason)` of files that are missing or not used.
        notes: Messages for the user: counts that differ from the official ones, removed leaks.
    """

    records: list[Record] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def expect(self, what: str, found: int, official: int) -> None:
        """Note a count that differs from the official one."""
        if found != official:
            self.notes.append(f"{what}: {found} found, {official} in the official release.")

    def missing(self, what: str, files: Iterable[str]) -> None:
        """Note files that are in a list of the data set but not on disk."""
        files = list(files)
        self.left_out += [(name, "listed but not on disk") for name in files]
        if files:
            self.notes.append(f"{what}: {len(files)} listed but not on disk: {some(files)}.")


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names as text."""
    return ", ".join(map(readable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def natural(name: str) -> list[str | tuple[int, str]]:
    """Sort key with `2.png` before `10.png`; numbers may have any length."""
    parts = re.split(r"([0-9]+)", name)  # text at even positions, numbers at odd ones
    return [(len(part.lstrip("0")), part.lstrip("0")) if place % 2 else part for place, part in enumerate(parts)]


def hash_fraction(text: str) -> float:
    """Map a text to a number in [0, 1), identical on all machines and in all versions."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def hash_split(group: str, train: float = 0.8, validation: float = 0.1) -> str:
    """Split by leak unit, for data sets without an official split."""
    fraction = hash_fraction(group)
    return "train" if fraction < train else "validation" if fraction < train + validation else "test"


def carve_validation(records: list[Record], share: float = 0.1) -> list[Record]:
    """Move a share of the training leak units to validation, by hash, if there is no validation split."""
    if any(record.split == "validation" for record in records):
        return records
    return [
        replace(record, split="validation")
        if record.split == "train" and hash_fraction(f"validation/{record.group}") < share
        else record
        for record in records
    ]


def drop_leaks(listing: Listing) -> None:
    """Remove from training and validation all records that share a group or video with a later split; note the counts.

    Test has priority over validation, and validation over training, so that the official test set stays complete.
    """
    for split, later in (("validation", ("test",)), ("train", ("test", "validation"))):
        kept = [record for record in listing.records if record.split in later]
        groups, videos = {record.group for record in kept}, {record.video_id for record in kept}
        reasons = {
            index: f"same video in {' or '.join(later)}"
            if record.video_id in videos
            else f"same group in {' or '.join(later)}"
            for index, record in enumerate(listing.records)
            if record.split == split and (record.group in groups or record.video_id in videos)
        }
        listing.left_out += [(listing.records[index].video_id, reason) for index, reason in reasons.items()]
        listing.records = [record for index, record in enumerate(listing.records) if index not in reasons]
        for reason, count in Counter(reasons.values()).items():
            listing.notes.append(f"{count} {split} videos dropped: {reason}.")


def check_leaks(records: Iterable[Record]) -> None:
    """Reject a data set with a group or video in two splits, or with two videos of the same id.

    Raises:
        SourceError: If there is one; the message names some examples.
    """
    splits_of: dict[tuple[str, str], set[str]] = {}
    ids: Counter[str] = Counter()
    for record in records:
        if record.split not in SPLITS:
            raise SourceError(f"{record.video_id}: split {record.split!r}, expected one of {', '.join(SPLITS)}.")
        ids[record.video_id] += 1
        for kind, name in (("group", record.group), ("video_id", record.video_id)):
            splits_of.setdefault((kind, name), set()).add(record.split)
    for kind in ("group", "video_id"):
        leaks = [
            f"{name} ({', '.join(sorted(found))})"
            for (k, name), found in splits_of.items()
            if k == kind and len(found) > 1
        ]
        if leaks:
            raise SourceError(f"Leak: {len(leaks)} of column {kind} stand in more than one split: {some(leaks)}.")
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise SourceError(f"{len(twice)} video ids stand for more than one video: {some(twice)}.")


def need_folder(root: str | Path) -> Path:
    """Return `root` as a path.

    Raises:
        SourceError: If it is not a folder.
    """
    if not Path(root).is_dir():
        raise SourceError(f"{root} is no folder, expected the folder of the data set.")
    return Path(root)
