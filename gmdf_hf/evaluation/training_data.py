"""What a detector was trained on, as recorded in its configuration, in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gmdf_hf.data.drawn.domains import DRAWN_DOMAINS, DRAWN_PREFIX

DRAWN, TEST_DATA, REAL = "drawn", "test data", "real"
# How far results on this training data carry: not at all, to the trained domains, or to domains left out.
EVIDENCE = {
    "none": "it demonstrates the software and says nothing about real deepfakes",
    "source": "scored on the domains of its training only",
    "unseen": "scored on domains left out of its training, too",
}
UNKNOWN = "unknown: the model does not record it, so nothing is known about the faces it fits"


def train_sources(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Training domains of a run, each a mapping with at least `path`."""
    held_out = recipe.get("hold_out") or ()
    sources = {name: source for name, source in recipe["source_domains"].items() if name not in held_out}
    return {name: {"path": source} if isinstance(source, str) else source for name, source in sources.items()}


def training_data(recipe: dict[str, Any]) -> dict[str, Any]:
    """Record for the field `training_data` of a configuration.

    Args:
        recipe: Configuration of the run.

    Returns:
        `kind` (`drawn` if any source is drawn, `test data` for faces of the test folder `GMDF_REAL_DATA`, else `real`),
        `domains` by name, and `evidence`, a key of `EVIDENCE`.
    """
    sources = train_sources(recipe)
    paths = [str(source["path"]) for source in sources.values()]
    root = os.environ.get("GMDF_REAL_DATA")
    kind = REAL
    if any(path.startswith(DRAWN_PREFIX) for path in paths):
        kind = DRAWN
    elif root and any(Path(path).is_relative_to(Path(root)) for path in paths):
        kind = TEST_DATA
    left_out = recipe.get("hold_out") or recipe.get("unseen_domains")
    evidence = "none" if kind != REAL else "unseen" if left_out else "source"
    return {"kind": kind, "domains": sorted(sources), "evidence": evidence}


def describe_training(config: Any) -> str:
    """One line on the training data of a model, from its configuration; it comes from the model's author, unchecked."""
    record = getattr(config, "training_data", None)
    names = [str(name) for name in getattr(config, "domains", None) or ()]
    domains = ", ".join(names)
    if not isinstance(record, dict):  # a model of an earlier version, or of others
        if names and set(names) <= set(DRAWN_DOMAINS):
            return f"drawings, by the names of its domains ({domains}); {EVIDENCE['none']}"
        return f"not recorded by the version that trained it; domains {domains}" if names else UNKNOWN
    domains = ", ".join(str(name) for name in record.get("domains", ())) or domains
    what = {DRAWN: "drawings, not photographs", TEST_DATA: "a small set of test data"}.get(
        str(record.get("kind")), "real data"
    )
    evidence = EVIDENCE.get(str(record.get("evidence")), "evidence not recorded")
    return f"{what} ({domains}); {evidence}"
