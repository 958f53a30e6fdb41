# SPDX-License-Identifier: Apache-2.0
"""Images as a model may have been trained on them: on which does it do far better?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf.evaluation import chance

_FAR_BETTER = 0.7  # What a cure must leave of the error,
_AND_GOOD = 0.9  # and of a guess's error.
_CAFFE = (103.939, 116.779, 123.68)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # Of ImageNet.
_TURN = "turn the channels round in front of the model (images[..., ::-1])"


@dataclasses.dataclass(frozen=True)
class Cure:
    """What images may have been.

    Attributes:
      images: What they are, as in "on images ...".
      advice: What gives the model such images.
      change: Images in [0, 1] -> such images.
    """

    images: str
    advice: str
    change: Callable[[np.ndarray], np.ndarray]


AS_THEY_ARE = Cure(
    "from 0 to 1", "leave out --input_range, --input_mean and --input_std", lambda x: x
)
CURES = (
    Cure("times 255", "give --input_range=0,255", lambda x: 255 * x),
    Cure("from -1 to 1", "give --input_range=-1,1", lambda x: 2 * x - 1),
    Cure(
        "standardised as for ImageNet",
        "give --input_mean=0.485,0.456,0.406 --input_std=0.229,0.224,0.225",
        lambda x: (x - np.float32(_MEAN)) / np.float32(_STD),
    ),
    Cure("in the order BGR", _TURN, lambda x: x[..., ::-1]),
    Cure(
        "in the order BGR times 255",
        f"give --input_range=0,255 and {_TURN}",
        lambda x: 255 * x[..., ::-1],
    ),
    Cure(
        "in the order BGR times 255 less Caffe's means",
        f"give --input_range=0,255 --input_mean=123.68,116.779,103.939 and {_TURN}",
        lambda x: 255 * x[..., ::-1] - np.float32(_CAFFE),
    ),
)


def find(
    call: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    now: Mapping[str, np.ndarray],
    batch: Mapping[str, Any],
    tasks: Sequence[str],
    num_classes: int,
    cures: Sequence[Cure],
) -> tuple[Cure, Mapping[str, np.ndarray]] | None:
    """The cure that a model does far better on, with its outputs; None without one.

    Args:
      call: Images, changed by a cure, to outputs {task: float32}.
      now: The outputs as it is.
      batch: The images in [0, 1], targets and masks.
      tasks: Those to judge by; each has finite outputs, and a valid pixel.
      num_classes: Of the data set.
      cures: To try.
    """
    limit = _FAR_BETTER * chance.share_of_error(now, batch, tasks, num_classes)
    best, limit = None, min(limit, _AND_GOOD)
    for cure in cures:
        outputs = call(cure.change(batch["image"]))
        if all(np.isfinite(outputs[task]).all() for task in tasks):
            error = chance.share_of_error(outputs, batch, tasks, num_classes)
            if error < limit:
                best, limit = (cure, outputs), error
    return best
