"""Domains: labelled, encoded frames from drawings, the hub, a folder or Parquet."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from datasets.utils.file_utils import xopen

from gmdf_hf.common.columns import FEATURES
from gmdf_hf.common.errors import DomainError
from gmdf_hf.common.labels import CLASS_NAMES, LabelReader
from gmdf_hf.data.drawn import domains as drawings
from gmdf_hf.data.drawn import forgeries, people, portraits
from gmdf_hf.preparation.shards import ROW_GROUP

DRAWN_VIDEOS = {"train": 300, "validation": 60, "test": 150}


@dataclass(frozen=True)
class Domain:
    """One split of one domain, its images still encoded.

    Attributes:
        name: Name of the domain.
        split: train, validation or test.
        frames: Data set with the column `image` as `{"bytes", "path"}`, not decoded.
        labels: 0 real, 1 fake, shape `(frames,)`.
        video_ids: Video of each frame.
        frame_numbers: Number of each frame in its video.
        groups: Leak unit of each frame: frames of one group must not be in two splits.
        captions: Description of each image, for prompt P3; None if the data set has none.
        methods: Forgery method of each frame, empty if unknown; None if the data set has no methods.
        masks: Data set with the column `mask`, what was forged, not decoded; None if the data set has no masks.
    """

    name: str
    split: str
    frames: datasets.Dataset
    labels: np.ndarray
    video_ids: Sequence[str]
    frame_numbers: np.ndarray
    groups: Sequence[str]
    captions: Sequence[str] | None
    methods: Sequence[str] | None = None
    masks: datasets.Dataset | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def videos(self) -> list[tuple[str, str]]:
        """Method and id of each frame's video: videos of the same name but different methods are distinct."""
        return _videos(self.methods, self.video_ids)


def load_domain(
    name: str,
    split: str,
    path: str,
    subset: str | None = None,
    revision: str | None = None,
    columns: dict[str, str | None] | None = None,
    splits: dict[str, str] | None = None,
    max_videos: int | None = None,
    labels: dict[str, str] | None = None,
) -> Domain:
    """Load one split of a domain.

    Columns are `image` and `label`, and optionally `video_id`, `frame`, `method`, `group`, `caption`, `mask`. Videos of
    the same name but different methods are distinct. Without `video_id`, frames of the same group, label and method are
    one video; without `group` too, each image is a video.

    Args:
        name: Name of the domain.
        split: train, validation or test.
        path: Hub id, local folder or Parquet file, or `drawn:<domain>`.
        subset: Configuration of a hub data set.
        revision: Commit, branch or tag of a hub data set.
        columns: Column name here to that of the data set; None to ignore a data set column of that name.
        splits: Split name here to that of the data set.
        max_videos: Maximum number of videos to keep of each class.
        labels: `real` or `fake` for the data set's class names, if the names are not clear (see `LabelReader`).

    Raises:
        DomainError: If the split, a column or a class is missing, or the class of a label is unknown.
    """
    if path.startswith(drawings.DRAWN_PREFIX):
        frames = _draw(name, path.removeprefix(drawings.DRAWN_PREFIX), split, max_videos)
    else:
        frames = load_frames(name, path, subset, revision, (splits or {}).get(split, split))
    frames = rename_columns(name, frames, columns or {})
    reader = label_reader(name, frames, columns, labels)
    classes = np.asarray(reader.read_all(frames["label"][:]), dtype=np.int64)
    groups = _strings(frames, "group") or [f"{name}/{split}/{row}" for row in range(len(frames))]
    video_ids = _strings(frames, "video_id") or [
        f"{group}/{CLASS_NAMES[label]}" for group, label in zip(groups, classes, strict=True)
    ]
    methods = _strings(frames, "method")
    if max_videos is not None:
        keep = _first_videos(classes, _videos(methods, video_ids), max_videos)
        frames, classes = frames.select(keep), classes[keep]
        groups, video_ids = [groups[row] for row in keep], [video_ids[row] for row in keep]
        methods = methods and [methods[row] for row in keep]
    counts = Counter(classes.tolist())
    if len(counts) < 2:
        found = ", ".join(f"{count} {CLASS_NAMES[label]}" for label, count in counts.items()) or "none"
        raise DomainError(f"Domain {name!r}, split {split!r}, needs real and fake images, found {found}.")
    videos = _videos(methods, video_ids)
    _check_videos(name, classes, videos)
    numbers = frames["frame"][:] if "frame" in frames.column_names else _count_up(videos)
    return Domain(
        name=name,
        split=split,
        frames=frames.select_columns("image"),
        labels=classes,
        video_ids=video_ids,
        frame_numbers=np.asarray(numbers),
        groups=groups,
        captions=_strings(frames, "caption"),
        methods=methods,
        masks=frames.select_columns("mask") if isinstance(frames.features.get("mask"), datasets.Image) else None,
    )


def _draw(name: str, drawn: str, split: str, max_videos: int | None) -> datasets.Dataset:
    if drawn not in drawings.DRAWN_DOMAINS:
        raise DomainError(f"Domain {name!r}: drawn domains are {', '.join(drawings.DRAWN_DOMAINS)}, found {drawn!r}.")
    videos = min(DRAWN_VIDEOS[split], 2 * max_videos if max_videos else DRAWN_VIDEOS[split])
    features = datasets.Features(FEATURES | {"caption": datasets.Value("string")})
    arguments = {"name": drawn, "split": split, "num_videos": videos}
    # Kept in the cache of `datasets`, which does not detect changes of the drawing code by itself.
    code = b"".join(inspect.getsource(module).encode() for module in (people, portraits, forgeries, drawings))
    fingerprint = hashlib.sha256(code + repr(arguments).encode()).hexdigest()[:32]
    return datasets.Dataset.from_generator(
        drawings.draw_domain, features=features, gen_kwargs=arguments, split=split, fingerprint=fingerprint
    )


def load_frames(
    name: str, path: str, subset: str | None, revision: str | None, split: str, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split with `datasets`, from the hub, a folder or a Parquet file.

    Raises:
        DomainError: If it cannot be loaded.
    """
    try:
        if Path(path).suffix == ".parquet":
            arguments: dict[str, Any] = {"path": "parquet", "data_files": {split: path}}
        else:
            arguments = {"path": path} if Path(path).is_dir() else {"path": path, "name": subset, "revision": revision}
        found = _open_streams(split, **arguments) if streaming else datasets.load_dataset(**arguments)
    except (FileNotFoundError, ConnectionError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DomainError(f"Domain {name!r}: cannot load {path!r}: {' '.join(str(error).split())[:300]}") from error
    if split not in found:
        raise DomainError(f"Domain {name!r}: no split {split!r} in {path!r}; found {', '.join(found)}.")
    return found[split]


def _open_streams(split: str, **arguments: Any) -> datasets.IterableDatasetDict:
    builder = datasets.load_dataset_builder(**arguments)
    found = builder.as_streaming_dataset()
    if isinstance(builder.config, ParquetConfig) and split in found:
        features = found[split].features
        # The Parquet reader of `datasets` prefetches the whole file into memory (apache/arrow#39808).
        files = {"files": list(builder.config.data_files[split]), "schema": features.arrow_schema}
        found[split] = datasets.IterableDataset.from_generator(_read_parquet, features=features, gen_kwargs=files)
    return found


def _read_parquet(files: Sequence[str], schema: pa.Schema) -> Iterator[dict]:
    for path in files:
        with xopen(path, "rb") as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(batch_size=ROW_GROUP):
                yield from datasets.table.table_cast(pa.Table.from_batches([batch]), schema).to_pylist()


def rename_columns(
    name: str, frames: datasets.Dataset | datasets.IterableDataset, columns: dict[str, str | None]
) -> datasets.Dataset | datasets.IterableDataset:
    """Rename a data set's columns to the names used here, without decoding its images.

    Args:
        name: Name of the domain.
        frames: Data set, in memory or streamed.
        columns: Column name here to that of the data set; None to ignore a data set column of that name.

    Raises:
        DomainError: If a column is missing.
    """
    for column, feature in frames.features.items():
        if isinstance(feature, datasets.Image):  # before renaming: a stream would else decode and re-encode
            frames = frames.cast_column(column, datasets.Image(decode=False))
    for ours, theirs in columns.items():
        if theirs is not None and theirs not in frames.column_names:
            raise DomainError(f"Domain {name!r}: no column {theirs!r} for {ours!r}; found {frames.column_names}.")
        if ours != theirs:
            frames = frames.remove_columns([ours]) if ours in frames.column_names else frames
            frames = frames.rename_column(theirs, ours) if theirs is not None else frames
    for column in ("image", "label"):
        if column not in frames.column_names:
            raise DomainError(f"Domain {name!r}: no column {column!r}; found {frames.column_names}.")
    return frames.cast_column("image", datasets.Image(decode=False))


def label_reader(
    name: str,
    frames: datasets.Dataset | datasets.IterableDataset,
    columns: dict[str, str | None] | None,
    labels: dict[str, str] | None,
) -> LabelReader:
    """Label reader of a data set with renamed columns.

    Raises:
        DomainError: If the class of a class name is unknown.
    """
    feature = frames.features["label"]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    return LabelReader(name, names, (columns or {}).get("label") or "label", labels)


def _strings(frames: datasets.Dataset, column: str) -> list[str] | None:
    return [string(value) for value in frames[column]] if column in frames.column_names else None


def string(value: object) -> str:
    """Return a name as text, empty if the data set has none."""
    return "" if value is None else str(value)


def _videos(methods: Sequence[str] | None, video_ids: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip([""] * len(video_ids) if methods is None else methods, video_ids, strict=True))


def _first_videos(labels: np.ndarray, videos: Sequence[tuple[str, str]], max_videos: int) -> list[int]:
    kept: dict[int, set[tuple[str, str]]] = {0: set(), 1: set()}
    rows = []
    for row, (label, video) in enumerate(zip(labels.tolist(), videos, strict=True)):
        if video in kept[label] or len(kept[label]) < max_videos:
            kept[label].add(video)
            rows.append(row)
    return rows


def _check_videos(name: str, labels: np.ndarray, videos: Sequence[tuple[str, str]]) -> None:
    label_of: dict[tuple[str, str], int] = {}
    for (method, video), label in zip(videos, labels.tolist(), strict=True):
        if label_of.setdefault((method, video), label) != label:
            of_method = f" of method {method!r}" if method else ""
            raise DomainError(
                f"Domain {name!r}: video {video!r}{of_method} has frames labelled real and fake; expected one label."
            )


def _count_up(videos: Sequence[tuple[str, str]]) -> list[int]:
    seen: Counter[tuple[str, str]] = Counter()
    numbers = []
    for video in videos:
        numbers.append(seen[video])
        seen[video] += 1
    return numbers


def check_leaks(splits: Iterable[Domain]) -> None:
    """Reject a domain with a video or a group in two splits.

    Video names are compared here without their method: two forgeries of the same name usually show the same scene.

    Raises:
        DomainError: If there is one; the message names it.
    """
    home: dict[tuple[str, str], str] = {}
    for domain in splits:
        for kind, values in (("video", domain.video_ids), ("group", domain.groups)):
            for value in set(values):
                if home.setdefault((kind, value), domain.split) != domain.split:
                    raise DomainError(
                        f"Domain {domain.name!r}: {kind} {value!r} stands in the splits {home[kind, value]!r} and "
                        f"{domain.split!r}; expected one."
                    )
