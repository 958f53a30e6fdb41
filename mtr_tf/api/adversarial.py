# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.AdversarialModel`: adversarial training of your own model with `fit`."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.api import examples as examples_lib
from mtr_tf.api import settings as settings_lib
from mtr_tf.attacks import base
from mtr_tf.attacks.base import Attack
from mtr_tf.attacks.objectives import Unbound
from mtr_tf.errors import InputError
from mtr_tf.models import adapters
from mtr_tf.models import probabilities
from mtr_tf.models import stateless
from mtr_tf.models.input_range import in_front
from mtr_tf.runs import heads as heads_lib
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks.task import KINDS
from mtr_tf.training.step import Adversary

_LEVELS = 255
_BATCH_NORMS = ("inference", "training")
_TOLERANCE = 1e-6  # How far images may be beyond their range, as a share of it.


class AdversarialModel(keras.Model):
    """Trains a Keras model on images that are attacked again in each step.

        adversarial = mtr_tf.AdversarialModel(model, tasks=["seg", "depth"], eps=4)
        adversarial.compile("sgd", loss={"seg": ..., "depth": ...})
        adversarial.fit(train, epochs=10)
        model.save("robust.keras")

    The attack raises the sum of the tasks' own losses. They take logits: those before a
    softmax or sigmoid that a functional model ends in; if other code seems to return
    probabilities, a warning is logged. The step then minimises the compiled losses:
    with weight `share` on the attacked images, and `1 - share` on the clean ones.
    Everything else, such as predicting and saving, works as with the model itself,
    whose weights are trained. Files of weights also have the optimizer's variables, as
    for any compiled model, so that `BackupAndRestore` can continue.

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
            order of `tasks`, or the single output of a single task. Targets and losses
            may be a dict by task, or a list as Keras takes it: in the order of the
            outputs, of a dict in that of its sorted names. (A list of targets needs
            `tasks` in the same order.)
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
            have the rest. (Of several losses, Keras shows each as its mean over both,
            and metrics on attacked images.)
          batch_norm: "inference", or "training": during the attack, batch norms use
            each batch's own statistics, as in training.
          input_range: The range of training images, such as (0, 255).
          seed: Seed of the attack's noise, which also depends on the step and the
            position in the batch.

        Raises:
          InputError: A setting is out of range, a task is unknown, the model has
            several inputs, or its replicas cannot share statistics during an attack.
        """
        # It casts no images: the inner model does, if it computes in half precision.
        policy = inner.dtype_policy
        super().__init__(name=f"adversarial_{inner.name}", dtype=policy, autocast=False)
        self.inner = inner
        self.built = inner.built
        names = getattr(inner, "output_names", None)
        if names:  # As compile and fit's history name losses and metrics.
            self.output_names = list(names)
        self._tasks = _task_set(inner, tasks)
        attacked_tasks = self._tasks
        if attack_tasks != "all":
            attacked_tasks = self._tasks.select(attack_tasks.split("+"))
        _check_settings(share, batch_norm, input_range)
        _check_statistics(inner, batch_norm)
        self._low, self._high = map(float, input_range)
        if attack is None:
            settings_lib.check_levels(eps)
            if not eps > 0:
                raise InputError(f"eps must be above 0; got {eps}.")
            radius = eps / _LEVELS
            length = step_size / _LEVELS or radius / 4
            attack = attacks.PGD(radius, length, steps, keep="last")
        self._adversary = Adversary(attack, attacked_tasks, share, batch_norm, seed)
        # The names of outputs in a dict, in the order in which Keras takes lists.
        self._keys: tuple[str, ...] | None = None
        self._objective: Unbound | None = None  # None until outputs have been seen.
        if adapters.is_functional(inner):
            self._prepare()
        # Clean images whose loss is still to be added; each replica is a thread and has
        # its own: with synchronized batch norms, replicas are traced by turns.
        self._of_step = threading.local()

    def call(self, inputs, training=None):
        """Returns the model's outputs."""
        return self.inner(inputs, training=training)

    def attacked(self, x, y, sample_weight=None) -> tf.Tensor:
        """Returns a batch's images after the attack: a pure function of seed and step.

        Args:
          x: Images `[batch, height, width, channels]` in `input_range`, alone or as
            the only value of a dict, list or tuple; if they are whole numbers, attacked
            ones are rounded to whole numbers.
          y: Targets by task, or in the order of the tasks. Classes are whole numbers.
            For other tasks, places (images, if a task has no places) whose target is
            not finite in all channels are not attacked, not even by their other
            channels, though a loss that skips NaN learns from these.
          sample_weight: Weights by task, or one for all, as in training. If a task has
            a weight for each pixel or place (for each image, if it has no places),
            those with weight zero are not attacked, nor are those of the class that
            the task's loss ignores (`ignore_class`).

        Raises:
          InputError: Images are not in `input_range`, or are whole numbers though that
            is [0, 1] or smaller; an attacked task has no target, or Keras takes
            targets in a list for other tasks; classes are one-hot or not whole numbers;
            a weight has no task's name; or the model is not compiled.
        """
        structure, (x, *excess) = x, keras.tree.flatten(x)
        is_packed = structure is not x
        if excess or (is_packed and not adapters.is_functional(self.inner)):
            raise InputError(
                "x must be images alone, [batch, height, width, channels], or one such "
                "tensor in a dict, list or tuple for a functional model; got "
                f"{1 + len(excess)} in a {type(structure).__name__}. Give the images."
            )
        objective = self._objective or self._prepare(x.shape)
        names = tuple(self._tasks)
        self._check_order(y, "targets")
        self._check_order(sample_weight, "sample weights")
        targets = _by_name(y, self._tasks, self._adversary.tasks, "targets")
        weights = {}
        if isinstance(sample_weight, Mapping | list | tuple):
            target_names = y if isinstance(y, Mapping) else names
            examples_lib.check_named(sample_weight, target_names, "sample weight")
            weights = examples_lib.by_task(sample_weight, names, "sample weights")
        elif sample_weight is not None:
            weights = dict.fromkeys(names, sample_weight)
        if not self.compiled:
            raise InputError(
                "The model must be compiled before it attacks images, because its loss "
                "says which places are ignored; call compile first."
            )
        batch = {"targets": {}, "masks": {}}
        for name, task in self._adversary.tasks.items():
            target = _target(task, targets[name])
            mask = _mask(task, target, weights.get(name))
            if task.discrete:
                if (ignored_class := self._ignored_class(name)) is not None:
                    mask *= tf.cast(target != ignored_class, tf.float32)
                target = _class_numbers(name, target, mask)
            else:
                target, mask = _finite_target(target, mask)
            batch["targets"][name], batch["masks"][name] = target, mask
        width = self._high - self._low
        is_integer = tf.as_dtype(x.dtype).is_integer
        if is_integer and width <= 1:
            raise InputError(
                f"Images of whole numbers ({tf.as_dtype(x.dtype).name}) must have "
                f"another input_range than ({self._low:g}, {self._high:g}); give the "
                "one that they are in, such as input_range=(0, 255)."
            )
        image = (tf.cast(x, tf.float32) - self._low) / width
        range_check = self._check_range(image, width)
        with tf.control_dependencies([range_check]):
            batch["image"] = tf.identity(image)
        count = tf.cast(tf.shape(x)[0], tf.int64)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        first_position = tf.cast(replica, tf.int64) * count
        batch["position"] = first_position + tf.range(count)
        batch["step"] = tf.cast(self.optimizer.iterations, tf.int64)
        x_adv = self._adversary.perturb(objective, batch) * width + self._low
        if is_integer:
            x_adv = tf.round(x_adv)
        x_adv = tf.cast(x_adv, x.dtype)
        return keras.tree.pack_sequence_as(structure, [x_adv]) if is_packed else x_adv

    def fit(self, *args, **settings):
        """Trains the model; arguments are those of `keras.Model.fit`.

        Raises:
          InputError: Images or targets are not as the attack needs them.
        """
        with base.input_errors():
            return super().fit(*args, **settings)

    def train_step(self, data):
        """Attacks the batch, then makes one step with the compiled losses."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        images = self.attacked(x, y, sample_weight)
        x_adv = tf.nest.map_structure(tf.stop_gradient, images)
        self._of_step.clean = x if self._adversary.share < 1 else None
        try:
            return super().train_step((x_adv, y, sample_weight))
        finally:
            self._of_step.clean = None

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the compiled loss; in a training step, of both kinds of images."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        clean_images = getattr(self._of_step, "clean", None)
        if clean_images is None:
            return loss
        outputs = self.inner(clean_images, training=True)
        clean_loss = super().compute_loss(
            clean_images, y, outputs, sample_weight, training
        )
        share = self._adversary.share
        return share * loss + (1 - share) * clean_loss

    def save(self, filepath, *args, **settings):
        """Saves the trained model itself."""
        return self.inner.save(filepath, *args, **settings)

    def save_weights(self, filepath, *args, **settings):
        """Saves the weights of the trained model, and the optimizer's variables."""
        with self._with_optimizer():
            return self.inner.save_weights(filepath, *args, **settings)

    def load_weights(self, filepath, *args, **settings):
        """Loads weights into the trained model, and the optimizer's variables.

        These are left as they are where the file has none, or before training.
        """
        with self._with_optimizer():
            return self.inner.load_weights(filepath, *args, **settings)

    def export(self, filepath, *args, **settings):
        """Exports the trained model."""
        return self.inner.export(filepath, *args, **settings)

    @contextlib.contextmanager
    def _with_optimizer(self) -> Iterator[None]:
        """A context in which Keras saves and loads the model with our optimizer."""
        if not getattr(getattr(self, "optimizer", None), "built", False):
            yield
            return
        attributes = vars(self.inner)  # Keras does not track what is put there.
        previous = {k: v for k, v in attributes.items() if k == "optimizer"}
        attributes["optimizer"] = self.optimizer
        try:
            yield
        finally:
            del attributes["optimizer"]
            attributes.update(previous)

    def _prepare(self, shape: Sequence[int | None] = ()) -> Unbound:
        """Makes and returns the objective; gives tasks their outputs' number of axes.

        Args:
          shape: Shape of a batch of images, if the model does not know it.
        """
        model, outputs = self._by_task(shape)
        self._tasks = TaskSet(
            task.bound(places=len(outputs[name].shape) - 2)
            if task.places is None
            else task
            for name, task in self._tasks.items()
        )
        attacked_tasks = [self._tasks[name] for name in self._adversary.tasks]
        self._adversary = dataclasses.replace(
            self._adversary, tasks=TaskSet(attacked_tasks)
        )
        self._objective = self._adversary.objective(model)
        return self._objective

    def _by_task(self, shape: Sequence[int | None]) -> tuple[keras.Layer, Any]:
        """Returns a model from images in [0, 1] to outputs by task, and these outputs.

        The model shares the weights of the trained one; the outputs are symbolic.
        """
        scale = self._high - self._low
        if not adapters.is_functional(self.inner):
            model = _ByTask(self.inner, scale, self._low, self._tasks)
            spec = model.compute_output_spec(keras.KerasTensor(shape))
            self._keys = model.keys
            self._warn_of_probabilities(self.inner, _logit_tasks(self._tasks), shape)
            return model, spec
        image = self.inner.inputs[0]
        outputs = adapters.structure_of(self.inner)
        self._keys = _keys(outputs)
        outputs = _by_name(outputs, self._tasks, self._tasks, "outputs")
        kinds, unclear_names = {}, []
        for name in _logit_tasks(self._tasks):
            single = self._tasks[name].kind == "labels" or outputs[name].shape[-1] == 1
            if activation := probabilities.activation_of(outputs[name]):
                kinds[name] = "sigmoid" if single else activation
            elif not probabilities.is_linear(outputs[name]):
                unclear_names.append(name)
        model = keras.Model(image, outputs, name=self.inner.name)
        self._warn_of_probabilities(model, unclear_names, image.shape)
        exact = dict.fromkeys(kinds, True)
        model, _ = probabilities.with_logits(model, kinds, None, exact, shares=True)
        used_names = adapters.names_in(model)
        outputs = _loss_outputs(self._tasks, model.output, image.shape, used_names)
        model = keras.Model(image, outputs, name=self.inner.name)
        if (scale, self._low) != (1.0, 0.0):
            model = in_front(model, [scale], [self._low])
        return model, outputs

    def _warn_of_probabilities(
        self, model: keras.Model, names: Iterable[str], shape: Sequence[int | None]
    ) -> None:
        """Warns of outputs that may be probabilities, judging by images of noise.

        The attack takes them for logits. `model` takes images in their own range;
        `shape` is that of a batch of images.
        """
        names = [name for name in names if name in self._adversary.tasks]
        if not names or tf.distribute.has_strategy():
            return
        sides = [side or 32 for side in shape[1:]]
        try:
            with tf.init_scope(), stateless.unchanged(model):
                noise = tf.random.stateless_uniform((2, *sides), (0, 0))
                noise = noise * (self._high - self._low) + self._low
                outputs = stateless.outputs(model, noise)
        except Exception:  # It may raise anything, and need not take such images.
            return
        outputs = examples_lib.by_task(outputs, tuple(self._tasks), "outputs")
        for name in names:
            if probabilities.in_range(outputs[name]):
                logging.warning(
                    "%s's %s is in [0, 1], as probabilities are, but the attack takes "
                    "it for logits, because nothing shows what made it; if a softmax "
                    "or sigmoid did, give the model without it, and losses that take "
                    "logits.",
                    self.inner.name,
                    name,
                )

    def _check_range(self, image: tf.Tensor, width: float) -> tf.Tensor:
        """Returns a `base.require` that images, scaled to [0, 1], are in range."""
        low, high = tf.reduce_min(image), tf.reduce_max(image)
        is_outside = (low < -_TOLERANCE) | (high > 1 + _TOLERANCE)
        return base.require(
            ~is_outside,
            lambda: [
                f"Images must be in input_range, ({self._low:g}, {self._high:g}); got "
                "values from",
                low * width + self._low,
                "to",
                high * width + self._low,
                "; clip them, or give the range that they are in, such as "
                "input_range=(0, 255).",
            ],
        )

    def _ignored_class(self, name: str) -> int | None:
        """Returns the class of a task that its compiled loss ignores, if any."""
        loss = self.loss
        if isinstance(loss, Mapping):
            outputs = getattr(self, "output_names", ()) if self._keys is None else ()
            keys = dict(zip(self._tasks, outputs, strict=False))
            loss = loss.get(keys.get(name, name))
        elif isinstance(loss, list | tuple):
            names = self._keys or self._tasks
            loss = dict(zip(names, loss, strict=False)).get(name)
        return getattr(loss, "ignore_class", None)

    def _check_order(self, values: Any, what: str) -> None:
        """Raises `InputError` if Keras would match values to other outputs than we do.

        If outputs are a dict, Keras matches a list to them by the order of their names;
        if they are a list, it matches a dict by the names of their layers.

        Args:
          values: Values of all tasks.
          what: What the values are, in words.
        """
        tasks = [*self._tasks]
        if self._keys is None:
            order = [*getattr(self, "output_names", ())]
            kind, other_kind = "dict", "list"
            may_differ = isinstance(values, Mapping) and {*order} == {*tasks}
        else:
            order = [name for name in self._keys if name in tasks]
            kind, other_kind = "list", "dict"
            may_differ = isinstance(values, list | tuple)
        if may_differ and order != tasks:
            raise InputError(
                f"A {kind} of {what} must be for tasks in the order in which Keras "
                f"has the outputs, {', '.join(order)}, but they are "
                f"{', '.join(tasks)}; give a {other_kind}, or tasks in that order."
            )


class _ByTask(keras.Layer):
    """A model without a graph of layers, from images in [0, 1] to outputs by task."""

    def __init__(self, inner: keras.Model, scale: float, low: float, tasks: TaskSet):
        super().__init__(name="by_task", dtype="float32")
        self._inner, self._scale, self._low, self._tasks = inner, scale, low, tasks
        self.keys: tuple[str, ...] | None = None  # Of outputs in a dict, once called.

    def call(self, x, training=False):
        """Returns {task: output}."""
        outputs = self._inner(x * self._scale + self._low, training=training)
        self.keys = _keys(outputs)
        return _loss_outputs(self._tasks, outputs, x.shape, set())


def _logit_tasks(tasks: TaskSet) -> list[str]:
    """Returns the tasks whose losses take logits."""
    return [name for name, task in tasks.items() if KINDS[task.kind].probabilities]


def _by_name(
    values: Any, tasks: TaskSet, required_names: Iterable[str], what: str
) -> dict[str, Any]:
    """Returns `by_task`; raises `InputError` if a required name is missing."""
    by_name = examples_lib.by_task(values, tuple(tasks), what)
    if missing := [name for name in required_names if name not in by_name]:
        raise InputError(
            f"The {what} must have one for each task, and {', '.join(missing)} is "
            f"missing; got {', '.join(map(str, values)) or 'none'}. Rename them, or "
            "give other tasks."
        )
    return by_name


def _loss_outputs(
    tasks: TaskSet,
    outputs: Any,
    image_shape: Sequence[int | None],
    used_names: set[str],
) -> dict[str, Any]:
    """Returns outputs by task with an axis of channels; classes have 2 logits or more.

    Args:
      tasks: The tasks of the outputs.
      outputs: Tensors in the model's own structure.
      image_shape: The shape of a batch of images.
      used_names: The names that new layers must not have.
    """
    by_name = _by_name(outputs, tasks, tasks, "outputs")
    for name, output in by_name.items():
        task, rank = tasks[name], len(output.shape)
        places = task.places
        if places is None:
            places, _ = heads_lib.axes_of(output, image_shape)
        if rank == 1 + places:
            layer_name = adapters.free_name(f"{name}_with_channels", used_names)
            output = adapters.ExpandDims(name=layer_name, dtype=output.dtype)(output)
        if task.discrete and output.shape[-1] == 1:
            layer_name = adapters.free_name(f"{name}_of_two", used_names)
            output = adapters.TwoLogits(name=layer_name)(output)
        by_name[name] = output
    return by_name


def _keys(outputs: Any) -> tuple[str, ...] | None:
    """Returns the names of outputs in a dict, in the order of lists given to Keras."""
    if not isinstance(outputs, Mapping):
        return None
    return tuple(path[0] for path, _ in keras.tree.flatten_with_path(outputs))


def _target(task: Task, target: Any) -> tf.Tensor:
    """Returns a target as losses take it: classes without a last axis of size one.

    Classes become int32; floats stay floats, unchecked. Other targets become float32,
    with a last axis for a single channel.

    Raises:
      InputError: Classes are one-hot.
    """
    target = tf.convert_to_tensor(target)
    if not task.discrete:
        if target.shape.rank == 1 + task.axes and task.channels == 1:
            target = target[..., tf.newaxis]
        return tf.cast(target, tf.float32)
    if target.shape.rank == 1 + task.axes + 1:
        if target.shape[-1] != 1:
            raise InputError(
                f"Targets of {task.name} must be one class number for each "
                f"{'place' if task.axes else 'image'}, but their shape is "
                f"{target.shape}, as if they were one-hot; give their argmax, and a "
                "Sparse loss."
            )
        target = target[..., 0]
    return target if target.dtype.is_floating else tf.cast(target, tf.int32)


def _class_numbers(name: str, target: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns classes as int32; `base.require` raises for other numbers."""
    if not target.dtype.is_floating:
        return target
    is_soft = (target != tf.round(target)) & (mask != 0)  # Also NaN.

    def message():
        example = tf.boolean_mask(target, is_soft)[0]
        return [
            f"Targets of {name} must be class numbers, because the attack raises the "
            "loss of one class at each place; got",
            example,
            "; give whole numbers, and smooth them in the loss: by label_smoothing of "
            "BinaryCrossentropy for one logit, by a loss of your own for several.",
        ]

    with tf.control_dependencies([base.require(~tf.reduce_any(is_soft), message)]):
        return tf.cast(target, tf.int32)


def _finite_target(target: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the target with 0 for values that are not finite, and the mask.

    The mask leaves out places where any channel is not finite.

    Args:
      target: `[batch, *places, channels]`.
      mask: `[batch, *places]`.
    """
    is_finite = tf.math.is_finite(target)
    valid = tf.cast(tf.reduce_all(is_finite, -1), tf.float32)
    return tf.where(is_finite, target, 0.0), mask * valid


def _mask(task: Task, target: tf.Tensor, weight: Any) -> tf.Tensor:
    """Returns ones, but zeros where weights of the target's places are zero."""
    places = tf.shape(target) if task.discrete else tf.shape(target)[:-1]
    if weight is None:
        return tf.ones(places)
    weight = tf.convert_to_tensor(weight)
    if weight.shape.rank == 1 + task.axes + 1 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    if weight.shape.rank != 1 + task.axes:
        return tf.ones(places)
    return tf.broadcast_to(tf.cast(weight != 0, tf.float32), places)


def _task_set(inner: keras.Model, tasks: str | Iterable[str | Task]) -> TaskSet:
    """Returns the tasks of a model's outputs."""
    inputs = getattr(inner, "inputs", None) or [None]
    if len(inputs) > 1:
        raise InputError(
            "The model must have one input, images, but it has "
            f"{len(inputs)}: {', '.join(tensor.name for tensor in inputs)}; give "
            "keras.Model(image, model([image, ...])) with the others filled in."
        )
    task_list = examples_lib.tasks_given(tasks)
    if not task_list:
        outputs = getattr(inner, "output", None)
        if not isinstance(outputs, Mapping):
            raise InputError(
                "tasks must say what the model's outputs are, because they have no "
                "names: give a name or a Task for each output, in order."
            )
        task_list = list(outputs)
    return tasks_lib.task_set(task_list)


def _check_settings(
    share: float, batch_norm: str, input_range: tuple[float, float]
) -> None:
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


def _check_statistics(inner: keras.Model, batch_norm: str) -> None:
    """Raises `InputError` for batch norms that TensorFlow cannot keep in step."""
    layers = inner._flatten_layers()
    is_shared = any(getattr(layer, "synchronized", False) for layer in layers)
    is_mirrored = isinstance(inner.distribute_strategy, tf.distribute.MirroredStrategy)
    if is_shared and is_mirrored and batch_norm == "training":
        raise InputError(
            'batch_norm must be "inference" for synchronized batch norms under a '
            "MirroredStrategy, because the loop of an attack cannot share statistics "
            'between replicas; got "training". Leave it out.'
        )
