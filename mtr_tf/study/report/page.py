# SPDX-License-Identifier: Apache-2.0
"""The report as one page of HTML and as Markdown: one content, two templates."""

from __future__ import annotations

import base64
import dataclasses
import io
import shlex
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.show import pages
from mtr_tf.show import text
from mtr_tf.study import claims
from mtr_tf.study.design import Study
from mtr_tf.study.report import leading
from mtr_tf.study.report import verdicts
from mtr_tf.study.report.curves import Curve
from mtr_tf.study.report.gallery import HEADINGS
from mtr_tf.study.report.gallery import Gallery
from mtr_tf.study.report.plots import Plot

Cell = Mapping[str, Any]
_K = TypeVar("_K")
_V = TypeVar("_V")


class Code(str):
    """A command, which Markdown shows as one."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a task; `task` names the images, too, where there are several sets."""

    task: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """All that the report shows.

    Attributes:
      study: The study.
      cells: The cells of index.json.
      provenance: The provenance of study.json, with the commits of the cells.
      verdicts: The verdict on each claim.
      images: The images of the results, in words.
      mixed: A sentence about variants and seeds whose results are of several models;
        empty if there are none.
      curves: All curves, with differences.
      curve_plots: A plot for each curve.
      theory: The plots of each measure.
      effects: The plot of all effects; empty if there are no effects.
      galleries: Attacked examples.
      gallery_plots: A plot for each gallery.
    """

    study: Study
    cells: Sequence[Cell]
    provenance: Mapping[str, Any]
    verdicts: Sequence[verdicts.Row]
    images: str
    mixed: str
    curves: Sequence[Curve]
    curve_plots: Sequence[Plot]
    theory: Mapping[str, Sequence[Plot]]
    effects: Sequence[Plot]
    galleries: Sequence[Gallery]
    gallery_plots: Sequence[Plot]

    @property
    def plots(self) -> list[Plot]:
        """Every plot that becomes a file."""
        theory_plots = [plot for part in self.theory.values() for plot in part]
        return [*self.effects, *self.curve_plots, *theory_plots, *self.gallery_plots]

    @property
    def shown(self) -> list[str]:
        """Ids of the plots of effects, of verdicts and of their curves' differences."""
        claim_plots = dict.fromkeys(row.plot for row in self.verdicts if row.plot)
        differences = [
            curve.id
            for curve in self.curves
            if curve.reference
            and dataclasses.replace(curve, reference="").id in claim_plots
        ]
        return [*(plot.id for plot in self.effects), *claim_plots, *differences]

    @property
    def curve_plots_by_attack(self) -> dict[str, list[Plot]]:
        """The plots of curves, attack by attack."""
        return _groups(
            zip((curve.attack for curve in self.curves), self.curve_plots, strict=True)
        )

    @property
    def cells_by_variant(self) -> dict[str, list[Cell]]:
        """The cells, variant by variant."""
        return _groups((cell["variant"], cell) for cell in self.cells)

    @property
    def done(self) -> list[Cell]:
        """The cells that are finished."""
        return [cell for cell in self.cells if cell["state"] == "done"]

    @property
    def failed(self) -> list[Cell]:
        """The cells that failed."""
        return [cell for cell in self.cells if cell["state"] == "failed"]

    @property
    def missing(self) -> list[str]:
        """The kinds of cells that are not done yet, each with their seeds."""
        unfinished = [cell for cell in self.cells if cell["state"] != "done"]
        seeds = _groups(
            (_cell_name(cell, seed=False), cell["seed"]) for cell in unfinished
        )
        return [
            f"{name}: {text.numbers_in_words(numbers)}"
            for name, numbers in seeds.items()
        ]

    @property
    def warnings(self) -> dict[str, list[str]]:
        """The warnings from checks of attacks, with the claims that they concern."""
        return verdicts.warnings(self.verdicts)

    @property
    def clean_tables(self) -> list[Table]:
        """Each metric's mean and deviation over seeds: a table per task and images.

        Attacks against the model's own outputs are left out, because clean outputs
        agree with themselves.
        """
        curves = _groups(
            (f"{c.task}, {c.images}" if c.images else c.task, c)
            for c in self.curves
            if not c.reference and c.facts.get("targets") != OWN_TARGETS
        )
        variants = [variant.name for variant in self.study.variants]
        return [_clean_table(name, group, variants) for name, group in curves.items()]

    def values_of(self, plot: str) -> list[tuple[list[str], list[list[str]]]]:
        """The table (head, rows) of a curve by radius; empty for other plots."""
        return [_values(curve) for curve in self.curves if curve.id == plot]

    @property
    def origin(self) -> list[tuple[str, Any]]:
        """The origin of the numbers, without facts that concern one machine only."""
        facts, dash = self.provenance, text.NONE
        versions = ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items())
        count = f"{len(self.done)} of {len(self.cells)} done"
        return [
            ("command", Code(_command(facts.get("command", "")))),
            ("seeds", ", ".join(map(str, self.study.seeds))),
            ("cells", f"{count}, in {_total_time(self.done)} of processes"),
            ("commits of the cells", facts.get("commits of the cells", dash)),
            ("versions", versions or dash),
            ("cores", facts.get("cores", dash)),
            ("date", str(facts.get("time", dash))[:10]),
        ]


def html(content: Content, svgs: Mapping[str, bytes]) -> str:
    """The page in HTML; `svgs` has the SVG of each plot by its id."""
    page = _HTML.get_template("page.html")
    return page.render(content=content, drawn=svgs, headings=HEADINGS)


def markdown(content: Content) -> str:
    """The main parts as Markdown, with the plots that verdicts rest on as files."""
    return _MARKDOWN.get_template("page.md").render(content=content)


# Tables.


def _clean_table(task: str, curves: Sequence[Curve], variants: Sequence[str]) -> Table:
    by_metric = _groups((curve.metric, curve) for curve in curves)
    head = [
        "variant",
        *(_metric_head(group[0]) for group in by_metric.values()),
        "seeds",
    ]
    rows = []
    for variant in variants:
        values = [_clean_values(group, variant) for group in by_metric.values()]
        seeds = max(map(len, values))
        if seeds:
            rows.append([variant, *map(_mean_and_sd, values), str(seeds)])
    return Table(task, head, rows)


def _metric_head(curve: Curve) -> str:
    facts = curve.facts
    unit = f" [{facts['unit']}]" if facts["unit"] else ""
    return f"{curve.metric}{unit} {'↑' if facts['better'] == 'higher' else '↓'}"


def _clean_values(curves: Sequence[Curve], variant: str) -> np.ndarray:
    """The value of each seed from the first curve that has it, without NaN."""
    columns = [
        curve.values[variant][:, 0] for curve in curves if variant in curve.values
    ]
    if not columns:
        return np.zeros(0)
    by_seed = np.array(columns).T  # [seeds, curves]
    values = [row[~np.isnan(row)][0] for row in by_seed if (~np.isnan(row)).any()]
    return np.array(values)


def _values(curve: Curve) -> tuple[list[str], list[list[str]]]:
    """A table, (head, rows): mean and deviation of each variant at each radius."""
    head = ["variant", *("clean" if not e else f"eps {e:g}" for e in curve.eps)]
    rows = [
        [variant, *(_mean_and_sd(column[~np.isnan(column)]) for column in values.T)]
        for variant, values in curve.values.items()
    ]
    return head, rows


def _mean_and_sd(values: np.ndarray) -> str:
    """The mean and deviation of `[seeds]` without NaN; a dash if it is empty."""
    if not len(values):
        return text.NONE
    spread = f" ± {values.std(ddof=1):#.2g}" if len(values) > 1 else ""
    return f"{text.number(values.mean())}{spread}"


# Words.


def _groups(pairs: Iterable[tuple[_K, _V]]) -> dict[_K, list[_V]]:
    """{name: all values that are paired with it}."""
    groups: dict[_K, list[_V]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return groups


def _cell_name(cell: Cell, seed: bool = True) -> str:
    action = f"{cell['attack']} on" if cell["kind"] == "attack" else "training of"
    return f"{action} {cell['variant']}" + (f", seed {cell['seed']}" if seed else "")


def _total_time(cells: Sequence[Cell]) -> str:
    """The time that cells took together, in words."""
    return text.seconds(sum(cell["seconds"] or 0 for cell in cells))


def _setting_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_setting_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat_pairs(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of names and values; names within inner tables are `NAME: INNER`."""
    pairs = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            pairs += [
                (f"{name}: {inner}", words) for inner, words in _flat_pairs(value)
            ]
        else:
            pairs.append((name, text.NONE if value is None else _setting_text(value)))
    return pairs


# Flags that change no number and concern one machine only.
_PLACES = ("workdir", "export", "workers", "executor", "executor_options")


def _command(command: str) -> str:
    """The command without a machine's folders and flags that change no number."""
    result, words = [], iter(shlex.split(command))
    for word in words:
        flag, equals, _ = word.partition("=")
        name = flag.lstrip("-") if flag.startswith("-") else ""
        if name in (*_PLACES, "data_dir") and not equals:
            next(words, None)  # Its value.
        if name == "data_dir":
            result.append("--data_dir=DIR")
        elif name not in (*_PLACES, "report", "noreport"):
            result.append(word)
    return shlex.join(result)


def _plot_groups(plots: Sequence[Plot]) -> list[tuple[bool, list[Plot]]]:
    """Groups (whether its plots are shown at once, plots), without empty ones."""
    groups = _groups((plot.first, plot) for plot in plots)
    return sorted(groups.items(), reverse=True)


# Pictures.


class _Picture(NamedTuple):
    png: bytes
    width: int
    height: int


def _picture(array: np.ndarray, widest: int = 256) -> _Picture:
    """uint8 `[H, W, 3]` as PNG, at most `widest` pixels wide."""
    image = Image.fromarray(array)
    if image.width > widest:
        image.thumbnail((widest, image.height))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _Picture(buffer.getvalue(), image.width, image.height)


def _data_url(content: bytes, kind: str) -> str:
    """A data URL: an address that holds its own content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# Templates.


def _markdown_text(value: Any) -> Markup:
    """A value as Markdown, with HTML, table bars and links escaped."""
    if isinstance(value, Markup):
        return value
    words = text.markdown(str(value))
    if isinstance(value, Code):
        words = "`{}`".format(words.replace("`", "'"))
    return Markup(words)


def _markdown_paragraph(value: Any) -> Markup:
    """A value as Markdown that begins a line and must be a paragraph."""
    return Markup(text.markdown_paragraph(str(value)))


_WORDS: dict[str, Any] = {
    "ALGEBRA": verdicts.ALGEBRA,
    "CODES": verdicts.CODES,
    "EFFECTS": verdicts.EFFECTS,
    "MEANING": verdicts.MEANING,
    "NONE": text.NONE,
    "POWER": verdicts.POWER,
    "POWER_HEAD": verdicts.POWER_HEAD,
    "RULES": claims.RULES,
}
_FILTERS: dict[str, Any] = {
    "answer": verdicts.answer,
    "cell_name": _cell_name,
    "data_url": _data_url,
    "flat": _flat_pairs,
    "paragraph": _markdown_paragraph,
    "picture": _picture,
    "powers": verdicts.powers,
    "ranked": _plot_groups,
    "seconds": _total_time,
    "sentences": leading.sentences,
    "setting": _setting_text,
    "tally": verdicts.tally,
    "time": text.seconds,
    "zip": zip,
}


def _environment(**options: Any) -> jinja2.Environment:
    environment = pages.environment(
        "mtr_tf.study.report", keep_trailing_newline=True, **options
    )
    environment.globals.update(_WORDS)
    environment.filters.update(_FILTERS)
    return environment


_HTML = _environment(autoescape=jinja2.select_autoescape(["html"]))
_MARKDOWN = _environment(autoescape=True, finalize=_markdown_text)
