# SPDX-License-Identifier: Apache-2.0
"""What `evaluate` returns: numbers, a table, curves, a gallery."""

from __future__ import annotations

import dataclasses
import html
import importlib
import os
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from mtr_tf import files
from mtr_tf.config.settings import FORMAT
from mtr_tf.errors import InputError
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.results import Record
from mtr_tf.show import curves
from mtr_tf.show import gallery
from mtr_tf.show import style
from mtr_tf.show import tables

_FORMATS = FORMAT.metadata["choices"]
_WIDTH = 100  # Default width of a table in characters.


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Results:
    """The results of attacks on a model.

        print(results.table())
        results.plot("curves.png")
        frame = results.to_pandas().query("metric == 'miou'")
        frame.groupby(["attack", "eps"]).attacked_value.min()

    Attributes:
      title: What was attacked.
      records: One record per attack, radius, attacked group, task and metric, as in
        `results.json` (docs/reading_results.md).
      measures: The records of `measure=`; `measures.json` also has earlier ones.
      clean: Results on the clean images: scores, rows per image, painted examples.
      attacked: The same for each attack.
      folder: The folder or address that `out` named, where everything is written; None:
        nowhere.
      consistency: How well outputs fit each other (docs/reading_results.md).
      more: Further metrics, as given by `metrics=`.
      colors: What the colors of tasks with a class for each pixel mean in galleries.
      details: Text on all attacks in plots and galleries, besides their names.
    """

    title: str
    records: Sequence[Record]
    measures: Sequence[dict[str, Any]] = ()
    clean: Result | None = None
    attacked: Sequence[Result] = ()
    folder: pathlib.Path | str | None = None
    consistency: Sequence[Record] = ()
    more: Sequence[str] = ()
    colors: Mapping[str, Mapping[str, tuple[int, int, int]]] = dataclasses.field(
        default_factory=dict
    )
    details: str = ""

    @property
    def warnings(self) -> list[str]:
        """Sentences that say why these numbers may mislead."""
        records = [*self.records, *self.measures]
        return list(dict.fromkeys(w for r in records for w in r["warnings"]))

    def table(self, format: str = "text", width: int = _WIDTH) -> str:
        """Returns what the command prints: a table with notes.

        Args:
          format: "text", "markdown", or "csv" or "json" for the records: those of
            attacks, or of measures where nothing was attacked.
          width: Width of the text in characters; tasks that do not fit are shown below.
        """
        if format not in _FORMATS:
            raise InputError(
                f"format must be one of {', '.join(_FORMATS)}; got {format!r}."
            )
        if format in tables.RECORDS:
            records = self.records or self.measures
            return tables.as_records(format, records) if records else ""
        parts, is_text, more = [], format == "text", self.more
        if self.records and is_text:
            parts.append(tables.about(self.title, self.records, width, more))
        elif self.records:
            parts.append(tables.printed(format, self.title, self.records, None, more))
        if self.consistency and is_text:
            parts.append(tables.consistency(self.consistency))
        if self.measures:
            text = tables.measures(self.measures)
            parts.append(text if is_text else f"```text\n{text}\n```")
        return "\n\n".join(parts)

    def to_pandas(self) -> Any:
        """Returns the records as a `pandas.DataFrame`; pandas must be installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise InputError(
                "to_pandas needs pandas, which is not installed; run pip install "
                "pandas, or use .records, a list of dicts."
            ) from error
        return pandas.DataFrame([dict(record) for record in self.records])

    def plot(self, path: str | os.PathLike | None = None) -> Figure:
        """Plots each task's metric against the radius; a notebook shows the figure.

        Args:
          path: A .png, .pdf or .svg file to write it into, too.
        """
        return _draw_figure(lambda: curves.of_run(self._attacks(), self.details), path)

    def gallery(self, path: str | os.PathLike | None = None) -> Figure:
        """Draws a few images and their outputs, clean and attacked.

        Shows the attack on the largest group of tasks, at its largest radius.

        Args:
          path: A .png, .pdf or .svg file to write it into, too.
        """
        self._attacks()
        result = gallery.shown_result(self.attacked)
        clean = self.clean or result
        arguments = (clean, result, self.colors, self.details)
        return _draw_figure(lambda: gallery.of_run(*arguments), path)

    def _attacks(self) -> Sequence[Record]:
        if not self.records:
            raise InputError(
                "There is nothing to plot, because attacks='none' only measures; give "
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


def _draw_figure(draw: Callable[[], Figure], path: str | os.PathLike | None) -> Figure:
    if path is not None:
        files.check_local("path", path)
        files.check_picture("path", path)
        style.save(draw, pathlib.Path(path))
    return style.drawn(draw)
