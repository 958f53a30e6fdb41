# SPDX-License-Identifier: Apache-2.0
"""The problems that benchmarks attack, a net and a batch, with reference gradients.

The limit of every comparison is `Problem.passes`: as many calls of one compiled forward
and backward-to-input pass as the attack takes steps.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from collections.abc import Mapping

import tensorflow as tf

from mtr_tf import attacks
from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.config import settings
from mtr_tf.data import batching
from mtr_tf.models import multitask
from mtr_tf.runs import building
from mtr_tf.runs import loading

_CLASSES = 8
Model = Callable[..., Mapping[str, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model and one batch; `names` are the attacked tasks."""

    model: Model
    names: tuple[str, ...]
    x: tf.Tensor
    targets: dict[str, tf.Tensor]
    masks: dict[str, tf.Tensor]

    def objective(self, model: Model | None = None, **options) -> attacks.TaskObjective:
        """Returns the library's objective, the sum of the attacked tasks' losses."""
        model = self.model if model is None else model
        return attacks.objective(model, self.targets, self.masks, self.names, **options)

    def gradient(
        self, plain: bool = False, jit: bool = False
    ) -> Callable[[], tf.Tensor]:
        """Returns the compiled gradient by the images, written without the library.

        Its losses are the library's, which take less time on CPU than TensorFlow's
        cross-entropy, or, with `plain`, losses as a user of TensorFlow would write
        them. With `jit`, XLA compiles it.
        """
        loss_of = _plain_losses if plain else tasks_lib.task_losses

        @tf.function(jit_compile=jit)
        def compiled(x, targets, masks):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                outputs = self.model(x, training=False)
                losses = loss_of(self.names, outputs, targets, masks)
                loss = tf.add_n(list(losses.values()))
            return tape.gradient(loss, x)

        return lambda: compiled(self.x, self.targets, self.masks)

    def passes(
        self, count: int, plain: bool = False, jit: bool = False
    ) -> Callable[[], tf.Tensor]:
        """Returns the limit: a function that calls the gradient `count` times."""
        gradient = self.gradient(plain, jit)

        def run():
            for _ in range(count):
                result = gradient()
            return result

        return run

    def loss(self, x: tf.Tensor) -> float:
        """Returns the mean over the batch of the sum of losses, in float32."""
        outputs = self.model(x, training=False)
        losses = tasks_lib.task_losses(self.names, outputs, self.targets, self.masks)
        return float(tf.reduce_mean(tf.add_n(list(losses.values()))))

    def only(self, name: str) -> Problem:
        """Returns the problem with one attacked task."""
        return dataclasses.replace(self, names=(name,))

    def head(self, size: int) -> Problem:
        """Returns the problem with the first `size` images only."""
        arrays = tf.nest.map_structure(
            lambda t: t[:size], (self.x, self.targets, self.masks)
        )
        return Problem(self.model, self.names, *arrays)


def _plain_losses(names, outputs, targets, masks) -> dict[str, tf.Tensor]:
    """Returns {task: float32 [batch]}, means over the valid pixels."""

    def pixels(name):
        if tasks_lib.TASKS[name].discrete:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(
                targets[name], outputs[name]
            )
        error = outputs[name] - targets[name]
        squared = name == "autoencoder"
        return tf.reduce_mean(tf.square(error) if squared else tf.abs(error), -1)

    return {
        name: tf.reduce_sum(pixels(name) * masks[name], (1, 2))
        / tf.reduce_sum(masks[name], (1, 2))
        for name in names
    }


def add_flags(parser: argparse.ArgumentParser, **defaults) -> None:
    """Adds the flags that `random` reads."""
    parser.add_argument("--model", default="resnet18", help="a key of models.MODELS")
    parser.add_argument("--width", type=int, help="of the first layer; resnet18: 16")
    parser.add_argument("--image_size", default="64", help="sides, such as 128x256")
    parser.add_argument("--decoders", default="separate", choices=multitask.DECODERS)
    parser.add_argument("--tasks", default="seg,depth", help="heads, all attacked")
    parser.set_defaults(**defaults)


def random(args: argparse.Namespace, size: int) -> Problem:
    """Returns a new net, random images and targets, and masks of ones."""
    names = tasks_lib.resolve(args.tasks)
    sides = settings.parse_image_size(args.image_size)
    width = args.width or (16 if args.model == "resnet18" else None)
    model = models.build(
        args.model, names, (*sides, 3), _CLASSES, width=width, decoders=args.decoders
    )
    x = tf.random.stateless_uniform((size, *sides, 3), (0, 0))
    targets = {name: _target(name, (size, *sides)) for name in names}
    return Problem(model, names, x, targets, dict.fromkeys(names, tf.ones(x.shape[:3])))


def _target(name: str, pixels: tuple[int, int, int]) -> tf.Tensor:
    task = tasks_lib.TASKS[name]
    if task.discrete:
        return tf.random.stateless_uniform(pixels, (0, 1), 0, _CLASSES, tf.int32)
    return tf.random.stateless_uniform((*pixels, task.channels), (0, 2))


def trained(ckpt: str, size: int) -> Problem:
    """Returns a run's net with the first images of its validation split."""
    run = loading.load_run(ckpt)
    names = tuple(run.tasks)
    loading.check_named(run.config.dataset, "", run.directory)
    columns = building.open_source(run.config).columns("validation")
    batch = batching.gather(columns, names, range(size))
    tensors = tf.nest.map_structure(tf.convert_to_tensor, batch)
    return Problem(
        run.model, names, tensors["image"], tensors["targets"], tensors["masks"]
    )
