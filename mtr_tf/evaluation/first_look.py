# SPDX-License-Identifier: Apache-2.0
"""Tries a model on a few images before anything is attacked.

A model must be attacked as it is meant to be used. A net that expects 0-255 also gives
outputs for images in [0, 1], but they are meaningless, and so is an attack on them. So
this checks whether outputs are probabilities (they are then turned into logits, see
`models.probabilities`), are finite, depend on the image, and are better than a guess;
and whether the model does far better on the same images in another range or order of
channels.
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

_MOST_IMAGES = 16
_ERROR_LEFT = 0.7  # Largest share of the error that a cure leaves,
_GUESS_ERROR = 0.9  # and of a guess's error.
_CAFFE = (103.939, 116.779, 123.68)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # Of ImageNet.
_REVERSE_ADVICE = "reverse the channels in front of the model (images[..., ::-1])"
_LEAST_CHANGE = 0.01  # Of outputs, as a share of their scale.
_LEAST_CHANGE_OF_SIZE = 1e-4  # As a share of their size, if the scale is unknown.

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
    """Tries --ckpt and --source_ckpt on a few images, and logs warnings.

    The images are spread over all attacked ones, since the first may be of one class.

    Args:
      config: The settings.
      run: The model to score, and to attack without a `source_run`.
      source_run: The model on which adversarial images are made, if it is another.
      info: About the data set.
      columns: The split to attack.
      tasks: The scored tasks of `run`.
      attacked: The attacked tasks among them.
      replicas: How many replicas share a batch; only one of them is used here.

    Returns:
      Both runs with models as attacks need them, from images in [0, 1] to logits; and
      sentences of warning for all results.

    Raises:
      InputError: A model cannot be called on these images, or takes no other range.
    """
    affine = config.input_affine
    has_own_model = any(not r.config for r in (run, source_run) if r)
    if affine and not has_own_model:
        raise InputError(
            "--input_range, --input_mean and --input_std are only for your own "
            "models; a run of mtr_tf.train normalises images in [0, 1] itself, so "
            "leave them out."
        )
    total = min(config.num_examples or len(columns), len(columns))
    count = min(total, _MOST_IMAGES)
    rows = np.arange(count) * total // count
    data_tasks = TaskSet(info.tasks[task] for task in tasks if task in info.tasks)
    if has_own_model and not (data_tasks or affine) and config.targets == OWN_TARGETS:
        logging.warning(
            "without labels nobody can see which range of images a model takes, so it "
            "gets them in [0, 1]; if it takes another, give --input_range, or "
            "--input_mean and --input_std"
        )
    batch = batching.gather(columns, data_tasks, rows, info.num_classes)

    def look_at_run(
        model_run: Run, tasks: Sequence[str], name: str = "the model"
    ) -> tuple[Run, list[str]]:
        look_once = functools.partial(look, model_run, info, batch, tasks, affine, name)
        if config.batch_size == "auto":
            return largest_batch.halving(look_once, _MOST_IMAGES)
        return look_once(config.batch_size // replicas)

    run, warnings = look_at_run(run, tasks)
    if source_run:
        source_run, source_warnings = look_at_run(
            source_run, attacked, "the model of --source_ckpt"
        )
        warnings += source_warnings
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
    size: int = _MOST_IMAGES,
) -> tuple[Run, list[str]]:
    """Tries one model on a few images.

    Args:
      run: The model.
      info: About the data set.
      batch: The images; see `data.batching.gather`. Of tasks without targets in it,
        only the outputs are checked.
      tasks: The scored tasks.
      affine: Scale and offset of inputs for a .keras file; None: images in [0, 1].
      name: The name of the model in messages.
      size: How many images go through the model at a time, at most.

    Returns:
      The run with a model from images in [0, 1] to logits, and sentences of warning.
    """
    trained = run.config is not None  # By mtr_tf.train, on images in [0, 1].
    records = TaskSet(model_fit.task_of(run, info, task) for task in tasks)
    model, channels = run.model, info.image_shape[-1]
    if affine and not trained:
        _check_channels(channels, affine)
        model = input_range.in_front(model, *affine, channels if run.packed else None)
    images = batch["image"]
    call = _make_call(model, tasks, name, size)
    finish, warnings = _make_finish(
        model, call(images), images[:size], records.values(), name
    )
    final_model = finish(model)
    if final_model is not model:
        model, call = final_model, _make_call(final_model, tasks, name, size)
    first_look = _FirstLook(
        model, call, batch, records, info.num_classes, name, size, channels
    )
    first_look.report_not_finite()
    cures = []
    if not trained:
        original = finish(run.model) if affine else model
        cures = first_look.cures(original, affine is not None)
    causes = "" if cures else _likely_causes(trained, tried=bool(first_look.judged))
    doubts = cures + first_look.unresponsive(causes) + first_look.guesses(causes)
    doubts += first_look.bad_gradients()
    return dataclasses.replace(run, model=model), doubts_first(doubts + warnings)


def _check_channels(channels: int, affine: Affine) -> None:
    """Raises `InputError` if --input_mean or --input_std has other channels."""
    if len(affine[0]) != channels and any(len({*n}) > 1 for n in affine):
        raise InputError(
            "--input_mean and --input_std must be one number, or one for each of the "
            f"model's {channels} channels; got {len(affine[0])}."
        )


_Call = Callable[[np.ndarray], dict[str, np.ndarray]]


def _make_call(model: keras.Model, tasks: Sequence[str], name: str, size: int) -> _Call:
    """Returns images -> outputs of the tasks, float32; built as a graph only once."""
    graph = tf.function(lambda x: stateless.outputs(model, x), autograph=False)

    def call(images: np.ndarray) -> dict[str, np.ndarray]:
        parts = [call_part(images[i : i + size]) for i in range(0, len(images), size)]
        return {task: np.concatenate([p[task] for p in parts]) for task in tasks}

    def call_part(images: np.ndarray) -> dict[str, np.ndarray]:
        try:  # As a graph, because layers themselves warn otherwise.
            images = tf.constant(images, tf.float32)
            with stateless.unchanged(model):
                outputs = graph.get_concrete_function(images)(images)
        except Exception as error:  # Layers raise errors of any class.
            raise_out_of_memory(error)
            if message := input_error_within(error):
                raise InputError(message) from error
            raise InputError(
                f"{name} cannot be called on {len(images)} images of {images.shape[1]}x"
                f"{images.shape[2]} ({first_line(error)}); give another "
                "--image_size, or change the model."
            ) from error
        return {task: tf.cast(outputs[task], tf.float32).numpy() for task in tasks}

    return call


def _make_finish(
    model: keras.Model,
    outputs: Mapping[str, np.ndarray],
    images: np.ndarray,
    tasks: Iterable[Task],
    name: str,
) -> tuple[Callable[[keras.Model], keras.Model], list[str]]:
    """A function that adapts the outputs of a model, and sentences about it.

    It makes logits of probabilities, two logits of a single one for two classes, and
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
        prefix, method = NOTE, f"the logits before its {kind}."
        if not exact[task]:
            prefix, method = (
                "",
                "the logs of these. Where they are exactly 0 there is no gradient, so "
                f"give the model without its {kind} if you can.",
            )
        warnings.append(
            f"{prefix}{name}'s {task} gives probabilities, but losses need logits: it "
            f"is scored and attacked by {method}"
        )
    single_logits = [
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
            noun = "logits are" if task.name in kinds or task.discrete else "map is"
            text = (
                f"{name}'s {task.name} is {size[0]}x{size[1]}, so its {noun} resized "
                f"bilinearly to {height}x{width}, the size of the targets"
            )
            if not _may_be_cut(size, (height, width)):
                warnings.append(f"{NOTE}{text}.")
                continue
            warnings.append(
                f"{text}, which is no whole multiple of it: an output of convolutions "
                "without padding covers only the middle of the image, and is now "
                "stretched; if so, pad it (keras.layers.ZeroPadding2D), and mask the "
                "border of the targets."
            )

    def finish(model: keras.Model) -> keras.Model:
        if kinds:
            model, _ = probabilities.with_logits(model, kinds, images, exact)
        if single_logits:
            model = adapters.with_two_logits(model, single_logits)
        return adapters.resized(model, sizes) if sizes else model

    return finish, warnings


def _may_be_cut(size: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a map may cover the middle alone, by convolutions without padding.

    Such a map lacks about as many pixels in height as in width, perhaps after a stride.
    So does any smaller map of a square image, but sizes that strides explain are taken
    for whole maps.

    Args:
      size: Height and width of the map.
      image: Height and width of the image.
    """
    if _is_scaled(size, image):
        return False
    for stride in range(1, min(image) + 1):
        missing = [
            image_side - stride * side
            for side, image_side in zip(size, image, strict=True)
        ]
        if min(missing) > stride and abs(missing[0] - missing[1]) < stride:
            return True
    return False


def _is_scaled(size: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether strides, which round up or down, give a whole map of this size.

    Or an encoder's strides, which round up, and a decoder's, all powers of two.
    """
    sides = [*zip(size, image, strict=True)]
    strides = range(1, max(image) + 1)
    if any(all(s in (i // n, -(-i // n)) for s, i in sides) for n in strides):
        return True
    powers = [2**power for power in range(max(image).bit_length() + 1)]
    return any(
        all(s == up * -(-i // n) for s, i in sides) for n in powers for up in powers
    )


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
    channels: int  # Those of the image; packed inputs follow.

    def _change_images(self, change: Callable[[np.ndarray], np.ndarray], x: np.ndarray):
        """Images with the image's own channels changed, in float32."""
        image, packed = np.split(x, [self.channels], axis=-1)
        return np.concatenate([change(image), packed], -1) if packed.size else change(x)

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
        """The tasks with finite outputs that have targets in the batch."""
        masks = self.batch["masks"]
        return [t for t in self.finite if t in masks and masks[t].any()]

    @functools.cached_property
    def constants(self) -> dict[str, np.ndarray]:
        """The scores of a constant for each sound task; see `_constant_scores`."""
        return {name: self._constant_scores(self.tasks[name]) for name in self.sound}

    @functools.cached_property
    def judged(self) -> list[str]:
        """The sound tasks whose constant is not perfect, so that errors compare."""
        return [t for t in self.sound if self._error(t, self.constants[t]) > 0]

    def report_not_finite(self) -> None:
        """Logs outputs that are not finite; their total is known only in the end."""
        for task, output in self.outputs.items():
            count = _count_not_finite(output)
            if count:
                logging.warning(
                    "%s's %s is not finite for %d of %d images",
                    self.name,
                    task,
                    count,
                    len(output),
                )

    def unresponsive(self, causes: str) -> list[str]:
        """Warnings about tasks whose outputs hardly depend on the image."""
        negatives = self.call(self._change_images(lambda x: 1 - x, self.batch["image"]))
        warnings = []
        for task in self.finite:
            output = self.outputs[task]
            change = max(_rms(negatives[task] - output), _spread(output, axis=0))
            limit = _LEAST_CHANGE
            if self.tasks[task].discrete:
                scale = _spread(output, axis=-1)
            elif task not in self.sound:
                scale, limit = _rms(output), _LEAST_CHANGE_OF_SIZE
            else:
                valid = self.batch["masks"][task] > 0
                scale = _spread(self.batch["targets"][task][valid], axis=0)
            if change <= limit * scale:  # Both are 0 where all outputs are equal.
                share = change / scale if change else 0.0
                warnings.append(
                    f"{self.name}'s {task} hardly changes with the image, even from "
                    f"an image to its negative{causes} (by {share:.2g} of its scale)."
                )
        return warnings

    def guesses(self, causes: str) -> list[str]:
        """Warnings about tasks that are no better than a constant.

        There are none where a constant is perfect, as for targets of a single class.
        """
        warnings = []
        for task in self.sound:
            record, guess = self.tasks[task], self.constants[task]
            scores = self._scores(record, self.outputs[task])
            errors, guess_errors = _errors(record, scores), _errors(record, guess)
            # Better in no metric.
            if guess_errors[0] != 0 and np.all(errors >= guess_errors):
                warnings.append(
                    f"{self.name}'s {task} is no better than a constant guess{causes} "
                    f"({record.metrics[0].name} {scores[0]:.3g}, a constant's is "
                    f"{guess[0]:.3g}, on {self._count} images)."
                )
        return warnings

    def cures(self, original: keras.Model, in_other_range: bool) -> list[str]:
        """A warning if the original model does far better on other images.

        `in_other_range`: whether the model is tried in another range than [0, 1].
        """
        judged = self.judged
        if not judged:
            return []
        call = self.call
        if original is not self.model:
            call = _make_call(original, judged, self.name, self.size)
        cures = [c for c in _CURES if self.channels == 3 or not c.of_colours]
        best = self._best_cure(call, [_NO_CHANGE, *cures] if in_other_range else cures)
        if best is None:
            return []
        cure, outputs = best
        task = self.tasks[judged[0]]
        cured_score, score = (
            self._scores(task, o[task.name])[0] for o in (outputs, self.outputs)
        )
        return [
            f"{self.name} does far better on images {cure.images}, so it is probably "
            f"attacked in the wrong way; {cure.advice} ({task.name} "
            f"{task.metrics[0].name} {cured_score:.2g} instead of {score:.2g}, on "
            f"{self._count} images)."
        ]

    def _best_cure(
        self, call: _Call, cures: Sequence[_Cure]
    ) -> tuple[_Cure, Mapping[str, np.ndarray]] | None:
        """The cure that helps most, with its outputs; None if none helps enough.

        Args:
          call: The model: images, changed by a cure, to outputs.
          cures: The cures to try.
        """
        limit = _ERROR_LEFT * self._relative_error(self.outputs)
        best, limit = None, min(limit, _GUESS_ERROR)
        for cure in cures:
            outputs = call(self._change_images(cure.change, self.batch["image"]))
            if all(np.isfinite(outputs[task]).all() for task in self.judged):
                error = self._relative_error(outputs)
                if error < limit:
                    best, limit = (cure, outputs), error
        return best

    def _relative_error(self, outputs: Mapping[str, np.ndarray]) -> float:
        """The headline's error as a share of a constant's, mean over judged tasks."""
        shares = []
        for task in self.judged:
            error = self._error(task, self._scores(self.tasks[task], outputs[task]))
            shares.append(error / self._error(task, self.constants[task]))
        return float(np.mean(shares))

    def bad_gradients(self) -> list[str]:
        """A warning if the gradient of the tasks' losses is not finite."""
        if not self.sound:
            return []
        tasks = TaskSet(self.tasks[task] for task in self.sound)

        @tf.function(autograph=False)
        def gradient(images, targets, masks):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                outputs = stateless.outputs(self.model, images)
                losses = tasks_lib.task_losses(tasks, outputs, targets, masks)
            return tape.gradient(list(losses.values()), images)

        count = 0
        for i in range(0, self._count, self.size):
            arguments = tf.nest.map_structure(
                lambda array, i=i: tf.constant(array[i : i + self.size]),
                [self.batch[kind] for kind in ("image", "targets", "masks")],
            )
            with stateless.unchanged(self.model), base.input_errors():
                slope = gradient.get_concrete_function(*arguments)(*arguments)
            if slope is None:  # Attacks refuse it themselves.
                return []
            count += _count_not_finite(slope.numpy()[..., : self.channels])
        if not count:
            return []
        return [
            f"the gradient of {self.name}'s losses is not finite, although its "
            f"outputs are: attacks treat NaN as 0, and may be too weak ({count} of "
            f"{self._count} images)."
        ]

    def _error(self, task: str, scores: np.ndarray) -> float:
        """The error of the headline metric."""
        return _errors(self.tasks[task], scores)[0]

    def _scores(self, task: Task, output: np.ndarray) -> np.ndarray:
        """All metrics of a task but the loss, headline first, float64 `[metrics]`."""
        rows = tasks_lib.statistics(
            TaskSet((task,)),
            {task.name: tf.constant(output)},
            self.batch["targets"],
            self.batch["masks"],
            self.num_classes,
        )
        rows = tf.nest.map_structure(np.asarray, rows)
        values = evaluator.values(rows, {task.name: task})[task.name]
        return np.array([values[metric.name] for metric in task.metrics[:-1]])

    def _constant_scores(self, task: Task) -> np.ndarray:
        """The best score of a constant output in each metric, `[metrics]`.

        For classes the constant is the commonest one of the batch, otherwise the median
        or the mean of the targets, by channel. Some pixel of the task must be valid.
        """
        mask = self.batch["masks"][task.name]
        values = self.batch["targets"][task.name][mask > 0]
        if task.discrete:
            count = task.output_channels(self.num_classes)
            counts = np.bincount(values.astype(np.int64), minlength=count)
            commonest = counts[:count].argmax()
            guesses = [np.eye(count, dtype=np.float32)[commonest]]
        elif task.kind == "labels":  # Logits: the sign says whether a label is there.
            majority = np.mean(values, axis=0) > 0.5
            guesses = [np.where(majority, 1, -1).astype(np.float32)]
        else:
            guesses = [np.median(values, axis=0), np.mean(values, axis=0)]
        shape = (*mask.shape, len(guesses[0]))
        candidates = np.stack(
            [self._scores(task, np.broadcast_to(g, shape)) for g in guesses]
        )
        best = _errors(task, candidates).argmin(axis=0)
        return candidates[best, np.arange(len(best))]


def _errors(task: Task, scores: np.ndarray) -> np.ndarray:
    """Scores `[..., metrics]` as errors: 1 - score where higher is better."""
    higher = [metric.better == "higher" for metric in task.metrics[:-1]]
    return np.where(higher, 1 - scores, scores)


def _count_not_finite(values: np.ndarray) -> int:
    """How many entries of the first axis hold a value that is not finite."""
    is_finite = np.isfinite(values).reshape(len(values), -1)
    return int(np.sum(~is_finite.all(axis=1)))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _spread(values: np.ndarray, axis: int) -> float:
    """The root mean square of differences from the mean along an axis."""
    return _rms(values - values.mean(axis=axis, keepdims=True))


def _likely_causes(trained: bool, tried: bool) -> str:
    """The likely causes; `trained`: by mtr_tf.train; `tried`: in other ranges."""
    if trained:
        return "; it may need more training (--epochs), or it was trained on other data"
    causes = (
        "; perhaps it was trained on other data or another order of classes, or "
        "expects images in another range (--input_range) or order of channels"
    )
    if not tried:
        return causes
    return (
        f"{causes}, although it is not far better in any of the usual ones (0-255, -1 "
        "to 1, ImageNet's, BGR)"
    )


# Forms of images that a model may have been trained on.


@dataclasses.dataclass(frozen=True)
class _Cure:
    """A form of images that a model may expect.

    Attributes:
      images: The form, as in "on images ...".
      advice: How to give the model such images.
      change: Images in [0, 1] -> such images.
      of_colours: Whether the form needs images of three colours.
    """

    images: str
    advice: str
    change: Callable[[np.ndarray], np.ndarray]
    of_colours: bool = True


_NO_CHANGE = _Cure(
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
    _Cure("in the order BGR", _REVERSE_ADVICE, lambda x: x[..., ::-1]),
    _Cure(
        "in the order BGR times 255",
        f"give --input_range=0,255 and {_REVERSE_ADVICE}",
        lambda x: 255 * x[..., ::-1],
    ),
    _Cure(
        "in the order BGR times 255 minus Caffe's means",
        "give --input_range=0,255 --input_mean=123.68,116.779,103.939 and "
        f"{_REVERSE_ADVICE}",
        lambda x: 255 * x[..., ::-1] - np.array(_CAFFE, np.float32),
    ),
)
