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
from mtr_tf.study import statistics
from mtr_tf.study.report.curves import Curve
from mtr_tf.study.report.curves import warning_lines
from mtr_tf.study.results import grouped

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


def _groups(records: Sequence[Record], *names: str) -> list[tuple[tuple, list[Record]]]:
    """The records by their values of some fields: (values, records), in order."""
    pairs = ((series.distinct([r], *names)[0], r) for r in records)
    return list(grouped(pairs).items())


def _mean(records: Sequence[Record], name: str = "value") -> str:
    return text.number(series.mean(series.by_seed(records, name)[:, np.newaxis])[0])


def _seed_list(records: Sequence[Record]) -> str:
    return text.numbers_in_words(sorted({record["seed"] for record in records}))


def pixels(records: Sequence[Record]) -> list[Plot]:
    """Plots of gradient norms and of attacks over the number of output pixels."""
    plots = []
    norm_records = series.chosen(records, quantity="gradient_norm")
    names = ("spec", "variant", "measure", "norm")
    for (spec, variant, measure, norm), members in _groups(norm_records, *names):
        place = "random output pixels" if measure == "pixels" else "pixels of a block"
        legend = "Dashes: theory for root mean squares (never less than the mean); "
        dashes = legend if measure == "pixels" else ""
        title = f"{variant}: {norm} gradient norm of n {place}"
        caption = text.capital(f"{dashes}{_seed_list(members)}.")
        draw = functools.partial(theory.plot, theory.pixels, title, members)
        name = measure_id(spec, variant, measure, norm)
        plots.append(
            Plot(name, title, caption, _pixel_alt(members, title), draw, norm == "l2")
        )
    return plots + _attacked_pixels(records)


def _pixel_alt(records: Sequence[Record], title: str) -> str:
    parts, many_measures = [], len(series.distinct(records, "measure")) > 1
    for ((task,), measure), task_records in _groups(records, "tasks", "measure"):
        _, (value,) = series.over(task_records, "count", "value")
        ends = series.mean(value)[[0, -1]]
        suffix = f" of {measure}" if many_measures else ""
        parts.append(f"{task}{suffix} from {' to '.join(map(text.number, ends))}")
    largest = max(record["count"] for record in records)
    return f"{title}, from n = 1 to {largest:g}: {'; '.join(parts)}."


def _attacked_pixels(records: Sequence[Record]) -> list[Plot]:
    plots = []
    pixel_records = series.chosen(records, quantity="attacked_pixels")
    names = ("spec", "variant", "tasks", "metric")
    for (spec, variant, (task,), metric), members in _groups(pixel_records, *names):
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
    names = ("spec", "variant", "norm")
    for (spec, variant, norm), members in _groups(rise_records, *names):
        for ratio in (False, True):
            quantity = "rise of the loss / its first-order prediction"
            if not ratio:
                quantity = "rise of the loss; dashes: first-order prediction"
            title = f"{variant}: {quantity}"
            parts = ("first_order", norm, *(("ratio",) if ratio else ()))
            plots.append(
                Plot(
                    measure_id(spec, variant, *parts),
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
    for (group,), members in _groups(records, "tasks"):
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


def resistance(
    curve_list: Sequence[Curve], measures: Sequence[Record], seeds: Sequence[int]
) -> list[Plot]:
    """Plots of whether the gradient's norm predicts which nets of a study resist.

    There is one for each attack on one task whose gradients were measured.

    Args:
      curve_list: All curves of the report, without differences.
      measures: The records of measures.json; the predicted rise of `first_order`,
        divided by eps, is the gradient's mean dual norm.
      seeds: The seeds of the study, in the order of the curves' values.
    """
    plots = []
    for curve in curve_list:
        if not curve.first or len(curve.attacked) > 1:
            continue
        nets = _nets(curve, _gradient_norms(measures, curve), seeds)
        if len(nets) >= statistics.LEAST_RANKED:
            plots.append(_resistance_plot(curve, nets))
    return plots


def _gradient_norms(
    measures: Sequence[Record], curve: Curve
) -> dict[tuple[str, int], float]:
    """{(variant, seed): norm of the gradient of the task's loss}."""
    rise_records = series.chosen(
        measures,
        measure="first_order",
        quantity="rise",
        tasks=[curve.task],
        norm=curve.facts["norm"],
    )
    # The smallest eps comes last: it is kept.
    rise_records.sort(key=lambda record: -record["eps"])
    return {
        (record["variant"], record["seed"]): record["predicted"] / record["eps"]
        for record in rise_records
        if record.get("predicted")
    }


def _nets(
    curve: Curve, norms: Mapping[tuple[str, int], float], seeds: Sequence[int]
) -> list[theory.Net]:
    """The nets with a norm, a value at each radius, and a clean value above 0."""
    sign = 1 if curve.facts["better"] == "higher" else -1
    nets = []
    for variant, values in curve.values.items():
        for seed, row in zip(seeds, values, strict=True):
            norm = norms.get((variant, seed))
            if norm and row[0] > 0 and not np.isnan(row).any():
                loss = sign * (row[0] - row[1:]) / row[0]
                nets.append(theory.Net(variant, norm, 100 * loss))
    return nets


def _resistance_plot(curve: Curve, nets: Sequence[theory.Net]) -> Plot:
    norms = np.array([net.norm for net in nets])
    losses = np.array([net.lost for net in nets])
    titles = []
    for index, eps in enumerate(curve.eps[1:]):
        rho = statistics.rank_correlation(norms, losses[:, index])
        ends = statistics.rank_interval(rho, len(nets)) if abs(rho) < 1 else None
        titles.append(
            f"eps {eps:g}: ρ {text.number(rho)} ({text.interval(ends, text.number)})"
        )
    title = f"{curve.task} {curve.metric} lost under {curve.attack}, by gradient norm"
    return Plot(
        text.identifier("resistance", curve.spec, curve.label, curve.task),
        title,
        f"{len(nets)} nets, each a mark. ρ: Spearman's rank correlation with its 95 % "
        "interval, nets taken as independent; above 0, nets of larger gradients lose "
        "more.",
        f"{title}: {'; '.join(titles)}.",
        functools.partial(theory.resistance, title, titles, nets, curve.facts["norm"]),
    )
