"""Celeb-DF v2.

Layout: `Celeb-real/*.mp4`, `YouTube-real/*.mp4`, `Celeb-synthesis/*.mp4` and `List_of_testing_videos.txt`; some copies
have a `videos/` level or spell `Youtube-real`.
"""

from __future__ import annotations

import re
from pathlib import Path

from gmdf_hf.common.errors import EmptySourceError, SourceError
from gmdf_hf.common.schema import FAKE, REAL, REAL_METHOD
from gmdf_hf.preparation.sources.record import Listing, Record, carve_validation, drop_leaks, need_folder

LIST = "List_of_testing_videos.txt"
OFFICIAL = {"Celeb-real": 590, "YouTube-real": 300, "Celeb-synthesis": 5639}
OFFICIAL_TEST = {"Celeb-real": 108, "YouTube-real": 70, "Celeb-synthesis": 340}
METHOD = "Celeb-DF"


def group_of(folder: str, name: str) -> str:
    """Return the leak unit of a video: the clip of the person shown.

    Fakes are named `id<target>_id<donor>_<clip>`, their real source clips `id<target>_<clip>`.

    Args:
        folder: Official folder of the video.
        name: File name without suffix.
    """
    fake = re.fullmatch(r"(id\d+)_id\d+_(\d+)", name)
    return f"{fake[1]}_{fake[2]}" if fake else name if folder != "YouTube-real" else f"youtube_{name}"


def list_records(root: str | Path) -> Listing:
    """List all videos: test is the official list, training the rest without videos that share a clip with a test video.

    There is no official validation split; a tenth of the training leak units is selected by hash.

    Args:
        root: Folder of the official download.

    Raises:
        SourceError: If the list is missing or broken, its flags contradict the folders, or no video is found.
    """
    root = need_folder(root)
    testing = _read_list(root)
    listing = Listing()
    for folder, official in OFFICIAL.items():
        spellings = [folder, folder.replace("YouTube", "Youtube")]
        places = [root / name / level for name in spellings for level in ("", "videos")]
        files = sorted(path for place in dict.fromkeys(places) for path in place.glob("*.mp4"))
        files = list({path.stem: path for path in files}.values())  # the file system may be case-insensitive
        listing.expect(f"Celeb-DF {folder}", len(files), official)
        label = FAKE if folder == "Celeb-synthesis" else REAL
        for path in files:
            listing.records.append(
                Record(
                    path,
                    label,
                    METHOD if label else REAL_METHOD,
                    f"{folder}/{path.stem}",
                    group_of(folder, path.stem),
                    "test" if f"{folder}/{path.stem}" in testing else "train",
                )
            )
        listed = sum(name.startswith(f"{folder}/") for name in testing)
        listing.expect(f"Celeb-DF test list, {folder}", listed, OFFICIAL_TEST[folder])
    if not listing.records:
        raise EmptySourceError(f"No video found in {root}, expected folders {', '.join(OFFICIAL)} with .mp4 files.")
    listing.missing("Celeb-DF test list", sorted(testing - {record.video_id for record in listing.records}))
    drop_leaks(listing)
    listing.records = carve_validation(listing.records)
    return listing


def _read_list(root: Path) -> set[str]:
    file = root / LIST
    if not file.is_file():
        raise SourceError(f"{file} not found: without it the test videos would be trained on.")
    names = set()
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([01])\s+(Celeb-real|You[Tt]ube-real|Celeb-synthesis)/([\w-]+)\.mp4", line.strip())
        if match is None:
            raise SourceError(f"{file}:{number}: {line.strip()[:80]!r}, expected e.g. '1 YouTube-real/00170.mp4'.")
        folder = match[2].replace("Youtube", "YouTube")
        if (match[1] == "1") == (folder == "Celeb-synthesis"):  # in this list, 1 is real
            raise SourceError(f"{file}:{number}: flag {match[1]} contradicts folder {folder} (1 is real in this list).")
        names.add(f"{folder}/{match[3]}")
    return names
