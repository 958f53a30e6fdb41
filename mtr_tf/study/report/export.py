# SPDX-License-Identifier: Apache-2.0
"""The export of a report: what a repository keeps of a study.

README.md          verdicts and the tables and plots that they rest on
claims.json        every verdict with the effect of each seed, one per line
results.csv.gz     every clean and attacked value
records.json       the same for leaderboards: see `show.leaderboard`
plots/*.png        the plots of README.md
"""

from __future__ import annotations

import csv
import gzip
import io
import pathlib
import re
import shutil
from collections.abc import Iterable

from mtr_tf import files
from mtr_tf.errors import InputError

PAGE = "README.md"
RECORDS = "records.json"
_CLAIMS = "claims.json"
_RESULTS = "results.csv.gz"
_OLD_FILES = ("claims.csv", "results.csv")  # Of exports before 0.2.
_DERIVED_COLUMN = "relative_vulnerability"  # The column that follows from others.


def check(folder: pathlib.Path) -> None:
    """Raises `InputError` if a folder has other content than an earlier export.

    An export that was stopped half-way counts as one.
    """
    names = _names(folder)
    extras = sorted(names - {PAGE, RECORDS, _CLAIMS, _RESULTS, *_OLD_FILES, "plots"})
    if names and _CLAIMS not in names:
        extras = sorted(names)
    elif "plots" in names:
        page = folder / PAGE
        text = page.read_text("utf-8") if page.exists() else ""
        plots = re.findall(r"\]\(plots/([^)]+)\)", text)
        extras += sorted(_names(folder / "plots") - {*plots})
    if extras or (folder.exists() and not folder.is_dir()):
        raise InputError(
            "--export must be a new folder or an earlier export; got "
            f"'{folder}'{f', which contains {extras[0]!r}' if extras else ''}. Give "
            "another."
        )


def _names(folder: pathlib.Path) -> set[str]:
    """The names in a folder, without leftovers of a killed process."""
    names = {path.name for path in files.listed(folder)}
    return {name for name in names if not files.is_leftover(name)}


def write(report: pathlib.Path, folder: pathlib.Path, plots: Iterable[str]) -> None:
    """Copies the page, its plots and its tables to a folder, over an earlier export.

    Args:
      report: The folder WORKDIR/report.
      folder: The folder to copy to; created if needed.
      plots: The ids of the plots to copy.

    Raises:
      InputError: The folder has other content than an earlier export.
    """
    check(folder)
    # `check` recognises an export by its claims, and plots by the page: these first.
    names = [_CLAIMS, PAGE, RECORDS, *(f"plots/{plot}.png" for plot in plots)]
    files.clear_leftovers(folder, folder / "plots")
    for path in [*folder.glob("plots/*.png"), *(folder / name for name in _OLD_FILES)]:
        if str(path.relative_to(folder)) not in names:
            path.unlink(missing_ok=True)
    for name in names:
        with files.whole_file(folder / name) as temporary:
            shutil.copyfile(report / name, temporary)
    with files.whole_file(folder / _RESULTS) as temporary:
        temporary.write_bytes(_compressed(report / "results.csv"))


def _compressed(table: pathlib.Path) -> bytes:
    """The content of a CSV file, compressed, without the column `_DERIVED_COLUMN`.

    The same table always gives the same bytes.
    """
    with open(table, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or () if name != _DERIVED_COLUMN]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(reader)
    return gzip.compress(buffer.getvalue().encode(), mtime=0)
