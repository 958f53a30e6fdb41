# SPDX-License-Identifier: Apache-2.0
"""Results of a sweep written down by hand, and their records."""

from __future__ import annotations

import numpy as np
from cells_fixture import a_cell

from mtr_tf.evaluation import results
from mtr_tf.evaluation.cell_files import Result

FACTS = {"seed": 3, "dataset": "d", "split": "test", "model_fingerprint": "f"}
FACTS |= {"interval_over": "images"}


def score(value, half=0.01):
    interval = [None, None] if value is None else [value - half, value + half]
    return {"value": value, "interval": interval}


def result(eps, seg, depth, attacked=("seg", "depth")) -> Result:
    cell = None
    if eps is not None:
        cell = a_cell("pgd", attacked, eps=eps, step_size=eps / 4, steps=20, seed=3)
    scores = {
        "seg": {
            "miou": score(seg),
            "pixel_accuracy": score(0.5),
            "loss": score(1.0 if eps is None else 2.5),
        },
        "depth": {
            "mae": score(depth),
            "rmse": score(0.0 if eps is None else 1.0),
            "rel": score(0.5),
            "loss": score(depth),
        },
    }
    picture = np.zeros((2, 8, 8, 3), np.uint8)
    names = ["image", "adversarial", "perturbation"]
    names += [f"{kind}/{task}" for kind in ("target", "output") for task in scores]
    return Result(cell, scores, 12, dict.fromkeys(names, picture))


CLEAN = result(None, 0.4, 0.2)
RESULTS = [result(1.0, 0.3, 0.3), result(8.0, 0.1, None, ("seg",))]
RECORDS = results.make_records(CLEAN, RESULTS, FACTS)
