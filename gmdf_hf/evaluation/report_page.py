"""A report of runs: one HTML page that needs no other file, and the same as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmdf_hf.common.errors import UserError
from gmdf_hf.evaluation.tables import escaped, markdown

try:
    import jinja2
except ImportError as error:
    raise UserError("Reports need jinja2: pip install 'gmdf-hf[report]'") from error

TEMPLATE = Path(__file__).parent / "report.html.jinja"


@dataclass(frozen=True)
class Face:
    """A picture file and the words under it."""

    picture: Path
    caption: str


@dataclass(frozen=True)
class Part:
    """Something to show: any of a text, a table (its header first), a picture file and small pictures."""

    title: str = ""
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    text_columns: int = 1
    picture: Path | None = None
    faces: Sequence[Face] = ()


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]


def html_page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """The report as HTML, its pictures inside it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["data_uri"] = _data_uri
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(title=title, introduction=introduction, sections=sections)


def markdown_page(title: str, introduction: str, sections: Sequence[Section], folder: Path) -> str:
    """The report as Markdown.

    Args:
        title: Of the report.
        introduction: Below the title.
        sections: What to show.
        folder: Where the text will stand; pictures are named relative to it.
    """
    blocks = [f"# {escaped(title)}", escaped(introduction)]
    for section in sections:
        blocks.append(f"## {escaped(section.title)}")
        for part in section.parts:
            blocks += [f"### {escaped(part.title)}"] if part.title else []
            blocks += [escaped(part.text)] if part.text else []
            blocks += [markdown(part.table, part.text_columns)] if part.table else []
            if part.picture:
                blocks.append(f"![{escaped(part.title or section.title)}]({part.picture.relative_to(folder)})")
            blocks += [f"![{escaped(face.caption)}]({face.picture.relative_to(folder)})" for face in part.faces]
    return "\n\n".join(blocks) + "\n"


def _data_uri(path: Path) -> str:
    kind = {".png": "png", ".jpg": "jpeg"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
