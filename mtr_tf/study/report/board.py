# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard shows of a study: the report's plots, and the verdicts as text."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from mtr_tf.study.report.draw import Plot

_MARK = ".mtr_tf"  # Ends the names of event files that are ours to remove.


def write(
    plots: Sequence[Plot],
    pictures: pathlib.Path,
    verdicts: Sequence[Sequence[str]],
    folder: pathlib.Path,
) -> None:
    """Writes an image per plot and a text; those of an earlier report are removed.

    Args:
      plots: Whose files are PICTURES/ID.png.
      pictures: Their folder.
      verdicts: The table's rows, the first its head.
      folder: For TensorBoard's --logdir.
    """
    import tensorflow as tf
    from PIL import Image

    earlier = list(folder.glob(f"events.out.tfevents.*{_MARK}"))
    writer = tf.summary.create_file_writer(str(folder), filename_suffix=_MARK)
    with writer.as_default():
        tf.summary.text("verdicts", markdown(verdicts), 0)
        for plot in plots:
            with Image.open(pictures / f"{plot.id}.png") as image:
                pixels = np.asarray(image.convert("RGB"))
            name = plot.id.replace("-", "/", 1)  # Groups of TensorBoard.
            tf.summary.image(name, pixels[np.newaxis], 0, description=plot.alt)
    writer.close()
    for file in earlier:
        file.unlink()


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
