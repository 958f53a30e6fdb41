# SPDX-License-Identifier: Apache-2.0
"""How numbers, times and names are written: three significant digits, signs on request.

Tables that a terminal prints are in ASCII (`plain`), reports are not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence

NONE = "–"
_MINUS = "\N{MINUS SIGN}"
_ROUNDING = 1e-12  # What rounding may leave of a difference of equal numbers.


def number(value: float | None) -> str:
    """Three significant digits; a dash for a number that does not exist."""
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) <= _ROUNDING:
        value = 0.0
    if value and not 1e-4 <= abs(value) < 1e5:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits}e{int(exponent)}".replace("-", _MINUS)
    digits = f"{value:#.3g}"
    if "e" in digits:  # From 1000 on.
        digits = f"{value:.0f}"
    return digits.rstrip(".").replace("-", _MINUS)


def plain(value: float | None) -> str:
    """As `number` in ASCII: `-` for a number that does not exist."""
    return number(value).replace(_MINUS, "-").replace(NONE, "-")


def short(value: float) -> str:
    """A number as it was given, without further digits."""
    return f"{value:g}".replace("-", _MINUS)


def signed(value: float | None) -> str:
    """A difference: as `number`, always with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and value > _ROUNDING else text


def points(value: float | None) -> str:
    """A signed difference of shares in percentage points, as 0.123 is +12.3 points."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{signed(100 * value)} points"


def probability(value: float | None) -> str:
    """A p value; a very small one only as a bound."""
    if value is None or not math.isfinite(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def interval(
    ends: Sequence[float | None] | None, form: Callable[[float | None], str] = number
) -> str:
    """`low to high`; a dash where there is none."""
    if ends is None or any(end is None or not math.isfinite(end) for end in ends):
        return NONE
    return " to ".join(map(form, ends))


def seconds(value: float | None) -> str:
    """A time: `8.1 s`, `12 min` or `2 h 5 min`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 99.5:
        return f"{number(value)} s"
    minutes = round(value / 60)
    hours, remainder = divmod(minutes, 60)
    return f"{hours} h {remainder} min" if hours else f"{minutes} min"


def capital(words: str) -> str:
    """The words with a capital first letter."""
    return words[:1].upper() + words[1:]


def numbers_in_words(seeds: Sequence[int]) -> str:
    """`seed 1`, `seeds 0, 2`."""
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def markdown(words: str) -> str:
    """Words within a line of Markdown: no HTML, no bars of a table, no links."""
    words = re.sub(r"&(?=#?\w+;)", "&amp;", words.replace("\\", "\\\\"))
    words = words.replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
    return " ".join(words.splitlines())


def markdown_table(rows: Iterable[Sequence[str]], rule: str = "---") -> str:
    """A table of cells that are Markdown already; the first row is its head.

    `rule` is the rule of all columns but the first; "---:" aligns them to the right.
    """
    head, *body = rows
    lines = [head, ["---", *[rule] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_paragraph(words: str) -> str:
    """Words that begin a line of Markdown: no heading, list, fence or reference."""
    words = markdown(words).strip()
    words = re.sub(r"^(\d+)([.)])", r"\1\\\2", words)
    return re.sub(r"^([#>*+=~`\[-])", r"\\\1", words)


def identifier(*parts: str) -> str:
    """An HTML `id` from any words: `curve-pgd50-seg`. Two texts may share one."""
    words = "-".join(part.replace("+", "_and_") for part in parts)
    return re.sub(r"[^\w.-]+", "_", words)
