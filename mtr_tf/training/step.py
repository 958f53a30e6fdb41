# SPDX-License-Identifier: Apache-2.0
"""One training step: batch, attack, model, losses, update; read it top to bottom.

Each part occurs once. Without adversarial training the attack is left out; the rest is
the same.
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
from mtr_tf.tasks.task import Loss
from mtr_tf.training.losses import Weighting


@dataclasses.dataclass(frozen=True)
class Adversary:
    """How training images are attacked.

    Attributes:
      attack: the attack.
      tasks: the tasks whose summed losses it raises.
      share: weight of the losses on attacked images; those on clean ones have the rest.
      batch_norm: "inference", or "training" for each batch's own statistics.
      seed: seeds its noise, with the step and the position in the global batch.
    """

    attack: attacks.Attack
    tasks: TaskSet
    share: float
    batch_norm: str
    seed: int

    def objective(self, model: keras.Model) -> objectives.Unbound:
        """Returns the objective that the attack raises, for all batches."""
        is_training = self.batch_norm == "training"
        function = (lambda x: model(x, training=True)) if is_training else model
        return objectives.unbound(function, self.tasks)

    def perturb(
        self, objective: objectives.Unbound, batch: Mapping[str, Any]
    ) -> tf.Tensor:
        """Returns the batch's images, attacked: a pure function of seed and step."""
        keys = threat.fold_in(
            threat.fold_in(self.seed, batch["step"]), batch["position"]
        )
        return self.attack(objective.bind(batch), batch["image"], seed=keys)


def attacked_tasks(config: TrainConfig) -> tuple[str, ...]:
    """Returns the tasks that `--adversarial_tasks` stands for; () without an attack.

    Raises:
      InputError: it names a task that is not trained.
    """
    if not config.adversarial_tasks or not config.adversarial_share:
        return ()
    tasks = config.tasks
    groups = {"main": config.main_or_all_tasks, "all": tasks}
    names = groups.get(
        config.adversarial_tasks, tuple(config.adversarial_tasks.split("+"))
    )
    missing = [task for task in names if task not in tasks]
    if missing:
        raise InputError(
            "--adversarial_tasks must be main, all, or among --tasks "
            f"({', '.join(tasks)}), but {', '.join(missing)} is not; add it to "
            "--tasks or remove it."
        )
    return names


def make_adversary(config: TrainConfig, tasks: TaskSet) -> Adversary | None:
    """Returns the adversary of training images; None if images are not attacked.

    Raises:
      InputError: `--adversarial_tasks` names a task that is not trained.
    """
    names = attacked_tasks(config)
    if not names:
        return None
    epsilon = config.adversarial_eps / 255
    step = config.adversarial_step_size / 255 or epsilon / 4
    return Adversary(
        # The last point, as usual in training, not the best one.
        attacks.PGD(epsilon, step, config.adversarial_steps, keep="last"),
        tasks.select(names),
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
        """All variables that are trained."""
        return self.model.trainable_variables + self.weighting.variables


@tf.autograph.experimental.do_not_convert  # Nothing to convert; it takes seconds.
def replica_step(learner: Learner, batch: dict, jit: bool = False) -> tf.Tensor:
    """One optimizer step on one replica's share of the batch.

    Args:
      learner: what is trained.
      batch: its examples.
      jit: whether XLA compiles all but the update, which other replicas take part in.

    Returns:
      float32 [tasks], this replica's part of each task's mean loss over the global
      batch, in the order of the weights: their sum over replicas is the mean.
    """
    loss_and_gradients = compiling.per_replica(
        functools.partial(_gradients, learner), jit
    )
    losses, gradients = loss_and_gradients(batch)
    if isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer):
        gradients = _spread_nan(gradients)
    # Keras optimizers sum gradients over replicas themselves.
    learner.optimizer.apply(gradients, learner.variables)
    return losses


def _spread_nan(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns NaN gradients on all replicas if any gradient of any is not finite.

    Keras skips a step whose gradients overflow in float16, but only asks the first
    replica.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    are_finite = [
        tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None
    ]
    overflow = tf.cast(~tf.reduce_all(are_finite), tf.float32)
    overflow = context.all_reduce(tf.distribute.ReduceOp.SUM, overflow) > 0
    return [
        g if g is None else tf.where(overflow, tf.constant(math.nan, g.dtype), g)
        for g in gradients
    ]


def _gradients(learner: Learner, batch: dict) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the losses as `replica_step` does, and what the optimizer applies."""
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    views = _views(learner, batch)
    with tf.GradientTape() as tape:
        losses, layer_losses = _mean_losses(learner, batch, views)
        # Each replica adds its share of terms that are not means over images.
        extra_loss = (
            learner.weighting.penalty() + _decay(learner) + layer_losses
        ) / replicas
        total = learner.weighting.total(losses) + extra_loss
        scaled_total = learner.optimizer.scale_loss(total)
    gradients = tape.gradient(scaled_total, learner.variables)
    return tf.stack(list(losses.values())), gradients


def _views(learner: Learner, batch: dict) -> list[tuple[tf.Tensor, float]]:
    """Returns the images to train on, attacked or clean, and the weights of each."""
    adversary, objective = learner.adversary, learner.attacked
    if adversary is None or objective is None:
        return [(batch["image"], 1.0)]
    attacked_view = (adversary.perturb(objective, batch), adversary.share)
    clean_view = (batch["image"], 1 - adversary.share)
    return [attacked_view, clean_view] if adversary.share < 1 else [attacked_view]


def _mean_losses(
    learner: Learner, batch: dict, views: list[tuple[tf.Tensor, float]]
) -> tuple[dict[str, tf.Tensor], tf.Tensor | float]:
    """Returns {task: this replica's part of the mean loss over the global batch}.

    Also returns what layers add to the loss on this replica, as in Keras's fit:
    regularizers of weights and of outputs, and `add_loss`.
    """
    losses, layer_losses = dict.fromkeys(learner.weighting.fixed, 0.0), 0.0
    for images, share in views:
        outputs = learner.model(images, training=True)
        for loss in learner.model.losses:  # Of this call.
            layer_losses += share * tf.reduce_sum(tf.cast(loss, tf.float32))
        for task in losses:
            per_image = learner.losses[task](
                batch["targets"][task], outputs[task], batch["masks"][task]
            )
            losses[task] += share * tf.reduce_sum(per_image) / learner.batch_size
    return losses, layer_losses


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
    """Returns `replica_step` as a function of a replica's batch, for `strategy.run`.

    With `jit`, XLA compiles it: all of it for a single replica, and all but the update,
    which communicates with the others, for several.
    """
    is_replicated = strategy.num_replicas_in_sync > 1
    step = functools.partial(replica_step, learner, jit=jit and is_replicated)
    return compiling.per_replica(step, jit and not is_replicated)


def compile_steps(
    learner: Learner,
    strategy: tf.distribute.Strategy,
    jit: bool = False,
    step: Callable[[dict], tf.Tensor] | None = None,
) -> Callable:
    """Returns a function (iterator, n) -> float32 [n, tasks], the losses of n steps.

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

    Without --sync_batch_norm each replica has its own running statistics. Before a
    model is evaluated or saved they must be equal, or results would depend on the
    replica that gets an image, and a resumed run would differ from one that never
    stopped. Means are taken in float64, so that values that are equal on all replicas,
    such as frozen weights, stay so to the last bit.
    """
    values = [variable.value for variable in model.non_trainable_variables]
    statistics = [value for value in values if value.dtype.is_floating]
    workers.take_mean(statistics)
