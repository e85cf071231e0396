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
        method: How the fake was made; `real` for real ones.
        video_id: Unique in the data set.
        group: Leak unit: what shares it must stand in one split.
        split: One of `SPLITS`.
        members: Frames in order of time, as names below `path`; empty if `path` is the video or image itself.
        mask: Video of what was forged, white on black, frame by frame; None if there is none.
        mask_members: The same as a name for each member, empty for one without; `()` if there are none.

    Ids and groups are kept as text that can be written, whatever bytes the file's name has.
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
        """Whether the data set says what was forged in it."""
        return self.mask is not None or any(self.mask_members)

    def __post_init__(self) -> None:
        object.__setattr__(self, "video_id", readable(self.video_id))
        object.__setattr__(self, "group", readable(self.group))

    @property
    def files(self) -> list[Path]:
        """Files on disk that hold the record: the video, image or archive, or each frame of a folder."""
        return [self.path / name for name in self.members] if self.path.is_dir() else [self.path]


@dataclass
class Listing:
    """All records of a data set, and what is wrong with it.

    Attributes:
        records: In the order in which they will be prepared.
        left_out: `(file, reason)` of files that should be there or that are there and are not used.
        notes: Sentences for the user: counts that differ from the official ones, leaks that were removed.
    """

    records: list[Record] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def expect(self, what: str, found: int, official: int) -> None:
        """Note a count that differs from the official one."""
        if found != official:
            self.notes.append(f"{what}: {found} found, {official} in the official release.")

    def missing(self, what: str, files: Iterable[str]) -> None:
        """Note files that a list of the data set names and that are not on disk."""
        files = list(files)
        self.left_out += [(name, "listed but not on disk") for name in files]
        if files:
            self.notes.append(f"{what}: {len(files)} listed but not on disk: {some(files)}.")


def some(names: Sequence[str], most: int = 5) -> str:
    """Join the first few names."""
    return ", ".join(map(readable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def natural(name: str) -> list[str | tuple[int, str]]:
    """Sort key that puts `2.png` before `10.png`; numbers may have any length."""
    parts = re.split(r"([0-9]+)", name)  # texts at even places, numbers at odd ones
    return [(len(part.lstrip("0")), part.lstrip("0")) if place % 2 else part for place, part in enumerate(parts)]


def hash_fraction(text: str) -> float:
    """Map a text to a number in [0, 1) that is the same on every machine and for ever."""
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
    """Take out of training and validation what shares a group or video with a later split, and say how many.

    Test wins over validation, validation over training: a test set must stay the official one.
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
    """Refuse a data set in which a group or video stands in two splits or a video id stands for two videos.

    Raises:
        SourceError: Naming some of the offenders.
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
        SourceError: If it is no folder.
    """
    if not Path(root).is_dir():
        raise SourceError(f"{root} is no folder.")
    return Path(root)
