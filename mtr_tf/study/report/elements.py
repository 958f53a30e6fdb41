# SPDX-License-Identifier: Apache-2.0
"""HTML from Python: elements, tables, figures. Text is escaped; `Html` is not."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence

import numpy as np

_EMPTY = ("img", "br", "hr", "link", "meta", "wbr")


class Html(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: str | None, **attributes: str | None) -> Html:
    """An element.

    Args:
      name: Such as "p".
      *children: Escaped, unless they are `Html`; None is left out.
      **attributes: By name, `_` for `-` and a `_` at the end dropped (`class_`); None
        is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: str | None, between: str = "") -> Html:
    """Children one after the other."""
    texts = [c if isinstance(c, Html) else html.escape(c) for c in children if c]
    return Html(between.join(texts))


def identifier(*parts: str) -> str:
    """An `id` of any words: `curve-pgd50-seg`. Different words may give the same."""
    text = "-".join(part.replace("+", "_and_") for part in parts)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    label: str,
    cards: bool = False,
    row_ids: Sequence[str | None] = (),
) -> Html:
    """A table in a box of its own, which scrolls where it is too wide.

    Args:
      head: The heads of the columns.
      rows: Their first cell is the row's head.
      label: What the table is, for who does not see it.
      cards: On a narrow screen each row becomes a card instead.
      row_ids: An `id` for each row.
    """
    columns = [tag("th", text, scope="col", role="columnheader") for text in head]
    body = []
    for place, (first, *rest) in enumerate(rows):
        cells = [tag("th", first, scope="row", role="rowheader", data_label=head[0])]
        for label, cell in zip(head[1:], rest, strict=True):
            cells.append(tag("td", cell, role="cell", data_label=label))
        row_id = row_ids[place] if row_ids else None
        body.append(tag("tr", *cells, role="row", id=row_id))
    parts = (
        tag("thead", tag("tr", *columns, role="row"), role="rowgroup"),
        tag("tbody", *body, role="rowgroup"),
    )
    kind = "cards" if cards else None
    whole = tag("table", *parts, role="table", class_=kind)
    return tag(
        "div", whole, class_="box", tabindex="0", role="region", aria_label=label
    )


def details(summary: str, *children: str | None, open_: bool = False) -> Html:
    """What is one click away."""
    parts = (tag("summary", summary), *children)
    return tag("details", *parts, open="" if open_ else None)


def bullets(items: Sequence[str]) -> Html:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items))


def breakable(text: str) -> Html:
    """Text that may go on in the next line after each comma."""
    return Html(html.escape(text).replace(",", ",<wbr>"))


def picture(array: np.ndarray, alt: str, widest: int = 256) -> Html:
    """An `img` with the PNG of uint8 `[H, W, 3]` in it, at most so many pixels wide."""
    from PIL import Image

    image = Image.fromarray(array)
    if image.width > widest:
        image.thumbnail((widest, image.height))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    size = {"width": str(image.width), "height": str(image.height)}
    return tag("img", src=data_url("image/png", buffer.getvalue()), alt=alt, **size)


def data_url(kind: str, content: bytes) -> str:
    """An address that holds its own content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
