# SPDX-License-Identifier: Apache-2.0
"""The export of a report: what a repository keeps of a study."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterable

from mtr_tf import files
from mtr_tf.errors import InputError

PAGE = "README.md"
TABLES = ("claims.json", "claims.csv", "results.csv")


def check(folder: pathlib.Path) -> None:
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


def write(report: pathlib.Path, folder: pathlib.Path, plots: Iterable[str]) -> None:
    """Copies the page, its tables and its plots to a folder, over an earlier export.

    Args:
      report: WORKDIR/report.
      folder: Made if it is not there.
      plots: The ids of those to copy.

    Raises:
      InputError: In the folder is what no export has left.
    """
    check(folder)
    names = [*TABLES, *(f"plots/{plot}.png" for plot in plots), PAGE]
    for path in folder.glob("plots/*.png"):
        if f"plots/{path.name}" not in names:
            path.unlink()
    for name in names:
        with files.whole_file(folder / name) as beside:
            shutil.copyfile(report / name, beside)
