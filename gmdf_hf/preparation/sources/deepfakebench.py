"""Reader and writer of DeepfakeBench's JSON index.

`{dataset: {label name: {split: {[compression:] {video: {"label": label name, "frames": [paths], ...}}}}}}`; paths are
relative to the folder of the data sets and may contain backslashes. Label names give the class (`DFDC_Real`, see
`labels.class_of`); a name without a class word, such as `FF-DF`, is fake, as in DeepfakeBench's own list.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gmdf_hf.common.errors import SourceError
from gmdf_hf.common.labels import class_of, describe, is_ambiguous
from gmdf_hf.common.schema import FAKE, REAL_METHOD
from gmdf_hf.preparation.sources import celebdf
from gmdf_hf.preparation.sources.record import Listing, Record, carve_validation, drop_leaks, natural, need_folder

COMPRESSIONS = ("raw", "c0", "c23", "c40")
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


def list_records(
    index: str | Path, root: str | Path, compression: str = "c23", labels: Mapping[str, str] | None = None
) -> Listing:
    """List the videos of an index.

    Videos are often in several splits there: Celeb-DF's 518 test videos are also in `train`, and `val` equals `test`. A
    video is kept only in the last of train, validation, test; its other entries are dropped and counted. If validation
    is then empty, a tenth of the training leak units is moved to it by hash.

    Args:
        index: The JSON file.
        root: Base folder of the frame paths.
        compression: Compression level to read if the index has several.
        labels: `real` or `fake` for label names without a clear class.

    Raises:
        SourceError: If the file is not such an index, a label name has words of both classes, or a path is outside
            `root`.
    """
    root = need_folder(root)
    try:
        content = json.loads(Path(index).read_text())
    except (OSError, ValueError) as error:
        raise SourceError(f"{index}: cannot be read as JSON ({error}).") from error
    listing = Listing()
    absent: list[str] = []
    read_as: dict[str, int] = {}
    for dataset, by_label in _items(content, index, "data sets"):
        videos = [
            (label, split, video, entry)
            for label, splits in _items(by_label, index, "label names")
            for split, found in _items(splits, index, "splits")
            for video, entry in _items(_at_compression(found, compression), index, "videos")
        ]
        groups = _groups(dataset, [video for _, _, video, _ in videos])
        for label, split, video, entry in videos:
            if split not in SPLIT_NAMES:
                raise SourceError(f"{index}: split {split!r}, expected one of {', '.join(SPLIT_NAMES)}.")
            frames = [_relative(name, index) for name in entry.get("frames", [])]
            there = [name for name in frames if (root / name).is_file()]
            masks = {PurePosixPath(name).stem: _relative(name, index) for name in entry.get("masks", [])}
            masks = {frame: name for frame, name in masks.items() if (root / name).is_file()}
            absent += [name for name in frames if name not in set(there)]
            if not there:
                listing.left_out.append((f"{label}/{video}", "none of its frames is on disk"))
                continue
            read_as[label] = label_of(label, labels)
            members = tuple(sorted(there, key=natural))
            own = tuple(masks.get(PurePosixPath(name).stem, "") for name in members)
            listing.records.append(
                Record(
                    root,
                    read_as[label],
                    label if read_as[label] else REAL_METHOD,
                    f"{label}/{video}",  # in FF++, videos of different methods have the same name
                    groups[video],
                    SPLIT_NAMES[split],
                    members,
                    mask_members=own if any(own) and read_as[label] == FAKE else (),
                )
            )
    if not listing.records:
        raise SourceError(f"{index}: none of its frames is in {root}, expected the folder that its paths start from.")
    listing.notes.append(f"{describe(read_as)}.")
    listing.missing("Frames", absent)
    drop_leaks(listing)
    listing.records = carve_validation(listing.records)
    return listing


def label_of(name: str, labels: Mapping[str, str] | None = None) -> int:
    """Class of a label name, from its class words; fake without any.

    Raises:
        SourceError: If the name has words of both classes, or a negation.
    """
    label = class_of(name, labels)
    if label is None and is_ambiguous(name):
        raise SourceError(
            f"Label name {name!r} does not tell real from fake. Expected a name such as DFDC_Real or DFDC_Fake; or "
            f"state it: --labels {name}=fake."
        )
    return FAKE if label is None else label


def write_index(
    path: str | Path,
    dataset: str,
    records: Iterable[Record],
    label_names: dict[str, str],
    compression: str | None = None,
) -> None:
    """Write an index that DeepfakeBench and `list_records` read.

    Args:
        path: File to write.
        dataset: DeepfakeBench's name of the data set.
        records: Records with `members`; the paths written are relative to each record's `path`.
        label_names: DeepfakeBench's label name of each method.
        compression: Compression level in the index, for data sets with such levels.

    Raises:
        SourceError: If a record has no frames, or a method has no label name of the right class.
    """
    names = {split: name for name, split in SPLIT_NAMES.items()}
    records = list(records)
    # `000_003` is unique within an FF++ method; the last parts of `train/real/1` and `test/real/1` are not.
    short = Counter((record.method, record.video_id.split("/")[-1]) for record in records)
    unique = all(count == 1 for count in short.values())
    content: dict[str, Any] = {}
    for record in records:
        label = label_names.get(record.method)
        if label is None or label_of(label) != record.label:
            raise SourceError(
                f"Method {record.method!r} has label name {label!r}, expected a name such as DFDC_Real for real videos "
                "and another for fake ones."
            )
        if not record.members:
            raise SourceError(
                f"{record.video_id} has no frames on disk: DeepfakeBench's index lists frames, not videos."
            )
        videos = content.setdefault(label, {}).setdefault(names[record.split], {})
        videos = videos if compression is None else videos.setdefault(compression, {})
        name = record.video_id.split("/")[-1] if unique else record.video_id.replace("/", "_")
        videos[name] = {"label": label, "frames": list(record.members)}
        if record.mask_members:
            videos[name]["masks"] = [mask for mask in record.mask_members if mask]
    Path(path).write_text(json.dumps({dataset: content}, indent=1))


def _items(value: object, index: str | Path, what: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise SourceError(f"{index}: expected an object of {what}, found {type(value).__name__}.")
    return list(value.items())


def _at_compression(found: Any, compression: str) -> Any:
    if not isinstance(found, dict) or not found or not set(found) <= set(COMPRESSIONS):
        return found
    for name in (compression, "c0") if compression == "raw" else (compression,):
        if name in found:
            return found[name]
    raise SourceError(f"Compression {compression!r} is not in the index, found {', '.join(found)}.")


def _relative(name: str, index: str | Path) -> str:
    path = PurePosixPath(str(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise SourceError(f"{index}: frame {name!r} is not a path below the folder of the data sets.")
    return str(path)


def _groups(dataset: str, videos: Sequence[str]) -> dict[str, str]:
    """Return the leak unit of each video name.

    FF++ names fakes `<target>_<source>`: all videos connected by such names are one unit, like the official pairs.
    """
    if "celeb" in dataset.lower():
        return {video: celebdf.group_of("YouTube-real" if video.isdigit() else "", video) for video in videos}
    unit = {video: video for video in videos}

    def head(name: str) -> str:
        while unit.setdefault(name, name) != name:
            name = unit[name]
        return name

    for video in videos:
        pair = re.fullmatch(r"(\d{3})_(\d{3})", video)
        if pair:
            first, second = sorted(head(name) for name in pair.groups())
            unit[second] = unit[video] = first
    return {video: head(video) for video in videos}
