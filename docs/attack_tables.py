# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/attacks.md: `python docs/attack_tables.py`.

The rows of attacks, losses and balances come from the tables of the package. Each table
stands between two comments of the page.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable

from mtr_tf import attacks
from mtr_tf import tasks
from mtr_tf.attacks.attack_losses import AttackLoss
from mtr_tf.attacks.kinds import Kind
from mtr_tf.tasks import Task

PAGE = pathlib.Path(__file__).parent / "attacks.md"


def attack_rows() -> Iterable[tuple[str, ...]]:
    """The attacks: name, record in Python, what it does, source."""
    yield "name", "in Python", "what it does", "source"
    for name, kind in attacks.KINDS.items():
        yield f"`{name}`", _in_python(kind), kind.does, kind.source


def loss_rows() -> Iterable[tuple[str, ...]]:
    """The losses: name, what they are for, formula, source."""
    yield "name", "for", "per pixel", "source"
    for name, loss in attacks.ATTACK_LOSSES.items():
        yield f"`{name}`", _what_for(loss), loss.formula, loss.source


def balance_rows() -> Iterable[tuple[str, ...]]:
    """The balances: name, formula, source."""
    yield "name", "what is climbed", "source"
    for name, balance in attacks.BALANCES.items():
        yield f"`{name}`", balance.formula, balance.source


TABLES = {"attacks": attack_rows, "losses": loss_rows, "balances": balance_rows}


def _in_python(kind: Kind) -> str:
    """The record as it is made in Python, with the settings that the name fixes."""
    module, name = kind.place
    given = ", ".join(f"{field}={value!r}" for field, value in kind.fixed.items())
    call = f"`{name}({given})`" if given else f"`{name}`"
    call = call.replace("'", '"')
    if hasattr(attacks, name):
        return call
    return f"in `{module.removeprefix('mtr_tf.')}`: {call}"


def _what_for(loss: AttackLoss) -> str:
    """The kinds of tasks that a loss fits, or that it does not fit if these are few."""
    fits = {kind: loss.fits(Task("any", kind=kind, channels=3)) for kind in tasks.KINDS}
    others = [kind for kind in fits if not fits[kind]]
    if len(others) < len(fits) / 2:
        return f"all but {' and '.join(others)}" if others else "all"
    return ", ".join(kind for kind in fits if fits[kind])


def markdown(rows: Iterable[tuple[str, ...]]) -> str:
    """The rows, the first of which is the heading, as a table of Markdown."""
    lines = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str) -> str:
    """The text of the page with its tables written again."""
    for name, rows in TABLES.items():
        between = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        table = markdown(rows())
        page, count = re.subn(
            between,
            lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}",
            page,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{PAGE} must have one place for the table of {name}.")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
