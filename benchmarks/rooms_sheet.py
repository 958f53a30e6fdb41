# SPDX-License-Identifier: Apache-2.0
"""Draws the contact sheet of rooms: some validation scenes by their targets.

Run `python benchmarks/rooms_sheet.py [docs/images/rooms.png]`.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
from matplotlib import figure
from matplotlib.backends import backend_agg
from PIL import Image

from mtr_tf import tasks
from mtr_tf.data import picture
from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import reading
from mtr_tf.data.rooms import scene
from mtr_tf.data.rooms import workers

SIZE = 64
SCENES = 7


def columns(count: int, size: int) -> list[dict[str, np.ndarray]]:
    """For each scene {name of a row: uint8 RGB}: the picture, then the other tasks."""
    info = reading.dataset_info(size)
    scenes = []
    for index in range(count):
        arrays = workers.example(0, scene.SPLITS.index("validation"), index, size)
        cells = {"image": arrays["image"]}
        for name in layout.TASKS:
            if name == "autoencoder":
                continue
            if name in arrays:
                target = arrays[name]
            else:
                target = picture.compute(name, arrays["image"][None])[0]
            cells[name] = tasks.TASKS[name].to_rgb(target, info)
        scenes.append(cells)
    return scenes


def main(path: str) -> None:
    """Writes the sheet: one column per scene, one row per task."""
    scenes = columns(SCENES, SIZE)
    rows = list(scenes[0])
    inch = SIZE / 96
    sheet = figure.Figure(figsize=(inch * SCENES + 0.2, inch * len(rows)), dpi=96)
    axes = sheet.subplots(len(rows), SCENES)
    sheet.subplots_adjust(
        left=0.2 / (inch * SCENES + 0.2), right=1, bottom=0, top=1,
        wspace=0.03, hspace=0.03,
    )  # fmt: skip
    for line, name in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, fontsize=5.5)
        for axis, cells in zip(line, scenes, strict=True):
            axis.imshow(cells[name], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas = backend_agg.FigureCanvasAgg(sheet)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/images/rooms.png")
