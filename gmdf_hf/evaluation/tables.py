"""Tables of metrics for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from gmdf_hf.evaluation.coverage import READINGS
from gmdf_hf.evaluation.low_fpr import TPR_RATES, shows_rate

RATES = {"tpr_1": "TPR@1%", "tpr_01": "TPR@.1%", "pauc": "pAUC"}
RATES |= {"ap": "AP", "acc": "ACC", "eer": "EER", "m": "M", "fpr": "FPR", "fnr": "FNR", "ece": "ECE", "brier": "Brier"}
DOMAIN_COLUMNS = ("domain", "role", "level", "scored", "real", "fake", "AUC", "95 %", *RATES.values())


def percent(value: float | None) -> str:
    """Format a fraction in percent; `-` for a missing value."""
    return "-" if value is None or value != value else f"{100 * value:.2f}"


def percent_interval(ends: Sequence[float | None] | None) -> str:
    """Format an interval in percent; `-` for a missing one."""
    if ends is None or ends[0] is None or ends[1] is None or ends[0] != ends[0]:
        return "-"
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def domain_table(results: dict) -> list[list[str]]:
    """Header, then one row per domain and level; a domain without readable images has one row without metrics.

    `scored` is the share of videos with a score.
    """
    intervals = results.get("intervals", {}).get("domains", {})
    known = results.get("source_domains") or []
    rows, counted = [list(DOMAIN_COLUMNS)], results.get("coverage", {})
    for name, levels in results["domains"].items():
        role = role_of(name, known)
        for level, figures in levels.items():
            ends = intervals.get(name, {}).get(level, {}).get("auc")
            counts = [str(figures["real"]), str(figures["fake"])]
            rates = [percent(figures.get(rate) if _is_shown(rate, figures["real"]) else None) for rate in RATES]
            share = percent(counted[name]["share"]) if name in counted else "-"
            rows.append([name, role, level, share, *counts, percent(figures["auc"]), percent_interval(ends), *rates])
    unread, nothing = results.get("unread_domains", []), ["-"] * (len(DOMAIN_COLUMNS) - 6)
    return rows + [[name, role_of(name, known), "frame", percent(0.0), "0", "0", *nothing] for name in unread]


def coverage_table(results: dict) -> list[list[str]]:
    """Header, then one row per domain with videos without a score: video AUC and accuracy under each reading."""
    header = ["domain", "videos", "scored"]
    for reading in READINGS:
        header += [f"AUC, {reading.replace('_', ' ')}", "ACC"]
    rows = [header]
    for name, counted in results.get("coverage", {}).items():
        if counted["scored"] < counted["videos"]:
            figures = [percent(counted[reading][rate]) for reading in READINGS for rate in ("auc", "acc")]
            rows.append([name, str(counted["videos"]), str(counted["scored"]), *figures])
    return rows


def _is_shown(rate: str, reals: int) -> bool:
    return rate not in TPR_RATES or shows_rate(reals, TPR_RATES[rate])


def role_of(name: str, sources: Sequence[str]) -> str:
    """`source` or `unseen`; empty if the detector does not name its training domains."""
    return "source" if name in sources else "unseen" if sources else ""


def markdown(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Markdown table: the first row is the header, the first `text_columns` columns are left-aligned."""
    header, *body = rows
    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    lines = [[escaped(cell) for cell in header], rule, *([escaped(cell) for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text as Markdown that shows it as it is: no HTML, no link, no column of a table."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "/")
    return re.sub(r"([\[\]`])", r"\\\1", text)


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Table as comma-separated values."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def rich_table(rows: Sequence[Sequence[str]], title: str, text_columns: int = 1) -> Table:
    """Table for the terminal."""
    header, *body = rows
    table = Table(title=title)
    for number, column in enumerate(header):
        table.add_column(column, justify="left" if number < text_columns else "right")
    for row in body:
        table.add_row(*row)
    return table


def overall(results: dict[str, Any]) -> list[list[str]]:
    """M_EER and pooled AUC at both levels."""
    rows = [["", "frame", "95 %", "video", "95 %"]]
    for key, name in (("m_eer", "M_EER (Eq. 13)"), ("pooled_auc", "AUC of all domains together")):
        row = [name]
        for level in ("frame", "video"):
            row += [percent(results[key][level]), percent_interval(results["intervals"][key][level])]
        rows.append(row)
    names = {"tpr_1": "TPR at 1 % FPR", "tpr_01": "TPR at 0.1 % FPR", "pauc": "partial AUC to 10 % FPR"}
    for key, name in names.items():
        row = [f"{name}, all domains together"]
        for level in ("frame", "video"):
            ends = results["intervals"]["pooled"][level][key]
            row += [percent(results["pooled"][level][key]), percent_interval(ends)]
        rows.append(row)
    return rows


def cross_table(results: dict[str, Any]) -> list[list[str]]:
    """Cross-AUC of frames."""
    matrix = results["cross_auc"]["frame"]
    rows = [["reals of", *(f"fakes of {name}" for name in matrix)]]
    return rows + [[name, *(percent(value) for value in row.values())] for name, row in matrix.items()]


def method_table(results: dict[str, Any]) -> list[list[str]]:
    """AUC of each forgery method's fakes against all reals of the domain, for domains with several methods."""
    rows = [["domain", "forgery", "frame", "95 %", "video", "95 %"]]
    for domain, methods in results["method_auc"]["frame"].items():
        for method in methods:
            row = [domain, method]
            for level in ("frame", "video"):
                ends = results["intervals"]["method_auc"][level][domain][method]
                row += [percent(results["method_auc"][level][domain][method]), percent_interval(ends)]
            rows.append(row)
    return rows
