"""A report for people: sections of text, figures, tables and pictures in one HTML file.

The file refers to nothing outside itself, so it can be sent by mail and read offline.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from loopax.errors import ConfigError
from loopax.extras import require
from loopax.files import storing, write_text


@dataclass(frozen=True)
class Text:
    """Prose; a blank line begins a new paragraph."""

    text: str
    kind: ClassVar[str] = "text"

    @property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines."""
        return [part.strip() for part in self.text.split("\n\n") if part.strip()]


@dataclass(frozen=True)
class Figures:
    """The numbers that matter most, side by side in large type.

    Attributes:
        figures: what each is, its value with its unit, and what to compare it with.
    """

    figures: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Table:
    """A table: the first column is text, the others are aligned as numbers if they look so.

    Attributes:
        columns: their heads; none leaves the line of heads out.
        rows: the cells, as text, as many in each as there are columns.
        title: what stands above the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    kind: ClassVar[str] = "table"

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        width = max(map(len, [self.columns, *self.rows]), default=0)
        cells = [[row[index] for row in self.rows if index < len(row)] for index in range(width)]
        return [index > 0 and all(map(_is_number, column)) for index, column in enumerate(cells)]


@dataclass(frozen=True)
class Picture:
    """An image file, which becomes a part of the report, and what it shows."""

    path: Path
    caption: str
    kind: ClassVar[str] = "picture"

    @property
    def data_uri(self) -> str:
        """The whole file as an address.

        Raises:
            ConfigError: it is no image, or cannot be read.
        """
        kind, _ = mimetypes.guess_type(self.path.name)
        if kind is None or not kind.startswith("image/"):
            raise ConfigError(f"{self.path}: is not a picture by its name; .png and .jpg are")
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read ({error.strerror})") from error
        return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


Block = Text | Figures | Table | Picture


@dataclass(frozen=True)
class Section:
    """A part of the report that its index leads to."""

    title: str
    blocks: Sequence[Block]


def write_report(
    path: str | Path, title: str, sections: Sequence[Section], *, subtitle: str = ""
) -> None:
    """Writes a report whole or not at all.

    Args:
        path: the HTML file.
        title: its heading.
        sections: its parts; one without blocks is left out.
        subtitle: a line below the heading.

    Raises:
        ConfigError: a picture cannot be used.
        StorageError: the report cannot be written.
    """
    require("report", "a report", "jinja2")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loopax.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    shown = [section for section in sections if section.blocks]
    page = environment.get_template("page.html.jinja").render(
        title=title, subtitle=subtitle, sections=shown
    )
    path = Path(path)
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)


def _is_number(cell: str) -> bool:
    """Also an empty cell, and `1.5 ± 0.1 %`."""
    return not cell or (any(c.isdigit() for c in cell) and not any(c.isalpha() for c in cell))
