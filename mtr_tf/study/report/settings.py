# SPDX-License-Identifier: Apache-2.0
"""The report's last sections: what was run, by which commands, on what."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf.show import text
from mtr_tf.study.report.elements import Html
from mtr_tf.study.report.elements import breakable
from mtr_tf.study.report.elements import bullets
from mtr_tf.study.report.elements import details
from mtr_tf.study.report.elements import join
from mtr_tf.study.report.elements import table
from mtr_tf.study.report.elements import tag
from mtr_tf.study.report.sections import section

Cell = Mapping[str, Any]


def missing(cells: Sequence[Cell]) -> Html | None:
    """What is not there of a study that is not finished; None where all is."""
    left = [cell for cell in cells if cell["state"] != "done"]
    if not left:
        return None
    done = len(cells) - len(left)
    failed = [cell for cell in left if cell["state"] == "failed"]
    words = f"This study is not finished: {done} of {len(cells)} cells are done"
    words += f", {len(failed)} failed." if failed else "."
    logs = bullets([_failure(cell) for cell in failed])
    by_name: dict[str, list[int]] = {}
    for cell in left:
        by_name.setdefault(_name(cell, seed=False), []).append(cell["seed"])
    lines = [f"{name}: {text.numbers_in_words(of)}" for name, of in by_name.items()]
    return tag(
        "div",
        tag("strong", words),
        " What follows is of what is there.",
        logs if failed else None,
        details("what is missing", bullets(lines)),
        class_="notice",
        role="note",
    )


def _failure(cell: Cell) -> Html:
    why = cell.get("error") or "no reason is known"
    return join(f"{_name(cell)}: {why} (log: ", tag("code", cell["log"]), ")")


def _name(cell: Cell, seed: bool = True) -> str:
    what = f"{cell['attack']} on" if cell["kind"] == "attack" else "training of"
    return f"{what} {cell['variant']}" + (f", seed {cell['seed']}" if seed else "")


def settings(study: Any) -> Html:
    """The study's variants and attacks, as its file has them."""
    variants = [[v.name, _fields(v.train), v.note or text.NONE] for v in study.variants]
    names = [variant.name for variant in study.variants]
    attacks = [
        [
            a.name,
            _fields(a.attack),
            "all" if list(a.variants) == names else ", ".join(a.variants),
            a.source or text.NONE,
        ]
        for a in study.attacks
    ]
    seeds = ", ".join(map(str, study.seeds))
    return section(
        "settings",
        "Settings",
        tag(
            "p",
            f"Seeds: {seeds}. Settings are flags of mtr_tf.train and "
            "mtr_tf.attack; all others have their defaults.",
        ),
        tag("h3", "Models"),
        tag("p", "All: ", _fields(study.train)),
        table(["variant", "settings", "note"], variants, label="variants", cards=True),
        tag("h3", "Attacks and measures"),
        tag("p", "All: ", _fields(study.attack)),
        table(
            ["attack", "settings", "on", "made on"],
            attacks,
            label="attacks",
            cards=True,
        ),
    )


def _fields(fields: Mapping[str, Any]) -> Html:
    texts = [
        tag("code", breakable(f"{name}={_value(value)}"))
        for name, value in fields.items()
    ]
    return tag("span", join(*texts, between=" ")) if texts else Html(text.NONE)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def provenance(facts: Mapping[str, Any]) -> Html:
    """Commit, versions, machine, date."""
    rows = [[name, tag("code", value)] for name, value in _flat(facts)]
    head = ["what", "value"]
    return section(
        "provenance",
        "Provenance",
        table(head, rows, label="where this comes from", cards=True),
    )


def _flat(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += [(f"{name}: {inner}", text) for inner, text in _flat(value)]
        else:
            found.append((name, _value(value) if value is not None else text.NONE))
    return found


def commands(cells: Sequence[Cell]) -> Html:
    """The exact command of each cell, folded by variant."""
    total = sum(cell["seconds"] or 0 for cell in cells)
    parts = []
    for variant in dict.fromkeys(cell["variant"] for cell in cells):
        own = [cell for cell in cells if cell["variant"] == variant]
        time = text.seconds(sum(cell["seconds"] or 0 for cell in own))
        items = [_command(cell) for cell in own]
        parts.append(details(f"{variant}: {len(own)} cells, {time}", *items))
    about = f"All cells together took {text.seconds(total)}."
    return section("commands", "Commands", tag("p", about), *parts)


def _command(cell: Cell) -> Html:
    state = "" if cell["state"] == "done" else f" ({cell['state']})"
    head = f"{_name(cell)}: {text.seconds(cell['seconds'])}{state}"
    before = [f"{k}={v}" for k, v in (cell.get("environment") or {}).items()]
    words = " ".join([*before, cell["command"]])
    code = tag("code", words, class_="command")
    return tag("div", tag("p", head, class_="soft"), code)
