"""Faces of an input for the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image

from gmdf_hf.modeling import pipeline_gmdf
from gmdf_hf.preparation.media import Media

# Maps an input to its faces and to further entries of the result.
FaceFinder = Callable[[Media], tuple[list[dict[str, Any]], dict[str, Any]]]


class FoundFaces(NamedTuple):
    """Faces of an input, and the entries of its result that all of them share."""

    faces: list[dict[str, Any]]
    note: dict[str, Any]


def crop_side(processor: Any) -> int:
    """Side in pixels of the face crops for an image processor: what it resizes to, so that it need not enlarge."""
    pixels = processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    size = getattr(processor, "size", None)
    return max([pixels.shape[-1], *(value for value in dict(size or {}).values() if isinstance(value, int))])


def load_finder(detector: str, weights: str | None, size: int) -> FaceFinder:
    """Return a function that detects faces, tracks people through the frames, and crops the faces.

    Args:
        detector: `yunet`, `retinaface` or `haar`; `none` treats every frame as a face crop.
        weights: Local file with the detector's weights; None uses those on the hub.
        size: Side of a crop in pixels.

    Raises:
        ImportError: If a detector is requested and OpenCV is not installed.
        gmdf_hf.common.errors.DetectorError: If the detector's weights are missing; the message says what to do.
        ValueError: If the detector is unknown.
    """
    if detector == "none":
        return _whole_pictures
    try:
        from gmdf_hf.preparation import persons
    except ImportError as error:
        raise ImportError(pipeline_gmdf.NEEDS_PACKAGE) from error
    finder = persons.load_finder(detector, weights)

    def fields(face: persons.FoundFace) -> dict[str, Any]:
        return {
            "frame": face.frame,
            "seconds": face.seconds,
            "box": [float(value) for value in face.box],
            "detection_score": face.detection_score,
            "turned": face.turned,
        }

    def find_faces(media: Media) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        found = finder(media, size)
        faces = [
            fields(face) | {"person": face.person, "crop_box": list(face.crop_box), "crop": face.crop}
            for face in found.faces
        ]
        unassigned = [fields(face) for face in found.unassigned]
        return faces, {"frames_read": found.frames_read, "unassigned_faces": unassigned, "notes": found.notes}

    return find_faces


def _whole_pictures(media: Media) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Treat every frame as the crop of one face."""
    faces = []
    for frame in media.read(None):
        height, width = frame.pixels.shape[:2]
        place = {"box": [0.0, 0.0, float(width), float(height)], "crop_box": [0, 0, width, height]}
        found = {"frame": frame.number, "seconds": frame.seconds, **place, "detection_score": 1.0, "turned": 0}
        faces.append(found | {"person": 0, "crop": Image.fromarray(frame.pixels)})
    return faces, {"frames_read": len(faces), "notes": media.report.notes}
