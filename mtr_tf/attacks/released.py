# SPDX-License-Identifier: Apache-2.0
"""The attacks of the paper's released code with their mistakes, for one question only.

Mao et al. ("Multitask Learning Strengthens Adversarial Robustness", 2020) released code
(columbia/MTRobust) whose attacks differ from what the paper says. Whether its results
need those differences can only be asked of attacks that have them. To measure
robustness, use the others: these are made only where they are asked for by name, as
`pgd_released` and the like (`kinds`).

What differs, and where it is:

- The "random" start: `start="corner"`.
- The scale of the evaluation on Cityscapes: `scale="wrong"`.
- Momentum: `decay=0.5`, on raw gradients. Without the other two it is
  `attacks.MIM(..., decay=0.5, normalize=False, random_start=True)`.
- Houdini: the loss "houdini_released" of `attacks.objective`; the released runs
  always have momentum with it.

The facts are from learning/attack.py, ensemble_attack.py and utils_learn.py there.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from mtr_tf.attacks import base
from mtr_tf.attacks import checks
from mtr_tf.attacks import momentum
from mtr_tf.attacks import threat
from mtr_tf.errors import InputError

STARTS = ("corner", "image")
SCALES = ("pixels", "wrong")


@dataclasses.dataclass(frozen=True)
class ReleasedPGD(base.Attack):
    """L-inf PGD as the released code runs it: one run, the last point, nothing random.

    Called as the other attacks are: `ReleasedPGD(...)(objective, x, seed)`, on images
    in [0, 1], [batch, ..., channels].

    WITH `scale="wrong"` THE RESULT IS OUTSIDE THE BALL OF RADIUS `epsilon`, AND MAY BE
    OUTSIDE [0, 1]. That is the mistake it stands for; nothing here puts it right. The
    released code treats standardised images, s = (x - mean) / std, as if they were in
    [-1, 1]: s moves by at most 2 epsilon, and is clamped to the box [-1, 1]. In pixels
    of [0, 1] that is

        lower = max(x - r, mean - std),  upper = min(x + r, mean + std),
        r = 2 epsilon std,  steps of 2 step_size std,
        clamp(point) = max(lower, min(upper, point))

    Where x is far from the mean, lower is above upper, and every clamp ends at lower:
    a value above mean + std + r goes to x - r, one below mean - std - r goes to
    mean - std however far that is, both whatever the objective. On Cityscapes, at
    4/255, r is 1.46/255, and 62 % of all red levels (0 to 25, and from 123) are such
    values. With mean and std 0.5 the scale is right, as it is on Taskonomy.

    Attributes:
      epsilon: Nominal radius in pixel units of [0, 1]. At zero the images come back
        as they are. It and the step size may be float64 tensors, unchecked.
      step_size: Nominal length of a step, in the same unit.
      steps: Number of steps.
      start: "corner" is where the released "random" start lands, for its two bounds
        are swapped: whatever the noise, max(upper, min(lower, x + noise)) is upper,
        which with the right scale is min(1, x + epsilon). (Where lower is above upper
        it is the end of [x - r, x + r] that is nearer to the box.) "image" starts at
        the image.
      scale: "pixels" is right: epsilon and box [0, 1] in pixels. "wrong" is above.
      mean: Of each channel in [0, 1]; for "wrong" alone, which needs it.
      std: Of each channel; as mean.
      decay: What is left of the sum of raw gradients after a step, at least 0; 0.5 is
        the released momentum.

    Raises:
      InputError: A setting is out of range; or, when called, as for PGD, or images
        without as many channels as mean has numbers.
    """

    epsilon: float | tf.Tensor
    step_size: float | tf.Tensor
    steps: int
    start: str = "corner"
    scale: str = "pixels"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    decay: float = 0.0

    def __post_init__(self):
        # Checks the settings that mean the same as in MIM.
        momentum.MIM(self.epsilon, self.step_size, self.steps, decay=self.decay)
        for name, choices in (("start", STARTS), ("scale", SCALES)):
            checks.check_name(name, getattr(self, name), choices)
        for name in ("mean", "std"):
            self._check_channels(name)
        mean, std = self.mean or (), self.std or ()
        if len(mean) != len(std):
            raise InputError(
                f"mean and std must have one number per channel; got {len(mean)} and "
                f"{len(std)}."
            )
        if std and min(std) <= 0:
            raise InputError(f"std must be above 0; got {min(std):g}.")

    def _check_channels(self, name: str):
        value = getattr(self, name)
        if self.scale == "pixels":
            if value is not None:
                raise InputError(
                    f"{name} is only for scale='wrong', but got {value!r} with "
                    "'pixels'; leave it out."
                )
            return
        if not isinstance(value, tuple) or not value:
            raise InputError(
                f"scale='wrong' needs {name}, a tuple with one number per channel; "
                f"got {value!r}."
            )
        for number in value:
            checks.check_number(name, number)

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image."""
        return self.steps

    def search(
        self, objective: base.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `base.Attack`."""
        del keys  # Nothing is random.
        centre = tf.cast(x, threat.compute_dtype(x))
        unit, box_low, box_high = self._pixels(centre)
        radius = unit * tf.cast(self.epsilon, centre.dtype)
        step_size = unit * tf.cast(self.step_size, centre.dtype)
        upper = tf.minimum(box_high, centre + radius)
        lower = tf.maximum(box_low, centre - radius)
        start = centre
        if self.start == "corner":
            start = _clamp(centre, lower, upper)  # Swapped, as released.
        run_objective = base.begin(objective, start, centre)

        def step(number, state):
            point, total = state
            progress = tf.cast(number, tf.float32) / tf.cast(self.steps, tf.float32)
            slope, _ = base.gradient(run_objective, point, progress)
            # Of any size: standardised inputs' gradients have the same signs.
            total = self.decay * total + slope
            point = _clamp(point + step_size * tf.sign(total), upper, lower)
            return point, total

        point, _ = base.loop(0, self.steps, step, (start, tf.zeros_like(start)))
        return tf.where(tf.equal(self.epsilon, 0), x, tf.cast(point, x.dtype))

    def _pixels(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the unit of length and the ends of the box, in pixels of [0, 1].

        Each is a number, or one number per channel.
        """
        if self.scale == "pixels":
            return tuple(tf.constant(number, x.dtype) for number in (1, 0, 1))
        mean, std = self.mean or (), self.std or ()
        if x.shape[-1] != len(mean):
            raise InputError(
                f"Images must have {len(mean)} channels in their last axis, as many "
                f"as mean has numbers; got shape {x.shape}."
            )
        mean, std = tf.constant(mean, x.dtype), tf.constant(std, x.dtype)
        return 2 * std, mean - std, mean + std


def _clamp(image: tf.Tensor, upper: tf.Tensor, lower: tf.Tensor) -> tf.Tensor:
    """Returns the image clamped below `upper`, then above `lower`, which thus wins.

    This is the order of the released `clamp_tensor`, and of its arguments.
    """
    return tf.maximum(tf.minimum(image, upper), lower)
