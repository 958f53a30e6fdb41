# SPDX-License-Identifier: Apache-2.0
"""What must hold of every figure: its words lie within it and not over each other."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from mtr_tf.show import style


def drawn(draw) -> Figure:
    """The figure that a function draws, in the common style and laid out."""
    figures = []

    def make_figure() -> Figure:
        figures.append(draw())
        return figures[0]

    with matplotlib.rc_context(style.SETTINGS):
        FigureCanvasAgg(make_figure()).draw()
    return figures[0]


def words(figure: Figure) -> list[tuple[str, object]]:
    """The (text, box) of all visible texts."""
    hidden_labels = {
        label for axes in figure.axes for label in _labels_out_of_view(axes)
    }
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text() and text not in hidden_labels
    ]
    return [(t.get_text(), t.get_window_extent()) for t in texts]


def _labels_out_of_view(axes) -> list[Text]:
    labels = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                labels += [tick.label1, tick.label2]
    return labels


def check(figure: Figure) -> None:
    """Fails where words are cut off or lie over others."""
    width, height = figure.canvas.get_width_height()
    boxes = words(figure)
    assert boxes
    for text, box in boxes:
        room = (box.x0, box.y0, width - box.x1, height - box.y1)
        assert min(room) > -1, (text, room)
    for (text_a, a), (text_b, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 1 or down < 1, (text_a, text_b, a, b)


def empty_share(figure: Figure) -> float:
    """The share of the largest rectangle of white cells in a 24 by 24 grid."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    rows = np.array_split((pixels < 250).any(axis=-1), 24)
    has_ink = np.array([[c.any() for c in np.array_split(r, 24, axis=1)] for r in rows])
    best = 0
    for top, left in np.ndindex(24, 24):
        columns = 24 - left
        for bottom in range(top, 24):
            ink_columns = np.flatnonzero(has_ink[bottom, left : left + columns])
            columns = ink_columns[0] if len(ink_columns) else columns
            best = max(best, columns * (bottom - top + 1))
    return best / 24**2
