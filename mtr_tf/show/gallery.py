# SPDX-License-Identifier: Apache-2.0
"""Attacked examples: pictures, targets and outputs in rows without gaps."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mtr_tf.data.source import DatasetInfo
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.show import style
from mtr_tf.tasks import Task
from mtr_tf.tasks.palettes import distinct_colors

_TILE = 1.25  # Inches: the shorter side of a picture.
_MAX_ROWS = 12  # With more, two examples stand side by side instead of all below.
INPUTS = ("image", "attacked image", "perturbation\n(magnified)")
OUTPUTS = ("target", "output, clean", "output, attacked")


Color = tuple[int, int, int]
"""Red, green and blue, 0-255."""


def save_run(
    clean: Result,
    results: Sequence[Result],
    path: pathlib.Path,
    colors: Mapping[str, Mapping[str, Color]],
    more: str = "",
) -> None:
    """Writes the figure of `of_run` for one of the results as a PNG file."""
    style.save(lambda: of_run(clean, shown_result(results), colors, more), path)


def class_colors(
    tasks: Iterable[Task], info: DatasetInfo
) -> dict[str, dict[str, Color]]:
    """{task: {class: its color}} of the tasks that have a class for each pixel."""
    task_colors = {}
    for task in tasks:
        names = task.classes or info.classes
        if task.is_map and task.discrete and names:
            colors = task.colors or info.colors or distinct_colors(len(names))
            task_colors[task.name] = dict(zip(names, colors, strict=False))
    return task_colors


def shown_result(results: Sequence[Result]) -> Result:
    """The result to show: of those with most attacked tasks, the largest radius."""
    return max(results, key=lambda r: (len(r.attack_cell.tasks), r.attack_cell.eps))


def of_run(
    clean: Result,
    attacked: Result,
    colors: Mapping[str, Mapping[str, Color]] | None = None,
    more: str = "",
) -> Figure:
    """A block per example: a row of its images, then a row of each task's outputs.

    The blocks stand below each other if that takes few rows; else two of them stand
    side by side. The legend shows the classes in `colors` (see `class_colors`) that
    are visible. `more` is a remark on the attack, added to the title.
    """
    tasks = list(clean.scores)
    rows = 1 + len(tasks)
    across, down = _blocks(len(clean.pictures["image"]), rows)
    blocks = [_block(clean, attacked, example) for example in range(across * down)]
    lines = []
    for start in range(0, len(blocks), across):
        row_blocks = blocks[start : start + across]
        lines += [sum(parts, []) for parts in zip(*row_blocks, strict=True)]
    headings = [INPUTS * across, OUTPUTS * across, *[()] * (rows - 2)] * down
    cell = attacked.attack_cell
    norm = cell.threat.norm
    title = f"{cell.label} on {cell.group}, {norm} eps {cell.eps:g}"
    title = f"{title} ({style.unit_of(norm)}){f'; {more}' if more else ''}"
    legend = _visible_classes(clean, attacked, colors or {}, across * down)
    return sheet(title, ["", *tasks] * down, headings, lines, legend)


def _visible_classes(
    clean: Result,
    attacked: Result,
    colors: Mapping[str, Mapping[str, Color]],
    examples: int,
) -> dict[str, Color]:
    """The classes whose color appears in the pictures of their task.

    Their names include the task where tasks do not agree on colors.
    """
    pairs = {
        (n, tuple(c)) for task_colors in colors.values() for n, c in task_colors.items()
    }
    clash = any(len({pair[side] for pair in pairs}) < len(pairs) for side in (0, 1))
    legend = {}
    for task, task_colors in colors.items():
        outputs = [result.pictures[f"output/{task}"] for result in (clean, attacked)]
        pictures = np.stack([clean.pictures[f"target/{task}"], *outputs])[:, :examples]
        for name, color in task_colors.items():
            if (pictures == color).all(axis=-1).any():
                legend[f"{task}: {name}" if clash and len(colors) > 1 else name] = color
    return legend


def _blocks(examples: int, rows: int) -> tuple[int, int]:
    """How many examples stand side by side, and below each other."""
    return (1, examples) if examples * rows <= _MAX_ROWS else (min(examples, 2), 1)


def _block(clean: Result, attacked: Result, example: int) -> list[list[np.ndarray]]:
    """The rows of one example, each of three pictures `[H, W, 3]`."""
    clean_pictures, attacked_pictures = clean.pictures, attacked.pictures
    block = [
        [
            clean_pictures["image"],
            attacked_pictures["adversarial"],
            attacked_pictures["perturbation"],
        ]
    ]
    for task in clean.scores:
        outputs = clean_pictures[f"output/{task}"], attacked_pictures[f"output/{task}"]
        block.append([clean_pictures[f"target/{task}"], *outputs])
    return [[picture[example] for picture in row] for row in block]


def of_variants(
    title: str, variants: Sequence[str], pictures: Sequence[Sequence[np.ndarray]]
) -> Figure:
    """A row per variant: the first example's images and its outputs of one task.

    Args:
      title: Above all.
      variants: Their names.
      pictures: For each variant, its `INPUTS` and `OUTPUTS`, `[examples, H, W, 3]`.
    """
    rows = [[tiles[0] for tiles in row] for row in pictures]
    headings = [(*INPUTS, *OUTPUTS), *[()] * (len(rows) - 1)]
    return sheet(title, variants, headings, rows)


def sheet(
    title: str,
    names: Sequence[str],
    headings: Sequence[Sequence[str]],
    rows: Sequence[Sequence[np.ndarray]],
    legend: Mapping[str, Color] | None = None,
) -> Figure:
    """Pictures in rows, each row with its name to the left.

    Args:
      title: Above all.
      names: One per row.
      headings: For each row, what stands above its pictures; empty: nothing.
      rows: Pictures, uint8 `[H, W, 3]`.
      legend: {what a color means: color}; None: no legend.
    """
    height, width = rows[0][0].shape[:2]
    scale = _TILE / min(height, width)
    size = (scale * width + 0.08, scale * height + 0.08)
    figure, grid = style.grid_of(len(rows), len(rows[0]), size)
    short_names = style.short_names(name for name in names if name)
    for axes_row, name, row_headings, pictures in zip(
        grid, names, headings, rows, strict=True
    ):
        for axes, picture in zip(axes_row, pictures, strict=True):
            same_size = picture.shape[:2] == (height, width)
            # Pixels stay sharp; larger pictures hold letters, which smoothing keeps.
            axes.imshow(picture, interpolation="nearest" if same_size else "hanning")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
        for axes, heading in zip(axes_row, row_headings, strict=False):
            axes.set_title(heading, size=8, pad=2)
        label = {"rotation": 0, "ha": "right", "va": "center", "size": 8}
        axes_row[0].set_ylabel(short_names.get(name, ""), **label)
    for name, color in (legend or {}).items():
        mark = {"color": np.divide(color, 255), "label": name}
        grid[0, 0].plot([], [], "s", **mark)
    _add_room(figure, names, short_names, headings)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return style.finish(
        figure, title, style.spelt_out(short_names), legend=bool(legend)
    )


def _add_room(figure: Figure, names, short_names, headings) -> None:
    """Enlarges the figure by the room for text beside and above its pictures."""
    lines = [max((h.count("\n") + 1 for h in row), default=0) for row in headings]
    widest = max(
        (style.text_width(short_names[name], 8) for name in names if name), default=0
    )
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + (widest + 8) / 72, height + sum(lines) * 0.15)
