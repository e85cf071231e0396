"""From the scores of faces to verdicts: score of a person, stretches of a video, operating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gmdf_hf.evaluation.aggregation import PERSON_SCORES, PersonScore, aggregate
from gmdf_hf.evaluation.operating_point import OperatingPoint


def decide(
    result: dict[str, Any], point: OperatingPoint | None, person_score: PersonScore, threshold: float
) -> dict[str, Any]:
    """Entries of a result that follow from its faces' scores, to replace or add.

    Args:
        result: Result of the checkpoint's pipeline.
        point: Operating point; None decides by the threshold alone.
        person_score: How the scores of a person's frames are joined.
        threshold: Smallest score called fake.

    Returns:
        `label`, `score`, `probability`, `threshold`, `uncertain_from`, `person_score`, and `faces` and `persons` with
        their labels. A person also has `scores`, one per way of joining, and `segments`: see `stretches`.
    """

    def label(score: float) -> str:
        if point is not None:
            return point.label(score)
        return "fake" if score >= threshold else "real"

    def probability(score: float) -> float | None:
        return None if point is None else point.probability(score)

    faces = [face | {"label": label(face["score"])} for face in result["faces"]]
    persons = []
    for person in result["persons"]:
        own = sorted((f for f in faces if f["person"] == person["person"]), key=lambda face: face["frame"])
        scores = {how: aggregate(np.asarray([face["score"] for face in own]), how) for how in PERSON_SCORES}
        score = scores[person_score]
        found = {"score": score, "label": label(score), "probability": probability(score), "scores": scores}
        persons.append(person | found | {"segments": stretches(own, threshold)})
    worst = max(persons, key=lambda person: person["score"], default=None)
    return {
        "label": None if worst is None else worst["label"],
        "score": None if worst is None else worst["score"],
        "probability": None if worst is None else worst["probability"],
        "threshold": threshold,
        "uncertain_from": None if point is None else point.uncertain_from,
        "person_score": person_score,
        "persons": persons,
        "faces": faces,
    }


def stretches(faces: Sequence[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """Longest runs of a person's consecutive frames with scores of at least the threshold.

    Args:
        faces: The person's faces in the order of their frames.
        threshold: Smallest score called fake.

    Returns:
        For each run its first and last frame, `start` and `end` in seconds (None if the input has no times), number of
        `frames`, and mean `score`.
    """
    runs: list[list[dict[str, Any]]] = []
    previous = False
    for face in faces:
        above = face["score"] >= threshold
        if above and previous:
            runs[-1].append(face)
        elif above:
            runs.append([face])
        previous = above
    return [
        {
            "first_frame": run[0]["frame"],
            "last_frame": run[-1]["frame"],
            "start": run[0]["seconds"],
            "end": run[-1]["seconds"],
            "frames": len(run),
            "score": sum(face["score"] for face in run) / len(run),
        }
        for run in runs
    ]


def segment_lines(result: dict[str, Any], shown: Callable[[str], str]) -> list[str]:
    """Lines of text on the stretches of all persons of a result, for the terminal.

    Args:
        result: Result of the pipeline.
        shown: Makes the source's name fit for a terminal.
    """
    lines = []
    for person in result["persons"]:
        for run in person["segments"]:
            if run["start"] is None:
                place = f"frames {run['first_frame']} to {run['last_frame']}"
            else:
                place = f"{run['start']:.2f} s to {run['end']:.2f} s"
            lines.append(
                f"  person {person['person'] + 1}: {place}, mean score {run['score']:.3f} of {run['frames']} frames "
                f"({shown(result['source'])})"
            )
    return lines
