"""WildDeepfake, read directly from its tars of face crops; no detector is needed.

Layout: `{real,fake}_{train,test}/<N>.tar.gz` (or with a space instead of the underscore), at the root or in
`deepfake_in_the_wild/`, with members `<tar>/<real|fake>/<sequence>/<frame>.png`.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from gmdf_hf.common.errors import EmptySourceError
from gmdf_hf.common.schema import FAKE, REAL, REAL_METHOD
from gmdf_hf.preparation.archives import list_members
from gmdf_hf.preparation.sources.record import Listing, Record, carve_validation, natural, need_folder

METHOD = "WildDeepfake"
OFFICIAL_SEQUENCES = 7314


def list_records(root: str | Path) -> Listing:
    """List the sequences of all tars.

    The leak unit is the tar, which contains the sequences of one video. There is no official validation split; a tenth
    of the training tars is selected by hash.

    Args:
        root: Folder of the official download.

    Raises:
        SourceError: If no tar is found.
        ArchiveError: If a tar is damaged or unsafe.
    """
    root = need_folder(root)
    listing = Listing()
    for base in (root, root / "deepfake_in_the_wild"):
        for kind, label in (("real", REAL), ("fake", FAKE)):
            for split in ("train", "test"):
                folders = [base / f"{kind}{space}{split}" for space in "_ "]
                tars = [tar for folder in folders for tar in folder.glob("*.tar.gz")]
                for tar in sorted(tars, key=lambda path: natural(path.name)):
                    _list_tar(tar, f"{kind}_{split}", label, split, listing)
    if not listing.records:
        raise EmptySourceError(f"No sequence found in {root}, expected e.g. real_train/1.tar.gz.")
    listing.expect("WildDeepfake sequences", len(listing.records), OFFICIAL_SEQUENCES)
    listing.records = carve_validation(listing.records)
    return listing


def _list_tar(tar: Path, folder: str, label: int, split: str, listing: Listing) -> None:
    group = f"{folder}/{tar.name.removesuffix('.tar.gz')}"
    sequences: dict[tuple[str, str], list[str]] = {}
    for name in list_members(tar):
        parts = PurePosixPath(name).parts
        if len(parts) < 3 or parts[-1].startswith(".") or not name.lower().endswith(".png"):
            listing.left_out.append((f"{group}: {name}", "no frame of a sequence"))
        elif parts[-3] != ("fake" if label else "real"):
            listing.left_out.append((f"{group}: {name}", f"in a {folder} tar, but not in its class folder"))
        else:
            sequences.setdefault((parts[-3], parts[-2]), []).append(name)
    for (kind, sequence), frames in sorted(sequences.items(), key=lambda item: natural(item[0][1])):
        video_id = f"{group}/{kind}/{sequence}"
        method, in_order = METHOD if label else REAL_METHOD, tuple(sorted(frames, key=natural))
        listing.records.append(Record(tar, label, method, video_id, group, split, in_order))
