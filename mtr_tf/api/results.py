# SPDX-License-Identifier: Apache-2.0
"""What `evaluate` gives: numbers, a table, curves, a gallery."""

from __future__ import annotations

import dataclasses
import html
import importlib
import os
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from mtr_tf.config.settings import FORMAT
from mtr_tf.errors import InputError
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.results import Record
from mtr_tf.show import curves
from mtr_tf.show import gallery
from mtr_tf.show import style
from mtr_tf.show import tables

_FORMATS = FORMAT.metadata["choices"]
_WIDTH = 100  # Characters of a table, unless told.


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Results:
    """What attacks on a model came to.

        print(results.table())
        results.plot("curves.png")
        results.to_pandas().groupby(["task", "eps"]).attacked_value.max()

    Attributes:
      title: What was attacked.
      records: A record per attack, radius, attacked group, task and metric: what
        `results.json` has (docs/reading_results.md).
      measures: Those of `measure=`, as `measures.json` has them.
      clean: The clean images: scores, rows per image, painted examples.
      attacked: The same of each attack.
      folder: What `out` named, where all is written; None: nowhere.
      more: Further metrics that were asked for, `metrics=`.
    """

    title: str
    records: Sequence[Record]
    measures: Sequence[dict[str, Any]] = ()
    clean: Result | None = None
    attacked: Sequence[Result] = ()
    folder: pathlib.Path | None = None
    more: Sequence[str] = ()

    @property
    def warnings(self) -> list[str]:
        """Why these numbers may not be what they seem, as sentences."""
        records = [*self.records, *self.measures]
        return list(dict.fromkeys(w for r in records for w in r["warnings"]))

    def table(self, format: str = "text", width: int = _WIDTH) -> str:
        """Returns what the command prints: a table, and what to know about it.

        Args:
          format: "text", "markdown", or "csv" or "json" for the records.
          width: Of the text, in characters; tasks that do not fit stand below.
        """
        if format not in _FORMATS:
            raise InputError(
                f"format must be one of {', '.join(_FORMATS)}; got {format!r}."
            )
        parts = []
        if self.records and format == "text":
            parts.append(tables.about(self.title, self.records, width, self.more))
        elif self.records:
            given = (format, self.title, self.records, None, self.more)
            parts.append(tables.printed(*given))
        if self.measures and format == "text":
            parts.append(tables.measures(self.measures))
        return "\n\n".join(parts)

    def to_pandas(self) -> Any:
        """Returns the records as a `pandas.DataFrame`; pandas must be installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise InputError(
                "to_pandas needs pandas, which is not installed; pip install pandas, "
                "or take .records, a list of dicts."
            ) from error
        return pandas.DataFrame([dict(record) for record in self.records])

    def plot(self, path: str | os.PathLike | None = None) -> Figure:
        """Draws each task's metric over the radius; a notebook shows the figure.

        Args:
          path: A PNG file to write it into, too.
        """
        return _drawn(lambda: curves.of_run(self._attacks()), path)

    def gallery(self, path: str | os.PathLike | None = None) -> Figure:
        """Draws a few images and their outputs, clean and attacked.

        Of the attack on most tasks and, of these, the largest radius.

        Args:
          path: A PNG file to write it into, too.
        """
        self._attacks()
        shown = gallery.shown_result(self.attacked)
        clean = self.clean or shown
        return _drawn(lambda: gallery.of_run(clean, shown), path)

    def _attacks(self) -> Sequence[Record]:
        if not self.records:
            raise InputError(
                "There is nothing to draw: attacks='none' has only measured; give "
                "attacks, such as attacks='pgd'."
            )
        return self.records

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """Returns what notebooks show."""
        return f"<pre>{html.escape(self.table())}</pre>"


def _drawn(draw: Callable[[], Figure], path: str | os.PathLike | None) -> Figure:
    if path is not None:
        style.save(draw, pathlib.Path(path))
    return style.drawn(draw)
