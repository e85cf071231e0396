"""Report of runs as one self-contained HTML page and as Markdown with image files."""

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
    """Image file with caption."""

    picture: Path
    caption: str


@dataclass(frozen=True)
class Part:
    """Block of a report: any of a text, a table (header first), an image file and small captioned images."""

    title: str = ""
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    text_columns: int = 1
    picture: Path | None = None
    faces: Sequence[Face] = ()


@dataclass(frozen=True)
class Section:
    """Heading with its blocks."""

    title: str
    parts: Sequence[Part]


def html_page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """Render the report as HTML with embedded images."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["data_uri"] = _data_uri
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(title=title, introduction=introduction, sections=sections)


def markdown_page(title: str, introduction: str, sections: Sequence[Section], folder: Path) -> str:
    """Render the report as Markdown.

    Args:
        title: Title of the report.
        introduction: Text below the title.
        sections: Content.
        folder: Folder of the Markdown file; image paths are relative to it.
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
