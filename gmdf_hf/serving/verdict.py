"""Result of the pipeline for one picture or video: the scores of its faces, of its persons, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gmdf_hf.modeling.loading_gmdf import BrokenModelError


def scored_face(output: dict[str, Any], threshold: float, domains: Sequence[str]) -> dict[str, Any]:
    """Entry of a face in the result.

    Args:
        output: Output of the model for the face: `face` with its `crop`, `score`, `expert_weights`, and `heatmap` if
            requested.
        threshold: Smallest score classified as fake.
        domains: Domain of each expert.
    """
    score = output["score"].item()
    face = output["face"] | {
        "score": score,
        "label": label_of(score, threshold),
        "expert_weights": dict(zip(domains, output["expert_weights"][0].tolist(), strict=True)),
    }
    crop = face.pop("crop")
    if "heatmap" in output:
        face |= {"heatmap": output["heatmap"][0].numpy(), "crop": crop}
    return face


def label_of(score: float, threshold: float) -> str:
    """`fake` or `real`, independent of the class names in the configuration."""
    return "fake" if score >= threshold else "real"


def verdict(
    faces: list[dict[str, Any]], note: dict[str, Any], threshold: float, domains: Sequence[str]
) -> dict[str, Any]:
    """Combine the faces of one input into its result (see `DeepfakeDetectionPipeline`).

    Args:
        faces: Faces with a score.
        note: `source`, `frames_read`, and `unassigned_faces` and `notes` if there are any.
        threshold: Smallest score classified as fake.
        domains: Domain of each expert.

    Raises:
        BrokenModelError: If a score is not a finite number.
    """
    if not all(math.isfinite(face["score"]) for face in faces):
        raise BrokenModelError(f"{note['source']}: the model gave a score that is not a finite number.")
    persons = []
    for person in sorted({face["person"] for face in faces}):
        scores = [face["score"] for face in faces if face["person"] == person]
        mean = sum(scores) / len(scores)
        persons.append({"person": person, "score": mean, "label": label_of(mean, threshold), "frames": len(scores)})
    unassigned = note.get("unassigned_faces", [])
    worst = max(persons, key=lambda person: person["score"], default=None)
    shares = [face["expert_weights"] for face in faces if worst is not None and face["person"] == worst["person"]]
    return {
        "source": note["source"],
        "label": None if worst is None else worst["label"],
        "score": None if worst is None else worst["score"],
        "threshold": threshold,
        "face_found": bool(faces),
        "faces_found": len(faces) + len(unassigned),
        "faces_scored": len(faces),
        "frames_read": note["frames_read"],
        "persons": persons,
        "faces": faces,
        "unassigned_faces": unassigned,
        "notes": note.get("notes", []),
        "expert_weights": {name: sum(share[name] for share in shares) / len(shares) for name in domains if shares},
    }
