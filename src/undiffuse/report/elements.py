"""What a report is made of: a title and sections; a section holds elements, in reading order."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COMFORTABLE_WIDTH = 420  # pixels: smaller pictures are enlarged by a whole number
_DOTS_PER_PIXEL = 2  # figures are drawn twice as fine as they are shown, for dense screens


@dataclass(frozen=True)
class Paragraph:
    """Running text; `tone` "note" is small print, "warning" stands out."""

    text: str
    tone: str = "plain"
    template: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Pairs:
    """Names and values side by side."""

    rows: tuple[tuple[str, str], ...]
    template: ClassVar[str] = "pairs"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; `numeric` columns are aligned on the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    template: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG file as a data URI, its width on the page in pixels, and what it shows."""

    uri: str
    width: int
    caption: str
    pixelated: bool = False
    template: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Code:
    """A command or a listing, shown letter for letter."""

    text: str
    template: ClassVar[str] = "code"


@dataclass(frozen=True)
class Texts:
    """Samples of text, one box each."""

    samples: tuple[str, ...]
    template: ClassVar[str] = "texts"


Element = Paragraph | Pairs | Table | Picture | Code | Texts


@dataclass
class Section:
    """A heading and what stands under it. The methods append and return the section, so calls chain."""

    title: str
    elements: list[Element] = field(default_factory=list)

    def text(self, text: str, tone: str = "plain") -> Self:
        """Add a paragraph; `tone` is "plain", "note" or "warning"."""
        return self._add(Paragraph(text, tone))

    def pairs(self, values: Mapping[str, Any]) -> Self:
        """Add names and values."""
        return self._add(Pairs(tuple((str(key), str(value)) for key, value in values.items())))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], numeric: Iterable[int] = ()) -> Self:
        """Add a table.

        Raises:
            ValueError: A row has another number of cells than the head.
        """
        cells = tuple(tuple(str(cell) for cell in row) for row in rows)
        for row in cells:
            if len(row) != len(columns):
                raise ValueError(f"a row has {len(row)} cells under {len(columns)} columns: {row}.")
        return self._add(Table(tuple(columns), cells, frozenset(numeric)))

    def picture(self, pixels: NDArray[np.uint8], caption: str = "") -> Self:
        """Add an image, uint8 (H, W) or (H, W, C) with C = 1, 3 or 4; small ones are enlarged without blurring.

        Raises:
            ValueError: Another dtype or shape.
        """
        width = pixels.shape[1] if pixels.ndim >= 2 else 0
        factor = max(1, _COMFORTABLE_WIDTH // max(width, 1))
        return self._add(Picture(_uri(_png(pixels)), width * factor, caption, pixelated=factor > 1))

    def figure(self, figure: Figure, caption: str = "") -> Self:
        """Add a matplotlib figure."""
        file = io.BytesIO()
        width = round(figure.get_figwidth() * figure.dpi)
        figure.savefig(file, format="png", dpi=figure.dpi * _DOTS_PER_PIXEL, metadata={"Software": None})
        return self._add(Picture(_uri(file.getvalue()), width, caption))

    def code(self, text: str) -> Self:
        """Add a command or listing."""
        return self._add(Code(text))

    def texts(self, samples: Iterable[str]) -> Self:
        """Add samples of text."""
        return self._add(Texts(tuple(samples)))

    def _add(self, element: Element) -> Self:
        self.elements.append(element)
        return self


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    squeezed = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    if pixels.dtype != np.uint8 or not (squeezed.ndim == 2 or (squeezed.ndim == 3 and squeezed.shape[-1] in (3, 4))):
        raise ValueError(
            f"a picture is uint8 (H, W) or (H, W, C) with C = 1, 3 or 4; got {pixels.dtype} {pixels.shape}."
        )
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(squeezed)).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
