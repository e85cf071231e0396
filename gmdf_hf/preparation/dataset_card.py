"""Dataset card of a prepared domain, and its publication on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from gmdf_hf.common.schema import SPLITS
from gmdf_hf.preparation.manifests import parquet_digest

CARD = """\
---
license: unknown
task_categories:
- image-classification
tags:
- deepfake-detection
- gmdf
configs:
- config_name: default
  description: {digest}
  data_files:
{data_files}
---
# {source}, prepared for deepfake detection

Face crops of {source}, made with `scripts/prepare.py` of gmdf-hf. Label 0 is real, 1 is fake.

| split | rows | real videos | fake videos | groups |
|---|---|---|---|---|
{splits}

| split | method | videos | rows |
|---|---|---|---|
{methods}

No `group` (source video or identity) and no `video_id` stands in two splits.

## Columns

`image`, `label` (real, fake), `video_id`, `frame` (number in the source), `method` (how the fake was made), `group`,
`seconds` (time after the first frame, null where it is not known){mask_column}.

## How it was made

{settings}

{skipped} videos or images gave no row, {lost_frames} single frames were lost. Pairs of videos of different splits with
near-duplicate pictures: {duplicates}. Fake videos of several people without a mask, of which it is not known whose face
is forged: {doubtful}. Videos and images whose faces were found only after a turn by quarters: {turned}.
{notes}
## Licence and terms

The pictures are subject to the terms of {source}. **To be filled in by the owner of this repository:** the licence in
the header of this file, the terms of use, and whether the data may be shared at all.
"""


def domain_card(summary: dict[str, Any], files: list[Path]) -> str:
    """Return the README of a prepared domain; `load_dataset` reads the splits from its header.

    For a local folder with such a header, the cache key of `datasets` is the folder's name and the header, not the
    data: two domains in folders of the same name would silently share a cache. The header therefore contains a digest.

    Args:
        summary: Result of `prepare`.
        files: All Parquet files of the domain.
    """
    present = [split for split in SPLITS if any(file.name.startswith(f"{split}-") for file in files)]
    splits, settings = summary["splits"], summary["settings"]
    duplicates = [f"{number} between {pair}" for pair, number in summary["near_duplicate_videos"].items()]
    return CARD.format(
        source=settings["source"],
        digest=f"sha256-{parquet_digest(files)}",
        data_files="\n".join(f"  - split: {name}\n    path: data/{name}-*.parquet" for name in present),
        splits="\n".join(
            f"| {name} | {c['rows']} | {c['real_videos']} | {c['fake_videos']} | {c['groups']} |"
            for name, c in splits.items()
        ),
        methods="\n".join(
            f"| {name} | {method} | {c['videos']} | {c['rows']} |"
            for name, counts in splits.items()
            for method, c in counts["methods"].items()
        ),
        settings="\n".join(f"- {name}: {value}" for name, value in settings.items()),
        mask_column=", `mask` (what was forged, as PNG)" if summary["masks"] else "",
        doubtful=summary["doubtful_videos"],
        turned=len(summary["turned"]),
        skipped=summary["skipped"],
        lost_frames=summary["lost_frames"],
        duplicates=", ".join(duplicates) or "not looked for, there is one split only",
        notes="".join(f"\n- {note}" for note in summary["notes"]) + "\n" if summary["notes"] else "",
    )


def push_domain(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Publish a prepared domain as a dataset repository.

    Args:
        folder: Prepared domain.
        repo_id: `user/name`; created if it does not exist.
        private: Whether a new repository is private.

    Returns:
        URL of the commit.

    Raises:
        FileNotFoundError: If the folder is not a finished domain.
    """
    if not (Path(folder) / "README.md").is_file() or not any(Path(folder, "data").glob("*.parquet")):
        raise FileNotFoundError(f"{folder} is no prepared domain: expected README.md and data/*.parquet.")
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        allow_patterns=["README.md", "summary*.json", "data/*.parquet"],
        commit_message="Add a prepared domain",
    )
    return commit.commit_url
