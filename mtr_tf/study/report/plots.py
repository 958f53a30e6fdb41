# SPDX-License-Identifier: Apache-2.0
"""The plots of a report, each with its name, caption and alternative text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mtr_tf.show import curves as show_curves
from mtr_tf.show import series
from mtr_tf.show import style
from mtr_tf.show import text
from mtr_tf.show import theory
from mtr_tf.study.report.curves import Curve
from mtr_tf.study.report.curves import warning_lines

Record = Mapping[str, Any]

_NORMALISATIONS = {
    "raw": "gradients as they are",
    "unit": "each task's gradient scaled to 1 on each image",
    "dataset": "each task's gradients scaled to 1 over the images",
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """One plot of the report.

    Attributes:
      id: Its name, for files and links.
      title: A line above it.
      caption: A description of what it shows.
      alt: The alternative text, for readers who cannot see it.
      draw: Makes the figure.
      first: Whether it is shown at once; if not, it is one click away.
      notes: Warnings that belong to it.
    """

    id: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    first: bool = True
    notes: tuple[str, ...] = ()


def curves(curve_list: Sequence[Curve], variants: Sequence[str]) -> list[Plot]:
    """A plot per curve; headline metrics of attacked tasks are shown at once."""
    return [
        Plot(
            curve.id,
            curve.title,
            _seeds(curve),
            _curve_alt(curve),
            functools.partial(draw_curve, curve, variants),
            curve.first,
            tuple(warning_lines(curve.warnings)),
        )
        for curve in curve_list
    ]


def draw_curve(curve: Curve, variants: Sequence[str]) -> Figure:
    """The figure of a curve: each line has the colour of its place in the study."""
    lines = [
        show_curves.Line(
            variant,
            curve.eps,
            values,
            curve.ends.get(variant),
            style.look(list(variants).index(variant)),
        )
        for variant, values in curve.values.items()
    ]
    facts = {**curve.facts, "metric": curve.metric}
    return show_curves.of_variants(curve.title, lines, facts, curve.reference)


def _seeds(curve: Curve) -> str:
    counts = {
        int((~np.isnan(values)).any(axis=1).sum()) for values in curve.values.values()
    }
    count = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    words = f"{count} seed{'s' * (count != '1')} per variant"
    return f"{words}, paired." if curve.reference else f"{words}."


def _curve_alt(curve: Curve) -> str:
    """The alternative text: the first and last value of each variant."""
    parts = []
    for variant, values in curve.values.items():
        line = series.mean(values)
        parts.append(
            f"{variant} from {text.number(line[0])} to {text.number(line[-1])}"
        )
    return (
        f"{curve.title}, from clean to eps {curve.eps[-1]:g}, mean over seeds: "
        f"{'; '.join(parts)}."
    )


# The theory.


def norms(records: Sequence[Record]) -> list[Plot]:
    """Plots of the norm of the mean gradient over the number of tasks."""
    size_records = series.chosen(records, measure="tasks", quantity="norm_by_size")
    kinds = series.distinct(size_records, "spec", "variant", "norm", "normalisation")
    plots = []
    for spec, variant, norm, normalisation in sorted(
        kinds, key=lambda kind: kind[2:] != _MAIN_KIND
    ):
        members = series.chosen(
            records, spec=spec, variant=variant, norm=norm, normalisation=normalisation
        )
        slopes = series.chosen(members, measure="tasks", quantity="slope")
        summary = f"Slope {_mean(slopes)}, by theory {_mean(slopes, 'predicted')}"
        title = f"{variant}: {norm}, {_NORMALISATIONS[normalisation]}"
        plots.append(
            Plot(
                measure_id(spec, variant, "tasks", norm, normalisation),
                title,
                f"{summary}; {_seed_list(members)}.",
                f"{title}: norm of the mean gradient of k tasks. {summary}.",
                functools.partial(theory.plot, theory.sizes, title, members),
                (norm, normalisation) == _MAIN_KIND,
            )
        )
    return plots


_MAIN_KIND = ("l2", "unit")


def measure_id(spec: str, variant: str, *parts: str) -> str:
    """The name of the plot of a measure, for files and links."""
    return text.identifier("measure", spec, variant, *parts)


def _mean(records: Sequence[Record], name: str = "value") -> str:
    return text.number(series.mean(series.by_seed(records, name)[:, np.newaxis])[0])


def _seed_list(records: Sequence[Record]) -> str:
    return text.numbers_in_words(sorted({record["seed"] for record in records}))


def pixels(records: Sequence[Record]) -> list[Plot]:
    """Plots of gradient norms and of attacks over the number of output pixels."""
    plots = []
    norm_records = series.chosen(records, quantity="gradient_norm")
    for kind in series.distinct(norm_records, "spec", "variant", "measure", "norm"):
        spec, variant, measure, norm = kind
        members = series.chosen(
            norm_records, spec=spec, variant=variant, measure=measure, norm=norm
        )
        place = "random output pixels" if measure == "pixels" else "pixels of a block"
        legend = "Dashes: theory for root mean squares (never less than the mean); "
        dashes = legend if measure == "pixels" else ""
        title = f"{variant}: {norm} gradient norm of n {place}"
        caption = text.capital(f"{dashes}{_seed_list(members)}.")
        draw = functools.partial(theory.plot, theory.pixels, title, members)
        name = measure_id(*kind[:2], measure, norm)
        plots.append(
            Plot(name, title, caption, _pixel_alt(members, title), draw, norm == "l2")
        )
    return plots + _attacked_pixels(records)


def _pixel_alt(records: Sequence[Record], title: str) -> str:
    parts, many_measures = [], len(series.distinct(records, "measure")) > 1
    for (task,), measure in series.distinct(records, "tasks", "measure"):
        task_records = series.chosen(records, tasks=[task], measure=measure)
        _, (value,) = series.over(task_records, "count", "value")
        ends = series.mean(value)[[0, -1]]
        suffix = f" of {measure}" if many_measures else ""
        parts.append(f"{task}{suffix} from {' to '.join(map(text.number, ends))}")
    largest = max(record["count"] for record in records)
    return f"{title}, from n = 1 to {largest:g}: {'; '.join(parts)}."


def _attacked_pixels(records: Sequence[Record]) -> list[Plot]:
    plots = []
    pixel_records = series.chosen(records, quantity="attacked_pixels")
    for kind in series.distinct(pixel_records, "spec", "variant", "tasks", "metric"):
        spec, variant, (task,), metric = kind
        members = series.chosen(
            pixel_records, spec=spec, variant=variant, tasks=[task], metric=metric
        )
        title = f"{variant}: {task} {metric} on n attacked output pixels"
        caption = f"PGD linf eps {members[0]['eps']:g}; dashes: clean; "
        plots.append(
            Plot(
                measure_id(spec, variant, "attacked_pixels", task, metric),
                title,
                text.capital(f"{caption}{_seed_list(members)}."),
                _pixel_alt(members, title),
                functools.partial(theory.plot, theory.attacked_pixels, title, members),
                metric != "loss",
            )
        )
    return plots


def first_order(records: Sequence[Record]) -> list[Plot]:
    """Plots of the rise of the loss under PGD and its ratio to first-order theory."""
    plots = []
    rise_records = series.chosen(records, measure="first_order", quantity="rise")
    for spec, variant, norm in series.distinct(rise_records, "spec", "variant", "norm"):
        members = series.chosen(rise_records, spec=spec, variant=variant, norm=norm)
        for ratio in (False, True):
            quantity = "rise of the loss / its first-order prediction"
            if not ratio:
                quantity = "rise of the loss; dashes: first-order prediction"
            title = f"{variant}: {quantity}"
            name = ("first_order", norm, *(("ratio",) if ratio else ()))
            plots.append(
                Plot(
                    measure_id(spec, variant, *name),
                    title,
                    f"{text.capital(_seed_list(members))}.",
                    f"{title}. Ratio at the smallest eps: {_least_ratios(members)}.",
                    functools.partial(
                        theory.plot, theory.first_order, title, members, ratio
                    ),
                )
            )
    return plots


def _least_ratios(records: Sequence[Record]) -> str:
    parts = []
    for (group,) in series.distinct(records, "tasks"):
        members = series.chosen(records, tasks=list(group))
        _, (ratio,) = series.over(members, "eps", "ratio")
        parts.append(f"{'+'.join(group)} {text.number(series.mean(ratio)[0])}")
    return "; ".join(parts)


def cosines(records: Sequence[Record]) -> list[Plot]:
    """Plots of the mean cosine of the gradients of each pair of tasks."""
    plots = []
    names = {"cosine": "mean cosine", "abs_cosine": "mean |cosine|"}
    for spec, variant in series.distinct(
        series.chosen(records, quantity="cosine"), "spec", "variant"
    ):
        members = series.chosen(records, measure="tasks", spec=spec, variant=variant)
        for quantity, name in names.items():
            tasks, values = series.matrix(members, quantity)
            overall = series.chosen(members, quantity=f"mean_{quantity}")
            title = f"{variant}: {name} of two tasks' gradients"
            caption = f"Mean over pairs {_mean(overall)}; {_seed_list(members)}."
            plots.append(
                Plot(
                    measure_id(spec, variant, quantity),
                    title,
                    caption,
                    f"{title}: {_matrix_words(tasks, values)}.",
                    functools.partial(theory.cosine_plot, title, members, quantity),
                )
            )
    return plots


def _matrix_words(tasks: Sequence[str], values: np.ndarray) -> str:
    pairs = [
        f"{tasks[i]} and {tasks[j]} {text.number(values[i, j])}"
        for i in range(len(tasks))
        for j in range(i)
    ]
    return "; ".join(pairs) or "one task only"
