# SPDX-License-Identifier: Apache-2.0
"""Tries a model on a few images before anything is attacked.

A model must be attacked in the way that it is meant to be used. A net that expects
0-255 also gives outputs for images in [0, 1], but they are meaningless, and so is an
attack on them. So this checks whether outputs are probabilities (they are then turned
into logits, see `models.probabilities`), are finite, depend on the image, and are
better than a guess; and whether the model does far better on the same images in another
range or order of channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import base
from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import NOTE
from mtr_tf.errors import InputError
from mtr_tf.errors import doubts_first
from mtr_tf.errors import first_line
from mtr_tf.errors import input_error_within
from mtr_tf.errors import raise_out_of_memory
from mtr_tf.evaluation import evaluator
from mtr_tf.evaluation import largest_batch
from mtr_tf.evaluation import model_fit
from mtr_tf.models import adapters
from mtr_tf.models import input_range
from mtr_tf.models import probabilities
from mtr_tf.models import stateless
from mtr_tf.runs.loading import Run
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet

_IMAGES = 16  # So many are looked at, at most.
_FAR_BETTER = 0.7  # What a cure must leave of the error,
_AND_GOOD = 0.9  # and of a guess's error.
_CAFFE = (103.939, 116.779, 123.68)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # Of ImageNet.
_TURN = "reverse the channels in front of the model (images[..., ::-1])"
_STILL = 0.01  # Outputs that change by less of their scale do not depend on the image.
_STILL_OF_SIZE = 1e-4  # The same of their size, where nothing tells their scale.

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
    replicas: int = 1,
) -> tuple[Run, Run | None, list[str]]:
    """Tries --ckpt and --source_ckpt on a few images, and logs what it finds.

    The images are spread over those that are attacked: the first ones may all be of one
    class.

    Args:
      config: The settings.
      run: What is attacked.
      source_run: What adversarial images are made on, if that is something else.
      info: Of the data set.
      columns: The split to attack.
      tasks: Those of `run` that are looked at.
      attacked: Those of them that are attacked.
      replicas: How many share a batch, of which one does all that is done here.

    Returns:
      Both with models as attacks need them, from images in [0, 1] to logits; and what
      must be warnings of them wherever results are, as sentences.

    Raises:
      InputError: A model cannot be called on these images, or takes no other range.
    """
    affine = config.input_affine
    if affine and all(each.config for each in (run, source_run) if each):
        raise InputError(
            "--input_range, --input_mean and --input_std are only for your own "
            "models; a run of mtr_tf.train normalises images in [0, 1] itself, so "
            "leave them out."
        )
    total = min(config.num_examples or len(columns), len(columns))
    count = min(total, _IMAGES)
    rows = np.arange(count) * total // count
    known = TaskSet(info.tasks[task] for task in tasks if task in info.tasks)
    own = any(not each.config for each in (run, source_run) if each)
    if own and not (known or affine) and config.targets == OWN_TARGETS:
        logging.warning(
            "without labels nobody can see which range of images a model takes, so it "
            "gets them in [0, 1]; if it takes another, give --input_range, or "
            "--input_mean and --input_std"
        )
    batch = batching.gather(columns, known, rows, info.num_classes)

    def looked(
        of: Run, tasks: Sequence[str], name: str = "the model"
    ) -> tuple[Run, list[str]]:
        by = functools.partial(look, of, info, batch, tasks, affine, name)
        if config.batch_size == "auto":
            return largest_batch.halving(by, _IMAGES)
        return by(config.batch_size // replicas)

    run, warnings = looked(run, tasks)
    if source_run:
        source_run, more = looked(source_run, attacked, "the model of --source_ckpt")
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
      batch: The images; see `data.batching.gather`. Of tasks without targets
        there only the outputs are looked at.
      tasks: The tasks that are looked at.
      affine: What the model wants, if it is a .keras file; None: images in [0, 1].
      name: What messages call the model.
      size: So many images at a time go through the model, at most.

    Returns:
      The run with the model from images in [0, 1] to logits, and sentences.
    """
    trained = run.config is not None  # By mtr_tf.train, on images in [0, 1].
    records = TaskSet(model_fit.task_of(run, info, task) for task in tasks)
    model, channels = run.model, info.image_shape[-1]
    if affine and not trained:
        _check_channels(channels, affine)
        model = input_range.in_front(model, *affine, channels if run.packed else None)
    images = batch["image"]
    call = _called(model, tasks, name, size)
    finish, warnings = _finishing(
        model, call(images), images[:size], records.values(), name
    )
    finished = finish(model)
    if finished is not model:
        model, call = finished, _called(finished, tasks, name, size)
    first = _FirstLook(
        model, call, batch, records, info.num_classes, name, size, channels
    )
    first.report_not_finite()
    cures = []
    if not trained:
        as_given = finish(run.model) if affine else model
        cures = first.cures(as_given, affine is not None)
    likely = "" if cures else _likely(trained, tried=bool(first.judged))
    found = cures + first.unresponsive(likely) + first.guesses(likely)
    found += first.bad_gradients()
    return dataclasses.replace(run, model=model), doubts_first(found + warnings)


def _check_channels(channels: int, affine: Affine) -> None:
    """Raises `InputError` where --input_mean or --input_std has other channels."""
    if len(affine[0]) != channels and any(len({*n}) > 1 for n in affine):
        raise InputError(
            "--input_mean and --input_std must be one number, or one for each of the "
            f"model's {channels} channels; got {len(affine[0])}."
        )


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
            raise_out_of_memory(error)
            if told := input_error_within(error):
                raise InputError(told) from error
            raise InputError(
                f"{name} cannot be called on {len(images)} images of {images.shape[1]}x"
                f"{images.shape[2]} ({first_line(error)}); give another "
                "--image_size, or change the model."
            ) from error
        return {task: tf.cast(outputs[task], tf.float32).numpy() for task in tasks}

    return call


def _finishing(
    model: keras.Model,
    outputs: Mapping[str, np.ndarray],
    images: np.ndarray,
    tasks: Iterable[Task],
    name: str,
) -> tuple[Callable[[keras.Model], keras.Model], list[str]]:
    """What is put behind a model of these outputs, and what to say of it.

    Logits in place of probabilities, two logits in place of one for two classes, and
    maps of the images' size, in this order.
    """
    kinds, warnings, exact = {}, [], {}
    for task in tasks:
        if not (task.discrete or task.kind == "labels"):
            continue
        output, tensor = outputs[task.name], model.output[task.name]
        single = task.kind == "labels" or output.shape[-1] == 1
        if kind := probabilities.kind(output, tensor, single):
            kinds[task.name] = kind
        elif probabilities.unclear(output, tensor):
            warnings.append(
                f"{name}'s {task.name} is in [0, 1], as probabilities are, but is "
                "taken for logits, because nothing shows what made it; if a "
                "sigmoid did, give the model without it."
            )
    if kinds:
        _, exact = probabilities.with_logits(model, kinds, images)
    for task, kind in kinds.items():
        before, how = NOTE, f"the logits before its {kind}."
        if not exact[task]:
            before, how = (
                "",
                "the logs of these. Where they are exactly 0 there is no gradient, so "
                f"give the model without its {kind} if you can.",
            )
        warnings.append(
            f"{before}{name}'s {task} gives probabilities, but losses need logits: it "
            f"is scored and attacked by {how}"
        )
    ones = [
        task.name
        for task in tasks
        if task.discrete and task.channels == 2 and outputs[task.name].shape[-1] == 1
    ]
    height, width = images.shape[1:3]
    sizes = {}
    for task in tasks:
        size = outputs[task.name].shape[1:3]
        if task.is_map and size != (height, width):
            sizes[task.name] = (height, width)
            what = "logits are" if task.name in kinds or task.discrete else "map is"
            said = (
                f"{name}'s {task.name} is {size[0]}x{size[1]}, so its {what} resized "
                f"bilinearly to {height}x{width}, the size of the targets"
            )
            if not _may_be_cut(size, (height, width)):
                warnings.append(f"{NOTE}{said}.")
                continue
            warnings.append(
                f"{said}, which is no whole multiple of it: an output of convolutions "
                "without padding covers only the middle of the image, and is now "
                "stretched; if so, pad it (keras.layers.ZeroPadding2D), and mask the "
                "border of the targets."
            )

    def finish(model: keras.Model) -> keras.Model:
        if kinds:
            model, _ = probabilities.with_logits(model, kinds, images, exact)
        if ones:
            model = adapters.with_two_logits(model, ones)
        return adapters.resized(model, sizes) if sizes else model

    return finish, warnings


def _may_be_cut(size: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a map may be of the middle alone, as of convolutions without padding.

    It then lacks about as many pixels in height as in width, perhaps after a stride. So
    does any smaller map of a square image: those that strides explain are not doubted.

    Args:
      size: Height and width of the map.
      image: Those of the image.
    """
    if _is_scaled(size, image):
        return False
    for stride in range(1, min(image) + 1):
        lacks = [large - stride * side for side, large in zip(size, image, strict=True)]
        if min(lacks) > stride and abs(lacks[0] - lacks[1]) < stride:
            return True
    return False


def _is_scaled(size: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether strides, which round up or down, give a whole map of this size.

    Or those of an encoder, which round up, and a decoder, all of them powers of two.
    """
    sides = [*zip(size, image, strict=True)]
    strides = range(1, max(image) + 1)
    if any(all(s in (i // n, -(-i // n)) for s, i in sides) for n in strides):
        return True
    twos = [2**power for power in range(max(image).bit_length() + 1)]
    return any(all(s == up * -(-i // n) for s, i in sides) for n in twos for up in twos)


@dataclasses.dataclass(frozen=True)
class _FirstLook:
    """A model that gives logits, on a few images."""

    model: keras.Model
    call: _Call
    batch: Mapping[str, Any]
    tasks: TaskSet
    num_classes: int
    name: str
    size: int
    channels: int  # Of the image; what comes behind it is no part of it.

    def _changed(self, change: Callable[[np.ndarray], np.ndarray], x: np.ndarray):
        """Images with the image's own channels changed, in float32."""
        image, behind = np.split(x, [self.channels], axis=-1)
        return np.concatenate([change(image), behind], -1) if behind.size else change(x)

    @property
    def _count(self) -> int:
        return len(self.batch["image"])

    @functools.cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        return self.call(self.batch["image"])

    @functools.cached_property
    def finite(self) -> list[str]:
        """The tasks whose outputs are finite."""
        return [t for t in self.tasks if np.isfinite(self.outputs[t]).all()]

    @functools.cached_property
    def sound(self) -> list[str]:
        """Those of them that have targets here."""
        masks = self.batch["masks"]
        return [t for t in self.finite if t in masks and masks[t].any()]

    @functools.cached_property
    def constants(self) -> dict[str, np.ndarray]:
        """What a constant comes to, of each sound task; see `_constant`."""
        return {
            name: _constant(self.tasks[name], self.batch, self.num_classes)
            for name in self.sound
        }

    @functools.cached_property
    def judged(self) -> list[str]:
        """Those of them whose errors compare: a perfect constant leaves nothing to."""
        return [t for t in self.sound if self._error(t, self.constants[t]) > 0]

    def report_not_finite(self) -> None:
        """Logs it now; of how many images in all is known in the end."""
        for task, output in self.outputs.items():
            bad = _not_finite(output)
            if bad:
                logging.warning(
                    "%s's %s is not finite for %d of %d images",
                    self.name,
                    task,
                    bad,
                    len(output),
                )

    def unresponsive(self, likely: str) -> list[str]:
        """What to say of tasks whose outputs hardly depend on the image."""
        negative = self.call(self._changed(lambda x: 1 - x, self.batch["image"]))
        warnings = []
        for task in self.finite:
            output = self.outputs[task]
            change = max(_rms(negative[task] - output), _spread(output, axis=0))
            still = _STILL
            if self.tasks[task].discrete:
                scale = _spread(output, axis=-1)
            elif task not in self.sound:
                scale, still = _rms(output), _STILL_OF_SIZE
            else:
                valid = self.batch["masks"][task] > 0
                scale = _spread(self.batch["targets"][task][valid], axis=0)
            if change <= still * scale:  # Both are 0 where all outputs are equal.
                share = change / scale if change else 0.0
                warnings.append(
                    f"{self.name}'s {task} hardly changes with the image, even from "
                    f"an image to its negative{likely} (by {share:.2g} of its scale)."
                )
        return warnings

    def guesses(self, likely: str) -> list[str]:
        """What to say of tasks that are no better than a constant.

        Nothing where a constant is perfect, as where all targets are of one class.
        """
        warnings = []
        for task in self.sound:
            scores, guess = self._scores(task, self.outputs), self.constants[task]
            errors, worst = (_errors(self.tasks[task], of) for of in (scores, guess))
            if worst[0] != 0 and np.all(errors >= worst):  # In no metric better.
                headline = self.tasks[task].metrics[0].name
                warnings.append(
                    f"{self.name}'s {task} is no better than a constant guess{likely} "
                    f"({headline} {scores[0]:.3g}, a constant's is {guess[0]:.3g}, on "
                    f"{self._count} images)."
                )
        return warnings

    def cures(self, given: keras.Model, changed: bool) -> list[str]:
        """What to say if the model as it was given does far better on other images.

        `changed`: whether it is looked at on images of another range than [0, 1].
        """
        judged = self.judged
        if not judged:
            return []
        call = self.call
        if given is not self.model:
            call = _called(given, judged, self.name, self.size)
        cures = [c for c in _CURES if self.channels == 3 or not c.of_colours]
        better = self._far_better(call, [_AS_THEY_ARE, *cures] if changed else cures)
        if better is None:
            return []
        cure, outputs = better
        task = judged[0]
        there, here = (self._scores(task, o)[0] for o in (outputs, self.outputs))
        headline = self.tasks[task].metrics[0].name
        return [
            f"{self.name} does far better on images {cure.images}, so it is probably "
            f"attacked in the wrong way; {cure.advice} ({task} {headline} {there:.2g} "
            f"instead of {here:.2g}, on {self._count} images)."
        ]

    def _far_better(
        self, call: _Call, cures: Sequence[_Cure]
    ) -> tuple[_Cure, Mapping[str, np.ndarray]] | None:
        """The cure that a model does far better on, with its outputs; None without one.

        Args:
          call: The model: images, changed by a cure, to outputs.
          cures: To try.
        """
        limit = _FAR_BETTER * self._share_of_error(self.outputs)
        best, limit = None, min(limit, _AND_GOOD)
        for cure in cures:
            outputs = call(self._changed(cure.change, self.batch["image"]))
            if all(np.isfinite(outputs[task]).all() for task in self.judged):
                error = self._share_of_error(outputs)
                if error < limit:
                    best, limit = (cure, outputs), error
        return best

    def _share_of_error(self, outputs: Mapping[str, np.ndarray]) -> float:
        """The headline's error as a share of a constant's, mean over judged tasks."""
        shares = []
        for task in self.judged:
            error = self._error(task, self._scores(task, outputs))
            shares.append(error / self._error(task, self.constants[task]))
        return float(np.mean(shares))

    def bad_gradients(self) -> list[str]:
        """What to say where the gradient of the tasks' losses is not finite."""
        if not self.sound:
            return []
        sound = TaskSet(self.tasks[task] for task in self.sound)

        @tf.function(autograph=False)
        def gradient(images, targets, masks):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                outputs = stateless.outputs(self.model, images)
                losses = tasks_lib.task_losses(sound, outputs, targets, masks)
            return tape.gradient(list(losses.values()), images)

        bad = 0
        for i in range(0, self._count, self.size):
            few = tf.nest.map_structure(
                lambda array, i=i: tf.constant(array[i : i + self.size]),
                [self.batch[kind] for kind in ("image", "targets", "masks")],
            )
            with stateless.unchanged(self.model), base.input_errors():
                slope = gradient.get_concrete_function(*few)(*few)
            if slope is None:  # Attacks refuse it themselves.
                return []
            bad += _not_finite(slope.numpy()[..., : self.channels])
        if not bad:
            return []
        return [
            f"the gradient of {self.name}'s losses is not finite, although its "
            f"outputs are: attacks treat NaN as 0, and may be too weak ({bad} of "
            f"{self._count} images)."
        ]

    def _error(self, task: str, scores: np.ndarray) -> float:
        """That of the headline."""
        return _errors(self.tasks[task], scores)[0]

    def _scores(self, task: str, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        record = self.tasks[task]
        return _scores(record, outputs[task], self.batch, self.num_classes)


def _not_finite(values: np.ndarray) -> int:
    """How many of the first axis have something that is not finite."""
    finite = np.isfinite(values).reshape(len(values), -1)
    return int(np.sum(~finite.all(axis=1)))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _spread(values: np.ndarray, axis: int) -> float:
    """The root mean square of what differs along an axis."""
    return _rms(values - values.mean(axis=axis, keepdims=True))


def _likely(trained: bool, tried: bool) -> str:
    """The likely causes; `trained`: by mtr_tf.train; `tried`: in other ranges."""
    if trained:
        return "; it may need more training (--epochs), or it was trained on other data"
    likely = (
        "; perhaps it was trained on other data or another order of classes, or "
        "expects images in another range (--input_range) or order of channels"
    )
    if not tried:
        return likely
    return (
        f"{likely}, although it is not far better in any of the usual ones (0-255, -1 "
        "to 1, ImageNet's, BGR)"
    )


# Images as a model may have been trained on them.


@dataclasses.dataclass(frozen=True)
class _Cure:
    """What images may have been.

    Attributes:
      images: What they are, as in "on images ...".
      advice: What gives the model such images.
      change: Images in [0, 1] -> such images.
      of_colours: Whether that is about images of three colours.
    """

    images: str
    advice: str
    change: Callable[[np.ndarray], np.ndarray]
    of_colours: bool = True


_AS_THEY_ARE = _Cure(
    "from 0 to 1",
    "leave out --input_range, --input_mean and --input_std",
    lambda x: x,
    of_colours=False,
)
_CURES = (
    _Cure("times 255", "give --input_range=0,255", lambda x: 255 * x, False),
    _Cure("from -1 to 1", "give --input_range=-1,1", lambda x: 2 * x - 1, False),
    _Cure(
        "standardised as for ImageNet",
        "give --input_mean=0.485,0.456,0.406 --input_std=0.229,0.224,0.225",
        lambda x: (x - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32),
    ),
    _Cure("in the order BGR", _TURN, lambda x: x[..., ::-1]),
    _Cure(
        "in the order BGR times 255",
        f"give --input_range=0,255 and {_TURN}",
        lambda x: 255 * x[..., ::-1],
    ),
    _Cure(
        "in the order BGR times 255 minus Caffe's means",
        f"give --input_range=0,255 --input_mean=123.68,116.779,103.939 and {_TURN}",
        lambda x: 255 * x[..., ::-1] - np.array(_CAFFE, np.float32),
    ),
)


# Scores, and what a guess scores that never looks at an image.


def _scores(
    task: Task, output: np.ndarray, batch: Mapping[str, Any], num_classes: int
) -> np.ndarray:
    """All metrics of a task but the loss, the headline first, float64 `[metrics]`."""
    rows = tasks_lib.statistics(
        TaskSet((task,)),
        {task.name: tf.constant(output)},
        batch["targets"],
        batch["masks"],
        num_classes,
    )
    rows = tf.nest.map_structure(np.asarray, rows)
    values = evaluator.values(rows, {task.name: task})[task.name]
    return np.array([values[metric.name] for metric in task.metrics[:-1]])


def _errors(task: Task, of: np.ndarray) -> np.ndarray:
    """Such scores, `[..., metrics]`, as errors: 1 - score where higher is better."""
    higher = [metric.better == "higher" for metric in task.metrics[:-1]]
    return np.where(higher, 1 - of, of)


def _constant(task: Task, batch: Mapping[str, Any], num_classes: int) -> np.ndarray:
    """The best of each metric that a constant comes to, `[metrics]`.

    Of classes always the commonest one of the batch, else the median or the mean of its
    targets, by channel. Some pixel of the task must be valid.
    """
    mask = batch["masks"][task.name]
    values = batch["targets"][task.name][mask > 0]
    if task.discrete:
        count = task.output_channels(num_classes)
        counts = np.bincount(values.astype(np.int64), minlength=count)
        commonest = counts[:count].argmax()
        guesses = [np.eye(count, dtype=np.float32)[commonest]]
    elif task.kind == "labels":  # Logits: the sign says whether a label is there.
        likely = np.mean(values, axis=0) > 0.5
        guesses = [np.where(likely, 1, -1).astype(np.float32)]
    else:
        guesses = [np.median(values, axis=0), np.mean(values, axis=0)]
    shape = (*mask.shape, len(guesses[0]))
    candidates = np.stack(
        [_scores(task, np.broadcast_to(g, shape), batch, num_classes) for g in guesses]
    )
    best = _errors(task, candidates).argmin(axis=0)
    return candidates[best, np.arange(len(best))]
