# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.AdversarialModel`: adversarial training of your own model with `fit`."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.api import examples as examples_lib
from mtr_tf.api import settings as settings_lib
from mtr_tf.attacks.base import Attack
from mtr_tf.errors import InputError
from mtr_tf.models.input_range import in_front
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.training.step import Adversary

_LEVELS = 255
_BATCH_NORMS = ("inference", "training")


class AdversarialModel(keras.Model):
    """Trains a Keras model on images that are attacked again in each step.

        adversarial = mtr_tf.AdversarialModel(model, tasks=["seg", "depth"], eps=4)
        adversarial.compile("sgd", loss={"seg": ..., "depth": ...})
        adversarial.fit(train, epochs=10)
        model.save("robust.keras")

    The attack raises the sum of the tasks' own losses. The step then minimises the
    compiled losses: with weight `share` on the attacked images, and `1 - share` on the
    clean ones. Everything else, such as predicting and saving, works as with the model
    itself, whose weights are trained.

    Attributes:
      inner: The trained model; save it and use it as usual.
    """

    def __init__(
        self,
        inner: keras.Model,
        tasks: str | Iterable[str | Task] = (),
        attack: Attack | None = None,
        *,
        attack_tasks: str = "all",
        eps: float = 4.0,
        steps: int = 4,
        step_size: float = 0.0,
        share: float = 1.0,
        batch_norm: str = "inference",
        input_range: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
    ):
        """Takes the model, and the settings of the attack on its images.

        Args:
          inner: A model from images to outputs: a dict by task, a list or tuple in the
            order of `tasks`, or the single output of a single task.
          tasks: Names of the paper's tasks, or your own `tasks.Task`; empty: the
            model's outputs, which must then be named after tasks.
          attack: The attack; None: PGD with `steps` steps from a random start, which
            keeps the last point, as in `mtr_tf.train_model`.
          attack_tasks: The tasks whose losses the attack raises: "all", or names joined
            by "+".
          eps: Its radius in levels of 0-255, above 0, if `attack` is not given.
          steps: Its number of steps, if `attack` is not given.
          step_size: The size of a step, in levels; 0: a quarter of `eps`.
          share: Weight of the losses on attacked images; the losses on clean images
            have the rest.
          batch_norm: "inference", or "training": during the attack, batch norms use
            each batch's own statistics, as in training.
          input_range: The range of training images, such as (0, 255).
          seed: Seed of the attack's noise, which also depends on the step and the
            position in the batch.

        Raises:
          InputError: A setting is out of range, or a task is unknown.
        """
        super().__init__(name=f"adversarial_{inner.name}")
        self.inner = inner
        names = getattr(inner, "output_names", None)
        if names:  # As compile and fit's history name losses and metrics.
            self.output_names = list(names)
        self._tasks = _task_set(inner, tasks)
        attacked = self._tasks
        if attack_tasks != "all":
            attacked = self._tasks.select(attack_tasks.split("+"))
        _check(share, batch_norm, input_range)
        self._low, self._high = map(float, input_range)
        if attack is None:
            settings_lib.check_levels(eps)
            if not eps > 0:
                raise InputError(f"eps must be above 0; got {eps}.")
            radius = eps / _LEVELS
            length = step_size / _LEVELS or radius / 4
            attack = attacks.PGD(radius, length, steps, keep="last")
        self._adversary = Adversary(attack, attacked, share, batch_norm, seed)
        self._objective = self._adversary.objective(self._by_task())
        self._clean = None  # Of the step: clean images whose loss is still to come.

    def call(self, inputs, training=None):
        """Returns the model's outputs."""
        return self.inner(inputs, training=training)

    def attacked(self, x, y, sample_weight=None) -> tf.Tensor:
        """Returns a batch's images after the attack: a pure function of seed and step.

        Args:
          x: Images `[batch, height, width, channels]` in `input_range`; if they are
            whole numbers, those after the attack are rounded to such.
          y: Targets by task, or in the order of the tasks.
          sample_weight: Weights by task, as in training. If a task has a weight for
            each pixel (or place), those with weight zero are not attacked.

        Raises:
          InputError: Images are whole numbers, and the range is [0, 1] or smaller; or
            a weight has the name of no target.
        """
        names = tuple(self._tasks)
        targets = examples_lib.by_task(y, names, "targets")
        weights = {}
        if isinstance(sample_weight, Mapping | list | tuple):
            named = y if isinstance(y, Mapping) else names
            examples_lib.check_named(sample_weight, named, "sample weight")
            weights = examples_lib.by_task(sample_weight, names, "sample weights")
        batch = {"targets": {}, "masks": {}}
        for name in self._adversary.tasks:
            target = self._target(self._tasks[name], targets[name])
            batch["targets"][name] = target
            batch["masks"][name] = _mask(self._tasks[name], target, weights.get(name))
        width = self._high - self._low
        is_integer = tf.as_dtype(x.dtype).is_integer
        if is_integer and width <= 1:
            raise InputError(
                f"Images of whole numbers ({tf.as_dtype(x.dtype).name}) must have "
                f"another input_range than ({self._low:g}, {self._high:g}); give the "
                "one that they are in, such as input_range=(0, 255)."
            )
        batch["image"] = (tf.cast(x, tf.float32) - self._low) / width
        count = tf.cast(tf.shape(x)[0], tf.int64)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        first = tf.cast(replica, tf.int64) * count
        batch["position"] = first + tf.range(count)
        batch["step"] = tf.cast(self.optimizer.iterations, tf.int64)
        x_adv = self._adversary.perturb(self._objective, batch) * width + self._low
        if is_integer:
            x_adv = tf.round(x_adv)
        return tf.cast(x_adv, x.dtype)

    def train_step(self, data):
        """Attacks the batch, then makes one step with the compiled losses."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x_adv = tf.stop_gradient(self.attacked(x, y, sample_weight))
        self._clean = x if self._adversary.share < 1 else None
        return super().train_step((x_adv, y, sample_weight))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the compiled loss; in a training step, of both kinds of images."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        clean, self._clean = self._clean, None
        if clean is None:
            return loss
        outputs = self.inner(clean, training=True)
        of_clean = super().compute_loss(clean, y, outputs, sample_weight, training)
        share = self._adversary.share
        return share * loss + (1 - share) * of_clean

    def save(self, filepath, *args, **settings):
        """Saves the trained model itself."""
        return self.inner.save(filepath, *args, **settings)

    def save_weights(self, filepath, *args, **settings):
        """Saves the weights of the trained model."""
        return self.inner.save_weights(filepath, *args, **settings)

    def load_weights(self, filepath, *args, **settings):
        """Loads weights into the trained model."""
        return self.inner.load_weights(filepath, *args, **settings)

    def export(self, filepath, *args, **settings):
        """Exports the trained model."""
        return self.inner.export(filepath, *args, **settings)

    def _by_task(self) -> keras.Layer:
        """The model from images in [0, 1] to outputs by task; it shares the weights."""
        scale = self._high - self._low
        names = tuple(self._tasks)
        if not getattr(self.inner, "inputs", None):
            return _ByTask(self.inner, scale, self._low, names)
        outputs = examples_lib.by_task(self.inner.output, names, "outputs")
        model = keras.Model(self.inner.inputs[0], outputs, name=self.inner.name)
        if (scale, self._low) == (1.0, 0.0):
            return model
        return in_front(model, [scale], [self._low])

    def _target(self, task: Task, target: Any) -> tf.Tensor:
        """A target as losses take it: classes without an axis of one."""
        target = tf.convert_to_tensor(target)
        if task.discrete:
            if target.shape.rank == 1 + task.axes + 1 and target.shape[-1] == 1:
                target = target[..., 0]
            return tf.cast(target, tf.int32)
        if target.shape.rank == 1 + task.axes and task.channels == 1:
            target = target[..., tf.newaxis]
        return tf.cast(target, tf.float32)


class _ByTask(keras.Layer):
    """A model that is no graph of layers, from images in [0, 1] to outputs by task."""

    def __init__(self, inner: keras.Model, scale: float, low: float, names):
        super().__init__()
        self._inner, self._scale, self._low, self._names = inner, scale, low, names

    def call(self, x, training=False):
        """Returns {task: output}."""
        outputs = self._inner(x * self._scale + self._low, training=training)
        return examples_lib.by_task(outputs, self._names, "outputs")


def _mask(task: Task, target: tf.Tensor, weight: Any) -> tf.Tensor:
    """Ones, but zeros where weights that are of the target's places are zero."""
    places = tf.shape(target) if task.discrete else tf.shape(target)[:-1]
    if weight is None:
        return tf.ones(places)
    weight = tf.convert_to_tensor(weight)
    if weight.shape.rank == 1 + task.axes + 1 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    if weight.shape.rank == 1:  # Of each image: those that do not count are not lost.
        return tf.ones(places)
    return tf.cast(weight != 0, tf.float32)


def _task_set(inner: keras.Model, tasks: str | Iterable[str | Task]) -> TaskSet:
    """The tasks of a model's outputs."""
    given = [tasks] if isinstance(tasks, Task) else tasks
    given = given.split(",") if isinstance(given, str) else list(given)
    if not given:
        outputs = getattr(inner, "output", None)
        if not isinstance(outputs, Mapping):
            raise InputError(
                "tasks must say what the model's outputs are, because they have no "
                "names: give a name or a Task for each output, in order."
            )
        given = list(outputs)
    return tasks_lib.task_set(given)


def _check(share: float, batch_norm: str, input_range: tuple[float, float]) -> None:
    if not 0 < share <= 1:
        raise InputError(
            f"share must be above 0 and at most 1; got {share}. To train without "
            "attacked images, train the model itself."
        )
    if batch_norm not in _BATCH_NORMS:
        raise InputError(
            f"batch_norm must be {' or '.join(_BATCH_NORMS)}; got {batch_norm!r}."
        )
    if len(input_range) != 2 or not input_range[0] < input_range[1]:
        raise InputError(
            "input_range must be two numbers, the lower first, such as (0, 255); got "
            f"{tuple(input_range)}."
        )
