# SPDX-License-Identifier: Apache-2.0
"""Scores a model on a data set, clean and attacked: one row per image and metric.

Rows are additive statistics (see `metrics`), so that their sum gives the metric of any
set of images, over any number of replicas and workers, and resampling them gives its
bootstrap. An image's rows depend only on the image, the model and (attack, seed, the
image's index), not on batch size, order or replicas. The exception is the noise of a
model that is random in `predict`: it is drawn for a whole batch, from (seed, the index
of the batch's first image).
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

from mtr_tf.attacks import base
from mtr_tf.attacks import objectives
from mtr_tf.attacks import threat
from mtr_tf.attacks.objectives import Tasks
from mtr_tf.data import batching
from mtr_tf.models import compiling
from mtr_tf.models import randomness
from mtr_tf.models import stateless
from mtr_tf.runs import strategy as strategy_lib
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import table
from mtr_tf.tasks import task_set

_SCORING = -1  # Folded into the seed of a random model's noise for scores.
_TRIAL_IMAGES = 2  # Images of the first batch on which copies of a model are tried.
_BATCH_KEYS = ("image", "targets", "masks", "index", "wanted")

Rows = Mapping[str, Mapping[str, np.ndarray]]
"""{task: {metric: int64 or float64 [N, K]}}, images in the order of their index."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The first images of an evaluation, for pictures; all arrays are `[M, ...]`.

    `clean` and `attacked` are outputs {task: float32}. Without an attack, `adversarial`
    is None and `attacked` empty; with `clean=False`, `clean` is empty.
    """

    image: np.ndarray
    targets: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    clean: dict[str, np.ndarray]
    adversarial: np.ndarray | None
    attacked: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `Evaluator.run` returns: rows, and the first images on request.

    Attributes:
      index: int64 `[N]`, the numbers of the images, ascending.
      clean: Rows of the clean images; empty with `clean=False`.
      attacked: Rows of the attacked images; empty without an attack.
      wanted: For a targeted attack, rows of the attacked images against the wanted
        targets; else empty.
      unmoved: The same for the clean images.
      aimed: For an attack on some output pixels, rows of the attacked tasks on the
        attacked images over these pixels, against the targets of `wanted` or else of
        `attacked`; else empty.
      before: Where attacks are judged by comparison with the clean images, rows of the
        clean images over the attack's pixels, against its targets, with the tasks that
        it spares; else empty.
      unchanged: bool `[N]`, whether the attack left an image as it was; None without
        one.
      examples: None unless `keep_examples` is positive.
      derived: Rows from the argument `rows_of` of `run`, else empty.
    """

    index: np.ndarray
    clean: Rows = dataclasses.field(default_factory=dict)
    attacked: Rows = dataclasses.field(default_factory=dict)
    wanted: Rows = dataclasses.field(default_factory=dict)
    unmoved: Rows = dataclasses.field(default_factory=dict)
    aimed: Rows = dataclasses.field(default_factory=dict)
    before: Rows = dataclasses.field(default_factory=dict)
    unchanged: np.ndarray | None = None
    examples: Examples | None = None
    derived: Rows = dataclasses.field(default_factory=dict)


def values(
    rows: Rows, tasks: Mapping[str, Task] = table.TASKS
) -> dict[str, dict[str, float]]:
    """Metrics of tasks over all images of the rows; NaN where nothing was counted."""
    return {
        task: {
            metric.name: metric.over(rows[task][metric.name])
            for metric in tasks[task].all_metrics
        }
        for task in rows
    }


class Evaluator:
    """Evaluates one model repeatedly; it is compiled at the first call and then reused.

    The model's weights are read at each call, so training can evaluate while it runs.

        evaluator = Evaluator(model, ("seg", "depth"), num_classes, attack=pgd)
        evaluation = evaluator.run(source.columns("validation"), batch_size=32)
        values(evaluation.attacked)["seg"]["miou"]
    """

    def __init__(
        self,
        model: keras.Model,
        tasks: Tasks,
        num_classes: int,
        workers: Workers | None = None,
        *,
        attack: Callable[..., tf.Tensor] | None = None,
        objective: Mapping[str, Any] | None = None,
        surrogate: Callable[..., Any] | None = None,
        seed: int = 0,
        clean: bool = True,
        jit: bool = False,
        image_channels: int | None = None,
        stops: bool = True,
        own_losses: bool = True,
    ):
        """Takes what is the same in all calls.

        Args:
          model: `[batch, H, W, 3]` in [0, 1] -> {task: output}; made under
            `workers.local`.
          tasks: The tasks to score: names of the eleven, or records.
          num_classes: That of the data set, for tasks that do not state their own.
          workers: The workers and their replicas; each evaluates its share of every
            batch. None: this process, with TensorFlow's default, one device.
          attack: `(objective, x, seed, *numbers) -> x_adv`; `run` takes the numbers.
            None: clean images only.
          objective: Passed to `attacks.objective`: which tasks are attacked, and how;
            None: the sum of the losses of `tasks`. With `targeted`, each image is
            attacked towards the targets of the image half a split further on.
          surrogate: The model that is attacked instead of `model`, which is only scored
            (a transfer attack). None: `model` itself.
          seed: Image i is attacked under a seed made of (seed, i).
          clean: Whether to score the clean images.
          jit: Whether XLA compiles everything (see `compiling`).
          image_channels: How many channels belong to the image, and are shown; packed
            inputs follow them. None: all.
          stops: Whether `run` ends early, after a batch, if one of several workers has
            got a signal; False: `run` finishes, and the caller stops the workers.
          own_losses: Whether the attack raises the tasks' own losses, if the objective
            names no others.
        """
        self._model = model
        self._tasks = task_set(tasks)
        self._num_classes = num_classes
        self._workers = workers or Workers(tf.distribute.get_strategy())
        self._strategy = self._workers.local
        self._attack = attack
        self._surrogate = surrogate or model
        settings: dict[str, Any] = {"tasks": self._tasks, **(objective or {})}
        settings["tasks"] = self._tasks.select(settings["tasks"])
        spare = settings.get("spare", ())
        settings["spare"] = TaskSet(self._tasks[name] for name in spare)
        self._objective = objectives.unbound(self._surrogate, **settings)
        self._targeted = self._objective.recipe.targeted
        self._seed = seed
        self._clean = clean
        self._jit = jit
        self._image_channels = image_channels
        self._stops = stops
        self._own_losses = own_losses
        self._compiled = {}  # By the type of the batches.

    def run(
        self,
        columns: Any,
        *,
        batch_size: int,
        num_examples: int | None = None,
        on_batch: Callable[[int], None] | None = None,
        on_outputs: Mapping[str, Callable[..., None]] | None = None,
        rows_of: Callable[[Mapping[str, np.ndarray]], Rows] | None = None,
        keep_examples: int = 0,
        numbers: Sequence[float] = (),
        seed: int | None = None,
    ) -> Evaluation:
        """Evaluates the first `num_examples` images (None or 0: all), each once.

        Args:
          columns: A split of a data set (`data.source.Columns`).
          batch_size: Images per step over all replicas; the last batch is padded.
          num_examples: How many images.
          on_batch: Called after each batch with its number of images.
          on_outputs: By task, called after each batch with the numbers of its images,
            int64 `[b]` (-1 for padding), and their outputs, float32 `[b, H, W, C]`:
            those of the attacked images if there is an attack.
          rows_of: Outputs as for `on_outputs`, of all tasks -> further rows.
          keep_examples: How many of the first images to return with their outputs.
          numbers: Passed to the attack as float64 tensors; other values, but as many,
            need no new compilation.
          seed: Replaces the evaluator's seed for this call, without a new compilation.

        Raises:
          InputError: The split has fewer images or an unusable one, or the batch size
            cannot be divided among the replicas.
        """
        index, results, examples = [], [], []
        seed = tf.constant(self._seed if seed is None else seed, tf.int64)
        numbers = tuple(tf.constant(number, tf.float64) for number in numbers)
        with stateless.unchanged(self._model, self._surrogate), base.input_errors():
            for batch in self._batches(columns, batch_size, num_examples):
                batch = {key: batch[key] for key in _BATCH_KEYS if key in batch}
                if not index:
                    self._check_models(batch)
                arguments = (batch, seed, numbers)
                self._check_losses(batch, batch["image"])
                rows, pictures = self._step_for(arguments)(*arguments)
                self._check_losses(batch, pictures.get("adversarial"))
                outputs = pictures["clean" if self._attack is None else "attacked"]
                rows = self._gather(rows)
                if rows_of:
                    rows["derived"] = rows_of(self._gather(outputs))
                task_outputs = {task: outputs[task] for task in on_outputs or {}}
                worker_index = self._gather(batch["index"])
                image_index, rows, task_outputs = self._workers.joined(
                    (worker_index, rows, self._gather(task_outputs))
                )
                index.append(image_index)
                results.append(rows)
                is_example = (image_index >= 0) & (image_index < keep_examples)
                # The rows that hold an example on any worker: equally many on all.
                positions = np.flatnonzero(
                    is_example.reshape(-1, len(worker_index)).any(axis=0)
                )
                if len(positions):
                    take = functools.partial(np.take, indices=positions, axis=0)
                    pictures = self._gather((batch, pictures))
                    pictures = tf.nest.map_structure(take, pictures)
                    examples.append(self._workers.joined(pictures))
                for task, callback in (on_outputs or {}).items():
                    callback(image_index, task_outputs[task])
                if on_batch:
                    on_batch(int((image_index >= 0).sum()))
                if self._stops:
                    self._workers.stop_if_asked()
        rows, image_index = in_order(results, index)
        if "unchanged" in rows:
            rows["unchanged"] = rows["unchanged"].astype(bool)
        return Evaluation(
            image_index,
            **rows,
            examples=_join_examples(examples, keep_examples, self._image_channels)
            if examples
            else None,
        )

    def _check_models(self, batch: Mapping[str, Any]) -> None:
        """Checks the attacked model on a few images, before anything is compiled.

        That is, whether its folded copy gives the same outputs, whether it is random,
        and whether losses that divide others are negative.
        """
        if self._attack is None:
            return
        local = self._strategy.experimental_local_results
        batch = tf.nest.map_structure(
            lambda values: local(values)[0][:_TRIAL_IMAGES], batch
        )
        objective = self._bind(batch)
        objective.checked(batch["image"], self._own_losses)
        randomness.say_once(self._model, batch["image"], objective.recipe.eot)

    def _check_losses(self, batch: Mapping[str, Any], images: Any) -> None:
        """Raises `InputError` where losses that divide are negative, on any replica.

        It is called before and after the attack, because XLA drops the check inside.
        """
        recipe = self._objective.recipe
        if not (self._jit and self._attack and self._own_losses and recipe.divided):
            return
        local = self._strategy.experimental_local_results
        for number, x in enumerate(local(images)):
            replica_batch = tf.nest.map_structure(
                lambda values, number=number: local(values)[number], batch
            )
            self._bind(replica_batch).look_at_losses(x)

    def _bind(self, batch: Mapping[str, Any]) -> objectives.TaskObjective:
        """The objective on a batch, towards its wanted targets if there are any."""
        return self._objective.bind(batch["wanted"] if self._targeted else batch, batch)

    def _batches(self, columns, batch_size: int, num_examples: int | None):
        """A distributed data set; every replica of every step gets a full batch."""
        return self._strategy.distribute_datasets_from_function(
            lambda _: batching.eval_batches(
                columns,
                self._tasks,
                batch_size=batch_size,
                num_examples=num_examples or None,
                context=self._workers.context,
                wanted=self._targeted,
                num_classes=self._num_classes,
            )
        )

    def _step_for(self, arguments: tuple) -> Callable:
        """The compiled step for arguments of this kind."""
        kind = str(tf.nest.map_structure(tf.type_spec_from_value, arguments))
        if kind not in self._compiled:
            self._compiled[kind] = compiling.replicated(
                self._strategy, self._step, arguments, self._jit, "an evaluation"
            )
        return self._compiled[kind]

    def _step(
        self, batch: dict[str, Any], seed: tf.Tensor, numbers: tuple
    ) -> tuple[dict, dict]:
        """One replica's batch -> (rows, outputs for pictures), clean and attacked."""
        rows, pictures = {}, {}
        if self._clean or self._targeted:
            outputs = self._outputs(batch["image"], batch, seed)
            if self._targeted:
                rows["unmoved"] = self._statistics(outputs, batch["wanted"])
            if self._clean:
                rows["clean"] = self._statistics(outputs, batch)
                pictures["clean"] = self._float32(outputs)
        if self._attack is not None:
            objective = self._bind(batch)
            seeds = threat.image_keys(seed, batch["index"])
            x_adv = self._attack(objective, batch["image"], seeds, *numbers)
            outputs = self._outputs(x_adv, batch, seed)
            rows["attacked"] = self._statistics(outputs, batch)
            unchanged = tf.reduce_all(tf.equal(x_adv, batch["image"]), axis=[1, 2, 3])
            rows["unchanged"] = tf.cast(unchanged, tf.int32)
            if self._targeted:
                rows["wanted"] = self._statistics(outputs, batch["wanted"])
            judged_tasks = objective.recipe.looked_at
            if objective.recipe.restricted:
                rows["aimed"] = self._statistics(outputs, objective.batch, judged_tasks)
            if objective.recipe.needs_clean:
                clean_outputs = self._outputs(batch["image"], batch, seed)
                rows["before"] = self._statistics(
                    clean_outputs, objective.batch, judged_tasks
                )
            pictures["attacked"] = self._float32(outputs)
            pictures["adversarial"] = x_adv
        return rows, pictures

    def _outputs(self, x: tf.Tensor, batch: Any, seed: tf.Tensor) -> Any:
        """The outputs of the scored model.

        A random model gets the same noise for clean and attacked images, but noise
        other than in any attack.
        """
        keys = threat.image_keys(seed, batch["index"])
        key = stateless.fold_in(stateless.batch_key(keys), _SCORING)
        return stateless.outputs(self._model, x, key)

    def _statistics(
        self, outputs, batch, tasks: TaskSet | None = None
    ) -> dict[str, dict[str, tf.Tensor]]:
        return table.statistics(
            tasks or self._tasks,
            outputs,
            batch["targets"],
            batch["masks"],
            self._num_classes,
        )

    def _float32(self, outputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The tasks' outputs for pictures and files, whatever the model computes in."""
        return {task: tf.cast(outputs[task], tf.float32) for task in self._tasks}

    def _gather(self, values: Any) -> Any:
        """The values of this worker's replicas, joined along the batch."""
        return strategy_lib.gathered(self._strategy, values)


def in_order(
    parts: Sequence[Any], index: Sequence[np.ndarray]
) -> tuple[Any, np.ndarray]:
    """Joins the results of batches in the order of the images, without padding.

    Args:
      parts: Equal structures of `[B, ...]` arrays.
      index: The numbers of the images, int64 `[B]`, -1 for padding.

    Returns:
      (The structure of `[N, ...]` arrays, the numbers ascending.)
    """
    numbers = np.concatenate(index)
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] >= 0]
    results = tf.nest.map_structure(
        lambda *arrays: np.concatenate(arrays)[order], *parts
    )
    return results, numbers[order]


def _join_examples(
    parts: list[tuple[dict, dict]], count: int, channels: int | None
) -> Examples:
    arrays, _ = in_order(parts, [batch["index"] for batch, _ in parts])
    batch, pictures = tf.nest.map_structure(lambda array: array[:count], arrays)
    adversarial = pictures.get("adversarial")
    return Examples(
        image=batch["image"][..., :channels],
        targets=batch["targets"],
        masks=batch["masks"],
        clean=pictures.get("clean", {}),
        adversarial=None if adversarial is None else adversarial[..., :channels],
        attacked=pictures.get("attacked", {}),
    )
