# SPDX-License-Identifier: Apache-2.0
"""One training step: batch, attack, model, losses, update; read it top to bottom.

Each place is entered once. Without adversarial training the attack is left out; the
rest is the same.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import objectives
from mtr_tf.attacks import threat
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.models import compiling
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import TaskSet
from mtr_tf.training.losses import Loss
from mtr_tf.training.losses import Weighting


@dataclasses.dataclass(frozen=True)
class Adversary:
    """How training images are attacked.

    Attributes:
      attack: what moves them.
      tasks: those whose losses, summed, it raises.
      share: weight of the attacked images' losses; the clean ones' has the rest.
      batch_norm: "inference", or "training" for each batch's own statistics.
      seed: of its noise, beside the step and the place in the global batch.
    """

    attack: attacks.Attack
    tasks: TaskSet
    share: float
    batch_norm: str
    seed: int

    def objective(self, model: keras.Model) -> objectives.Unbound:
        """Returns what is raised, for all batches."""
        training = self.batch_norm == "training"
        attacked = (lambda x: model(x, training=True)) if training else model
        return objectives.unbound(attacked, self.tasks)

    def perturb(
        self, objective: objectives.Unbound, batch: Mapping[str, Any]
    ) -> tf.Tensor:
        """Returns the batch's images, attacked: a pure function of seed and step."""
        keys = threat.fold_in(
            threat.fold_in(self.seed, batch["step"]), batch["position"]
        )
        return self.attack(objective.bind(batch), batch["image"], seed=keys)


def attacked_tasks(config: TrainConfig) -> tuple[str, ...]:
    """Returns the names that `--adversarial_tasks` stands for; none if that is nothing.

    Raises:
      InputError: it names a task that is not trained.
    """
    if not config.adversarial_tasks or not config.adversarial_share:
        return ()
    tasks = config.tasks
    groups = {"main": config.main_or_all_tasks, "all": tasks}
    attacked = groups.get(
        config.adversarial_tasks, tuple(config.adversarial_tasks.split("+"))
    )
    missing = [task for task in attacked if task not in tasks]
    if missing:
        raise InputError(
            "--adversarial_tasks must be main, all, or among --tasks "
            f"({', '.join(tasks)}), but {', '.join(missing)} is not; add it to "
            "--tasks or remove it."
        )
    return attacked


def make_adversary(config: TrainConfig, tasks: TaskSet) -> Adversary | None:
    """Returns what attacks images of some tasks in training; None if nothing does.

    Raises:
      InputError: `--adversarial_tasks` names a task that is not trained.
    """
    attacked = attacked_tasks(config)
    if not attacked:
        return None
    epsilon = config.adversarial_eps / 255
    step = config.adversarial_step_size / 255 or epsilon / 4
    return Adversary(
        # The last point, as usual in training, not the best one met.
        attacks.PGD(epsilon, step, config.adversarial_steps, keep="last"),
        tasks.select(attacked),
        config.adversarial_share,
        config.adversarial_batch_norm,
        config.seed,
    )


@dataclasses.dataclass(frozen=True)
class Learner:
    """What a step needs; made once, inside the strategy's scope."""

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    losses: Mapping[str, Loss]  # The training loss of each task.
    weighting: Weighting
    weight_decay: float
    batch_size: int  # Over all replicas.
    adversary: Adversary | None = None
    attacked: objectives.Unbound | None = dataclasses.field(init=False)

    def __post_init__(self):
        objective = self.adversary and self.adversary.objective(self.model)
        object.__setattr__(self, "attacked", objective)

    @property
    def variables(self) -> list[keras.Variable]:
        """All that is trained."""
        return self.model.trainable_variables + self.weighting.variables


@tf.autograph.experimental.do_not_convert  # There is nothing to; it takes seconds.
def replica_step(learner: Learner, batch: dict, jit: bool = False) -> tf.Tensor:
    """One optimizer step on one replica's share of the batch.

    Args:
      learner: what is trained.
      batch: its examples.
      jit: whether XLA compiles all but the update, which speaks to other replicas.

    Returns:
      float32 [tasks], this replica's part of each task's mean loss over the global
      batch, in the order of the weights: their sum over replicas is the mean.
    """
    slopes = compiling.per_replica(functools.partial(_gradients, learner), jit)
    losses, gradients = slopes(batch)
    if isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer):
        gradients = _skipped_by_all(gradients)
    # Keras optimizers sum gradients over replicas themselves.
    learner.optimizer.apply(gradients, learner.variables)
    return losses


def _skipped_by_all(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """NaN on all replicas where a gradient of any of them is not finite.

    Keras skips a step whose gradients overflow in float16, but asks the first replica
    alone.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    finite = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None]
    wrong = tf.cast(~tf.reduce_all(finite), tf.float32)
    wrong = context.all_reduce(tf.distribute.ReduceOp.SUM, wrong) > 0
    return [
        g if g is None else tf.where(wrong, tf.constant(math.nan, g.dtype), g)
        for g in gradients
    ]


def _gradients(learner: Learner, batch: dict) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the losses as `replica_step` does, and what the optimizer applies."""
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    views = _views(learner, batch)
    with tf.GradientTape() as tape:
        losses, added = _mean_losses(learner, batch, views)
        # Each replica adds its share of what is no mean over images.
        extra = (learner.weighting.penalty() + _decay(learner) + added) / replicas
        total = learner.weighting.total(losses) + extra
        scaled = learner.optimizer.scale_loss(total)
    gradients = tape.gradient(scaled, learner.variables)
    return tf.stack(list(losses.values())), gradients


def _views(learner: Learner, batch: dict) -> list[tuple[tf.Tensor, float]]:
    """Returns the images to train on, attacked or clean, and what they weigh."""
    adversary, objective = learner.adversary, learner.attacked
    if adversary is None or objective is None:
        return [(batch["image"], 1.0)]
    attacked = (adversary.perturb(objective, batch), adversary.share)
    clean = (batch["image"], 1 - adversary.share)
    return [attacked, clean] if adversary.share < 1 else [attacked]


def _mean_losses(
    learner: Learner, batch: dict, views: list[tuple[tf.Tensor, float]]
) -> tuple[dict[str, tf.Tensor], tf.Tensor | float]:
    """Returns {task: this replica's part of the mean loss over the global batch}.

    And what layers add on this replica, as Keras's fit takes it: regularizers of
    weights and of outputs, and `add_loss`.
    """
    losses, added = dict.fromkeys(learner.weighting.fixed, 0.0), 0.0
    for images, share in views:
        outputs = learner.model(images, training=True)
        for loss in learner.model.losses:  # Of this call.
            added += share * tf.reduce_sum(tf.cast(loss, tf.float32))
        for task in losses:
            per_image = learner.losses[task](
                batch["targets"][task], outputs[task], batch["masks"][task]
            )
            losses[task] += share * tf.reduce_sum(per_image) / learner.batch_size
    return losses, added


def _decay(learner: Learner) -> tf.Tensor | float:
    """Returns the loss whose gradient is weight_decay * w, as PyTorch's SGD has it."""
    if not learner.weight_decay:
        return 0.0
    variables = learner.model.trainable_variables
    decay = tf.add_n([tf.nn.l2_loss(tf.cast(v, tf.float32)) for v in variables])
    return learner.weight_decay * decay


def compile_step(
    learner: Learner, strategy: tf.distribute.Strategy, jit: bool = False
) -> Callable[[dict], tf.Tensor]:
    """A function of a replica's batch, for `strategy.run`: see `replica_step`.

    With `jit` XLA compiles it: all of it where there is one replica, and all but the
    update, which speaks to the others, where there are several.
    """
    several = strategy.num_replicas_in_sync > 1
    step = functools.partial(replica_step, learner, jit=jit and several)
    return compiling.per_replica(step, jit and not several)


def compile_steps(
    learner: Learner,
    strategy: tf.distribute.Strategy,
    jit: bool = False,
    step: Callable[[dict], tf.Tensor] | None = None,
) -> Callable:
    """A function (iterator, n) -> float32 [n, tasks], the losses of n steps.

    `step` is what `compile_step` returns, if that has been called already.
    """
    step = step or compile_step(learner, strategy, jit)

    @tf.function(reduce_retracing=True)
    def train_steps(iterator, n):
        losses = tf.TensorArray(
            tf.float32, size=n, element_shape=[len(learner.weighting.fixed)]
        )
        for i in tf.range(n):  # One step in the graph, whatever n.
            parts = strategy.run(step, args=(next(iterator),))
            losses = losses.write(i, strategy.reduce("SUM", parts, axis=None))
        return losses.stack()

    return train_steps


def settle_statistics(model: keras.Model, workers: Workers) -> None:
    """Gives all replicas, of all workers, the mean of their batch-norm statistics.

    Without --sync_batch_norm each replica keeps running statistics of its own. Before a
    model is evaluated or saved they must be one, or results would depend on which
    replica an image meets, and a resumed run would differ from one that never stopped.
    Means are taken in float64, so that what is the same on all replicas, as frozen
    weights are, stays so to the last bit.
    """
    values = [variable.value for variable in model.non_trainable_variables]
    statistics = [value for value in values if value.dtype.is_floating]
    workers.take_mean(statistics)
