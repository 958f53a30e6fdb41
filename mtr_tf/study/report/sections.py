# SPDX-License-Identifier: Apache-2.0
"""The report's sections of results: curves, clean metrics, theory, examples."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from mtr_tf.study.report import gallery
from mtr_tf.study.report import text
from mtr_tf.study.report.curves import Curve
from mtr_tf.study.report.elements import Html
from mtr_tf.study.report.elements import bullets
from mtr_tf.study.report.elements import data_url
from mtr_tf.study.report.elements import details
from mtr_tf.study.report.elements import join
from mtr_tf.study.report.elements import table
from mtr_tf.study.report.elements import tag
from mtr_tf.study.report.plots import Plot

CONTENTS = {
    "curves": "robustness curves",
    "clean": "clean metrics",
    "theory": "theory",
    "examples": "adversarial examples",
    "settings": "settings",
    "provenance": "provenance",
    "commands": "commands",
}
"""{id of a section: what links call it}."""

Drawn = Mapping[str, bytes]
"""{id of a plot: SVG}."""


def section(name: str, title: str, *parts: str | None) -> Html:
    """A section under its heading; `name` is for links."""
    return tag("section", tag("h2", title, id=name), *parts)


def notes(lines: Sequence[str]) -> Html | None:
    """Warnings in a box; None without any."""
    if not lines:
        return None
    return tag(
        "div",
        tag("strong", "⚠ The attack's own checks warn:"),
        bullets(lines),
        class_="warning",
        role="note",
    )


def plots(found: Sequence[Plot], drawn: Drawn, small: bool = False) -> Html | None:
    """Plots side by side where there is room; those not of the first rank folded."""
    first = [_figure(plot, drawn) for plot in found if plot.first]
    more = [_figure(plot, drawn) for plot in found if not plot.first]
    kind = "plots small" if small else "plots"
    return join(
        tag("div", *first, class_=kind) if first else None,
        details(f"{len(more)} more plots", tag("div", *more, class_=kind))
        if more
        else None,
    )


def _figure(plot: Plot, drawn: Drawn) -> Html:
    image = tag("img", src=data_url("image/svg+xml", drawn[plot.id]), alt=plot.alt)
    link = tag("a", "PNG", href=f"plots/{plot.id}.png")
    caption = tag("figcaption", f"{plot.caption} ", link)
    return tag("figure", image, caption, notes(plot.notes), id=plot.id)


def robustness(
    found: Sequence[Curve], made: Sequence[Plot], drawn: Drawn, images: str
) -> Html:
    """The curves, attack by attack; `images` says of which."""
    parts = [
        tag(
            "p",
            "Each line is a variant's mean over seeds, the band reaches from the least "
            "to the largest seed, or is one seed's interval over images; eps 0 is "
            "without an attack. Differences are between models of one seed. "
            f"On {images}.",
        )
    ]
    for attack in dict.fromkeys(curve.attack for curve in found):
        of_attack = [p for c, p in zip(found, made, strict=True) if c.attack == attack]
        parts += [tag("h3", attack), plots(of_attack, drawn)]
    if not found:
        parts = [tag("p", "No attack is finished yet.")]
    return section("curves", "Robustness curves", *parts)


def clean(found: Sequence[Curve], variants: Sequence[str]) -> Html:
    """A table per task: each metric's mean and standard deviation over seeds."""
    parts = []
    for task, (head, *rows) in clean_tables(found, variants):
        body = [[name, *map(_unbroken, values)] for name, *values in rows]
        parts += [tag("h3", task), table(head, body, label=f"{task}, clean images")]
    about = "Mean ± standard deviation over seeds. ↑: higher is better, ↓: lower."
    return section("clean", "Clean metrics", tag("p", about), *parts)


def clean_tables(
    found: Sequence[Curve], variants: Sequence[str]
) -> list[tuple[str, list[list[str]]]]:
    """Each task with the rows of its table of clean metrics, the head first."""
    tables = []
    for task in dict.fromkeys(curve.task for curve in found):
        metrics = {}
        for curve in found:
            if curve.task == task and not curve.reference:
                metrics.setdefault(curve.metric, []).append(curve)
        rows = [["variant", *(_head(*item) for item in metrics.items()), "seeds"]]
        for variant in variants:
            cells = [_clean_values(own, variant) for own in metrics.values()]
            seeds = max(map(len, cells))
            if seeds:
                rows.append([variant, *map(mean_and_sd, cells), str(seeds)])
        tables.append((task, rows))
    return tables


def _head(name: str, curves: Sequence[Curve]) -> str:
    facts = curves[0].facts
    unit = f" [{facts['unit']}]" if facts["unit"] else ""
    return f"{name}{unit} {'↑' if facts['better'] == 'higher' else '↓'}"


def _clean_values(curves: Sequence[Curve], variant: str) -> np.ndarray:
    """Of each seed, from the first curve that has it; without NaN."""
    found = [curve.values[variant][:, 0] for curve in curves if variant in curve.values]
    if not found:
        return np.zeros(0)
    first = np.array(found).T  # [seeds, curves]
    values = [row[~np.isnan(row)][0] for row in first if (~np.isnan(row)).any()]
    return np.array(values)


def mean_and_sd(values: np.ndarray) -> str:
    """Of `[seeds]` without NaN; a dash where there is none."""
    if not len(values):
        return text.NONE
    spread = f" ± {values.std(ddof=1):#.2g}" if len(values) > 1 else ""
    return f"{text.number(values.mean())}{spread}"


def _unbroken(words: str) -> Html:
    return tag("span", words, class_="nowrap")


def theory(made: Mapping[str, Sequence[Plot]], drawn: Drawn) -> Html:
    """What was measured of the theory."""
    intros = {
        "norms": (
            "Gradient norms over the number of tasks",
            "Measured: the mean over all sets of k tasks. Theory: √(1'C1) / k with the "
            "measured covariance C of the tasks' gradients. Alike: √((1 + (k − 1) ρ) / "
            "k), as if all tasks were of one size and one correlation. Both axes are "
            "logarithmic. The band reaches over seeds.",
        ),
        "first_order": (
            "First order: what PGD reaches against eps times the dual norm",
            "The ratio tends to 1 as eps does to 0 if the theory's first step holds.",
        ),
        "pixels": (
            "Gradient norms and attacks over the number of output pixels",
            "The same theory with output pixels in place of tasks.",
        ),
        "cosines": ("Cosines of two tasks' gradients", "Means over images and seeds."),
    }
    parts = []
    for name, (title, about) in intros.items():
        if made.get(name):
            small = name == "cosines"
            parts += [tag("h3", title), tag("p", about)]
            parts.append(plots(made[name], drawn, small))
    if not parts:
        parts = [tag("p", "No measure is in the results.")]
    return section("theory", "Theory", *parts)


def examples(found: Sequence[gallery.Gallery]) -> Html:
    """The galleries."""
    about = (
        "The same image for every variant. The perturbation is magnified around grey: "
        "its largest change is black or white."
    )
    parts = [gallery.section(one) for one in found]
    if not parts:
        about = "No attacked examples are there yet."
    return section("examples", "Adversarial examples", tag("p", about), *parts)
