"""Score tables of other programs, as CSV or Parquet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.labels import LabelReader
from gmdf_hf.common.schema import check_name

COLUMNS = "label, score, and optionally domain, video_id, frame, method"
HINT = f"Give a CSV or Parquet file with the columns {COLUMNS}; a score is the probability of fake, or empty."


def read_foreign_scores(path: Path, domain: str = "scores") -> pd.DataFrame:
    """Read a score table; without its optional columns every row is a video of one domain.

    Args:
        path: File with the columns `label` (names or 0 and 1), `score` (probability of fake; empty if the detector gave
            none) and optionally `domain`, `video_id`, `frame`, `method`.
        domain: Name of the domain if there is no such column.

    Returns:
        A score table.

    Raises:
        UserError: If the file cannot be read, a column is missing, or a score is no probability.
        DomainError: If the class of a label is unknown.
    """
    try:
        is_parquet = path.suffix == ".parquet"
        found = pd.read_parquet(path) if is_parquet else pd.read_csv(path, dtype={"label": str, "video_id": str})
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}.", HINT) from error
    if missing := sorted({"label", "score"} - set(found.columns)):
        raise UserError(f"{path} has no column {missing[0]!r}, found {list(found.columns)[:10]}.", HINT)
    if not len(found):
        raise UserError(f"{path} has no rows.", HINT)
    scores = pd.to_numeric(found["score"], errors="coerce")
    wrong = found["score"].notna() & ~scores.between(0, 1)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise UserError(f"{path}, row {row + 1}: the score is {found['score'].iloc[row]!r}, expected 0 to 1.", HINT)
    if scores.isna().all():
        raise UserError(f"{path} has no score in any row.", HINT)
    names = found["domain"].astype(str) if "domain" in found else pd.Series(domain, index=found.index)
    try:
        for name in names.unique():
            check_name(name)
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from error
    videos = found["video_id"] if "video_id" in found else pd.Series(range(len(found)), index=found.index)
    table = pd.DataFrame(
        {
            "domain": names,
            "video_id": videos.astype(str),
            "frame": found["frame"].astype("int32") if "frame" in found else 0,
            "label": pd.Series(LabelReader(path.name).read_all(found["label"]), index=found.index, dtype="int8"),
            "score": scores.astype(float),
            "face_found": scores.notna(),
        }
    )
    if "method" in found:
        table["method"] = found["method"].where(found["method"].notna(), None)
    if "frame" not in found:
        table["frame"] = table.groupby(["domain", "video_id", "label"], sort=False).cumcount().astype("int32")
    return table.reset_index(drop=True)
