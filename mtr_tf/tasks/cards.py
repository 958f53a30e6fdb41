# SPDX-License-Identifier: Apache-2.0
"""Pictures of outputs that are not maps: names and bars instead of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

_SIDE = 160  # Pixels of a card's shorter side, at least.
LINES = 6  # The most bars on a card.
_LETTERS = 12  # The most letters of a name; a longer one is cut.
_INK, _BAR = (30, 30, 30), (76, 120, 168)
_PALE, _EDGE = (230, 230, 230), (120, 120, 120)


def card(
    names: Sequence[str],
    values: Sequence[float] | np.ndarray,
    texts: Sequence[str],
    size: tuple[int, int],
    span: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """Draws a line per name: the name, a bar from 0 to its value, and a text.

    Args:
      names: From top to bottom; names that do not fit are left out.
      values: As many values; the bar of a value that is not finite is empty.
      texts: The text at the end of each line.
      size: (height, width) of the images beside it; the card's size is a multiple.
      span: The values at the bars' two ends.

    Returns:
      uint8 `[height, width, 3]`.
    """
    height, width = enlarged(size)
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width - 1, height - 1), outline=_EDGE)
    names = names[:LINES]
    lines = len(names)
    step = height / max(lines, 3)
    font = ImageFont.load_default(min(15.0, step * 0.36, width / 11))
    low, high = span if span[1] > span[0] else (span[0], span[0] + 1)
    left, right = 0.06 * width, 0.94 * width
    zero = left + (right - left) * min(max(-low / (high - low), 0), 1)
    for number, name in enumerate(names):
        top = (height - step * lines) / 2 + number * step
        label = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
        middle, bar = top + 0.3 * step, (top + 0.55 * step, top + 0.85 * step)
        draw.text((left, middle), label, _INK, font, "lm")
        draw.text((right, middle), texts[number], _INK, font, "rm")
        draw.rectangle((left, bar[0], right, bar[1]), fill=_PALE)
        value = values[number]
        if np.isfinite(value):
            share = min(max((value - low) / (high - low), 0), 1)
            ends = sorted((zero, left + (right - left) * share))
            draw.rectangle((ends[0], bar[0], ends[1], bar[1]), fill=_BAR)
    return np.asarray(picture)


def blank(size: tuple[int, int], text: str) -> np.ndarray:
    """A grey card that says why there is nothing."""
    height, width = enlarged(size)
    picture = Image.new("RGB", (width, height), _PALE)
    font = ImageFont.load_default(min(15.0, width / 11))
    draw = ImageDraw.Draw(picture)
    draw.text((width / 2, height / 2), text, _INK, font, "mm")
    return np.asarray(picture)


def enlarged(size: tuple[int, int]) -> tuple[int, int]:
    """The smallest multiple of a size at which a card can be read."""
    factor = -(-_SIDE // min(size))
    return size[0] * factor, size[1] * factor


def field(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A small picture `[h, w, 3]`, stretched over a card."""
    height, width = enlarged(size)
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image)
