# SPDX-License-Identifier: Apache-2.0
"""The report of a study: WORKDIR/report, made from the results that exist.

index.html              the whole report in one file, to read anywhere
README.md               verdicts, tables and main plots, to keep in a repository
claims.json, claims.csv every verdict with its numbers
results.csv             every clean and attacked value
records.json            the same for leaderboards: see `show.leaderboard`
plots/*.png             the plots of index.html as files
tensorboard/            the plots and the verdicts for TensorBoard
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
    """Writes WORKDIR/report anew; the study need not be finished.

    Args:
      workdir: The folder of a study, as `mtr_tf.reproduce` leaves it.
      export: A folder to copy README.md and what it shows to.

    Returns:
      The verdicts as a table to print.

    Raises:
      InputError: There is no study in the folder, a part of it cannot be used, or the
        folder `export` has other content than an export.
    """
    workdir = pathlib.Path(workdir)
    folder = workdir / "report"
    results = Results.read(workdir)
    records, claim_verdicts = results.records(), claims.evaluate(results)
    content = _content(results, records, claim_verdicts)
    paths = {plot.id: folder / "plots" / f"{plot.id}.png" for plot in content.plots}
    svgs = {plot.id: style.save(plot.draw, paths[plot.id]) for plot in content.plots}
    _remove_old_plots(folder / "plots", svgs)
    result_files.write_claims(claim_verdicts, folder)
    result_files.write_results(records, folder / "results.csv")
    leaderboard.write(_leaderboard_records(results), folder / exporting.RECORDS)
    table = verdicts.table(content.verdicts)
    alts = {paths[plot.id]: plot.alt for plot in content.plots}
    tensorboard.write_study(alts, table, folder / "tensorboard")
    files.write_text(folder / "index.html", page.html(content, svgs))
    files.write_text(folder / exporting.PAGE, page.markdown(content))
    if export:
        exporting.write(folder, export, content.shown)
    return "\n\n".join(
        filter(None, (verdicts.terminal(content.verdicts), content.mixed))
    )


def _leaderboard_records(results: Results) -> list[dict[str, Any]]:
    """The leaderboard's records of all models, the seeds of a model together."""
    by_folder: dict[str, list[dict[str, Any]]] = {}
    for record in results.records():
        by_folder.setdefault(record["folder"], []).append(record)
    all_records = []
    for folder, records in by_folder.items():
        first_record, path = records[0], results.workdir / folder
        name = f"{results.study.name}: {first_record['variant']}"
        config = files.read_object(path.parent.parent / "config.json")
        settings = files.read_object(path / "settings.json")
        args = (name, first_record["seed"], records, config, settings)
        source = results.study.spec(first_record["spec"]).source
        for record in leaderboard.of_results(*args):
            all_records.append(record | ({"transfer": source} if source else {}))
    return leaderboard.together(all_records)


def _remove_old_plots(folder: pathlib.Path, ids: Iterable[str]) -> None:
    """Removes the plots of an earlier report that are not in this one."""
    for path in folder.glob("*.png"):
        if path.stem not in ids:
            path.unlink()


def _content(
    results: Results,
    records: Sequence[Mapping[str, Any]],
    claim_verdicts: Sequence[claims.Verdict],
) -> page.Content:
    """All that the report shows."""
    measures = results.measures()
    base_curves = curves.make(records, results.variants, results.seeds)
    all_curves = curves.with_differences(base_curves)
    curve_plots = plots.curves(all_curves, results.variants)
    theory_plots = {
        "norms": plots.norms(measures),
        "first_order": plots.first_order(measures),
        "pixels": plots.pixels(measures),
        "cosines": plots.cosines(measures),
        "resistance": resistance.plots(base_curves, measures, results.seeds),
    }
    ids = {p.id for part in (curve_plots, *theory_plots.values()) for p in part}
    rows = verdicts.rows(claim_verdicts, results.seeds, base_curves, ids)
    claim_plots = {row.plot for row in rows}

    def promote(part: Sequence[Plot]) -> list[Plot]:
        return [
            dataclasses.replace(p, first=p.first or p.id in claim_plots) for p in part
        ]

    galleries = gallery.make(records, results.workdir)
    return page.Content(
        study=results.study,
        cells=results.cells,
        provenance=results.provenance | {"commits of the cells": _commits(results)},
        verdicts=rows,
        images=curves.images(records),
        mixed=verdicts.mixed(results.mixed),
        curves=all_curves,
        curve_plots=promote(curve_plots),
        theory={name: promote(part) for name, part in theory_plots.items()},
        effects=leading.effects(rows, claim_verdicts),
        galleries=galleries,
        gallery_plots=[gallery.plot(g) for g in galleries],
    )


def _commits(results: Results) -> str:
    """The commits that cells were done with, each with its number of cells."""
    names = {"train": "config.json", "attack": "settings.json"}
    paths = (
        results.workdir / cell["folder"] / names[cell["kind"]]
        for cell in results.cells
        if cell["state"] == "done"
    )
    count = Counter(files.read_object(path).get("commit") for path in paths)
    return ", ".join(f"{commit} ({times})" for commit, times in count.items())
