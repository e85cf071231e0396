"""One result as self-contained HTML: verdict, persons, timeline with frames, downloads. No scripts, no other files.

A point of the timeline and the small frame above it are links to that frame's faces, shown with CSS `:target`: they
work with a mouse, a finger and a keyboard, and in the downloaded report, too.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from gmdf_hf.serving.overlays import draw_faces, overlay

FRAME_SIDE, THUMBNAIL_SIDE, CROP_SIDE = 720, 72, 176  # pixels
WIDTH, HEIGHT, MARGIN = 640, 170, 28  # of the timeline
STYLE = """
<style>
.gmdf {max-width:100%; overflow-wrap:break-word}
.gmdf img {max-width:100%; height:auto} .gmdf svg {min-width:520px; height:auto}
.gmdf figure {display:inline-block; margin:4px; vertical-align:top}
.gmdf .wide {overflow-x:auto} .gmdf table {border-collapse:collapse}
.gmdf td, .gmdf th {padding:4px 10px; text-align:left; border-bottom:1px solid #8886; white-space:nowrap}
.gmdf .strip {display:flex; gap:2px; overflow-x:auto}
.gmdf .strip a {flex:0 0 auto; line-height:0}
.gmdf a:focus-visible, .gmdf a:focus-visible circle {outline:3px solid #f90; stroke:#f90; stroke-width:3px}
.gmdf .frame {display:none; scroll-margin-top:40vh}
.gmdf .frame:target, .gmdf .frames:not(:has(.frame:target)) .frame.first {display:block}
.gmdf .fake {color:#b91c1c} .gmdf .real {color:#1d4ed8} .gmdf .uncertain {color:#92400e}
.gmdf h2.fake, .gmdf h2.real, .gmdf h2.uncertain {background:#fffd; padding:4px 8px; border-radius:4px}
</style>
"""


def answer_page(result: dict[str, Any], frames: Mapping[int, np.ndarray], about: str) -> str:
    """HTML of a result, with its downloads.

    Args:
        result: Result of the pipeline with heatmaps and at least one face.
        frames: Pixels of the frames with faces, by number.
        about: Lines about the detector: training data, operating point.
    """
    body = _body(result, frames)
    plain = [{name: face[name] for name in face if name not in ("heatmap", "crop")} for face in result["faces"]]
    data = json.dumps({"about": about} | result | {"faces": plain}, indent=1)
    links = [
        _download("result.json", "application/json", data, "Download the scores (JSON)"),
        _download("report.html", "text/html", report_page(result, body, about), "Download this report (HTML)"),
    ]
    return f"{STYLE}<div class='gmdf'>{body}<p>{' · '.join(links)}</p></div>"


def report_page(result: dict[str, Any], body: str, about: str) -> str:
    """The report as an HTML document of its own."""
    title = html.escape(f"Report on {result['source']}")
    return (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title>{STYLE}</head><body style='font-family:sans-serif; max-width:960px; margin:auto'>"
        f"<main class='gmdf'><h1>{title}</h1><p>{html.escape(about)}</p>{body}"
        "<p>A score is a model's opinion, not evidence.</p></main></body></html>"
    )


def message(text: str) -> str:
    """An error or a hint."""
    return f"<p role='alert'><b>{html.escape(text)}</b></p>"


def _body(result: dict[str, Any], frames: Mapping[int, np.ndarray]) -> str:
    probability = result["probability"]
    calibrated = "" if probability is None else f" Calibrated probability of fake: {probability:.0%}."
    uncertain = result["uncertain_from"]
    band = "" if uncertain is None else f", uncertain from {uncertain:.2f}"
    parts = [
        f"<h2 class='{result['label']}' role='status'>{result['label']}: {result['score']:.2f}</h2>",
        f"<p>Score of the most suspicious person; fake from {result['threshold']:.2f}{band}.{calibrated} "
        f"{_count(len(result['persons']), 'person')}, {_count(len(result['faces']), 'face')} in "
        f"{_count(result['frames_read'], 'frame')}.</p>",
        *(f"<p>{html.escape(note)}</p>" for note in result["notes"]),
        persons_table(result),
    ]
    by_frame: dict[int, list[dict[str, Any]]] = {}
    for face in result["faces"]:
        by_frame.setdefault(face["frame"], []).append(face)
    worst = max(result["faces"], key=lambda face: face["score"])["frame"]
    if len(by_frame) > 1:
        parts += ["<h3>Timeline</h3>", _strip(by_frame, frames), timeline(result["faces"], result["threshold"])]
    shown = [_frame(number, faces, frames[number], number == worst) for number, faces in sorted(by_frame.items())]
    parts.append(f"<div class='frames'>{''.join(shown)}</div>")
    parts.append("<p>Heatmaps: red speaks for fake, blue for real, compared with the rest of the face.</p>")
    if result["expert_weights"]:
        share = sorted(result["expert_weights"].items(), key=lambda item: -item[1])
        experts = ", ".join(f"{html.escape(name)} {weight:.0%}" for name, weight in share)
        parts.append(f"<p>Shares of the domain experts: {experts}</p>")
    return "\n".join(parts)


def persons_table(result: dict[str, Any]) -> str:
    """All persons, with their scores and the stretches above the threshold."""
    rows = []
    for person in result["persons"]:
        times = [
            f"{run['start']:.1f} to {run['end']:.1f} s" if run["start"] is not None else f"frame {run['first_frame']}"
            for run in person["segments"]
        ]
        cells = [
            f"{person['person'] + 1}",
            f"<b class='{person['label']}'>{person['label']}</b>",
            *(f"{person['scores'][how]:.2f}" for how in ("mean", "top", "segment")),
            str(person["frames"]),
            (", ".join(times) or "none") if result["frames_read"] > 1 else "",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    names = ("person", "verdict", "mean score", "highest quarter", "highest stretch", "frames", "above the threshold")
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    table = f"<table><caption>Persons</caption><tr>{head}</tr>{''.join(rows)}</table>"
    return f"<div class='wide' role='region' aria-label='Persons' tabindex='0'>{table}</div>"


def timeline(faces: Sequence[dict[str, Any]], threshold: float) -> str:
    """Scores over time as SVG: one line per person, the threshold dashed; a point links to its frame's faces."""
    has_time = all(face["seconds"] is not None for face in faces)

    def moment(face: dict[str, Any]) -> float:
        return face["seconds"] if has_time else face["frame"]

    last = max(max(moment(face) for face in faces), 1e-9)

    def place(at: float, score: float) -> tuple[str, str]:
        x, y = MARGIN + at / last * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - score * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f}", f"{y:.1f}"

    def named(at: float) -> str:
        return f"{at:.1f} s" if has_time else f"frame {at:.0f}"

    lines = []
    for person in sorted({face["person"] for face in faces}):
        own = sorted((face for face in faces if face["person"] == person), key=lambda face: face["frame"])
        color = f"hsl({person * 67 % 360} 70% 40%)"
        points = " ".join(",".join(place(moment(face), face["score"])) for face in own)
        lines.append(f"<polyline fill='none' stroke='{color}' stroke-width='2' points='{points}'/>")
        for face in own:
            x, y = place(moment(face), face["score"])
            title = f"person {person + 1} at {named(moment(face))}: {face['label']} {face['score']:.2f}"
            lines.append(
                f"<a href='#gmdf-frame-{face['frame']}' aria-label='{title}'>"
                f"<circle r='5' fill='{color}' cx='{x}' cy='{y}'><title>{title}</title></circle></a>"
            )
    dashed = f"points='{','.join(place(0, threshold))} {','.join(place(last, threshold))}'"
    ticks = "".join(
        f"<text x='{place(last * part / 4, 0)[0]}' y='{HEIGHT - 8}' font-size='12' text-anchor='middle'>"
        f"{named(last * part / 4)}</text>"
        for part in range(5)
    )
    return (
        "<div class='wide'>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='100%' role='group' aria-label='Scores over time'>"
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>"
        f"<polyline fill='none' stroke='black' stroke-dasharray='4' {dashed}/>{''.join(lines)}"
        f"<text x='2' y='{MARGIN - 8}' font-size='12'>fake</text>"
        f"<text x='2' y='{HEIGHT - MARGIN + 2}' font-size='12'>real</text>{ticks}</svg></div>"
    )


def _strip(by_frame: Mapping[int, list[dict[str, Any]]], frames: Mapping[int, np.ndarray]) -> str:
    links = []
    for number in sorted(by_frame):
        seconds = by_frame[number][0]["seconds"]
        title = f"frame {number}" if seconds is None else f"frame at {seconds:.1f} s"
        small = _image(Image.fromarray(frames[number]), title, THUMBNAIL_SIDE)
        links.append(f"<a href='#gmdf-frame-{number}'>{small}</a>")
    return f"<div class='strip' role='group' aria-label='Frames'>{''.join(links)}</div>"


def _frame(number: int, faces: Sequence[dict[str, Any]], pixels: np.ndarray, is_first: bool) -> str:
    seconds = faces[0]["seconds"]
    title = f"frame {number}" + (f", {seconds:.1f} s" if seconds is not None else "")
    parts = [_figure(_image(draw_faces(Image.fromarray(pixels), faces), f"faces found in {title}", FRAME_SIDE), title)]
    for face in faces:
        name = f"person {face['person'] + 1}: {face['label']} {face['score']:.2f}"
        crop = face["crop"].resize((CROP_SIDE, CROP_SIDE))
        pictures = _image(crop, f"face of {name}", CROP_SIDE)
        pictures += _image(overlay(crop, face["heatmap"]), f"heatmap of {name}", CROP_SIDE)
        parts.append(_figure(pictures, name))
    return f"<section class='frame{' first' if is_first else ''}' id='gmdf-frame-{number}'>{''.join(parts)}</section>"


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(image: Image.Image, title: str, side: int) -> str:
    image = image.convert("RGB")
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{html.escape(title)}' src='data:image/jpeg;base64,{data}'>"


def _download(name: str, kind: str, text: str, title: str) -> str:
    data = base64.b64encode(text.encode()).decode()
    return f"<a download='{name}' href='data:{kind};base64,{data}'>{title}</a>"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
