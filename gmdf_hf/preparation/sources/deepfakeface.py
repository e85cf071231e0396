"""DeepFakeFace (DFF): single images, as the zips of the hub repository `OpenRL/DeepFakeFace` or unpacked.

Layout: `wiki.zip` (real), `inpainting.zip`, `insight.zip`, `text2img.zip` with members
`<set>/<NN>/<person>_<date>_<year>.jpg`; fakes have the path of their original wiki image.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download

from gmdf_hf.common.errors import EmptySourceError, SourceError
from gmdf_hf.common.schema import FAKE, REAL, REAL_METHOD
from gmdf_hf.preparation.archives import list_members
from gmdf_hf.preparation.sources.record import Listing, Record, hash_split

SETS = ("wiki", "inpainting", "insight", "text2img")
OFFICIAL_IMAGES = 30_000


def list_records(root: str | Path) -> Listing:
    """List the images of all four sets.

    There is no official split: 80/10/10 by the SHA-256 of the person's number (`hash_split`), which is the leak unit,
    so a real image and the fakes made from it, and all images of one person, stay together.

    Args:
        root: Folder with the zips or the unpacked folders, or a hub id such as `OpenRL/DeepFakeFace`.

    Raises:
        SourceError: If no image is found.
        ArchiveError: If a zip is damaged or unsafe.
    """
    if not Path(root).is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(root)):
            raise SourceError(f"{root} is no folder and no hub id such as OpenRL/DeepFakeFace.")
        root = snapshot_download(str(root), repo_type="dataset", allow_patterns=[f"{name}.zip" for name in SETS])
    root = Path(root)
    listing = Listing()
    for name in SETS:
        label = REAL if name == "wiki" else FAKE
        if (root / name).is_dir():
            path, files = root, [file.relative_to(root).as_posix() for file in sorted((root / name).rglob("*.*"))]
        elif (root / f"{name}.zip").is_file():
            path, files = root / f"{name}.zip", list_members(root / f"{name}.zip")
        else:
            path, files = root, []
        found = 0
        for file in files:
            pure = PurePosixPath(file)
            match = re.fullmatch(r"(\d+)_.+\.jpe?g", pure.name, re.IGNORECASE)
            if match is None or len(pure.parts) < 3:
                listing.left_out.append((f"{name}: {file}", "name is not <set>/<NN>/<person>_<date>_<year>.jpg"))
                continue
            found += 1
            group = f"person_{match[1]}"
            video_id = f"{name}/{pure.parts[-2]}/{pure.stem}"
            method = name if label else REAL_METHOD
            listing.records.append(Record(path, label, method, video_id, group, hash_split(group), (file,)))
        listing.expect(f"DeepFakeFace {name}", found, OFFICIAL_IMAGES)
    if not listing.records:
        raise EmptySourceError(
            f"No image found in {root}, expected {', '.join(f'{name}.zip' for name in SETS)} or folders."
        )
    return listing
