"""FaceForensics++, with FaceShifter and Google's DeepFakeDetection (DFD).

Layout: `original_sequences/{youtube,actors}/<compression>/videos/*.mp4` and
`manipulated_sequences/<method>/{<compression>,masks}/videos/*.mp4`; the official `train.json, val.json, test.json`
(lists of pairs) at the root, in `splits/` or in `dataset/splits/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from gmdf_hf.common.errors import EmptySourceError, SourceError
from gmdf_hf.common.schema import FAKE, REAL, REAL_METHOD
from gmdf_hf.preparation.sources.record import Listing, Record, hash_split, need_folder, some

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter", "DeepFakeDetection")
COMPRESSIONS = ("raw", "c23", "c40")
SPLIT_FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}
OFFICIAL_VIDEOS = {"train": 720, "validation": 140, "test": 140}
OFFICIAL_DFD = {REAL: 363, FAKE: 3068}


def list_records(root: str | Path, methods: Sequence[str] = METHODS[:4], compression: str = "c23") -> Listing:
    """List the fakes of the chosen methods and their real source videos.

    FF++ has an official split, and the leak unit is the pair of the split file. DFD has no official split: the leak
    unit is the person shown, split 80/10/10 by hash.

    Args:
        root: Folder of the official download.
        methods: Some of `METHODS`.
        compression: One of `COMPRESSIONS`.

    Raises:
        SourceError: If an argument is unknown, a split file is missing or broken, or no video is found.
    """
    root = need_folder(root)
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise SourceError(f"FaceForensics++ methods {list(methods)}, expected some of {', '.join(METHODS)}.")
    if compression not in COMPRESSIONS:
        raise SourceError(f"FaceForensics++ compression {compression!r}, expected one of {', '.join(COMPRESSIONS)}.")
    listing = Listing()
    swaps = [name for name in methods if name != "DeepFakeDetection"]
    if swaps:
        _list_pairs(root, swaps, compression, listing)
    if "DeepFakeDetection" in methods:
        _list_dfd(root, compression, listing)
    if not listing.records:
        raise EmptySourceError(f"No video found, expected e.g. {_videos(root, methods[0], compression)}/*.mp4.")
    _note_masks(listing)
    return listing


def _videos(root: Path, method: str, compression: str) -> Path:
    folder = {REAL_METHOD: "original_sequences/youtube", "actors": "original_sequences/actors"}.get(
        method, f"manipulated_sequences/{method}"
    )
    found = root / folder / compression / "videos"
    old = root / folder / "c0" / "videos"  # earlier name of `raw`
    return old if compression == "raw" and not found.is_dir() and old.is_dir() else found


def _mask(root: Path, method: str, video: Path) -> Path | None:
    """Path of the forgery mask video; masks have no compression level."""
    mask = root / "manipulated_sequences" / method / "masks" / "videos" / video.name
    return mask if mask.is_file() else None


def _note_masks(listing: Listing) -> None:
    fakes = [record for record in listing.records if record.label == FAKE]
    without = sum(not record.has_mask for record in fakes)
    if 0 < without < len(fakes):
        listing.notes.append(
            f"{without} of {len(fakes)} fake videos have no mask: where one shows several people, it is not known "
            "whose face is forged."
        )


def _list_pairs(root: Path, methods: Sequence[str], compression: str, listing: Listing) -> None:
    splits = {split: _read_pairs(root, name) for split, name in SPLIT_FILES.items()}
    for method in (REAL_METHOD, *methods):
        folder = _videos(root, method, compression)
        there = {path.stem: path for path in sorted(folder.glob("*.mp4"))}
        for split, pairs in splits.items():
            wanted = {
                name: "_".join(sorted(pair))
                for pair in pairs
                for name in (pair if method == REAL_METHOD else (f"{pair[0]}_{pair[1]}", f"{pair[1]}_{pair[0]}"))
            }
            label = REAL if method == REAL_METHOD else FAKE
            listing.records += [
                Record(
                    there[name], label, method, f"{method}/{name}", group, split, mask=_mask(root, method, there[name])
                )
                for name, group in sorted(wanted.items())
                if name in there
            ]
            absent = [str((folder / f"{name}.mp4").relative_to(root)) for name in sorted(wanted) if name not in there]
            listing.missing(f"FaceForensics++ {method} {split}", absent)
            listing.expect(f"FaceForensics++ {method} {split} list", len(wanted), OFFICIAL_VIDEOS[split])
            for name in wanted:
                there.pop(name, None)
        listing.left_out += [(str(path.relative_to(root)), "in no official split list") for path in there.values()]
        if there:
            listing.notes.append(f"FaceForensics++ {method}: {len(there)} in no split list: {some(sorted(there))}.")


def _read_pairs(root: Path, name: str) -> list[tuple[str, str]]:
    places = [root / folder / name for folder in ("", "splits", "dataset/splits")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise SourceError(f"Official split list {name} not found, looked for {some([str(place) for place in places])}.")
    try:
        pairs = [(str(first), str(second)) for first, second in json.loads(file.read_text())]
    except (ValueError, TypeError) as error:
        raise SourceError(f'{file}: not a list of pairs such as ["071", "054"] ({error}).') from error
    odd = [name for pair in pairs for name in pair if not re.fullmatch(r"\d{3}", name)]
    if odd:
        raise SourceError(f"{file}: video name {odd[0]!r}, expected three digits.")
    return pairs


def _list_dfd(root: Path, compression: str, listing: Listing) -> None:
    for method, label in (("actors", REAL), ("DeepFakeDetection", FAKE)):
        files = sorted(_videos(root, method, compression).glob("*.mp4"))
        listing.expect(f"DeepFakeDetection {'fake' if label else 'real'} videos", len(files), OFFICIAL_DFD[label])
        for path in files:
            shown = re.match(r"(\d+)_(\d+)__" if label else r"(\d+)__", path.stem)
            if shown is None:
                listing.left_out.append((str(path.relative_to(root)), "name does not tell the persons"))
                continue
            group = f"actor_{shown[1]}"
            name = "DeepFakeDetection" if label else REAL_METHOD
            video_id = f"DeepFakeDetection/{path.stem}"
            mask = _mask(root, method, path)
            listing.records.append(Record(path, label, name, video_id, group, hash_split(group), mask=mask))
