# SPDX-License-Identifier: Apache-2.0
"""The report of a study: WORKDIR/report, made of what is there.

index.html              all in one file, to read anywhere
README.md               verdicts, tables and main plots, to keep in a repository
claims.json, claims.csv every verdict with its numbers
results.csv             every clean and attacked value
plots/*.png             the plots of index.html as files
tensorboard/            the same for TensorBoard
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf import files
from mtr_tf.show import style as show_style
from mtr_tf.show import tensorboard
from mtr_tf.study import claims
from mtr_tf.study import commands
from mtr_tf.study.report import curves
from mtr_tf.study.report import evidence
from mtr_tf.study.report import gallery
from mtr_tf.study.report import markdown
from mtr_tf.study.report import plots
from mtr_tf.study.report import result_files
from mtr_tf.study.report import sections
from mtr_tf.study.report import settings
from mtr_tf.study.report import style
from mtr_tf.study.report import verdicts
from mtr_tf.study.report.elements import bullets
from mtr_tf.study.report.elements import tag
from mtr_tf.study.report.plots import Plot
from mtr_tf.study.results import Results


def write(workdir: pathlib.Path, export: pathlib.Path | None = None) -> str:
    """Writes WORKDIR/report anew, also of a study that is not finished.

    Args:
      workdir: The folder of a study, as `mtr_tf.reproduce` leaves it.
      export: A folder to copy README.md and what it shows to.

    Returns:
      The verdicts as a table to print.

    Raises:
      InputError: There is no study in the folder, or a part of it cannot be used; or
        something else is in the folder `export`.
    """
    workdir = pathlib.Path(workdir)
    folder = workdir / "report"
    content = _read(workdir)
    paths = {plot.id: folder / "plots" / f"{plot.id}.png" for plot in content.plots}
    drawn = {
        plot.id: show_style.save(plot.draw, paths[plot.id]) for plot in content.plots
    }
    _remove_others(folder / "plots", drawn)
    found, context = content.verdicts, content.context
    result_files.write_claims(found, folder)
    result_files.write_results(content.records, folder / "results.csv")
    table = verdicts.rows(found, context)
    words = {paths[plot.id]: plot.alt for plot in content.plots}
    tensorboard.write_study(words, table, folder / "tensorboard")
    files.write_text(folder / "index.html", _page(content, drawn))
    files.write_text(folder / markdown.PAGE, _markdown(content))
    if export:
        shown = markdown.shown(markdown.pinned(found, context), content.curves)
        markdown.export(folder, export, shown)
    return verdicts.terminal(found, context)


def _remove_others(folder: pathlib.Path, kept: Iterable[str]) -> None:
    """Removes the plots of an earlier report that this one has not."""
    for path in folder.glob("*.png"):
        if path.stem not in kept:
            path.unlink()


@dataclasses.dataclass(frozen=True)
class _Content:
    """All that the report shows."""

    results: Results
    records: Sequence[Mapping[str, Any]]
    cells: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]
    verdicts: Sequence[claims.Verdict]
    context: verdicts.Context
    curves: Sequence[curves.Curve]
    of_curves: Sequence[Plot]
    theory: Mapping[str, Sequence[Plot]]
    galleries: Sequence[gallery.Gallery]

    @property
    def plots(self) -> list[Plot]:
        """Every plot that becomes a file."""
        of_theory = [plot for part in self.theory.values() for plot in part]
        return [*self.of_curves, *of_theory, *map(gallery.plot, self.galleries)]


def _read(workdir: pathlib.Path) -> _Content:
    results = Results.read(workdir)
    records, measures = results.records(), results.measures()
    cells = json.loads((workdir / "index.json").read_text())["cells"]
    study = json.loads((workdir / "study.json").read_text())
    found = curves.make(records, results.variants, results.seeds)
    shown_curves = curves.with_differences(found)
    of_curves = plots.curves(shown_curves, results.variants)
    of_theory = {
        "norms": plots.norms(measures),
        "first_order": plots.first_order(measures),
        "pixels": plots.pixels(measures),
        "cosines": plots.cosines(measures),
    }
    decided = claims.evaluate(results)
    ids = {p.id for part in (of_curves, *of_theory.values()) for p in part}
    units = {(curve.task, curve.metric): curve.facts["unit"] for curve in found}
    context = verdicts.Context(
        results.seeds,
        lambda task, metric: units.get((task, metric), ""),
        lambda verdict: evidence.plot_of(verdict.claim, found, ids),
        lambda verdict: evidence.warnings_of(verdict.claim, found),
    )
    pinned = markdown.pinned(decided, context)

    def shown(part: Sequence[Plot]) -> list[Plot]:
        return [dataclasses.replace(p, first=p.first or p.id in pinned) for p in part]

    return _Content(
        results,
        records,
        cells,
        study.get("provenance", {})
        | {"commits of the cells": _commits(workdir, cells)},
        decided,
        context,
        shown_curves,
        shown(of_curves),
        {name: shown(part) for name, part in of_theory.items()},
        gallery.make(records, workdir),
    )


def _page(content: _Content, drawn: Mapping[str, bytes]) -> str:
    study, variants = content.results.study, content.results.variants
    images = curves.images(content.records)
    title = f"Study {study.name}"
    links = [
        tag("a", name, href=f"#{place}") for place, name in sections.CONTENTS.items()
    ]
    return style.page(
        title,
        tag("h1", title),
        tag("p", study.about),
        settings.missing(content.cells),
        verdicts.section(content.verdicts, content.context),
        tag("nav", bullets(links), aria_label="sections"),
        sections.robustness(content.curves, content.of_curves, drawn, images),
        sections.clean(content.curves, variants),
        sections.theory(content.theory, drawn),
        sections.examples(content.galleries),
        settings.settings(study),
        settings.provenance(content.provenance),
        settings.commands(content.cells),
    )


def _markdown(content: _Content) -> str:
    study = content.results.study
    return markdown.page(
        study.name,
        study.about,
        markdown.origin(study, content.provenance, content.cells),
        content.verdicts,
        content.context,
        content.curves,
        content.plots,
        content.results.variants,
    )


def _commits(workdir: pathlib.Path, cells: Sequence[Mapping[str, Any]]) -> str:
    """The commits that cells were done with, and how many with each."""
    found: Counter[str] = Counter()
    for cell in cells:
        if cell["state"] == "done":
            name = "config.json" if cell["kind"] == "train" else "settings.json"
            found[
                commands.read_json(workdir / cell["folder"] / name).get("commit")
            ] += 1
    return ", ".join(f"{commit} ({count})" for commit, count in found.items())
