# SPDX-License-Identifier: Apache-2.0
"""A look at a model on its first images, before anything is attacked.

What is attacked must be the model as it was meant. A net that wants 0-255 and is shown
[0, 1] answers, too, only not to the question, and an attack on it says nothing. So its
outputs are looked at: whether they are probabilities (then they become logits, see
`models.probabilities`), are finite, depend on the image, and are better than a guess;
and whether the same images in another range or order of channels do far better.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import tasks as tasks_lib
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.evaluation import chance
from mtr_tf.evaluation import input_ranges
from mtr_tf.evaluation import model_fit
from mtr_tf.models import input_range
from mtr_tf.models import probabilities
from mtr_tf.models import stateless
from mtr_tf.runs.loading import Run

_IMAGES = 16  # So many are looked at, at most.
_STILL = 0.01  # Outputs that change by less of their scale do not depend on the image.

Affine = tuple[Sequence[float], Sequence[float]]
"""(scale, offset) per channel of what a model wants for images in [0, 1]."""


def look_at(
    config: AttackConfig,
    run: Run,
    source_run: Run | None,
    info: DatasetInfo,
    columns: Columns,
    tasks: Sequence[str],
    attacked: Sequence[str],
) -> tuple[Run, Run | None, list[str]]:
    """Looks at --ckpt and --source_ckpt on the first images, and logs what it finds.

    Args:
      config: The settings.
      run: What is attacked.
      source_run: What adversarial images are made on, if that is something else.
      info: Of the data set.
      columns: The split to attack.
      tasks: Those of `run` that are looked at.
      attacked: Those of them that are attacked.

    Returns:
      Both with models as attacks need them, from images in [0, 1] to logits; and what
      must be said of them wherever results are, as sentences.

    Raises:
      InputError: A model cannot be called on these images, or takes no other range.
    """
    affine = config.input_affine
    if affine and all(each.config for each in (run, source_run) if each):
        raise InputError(
            "--input_range, --input_mean and --input_std are for .keras files of your "
            "own, and a run of mtr_tf.train normalises images in [0, 1] itself; leave "
            "them out."
        )
    count = min(config.num_examples or _IMAGES, _IMAGES)
    first = np.arange(min(count, len(columns)))
    batch = batching.gather(columns, tasks, first, info.num_classes)
    size = config.batch_size
    run, warnings = look(run, info, batch, tasks, affine, size=size)
    if source_run:
        name = "the model of --source_ckpt"
        source_run, more = look(source_run, info, batch, attacked, affine, name, size)
        warnings += more
    for sentence in warnings:
        logging.warning("%s", sentence)
    return run, source_run, warnings


def look(
    run: Run,
    info: DatasetInfo,
    batch: Mapping[str, Any],
    tasks: Sequence[str],
    affine: Affine | None = None,
    name: str = "the model",
    size: int = _IMAGES,
) -> tuple[Run, list[str]]:
    """Looks at one model.

    Args:
      run: The model.
      info: Of the data set.
      batch: The first images; see `data.batching.gather`.
      tasks: The tasks that are looked at.
      affine: What the model wants, if it is a .keras file; None: images in [0, 1].
      name: What messages call the model.
      size: So many images at a time go through the model, at most.

    Returns:
      The run with the model from images in [0, 1] to logits, and sentences.
    """
    own = run.config is not None
    given = model = run.model
    if affine and not own:
        model = input_range.in_front(given, *affine)
    images = batch["image"]
    call = _called(model, tasks, name, size)
    with_logits, said = _as_logits(model, call(images), images, name)
    if with_logits is not model:
        model, call = with_logits, _called(with_logits, tasks, name, size)
    first = _First(model, call, batch, tasks, info.num_classes, name, size)
    first.report_not_finite()
    cures = [] if own else first.cures(given, affine is not None)
    likely = "" if cures else _likely(own)
    said += cures + first.unresponsive(likely) + first.guesses(likely)
    said += first.bad_gradients()
    return dataclasses.replace(run, model=model), said


_Call = Callable[[np.ndarray], dict[str, np.ndarray]]


def _called(model: keras.Model, tasks: Sequence[str], name: str, size: int) -> _Call:
    """Returns images -> the tasks' outputs in float32, built as a graph but once."""
    graph = tf.function(lambda x: stateless.outputs(model, x), autograph=False)

    @functools.cache
    def built(shape):
        return graph.get_concrete_function(tf.TensorSpec(shape, tf.float32))

    def call(images: np.ndarray) -> dict[str, np.ndarray]:
        parts = [few(images[i : i + size]) for i in range(0, len(images), size)]
        return {task: np.concatenate([p[task] for p in parts]) for task in tasks}

    def few(images: np.ndarray) -> dict[str, np.ndarray]:
        try:  # As a graph: the very layers warn otherwise.
            images = tf.constant(images, tf.float32)
            with stateless.unchanged(model):
                outputs = built(images.shape)(images)
        except Exception as error:  # Layers raise whatever they like.
            raise InputError(
                f"{name} cannot be called on {len(images)} images of {images.shape[1]}x"
                f"{images.shape[2]} ({model_fit.first_line(error)}); give another "
                "--image_size, or change the model."
            ) from error
        return {task: tf.cast(outputs[task], tf.float32).numpy() for task in tasks}

    return call


def _as_logits(
    model: keras.Model, outputs: Mapping[str, np.ndarray], images: np.ndarray, name: str
) -> tuple[keras.Model, list[str]]:
    """The model with logits in place of probabilities of classes; what to say of it."""
    discrete = [task for task in outputs if tasks_lib.TASKS[task].discrete]
    kinds = {
        task: probabilities.kind(outputs[task], model.output[task]) for task in discrete
    }
    kinds = {task: kind for task, kind in kinds.items() if kind}
    if not kinds:
        return model, []
    model, exact = probabilities.with_logits(model, kinds, images)
    said = []
    for task, kind in kinds.items():
        how = f"the logits before its {kind}."
        if not exact[task]:
            how = (
                f"logs of these. Where they are exactly 0 there is no gradient: give "
                f"the model without its {kind} if you can."
            )
        said.append(
            f"{name}'s {task} gives probabilities, and losses take logits: it is "
            f"scored and attacked by {how}"
        )
    return model, said


@dataclasses.dataclass(frozen=True)
class _First:
    """A model that gives logits, on the first images."""

    model: keras.Model
    call: _Call
    batch: Mapping[str, Any]
    tasks: Sequence[str]
    num_classes: int
    name: str
    size: int

    @property
    def _count(self) -> int:
        return len(self.batch["image"])

    @functools.cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        return self.call(self.batch["image"])

    @functools.cached_property
    def sound(self) -> list[str]:
        """The tasks whose outputs are finite, and that have targets here."""
        return [
            task
            for task in self.tasks
            if np.isfinite(self.outputs[task]).all() and self.batch["masks"][task].any()
        ]

    def report_not_finite(self) -> None:
        """Logs it now; of how many images in all is known in the end."""
        for task, output in self.outputs.items():
            bad = int(np.sum(~np.isfinite(output).all(axis=(1, 2, 3))))
            if bad:
                logging.warning(
                    "%s's %s is not finite for %d of the first %d images",
                    self.name,
                    task,
                    bad,
                    len(output),
                )

    def unresponsive(self, likely: str) -> list[str]:
        """What to say of tasks whose outputs hardly depend on the image."""
        negative = self.call(1 - self.batch["image"])
        said = []
        for task in self.sound:
            output = self.outputs[task]
            change = max(_rms(negative[task] - output), _spread(output, axis=0))
            scale = _spread(output, axis=-1)
            if not tasks_lib.TASKS[task].discrete:
                valid = self.batch["masks"][task] > 0
                scale = _spread(self.batch["targets"][task][valid], axis=0)
            if change < _STILL * scale:
                said.append(
                    f"{self.name}'s {task} hardly changes with the image, even from an "
                    f"image to its negative{likely} (by {change / scale:.2g} of its "
                    "scale)."
                )
        return said

    def guesses(self, likely: str) -> list[str]:
        """What to say of tasks that are no better than a constant."""
        said = []
        for task in self.sound:
            guess = chance.constant(task, self.batch, self.num_classes)
            scores = self._scores(task, self.outputs)
            if chance.no_better(scores, guess, task):
                headline = tasks_lib.TASKS[task].metrics[0].name
                said.append(
                    f"{self.name}'s {task} is no better than a constant guess{likely} "
                    f"({headline} {scores[0]:.3g}, a constant's is {guess[0]:.3g}, on "
                    f"the first {self._count} images)."
                )
        return said

    def cures(self, given: keras.Model, changed: bool) -> list[str]:
        """What to say if the model as it was given does far better on other images.

        `changed`: whether it is looked at on images of another range than [0, 1].
        """
        if not self.sound:
            return []
        cures = (*((input_ranges.AS_THEY_ARE,) if changed else ()), *input_ranges.CURES)
        found = input_ranges.find(
            self.call
            if given is self.model
            else _called(given, self.sound, self.name, self.size),
            self.outputs,
            self.batch,
            self.sound,
            self.num_classes,
            cures,
        )
        if found is None:
            return []
        cure, outputs = found
        task = self.sound[0]
        there, here = (self._scores(task, o)[0] for o in (outputs, self.outputs))
        headline = tasks_lib.TASKS[task].metrics[0].name
        return [
            f"{self.name} does far better on images {cure.images}, and so it is not "
            f"attacked as it was meant; {cure.advice} ({task} {headline} {there:.2g}, "
            f"as it is {here:.2g}, on the first {self._count} images)."
        ]

    def bad_gradients(self) -> list[str]:
        """What to say where the gradient of the tasks' losses is not finite."""
        if not self.sound:
            return []

        @tf.function(autograph=False)
        def gradient(images, targets, masks):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                outputs = stateless.outputs(self.model, images)
                losses = tasks_lib.task_losses(self.sound, outputs, targets, masks)
            return tape.gradient(list(losses.values()), images)

        bad = 0
        for i in range(0, self._count, self.size):
            few = tf.nest.map_structure(
                lambda array, i=i: tf.constant(array[i : i + self.size]),
                [self.batch[kind] for kind in ("image", "targets", "masks")],
            )
            slope = gradient.get_concrete_function(*few)(*few)
            if slope is None:  # Attacks refuse it themselves.
                return []
            bad += int(np.sum(~np.isfinite(slope).all(axis=(1, 2, 3))))
        if not bad:
            return []
        return [
            f"the gradient of {self.name}'s losses is not finite, though its outputs "
            "are: attacks take what is not a number as 0, and may be too weak "
            f"({bad} of the first {self._count} images)."
        ]

    def _scores(self, task: str, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return chance.scores(task, outputs[task], self.batch, self.num_classes)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _spread(values: np.ndarray, axis: int) -> float:
    """The root mean square of what differs along an axis."""
    return _rms(values - values.mean(axis=axis, keepdims=True))


def _likely(own: bool) -> str:
    if own:
        return "; it may be trained on other data, or hardly at all"
    return (
        "; it may be trained on other data or another order of classes, or want images "
        "of another range (--input_range) or order of channels, though in none of the "
        "usual ones, 0-255, -1 to 1, ImageNet's, BGR, is it far better"
    )
