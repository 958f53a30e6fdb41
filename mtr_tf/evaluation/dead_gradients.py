# SPDX-License-Identifier: Apache-2.0
"""Gradients that are exactly zero: where they are, attacks by gradient see nothing."""

from __future__ import annotations

import keras
import numpy as np

from mtr_tf.evaluation.plan import Cell

_MANY = 0.1  # The share of zeros from which on they are reported.
_SMALLEST = {"float16": 6e-8, "bfloat16": 9e-41}  # What is smaller is zero there.


def look(
    slopes: np.ndarray, cell: Cell, model: keras.Model
) -> tuple[str, dict[str, float]]:
    """Returns what is wrong, empty where nothing is, and the numbers behind it.

    Args:
      slopes: Gradients at the clean images, `[N, H, W, C]`.
      cell: The attack; one on a part of the output leaves pixels without a gradient.
      model: What the gradients are of; its precision is named as a likely cause.
    """
    dead = slopes == 0
    images = float(np.mean(np.all(dead, axis=(1, 2, 3))))
    entries = float(np.mean(dead))  # Of all numbers: one colour may be dead alone.
    restricted = cell.pixels or cell.block or cell.classes
    reason = ""
    if images or (entries > _MANY and not restricted):
        reason = (
            "the gradient is exactly zero for some images, or for over a tenth of the "
            f"entries; where it is, attacks by gradient see nothing{_cause(model)}"
        )
    return reason, {"images": images, "entries": entries}


def _cause(model: keras.Model) -> str:
    """What to say of the model's precision; empty where that cannot be the cause."""
    used = {layer.compute_dtype for layer in model._flatten_layers()}
    found = [name for name in _SMALLEST if name in used]
    if not found:
        return ""
    name = found[0]
    return (
        f"; gradients are taken in {name}, where what is below {_SMALLEST[name]:g} is "
        "zero: take them in float32 (without --fast, and of a run with "
        "--precision=float32) before anything is concluded from that"
    )
