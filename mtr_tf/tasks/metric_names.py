# SPDX-License-Identifier: Apache-2.0
"""The names of the metrics that are computed on request; without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean

ALL = "all"
# The only one with a number that `all` includes.
TOP5 = "top5"
MORE = {
    "image_miou": "the mean over images of each image's own mean IoU",
    TOP5: "the share of targets among the 5 likeliest classes (any number: top3)",
    "mean_ap": "the mean over labels of the average precision (mAP)",
    "pixel_mean_ap": "the same of labels for each pixel",
    "delta1": "the share of distances that are within a factor of 1.25",
    "delta2": "within 1.25^2",
    "delta3": "within 1.25^3",
    "log_rmse": "the root mean square of the difference of logs",
    "rel": "the mean of |output - target| / target",
    "within_11": "the share of directions within 11.25 degrees",
    "within_22": "within 22.5 degrees",
    "within_30": "within 30 degrees",
}
_TOP = re.compile(r"top([1-9][0-9]{0,4})")


def top(name: str) -> int | None:
    """Returns k for the name `topK`; None for another name."""
    match = _TOP.fullmatch(name)
    return int(match[1]) if match else None


def check(names: Iterable[str], flag: str = "--metrics") -> None:
    """Raises `InputError` for a name that is none of these metrics."""
    choices = (ALL, *MORE)
    for name in names:
        if name not in choices and top(name) is None:
            raise InputError(
                f"{flag} must be {ALL} or names out of {', '.join(MORE)} (a task's "
                "own metrics are always there); got "
                f"{name!r}.{did_you_mean(name, choices)}"
            )
