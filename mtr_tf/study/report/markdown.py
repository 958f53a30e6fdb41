# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown, and its export: what a repository keeps of a study."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.study import claims
from mtr_tf.study.report import sections
from mtr_tf.study.report import text
from mtr_tf.study.report import verdicts
from mtr_tf.study.report.curves import Curve
from mtr_tf.study.report.plots import Plot
from mtr_tf.study.report.verdicts import Context

PAGE = "README.md"
TABLES = ("claims.json", "claims.csv", "results.csv")


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table, its head first."""
    head, *body = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;")


def page(
    name: str,
    about: str,
    origin: Sequence[tuple[str, str]],
    found: Sequence[claims.Verdict],
    context: Context,
    curves: Sequence[Curve],
    plots: Sequence[Plot],
    variants: Sequence[str],
) -> str:
    """The page.

    Args:
      name: Of the study.
      about: What is asked, on what.
      origin: Where the numbers are from: what, its value.
      found: The verdicts.
      context: What else is known of them.
      curves: All of the report.
      plots: All of it; shown are those that verdicts rest on.
      variants: Names, in the order of the study.
    """
    chosen = shown(pinned(found, context), curves)
    by_id = {curve.id: curve for curve in curves}
    parts = [f"# Study {name}", about, table([("what", "value"), *origin])]
    parts += ["## Verdicts", verdicts.tally(found)]
    if found:
        rules = " ".join([verdicts.EFFECTS, *claims.RULES])
        parts += [table(_verdicts(found, context)), rules]
        parts += _warnings(found, context)
    parts += ["## Clean images", "Mean ± standard deviation over seeds."]
    for task, rows in sections.clean_tables(curves, variants):
        parts += [f"### {task}", table(rows)]
    parts += ["## What the verdicts rest on"]
    for plot in (plot for plot in plots if plot.id in chosen):
        parts += [f"### {plot.title}", f"![{plot.alt}](plots/{plot.id}.png)"]
        parts.append(plot.caption)
        if plot.id in by_id:
            parts.append(table(_values(by_id[plot.id])))
    return "\n\n".join(parts) + "\n"


def pinned(found: Sequence[claims.Verdict], context: Context) -> set[str]:
    """The plots that verdicts rest on."""
    return {plot for verdict in found if (plot := context.plot(verdict))}


def shown(ids: Collection[str], curves: Sequence[Curve]) -> list[str]:
    """The plots of a page: those of verdicts, and the differences of their curves."""
    same = {
        curve.id: dataclasses.replace(curve, reference="").id
        for curve in curves
        if curve.reference
    }
    return [*ids, *(less for less, curve in same.items() if curve in ids)]


def check_export(folder: pathlib.Path) -> None:
    """Raises `InputError` where an export would touch what is not an export's."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    strange = sorted(there - {PAGE, *TABLES, "plots"})
    if there and TABLES[0] not in there:
        strange = sorted(there)
    if strange or (folder.exists() and not folder.is_dir()):
        raise InputError(
            "--export must be a new folder, or one of an earlier export, got "
            f"'{folder}'{f', in which is {strange[0]!r}' if strange else ''}; name "
            "another."
        )


def export(report: pathlib.Path, folder: pathlib.Path, plots: Sequence[str]) -> None:
    """Copies the page, its tables and its plots to a folder, over an earlier export.

    Args:
      report: WORKDIR/report.
      folder: Made if it is not there.
      plots: The ids of those to copy.

    Raises:
      InputError: In the folder is what no export has left.
    """
    check_export(folder)
    names = [*TABLES, *(f"plots/{plot}.png" for plot in plots), PAGE]
    for path in folder.glob("plots/*.png"):
        if f"plots/{path.name}" not in names:
            path.unlink()
    for name in names:
        with files.whole_file(folder / name) as beside:
            shutil.copyfile(report / name, beside)


def _verdicts(found: Sequence[claims.Verdict], context: Context) -> list[Sequence[str]]:
    """The verdicts with what they are of."""
    head, *rows = verdicts.rows(found, context)
    head = [head[0], "statement", *head[1:]]
    body = [
        [row[0], verdict.claim.statement, row[1], f"**{row[2]}**", *row[3:]]
        for verdict, row in zip(found, rows, strict=True)
    ]
    return [head, *body]


def _warnings(found: Sequence[claims.Verdict], context: Context) -> list[str]:
    """What checks of the attacks found, with the claims that it bears on."""
    whose: dict[str, list[str]] = {}
    for verdict in found:
        for warning in context.warnings(verdict):
            whose.setdefault(warning, []).append(verdict.claim.id)
    if not whose:
        return []
    lines = [
        f"- {warning} Bears on {', '.join(ids)}." for warning, ids in whose.items()
    ]
    return ["The attacks' own checks warn:", "\n".join(lines)]


def _values(curve: Curve) -> list[Sequence[str]]:
    """Mean and spread over seeds of each variant at each radius."""
    head = ["variant", *("clean" if not e else f"eps {e:g}" for e in curve.eps)]
    rows = [
        [variant, *(sections.mean_and_sd(of[~np.isnan(of)]) for of in values.T)]
        for variant, values in curve.values.items()
    ]
    return [head, *rows]


def origin(
    study: Any, facts: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Where a study's numbers are from, without what is of one machine only.

    Args:
      study: The `Study`.
      facts: Its provenance, of study.json, with the commits of its cells.
      cells: Those of index.json.
    """
    done = [cell for cell in cells if cell["state"] == "done"]
    time = text.seconds(sum(cell["seconds"] or 0 for cell in done))
    versions = ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items())
    return [
        ("command", f"`{_command(facts.get('command', ''))}`"),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("cells", f"{len(done)} of {len(cells)} done, in {time} of processes"),
        ("commits of the cells", facts.get("commits of the cells", text.NONE)),
        ("versions", versions or text.NONE),
        ("cores", str(facts.get("cores", text.NONE))),
        ("date", str(facts.get("time", text.NONE))[:10]),
    ]


_OWN = ("workdir", "report", "export", "workers")  # They change no number.


def _command(command: str) -> str:
    """The command with neither the folders of a machine nor what changes no number."""
    kept = []
    for word in command.split():
        flag = word.lstrip("-").split("=")[0].removeprefix("no")
        if word.startswith("--") and flag in _OWN:
            continue
        kept.append("--data_dir=DIR" if word.startswith("--data_dir=") else word)
    return " ".join(kept)
