# SPDX-License-Identifier: Apache-2.0
"""The report of a study: WORKDIR/report, made from the results that exist.

index.html              all in one file, to read anywhere
README.md               verdicts, tables and main plots, to keep in a repository
claims.json, claims.csv every verdict with its numbers
results.csv             every clean and attacked value
records.json            the same for others to collect: see `show.leaderboard`
plots/*.png             the plots of index.html as files
tensorboard/            the same for TensorBoard
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf import files
from mtr_tf.show import leaderboard
from mtr_tf.show import style
from mtr_tf.show import tensorboard
from mtr_tf.study import claims
from mtr_tf.study.report import curves
from mtr_tf.study.report import export as exporting
from mtr_tf.study.report import gallery
from mtr_tf.study.report import leading
from mtr_tf.study.report import page
from mtr_tf.study.report import plots
from mtr_tf.study.report import resistance
from mtr_tf.study.report import result_files
from mtr_tf.study.report import verdicts
from mtr_tf.study.report.plots import Plot
from mtr_tf.study.results import Results


def write(workdir: pathlib.Path, export: pathlib.Path | None = None) -> str:
    """Writes WORKDIR/report again, also for a study that is not finished.

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
    results = Results.read(workdir)
    records, decided = results.records(), claims.evaluate(results)
    content = _content(results, records, decided)
    paths = {plot.id: folder / "plots" / f"{plot.id}.png" for plot in content.plots}
    drawn = {plot.id: style.save(plot.draw, paths[plot.id]) for plot in content.plots}
    _remove_others(folder / "plots", drawn)
    result_files.write_claims(decided, folder)
    result_files.write_results(records, folder / "results.csv")
    leaderboard.write(_collectable(results), folder / exporting.RECORDS)
    table = verdicts.table(content.verdicts)
    words = {paths[plot.id]: plot.alt for plot in content.plots}
    tensorboard.write_study(words, table, folder / "tensorboard")
    files.write_text(folder / "index.html", page.html(content, drawn))
    files.write_text(folder / exporting.PAGE, page.markdown(content))
    if export:
        exporting.write(folder, export, content.shown)
    return "\n\n".join(
        filter(None, (verdicts.terminal(content.verdicts), content.mixed))
    )


def _collectable(results: Results) -> list[dict[str, Any]]:
    """The records of all models, a model's seeds together."""
    by_folder: dict[str, list[dict[str, Any]]] = {}
    for record in results.records():
        by_folder.setdefault(record["folder"], []).append(record)
    found = []
    for folder, records in by_folder.items():
        first, place = records[0], results.workdir / folder
        name = f"{results.study.name}: {first['variant']}"
        config = files.read_object(place.parent.parent / "config.json")
        made = files.read_object(place / "settings.json")
        given = (name, first["seed"], records, config, made)
        source = results.study.spec(first["spec"]).source
        for record in leaderboard.of_results(*given):
            found.append(record | ({"transfer": source} if source else {}))
    return leaderboard.together(found)


def _remove_others(folder: pathlib.Path, kept: Iterable[str]) -> None:
    """Removes the plots of an earlier report that this one has not."""
    for path in folder.glob("*.png"):
        if path.stem not in kept:
            path.unlink()


def _content(
    results: Results,
    records: Sequence[Mapping[str, Any]],
    decided: Sequence[claims.Verdict],
) -> page.Content:
    """All that the report shows."""
    measures = results.measures()
    plain_curves = curves.make(records, results.variants, results.seeds)
    all_curves = curves.with_differences(plain_curves)
    of_curves = plots.curves(all_curves, results.variants)
    of_theory = {
        "norms": plots.norms(measures),
        "first_order": plots.first_order(measures),
        "pixels": plots.pixels(measures),
        "cosines": plots.cosines(measures),
        "resistance": resistance.plots(plain_curves, measures, results.seeds),
    }
    ids = {p.id for part in (of_curves, *of_theory.values()) for p in part}
    rows = verdicts.rows(decided, results.seeds, plain_curves, ids)
    pinned = {row.plot for row in rows}

    def shown(part: Sequence[Plot]) -> list[Plot]:
        return [dataclasses.replace(p, first=p.first or p.id in pinned) for p in part]

    galleries = gallery.make(records, results.workdir)
    return page.Content(
        study=results.study,
        cells=results.cells,
        provenance=results.provenance | {"commits of the cells": _commits(results)},
        verdicts=rows,
        images=curves.images(records),
        mixed=verdicts.mixed(results.mixed),
        curves=all_curves,
        curve_plots=shown(of_curves),
        theory={name: shown(part) for name, part in of_theory.items()},
        effects=leading.effects(rows, decided),
        galleries=galleries,
        gallery_plots=[gallery.plot(one) for one in galleries],
    )


def _commits(results: Results) -> str:
    """The commits that cells were done with, and how many with each."""
    names = {"train": "config.json", "attack": "settings.json"}
    paths = (
        results.workdir / cell["folder"] / names[cell["kind"]]
        for cell in results.cells
        if cell["state"] == "done"
    )
    count = Counter(files.read_object(path).get("commit") for path in paths)
    return ", ".join(f"{commit} ({times})" for commit, times in count.items())
