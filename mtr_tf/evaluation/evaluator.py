# SPDX-License-Identifier: Apache-2.0
"""Scores a model on a data set, clean and attacked: one row per image and metric.

Rows are additive statistics (see `metrics`), so that their sum gives the metric of any
set of images, over any number of replicas and workers, and resampling them gives its
bootstrap. An image's rows depend only on the image, the model and (attack, seed, the
image's index), not on batch size, order or replicas. The exception is the noise of a
model that is random in `predict`: it is made for a whole batch, from (seed, the index
of its first image).
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

_SCORING = -1  # Folded into the seed of a random model's noise where it is scored.
_LOOKED_AT = 2  # Images of the first batch that copies of the model are tried on.
_USED = ("image", "targets", "masks", "index", "wanted")

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
    """What `Evaluator.run` returns: rows, and the first images if asked for.

    Attributes:
      index: int64 `[N]`, the numbers of the images, ascending.
      clean: Rows of the clean images; empty with `clean=False`.
      attacked: Rows of the attacked images; empty without an attack.
      wanted: Of a targeted attack, rows of the attacked images' outputs against the
        targets that they are drawn to; `unmoved` the same of the clean images. Else
        empty.
      aimed: Of an attack on some of the output pixels, rows of the attacked images over
        these pixels alone, against what `wanted` or else `attacked` are; else empty.
      before: Where attacks are judged by comparison with the clean images, rows of
        these as the attack looks at them: its pixels, its targets, and those that it
        spares; else empty.
      still: bool `[N]`, whether the attack left an image as it was; None without one.
      examples: None unless `keep_examples` is positive.
      own: What `run` was asked to compute of outputs, else empty.
    """

    index: np.ndarray
    clean: Rows
    attacked: Rows
    wanted: Rows
    unmoved: Rows
    aimed: Rows
    before: Rows
    still: np.ndarray | None
    examples: Examples | None
    own: Rows = dataclasses.field(default_factory=dict)


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
        """Takes what does not change from call to call.

        Args:
          model: `[batch, H, W, 3]` in [0, 1] -> {task: output}; made under
            `workers.local`.
          tasks: The tasks to score: names of the eleven, or records.
          num_classes: Of the data set; for tasks that do not say how many they have.
          workers: Who evaluates, on which replicas, each its share of every batch;
            None: this process, on TensorFlow's default, one device.
          attack: `(objective, x, seed, *numbers) -> x_adv`, with the numbers that `run`
            is given; None: clean images only.
          objective: Handed to `attacks.objective`: which tasks are attacked, and how;
            None: the sum of the losses of `tasks`. With `targeted`, each image is drawn
            to the targets of the one half the split further on.
          surrogate: The model that is attacked in place of `model`, which is only
            scored: a transfer. None: `model` itself.
          seed: Image i is attacked under a seed made of (seed, i).
          clean: False leaves the clean images out.
          jit: Whether XLA compiles it all (see `compiling`).
          image_channels: How many channels are the image's, and shown; behind them are
            packed inputs. None: all.
          stops: Whether `run` ends after a batch where a signal has come to one of
            several workers; False: it is finished, and the caller stops them.
          own_losses: Whether the attack raises those of the tasks, if the objective
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
          on_batch: Called after each batch with the number of images in it.
          on_outputs: By task, called after each batch with the numbers of its images,
            int64 `[b]` (-1 for padding), and their outputs, float32 `[b, H, W, C]`:
            attacked where there is an attack.
          rows_of: Further rows of outputs as `on_outputs` gets them, image by image.
          keep_examples: How many of the first images to return with their outputs.
          numbers: Handed to the attack as float64 tensors: a call with other numbers,
            but as many, is not compiled anew.
          seed: In place of the evaluator's own, for this call; not compiled anew.

        Raises:
          InputError: The split has fewer images, one that cannot be used, or the batch
            size cannot be divided among the replicas.
        """
        index, results, kept = [], [], []
        seed = tf.constant(self._seed if seed is None else seed, tf.int64)
        numbers = tuple(tf.constant(number, tf.float64) for number in numbers)
        with stateless.unchanged(self._model, self._surrogate), base.input_errors():
            for batch in self._batches(columns, batch_size, num_examples):
                batch = {key: batch[key] for key in _USED if key in batch}
                if not index:
                    self._look_at_models(batch)
                arguments = (batch, seed, numbers)
                self._look_at_losses(batch, batch["image"])
                rows, pictures = self._step_for(arguments)(*arguments)
                self._look_at_losses(batch, pictures.get("adversarial"))
                outputs = pictures["clean" if self._attack is None else "attacked"]
                rows = self._gather(rows)
                if rows_of:
                    rows["own"] = rows_of(self._gather(outputs))
                shown = {task: outputs[task] for task in on_outputs or {}}
                own = self._gather(batch["index"])
                places, rows, shown = self._workers.joined(
                    (own, rows, self._gather(shown))
                )
                index.append(places)
                results.append(rows)
                first = (places >= 0) & (places < keep_examples)
                # The rows of a share where any worker has one: as many on all.
                at = np.flatnonzero(first.reshape(-1, len(own)).any(axis=0))
                if len(at):
                    take = functools.partial(np.take, indices=at, axis=0)
                    pictures = self._gather((batch, pictures))
                    pictures = tf.nest.map_structure(take, pictures)
                    kept.append(self._workers.joined(pictures))
                for task, call in (on_outputs or {}).items():
                    call(places, shown[task])
                if on_batch:
                    on_batch(int((places >= 0).sum()))
                if self._stops:
                    self._workers.stop_if_asked()
        rows, places = in_order(results, index)
        return Evaluation(
            index=places,
            clean=rows.get("clean", {}),
            attacked=rows.get("attacked", {}),
            wanted=rows.get("wanted", {}),
            unmoved=rows.get("unmoved", {}),
            aimed=rows.get("aimed", {}),
            before=rows.get("before", {}),
            still=rows["still"].astype(bool) if "still" in rows else None,
            examples=_examples(kept, keep_examples, self._image_channels)
            if kept
            else None,
            own=rows.get("own", {}),
        )

    def _look_at_models(self, batch: Mapping[str, Any]) -> None:
        """Looks at what is attacked on a few images, before anything is compiled.

        Whether its folded copy does the same, whether it is random, and whether losses
        that divide others are negative.
        """
        if self._attack is None:
            return
        local = self._strategy.experimental_local_results
        batch = tf.nest.map_structure(lambda all_: local(all_)[0][:_LOOKED_AT], batch)
        goal = batch["wanted"] if self._targeted else batch
        objective = self._objective.bind(goal, batch)
        objective.checked(batch["image"], self._own_losses)
        randomness.say_once(self._model, batch["image"], objective.recipe.eot)

    def _look_at_losses(self, batch: Mapping[str, Any], images: Any) -> None:
        """Raises `InputError` where losses that divide are negative, on any replica.

        Before and after the attack, where XLA drops the check that is in its graph.
        """
        recipe = self._objective.recipe
        if not (self._jit and self._attack and self._own_losses and recipe.divided):
            return
        local = self._strategy.experimental_local_results
        for replica, x in enumerate(local(images)):
            own = tf.nest.map_structure(lambda all_, i=replica: local(all_)[i], batch)
            goal = own["wanted"] if self._targeted else own
            self._objective.bind(goal, own).look_at_losses(x)

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
            goal = batch["wanted"] if self._targeted else batch
            objective = self._objective.bind(goal, batch)
            seeds = threat.image_keys(seed, batch["index"])
            x_adv = self._attack(objective, batch["image"], seeds, *numbers)
            outputs = self._outputs(x_adv, batch, seed)
            rows["attacked"] = self._statistics(outputs, batch)
            same = tf.reduce_all(tf.equal(x_adv, batch["image"]), axis=[1, 2, 3])
            rows["still"] = tf.cast(same, tf.int32)
            if self._targeted:
                rows["wanted"] = self._statistics(outputs, batch["wanted"])
            attacked = objective.recipe.looked_at
            if self._objective.restricted:
                rows["aimed"] = self._statistics(outputs, objective.batch, attacked)
            if objective.recipe.needs_clean:
                clean = self._outputs(batch["image"], batch, seed)
                rows["before"] = self._statistics(clean, objective.batch, attacked)
            pictures["attacked"] = self._float32(outputs)
            pictures["adversarial"] = x_adv
        return rows, pictures

    def _outputs(self, x: tf.Tensor, batch: Any, seed: tf.Tensor) -> Any:
        """What the scored model gives.

        A random one meets the same noise with clean and attacked images, and another
        than in any attack.
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
    """Joins what came of batches, in the order of the images, without padding.

    Args:
      parts: Equal structures of `[B, ...]` arrays.
      index: The numbers of the images, int64 `[B]`, -1 for padding.

    Returns:
      (The structure of `[N, ...]` arrays, the numbers ascending.)
    """
    whole = np.concatenate(index)
    order = np.argsort(whole, kind="stable")
    order = order[whole[order] >= 0]
    joined = tf.nest.map_structure(lambda *of: np.concatenate(of)[order], *parts)
    return joined, whole[order]


def _examples(
    kept: list[tuple[dict, dict]], count: int, channels: int | None
) -> Examples:
    whole, _ = in_order(kept, [batch["index"] for batch, _ in kept])
    batch, pictures = tf.nest.map_structure(lambda array: array[:count], whole)
    adversarial = pictures.get("adversarial")
    return Examples(
        image=batch["image"][..., :channels],
        targets=batch["targets"],
        masks=batch["masks"],
        clean=pictures.get("clean", {}),
        adversarial=None if adversarial is None else adversarial[..., :channels],
        attacked=pictures.get("attacked", {}),
    )
