# SPDX-License-Identifier: Apache-2.0
"""A training run before its first step: settings resolved, data open, model built."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import data
from mtr_tf import files
from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.settings import EXTRAS
from mtr_tf.config.settings import RESULTS
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.data import noise_targets
from mtr_tf.data.augment import Augment
from mtr_tf.data.custom import reading
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.models import compiling
from mtr_tf.runs import building
from mtr_tf.runs import directory
from mtr_tf.runs import initial_weights
from mtr_tf.runs import own_models
from mtr_tf.runs import workers as workers_lib
from mtr_tf.runs.directory import Begun
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import own_code
from mtr_tf.tasks.groups import task_weights
from mtr_tf.training import losses as training_losses
from mtr_tf.training import monitor
from mtr_tf.training import schedules
from mtr_tf.training import step as step_lib
from mtr_tf.training.step import Learner

MOST_STEPS = 10**9  # Of a run: TensorFlow counts them in 32 bits.


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a training run needs, after its settings were checked.

    Attributes:
      config: The settings, as the run keeps them.
      workers: Where the run computes, and with whom.
      source: The data set.
      tasks: The tasks that are trained, as the data set declares them.
      columns: Its training split, with noise for the targets of `--random_targets`.
      examples: How many examples of that split are trained on.
      steps: How many steps the whole run has.
      augment: How examples are varied.
      learner: The model, and what a step needs besides it.
      best: The number that decides which checkpoint is the best.
      jit: Whether XLA compiles the step.
      facts: What config.json keeps about data and model besides the settings.
    """

    config: TrainConfig
    workers: Workers
    source: Source
    tasks: tasks_lib.TaskSet
    columns: Columns
    examples: int
    steps: int
    augment: Augment
    learner: Learner
    best: monitor.BestMetric
    jit: bool
    facts: Mapping[str, Any]

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """Where the run computes."""
        return self.workers.strategy

    def batches(self, first: int) -> tf.distribute.DistributedDataset:
        """Returns the batches from step `first` on, on all replicas."""
        return self.strategy.distribute_datasets_from_function(
            lambda context: batching.train_batches(
                self.columns,
                self.tasks,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                first_step=first,
                last_step=self.steps,
                num_examples=self.examples,
                augment=self.augment,
                context=context,
                num_classes=self.source.info.num_classes,
            )
        )


def resolve(
    config: TrainConfig,
    workers: Workers | None = None,
    look: Callable[[], Begun] = Begun,
) -> Job:
    """Opens the data, builds the model, and checks that all settings fit.

    Nothing is written. The strategy, seeds and determinism of the process are set.

    Args:
      config: The settings.
      workers: The workers that train; None: those that the settings name.
      look: Returns what exists of the run. Only the chief calls it, before anything
        else; it may raise.

    Raises:
      InputError: The settings or the data cannot be used, or are not the same on all
        workers.
    """
    workers = workers or workers_lib.join(config.strategy, config.replicas)
    strategy = workers.strategy
    state = _run_state(workers, look)
    start_config = dataclasses.replace(config, init="") if state.steps else config
    facts: dict[str, Any] = {}
    with workers.agreeing(facts):
        _check_settings(start_config, state, strategy.num_replicas_in_sync)
        keras.utils.set_random_seed(config.seed)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        source = building.open_source(config)
        info = building.standardised(source.info, state.normalization)
        tasks = info.tasks.select(config.tasks)
        best = monitor.parse_best(config, tasks)
        columns = _training_columns(config, source)
        source.columns("validation")  # Raises now if it cannot be read.
        _check_targets(tasks, source, state.is_run)
        examples = config.train_examples or len(columns)
        augment = Augment(config.flip, config.parsed_crop)
        augment.check(*source.info.image_shape[:2], tasks)
        per_epoch = _steps_per_epoch(config, examples)
        job_facts = {
            "data": data_facts(source, examples),
            **_normalization(config, info),
        }
        if workers.several:
            facts |= _facts(config, source, tasks)
    # Preparing data may have used random numbers that a user's model draws on.
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        learner = _learner(start_config, info, per_epoch)
        if not state.is_run:
            own_models.check_logits(config.model, learner.model, tasks)
    code = _code(config, learner.model, tasks)
    with workers.agreeing(_hashes(code, tasks)):
        job_facts |= code | _weights(config, fetch=not state.steps)
    steps = config.epochs * per_epoch
    size = config.parsed_crop or source.info.image_shape[:2]
    jit = _jit(config, steps, size, strategy.num_replicas_in_sync)
    return Job(
        config=config,
        workers=workers,
        source=source,
        tasks=tasks,
        columns=columns,
        examples=examples,
        steps=steps,
        augment=augment,
        learner=learner,
        best=best,
        jit=jit,
        facts=job_facts,
    )


def _run_state(workers: Workers, look: Callable[[], Begun]) -> Begun:
    """Returns what exists of the run, by the chief's word, on all workers."""
    state = Begun()
    with workers.agreeing({}):
        if workers.chief:
            state = look()
    return Begun(**workers.of_chief(dataclasses.asdict(state)))


def _check_settings(config: TrainConfig, state: Begun, replicas: int) -> None:
    """Raises InputError for settings that do not fit together, whatever the data."""
    _check_model(config)
    _check_names(config)
    _check_statistics(config, replicas)
    if not state.is_run:
        config.check_used()
        for sentence in config.without_effect:
            logging.warning("%s", sentence)
    batching.check_divisible(config.batch_size, replicas)


def _learner(config: TrainConfig, info: DatasetInfo, steps_per_epoch: int) -> Learner:
    """Returns the model and all that a step needs besides it.

    Args:
      config: The settings.
      info: About the data set, with the statistics that standardise images.
      steps_per_epoch: Number of steps of an epoch.
    """
    tasks = info.tasks.select(config.tasks)
    weighting = training_losses.make_weighting(config, tasks)
    model = building.new_model(config, info)
    optimizer = schedules.optimizer(config, steps_per_epoch)
    optimizer.build(model.trainable_variables + weighting.variables)
    return Learner(
        model=model,
        optimizer=optimizer,
        losses=training_losses.make(config, info),
        weighting=weighting,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
        adversary=step_lib.make_adversary(config, tasks),
    )


def _normalization(config: TrainConfig, info: DatasetInfo) -> dict[str, Any]:
    """Returns the mean and std of the model's first layer, as config.json has them."""
    if ":" in config.model:  # A user's model, which may not standardise at all.
        return {}
    return {"normalization": {"mean": list(info.mean), "std": list(info.std)}}


def own_facts(config: TrainConfig, source: Source | None) -> dict[str, Any]:
    """Returns what config.json keeps of a user's code and `--init`, as they are now.

    Args:
      config: The settings of a finished run; nothing is downloaded for it.
      source: Its data set; None if neither model nor data are a user's own.

    Raises:
      InputError: The model cannot be built, or the data lack its tasks.
    """
    code: dict[str, Any] = {}
    if source:
        model = None
        if ":" in config.model:
            new_config = dataclasses.replace(config, init="")
            keras.utils.clear_session()  # Names count from the start, as in training.
            model = building.new_model(new_config, source.info)
        code = _code(config, model, source.info.tasks.select(config.tasks))
    return code | _weights(config, fetch=False)


def _code(
    config: TrainConfig, model: keras.Model | None, tasks: tasks_lib.TaskSet
) -> dict[str, Any]:
    """Returns what is compared of a user's own code when the run is continued.

    The model counts only if it is the user's own.
    """
    if ":" not in config.model + config.dataset:
        return {}
    versions = directory.versions()
    # Hashes depend on these: other versions may write the same model differently.
    code: dict[str, Any] = {
        "versions": {name: versions[name] for name in ("python", "keras", "mtr_tf")}
    }
    if model is not None and ":" in config.model:
        code["model"] = own_models.digest(model)
    replaced_tasks = [pair.partition(":")[0] for pair in config.task_losses]
    for name, task in tasks.items():
        if own_code.has_own_loss(task) and name not in replaced_tasks:
            code[f"loss of {name}"] = own_code.of(task.loss)
    return {"code": code}


def _hashes(code: Mapping[str, Any], tasks: tasks_lib.TaskSet) -> dict[str, Any]:
    """Returns hashes of a user's own code by name, None elsewhere; for `agreeing`."""
    hashes = code.get("code", {})
    parts = ("model", *(f"loss of {name}" for name in tasks))
    return {f"the code of the {part}": hashes.get(part) for part in parts}


def _weights(config: TrainConfig, fetch: bool) -> dict[str, Any]:
    """Returns what is compared of `--init` when the run is continued, if it exists.

    Args:
      config: The settings.
      fetch: Whether to download it if it is at an address. A run with a checkpoint
        does not need it.
    """
    if config.init and (fetch or not files.is_remote(config.init)):
        with contextlib.suppress(InputError):
            return {"init": initial_weights.digest(config.init)}
    return {}


def data_facts(source: Source, examples: int) -> dict[str, Any]:
    """Returns what is compared when the run is continued: each split's size and means.

    Args:
      source: The data set.
      examples: How many examples are trained on.
    """
    facts = {}
    for split in ("train", "validation"):
        columns = source.columns(split)
        count = len(columns)
        if split == "train":  # It may have fewer now than were trained on.
            count = min(count, examples)
        means = batching.first_and_last(columns, count)
        facts[split] = {"examples": count, "means": means}
    return facts


def _steps_per_epoch(config: TrainConfig, examples: int) -> int:
    """Returns the steps; raises `InputError` for too few examples or too many steps."""
    per_epoch = batching.steps_per_epoch(examples, config.batch_size)
    if config.epochs * per_epoch > MOST_STEPS:
        raise InputError(
            f"--epochs must give at most {MOST_STEPS} steps in all, but got "
            f"{config.epochs} of {per_epoch} steps each; give fewer epochs, or a "
            "larger --batch_size."
        )
    return per_epoch


def _facts(
    config: TrainConfig, source: Source, tasks: tasks_lib.TaskSet
) -> dict[str, Any]:
    """Returns what must be the same on all workers, by name: settings, code, data."""
    settings = config.that_change(RESULTS, EXTRAS) | {"jit": config.jit}
    facts = workers_lib.facts(settings)
    for split in ("train", "validation"):
        columns = source.columns(split)
        facts[f"the size of {split}"] = len(columns)
        facts[f"the first and last of {split}"] = _ends(columns, tasks)
    return facts


def _ends(columns: Columns, tasks: tasks_lib.TaskSet) -> list[str] | None:
    """Returns hashes of the first and the last example, the same on all workers.

    None if the examples differ each time they are read.
    """

    def read() -> list[str]:
        # One by one, as `batching.first_and_last` does.
        rows = np.array([[0], [len(columns) - 1]])
        examples = [batching.gather(columns, tasks, row) for row in rows]
        sums = [hashlib.sha256(leaf.tobytes()) for leaf in tf.nest.flatten(examples)]
        return [digest.hexdigest()[:16] for digest in sums]

    hashes = read()
    return hashes if read() == hashes else None


def _check_model(config: TrainConfig) -> None:
    """Raises `InputError` for an impossible model, before data are prepared."""
    if config.init:
        initial_weights.check(config.init)
    if ":" in config.model:
        reading.own_function(config.model, "--model")
        return
    stages = building.shared_stages(config)
    models.check_stages(config.model, config.decoders, stages)
    for size in (config.parsed_image_size, config.parsed_crop):
        if size:
            models.check_image_size(config.model, size)


def _check_names(config: TrainConfig) -> None:
    """Raises `InputError` for names that do not go together, before data are opened."""
    task_weights(config.tasks, config.main_tasks, config.aux_weight)
    step_lib.attacked_tasks(config)
    if not data.may_bring_tasks(config.dataset):  # Else they are known once it is open.
        monitor.parse_best(config, tasks_lib.task_set(config.tasks))
    for name in config.random_targets:
        if name not in config.tasks:
            raise InputError(
                "--random_targets must be among --tasks, "
                f"{', '.join(config.tasks)}; got {name!r}."
            )


def _check_statistics(config: TrainConfig, replicas: int) -> None:
    """Raises `InputError` for batch norms that TensorFlow cannot keep in step."""
    uses_batch = config.adversarial_batch_norm == "training"
    is_shared = config.sync_batch_norm and replicas > 1
    if is_shared and uses_batch and step_lib.attacked_tasks(config):
        raise InputError(
            "--adversarial_batch_norm must be inference with --sync_batch_norm on "
            "several replicas, because the loop of an attack cannot share statistics "
            f"between replicas; got training and {replicas} replicas. Leave out one "
            "of the two, or give --replicas=1."
        )


def _training_columns(config: TrainConfig, source: Source) -> Columns:
    """Returns the training split; raises `InputError` if it is too small."""
    columns = source.columns("train")
    if config.train_examples > len(columns):
        raise InputError(
            f"--train_examples must be at most {len(columns)}, the size of the "
            f"training split of {config.dataset}; got {config.train_examples}."
        )
    return noise_targets.replace(
        columns, config.random_targets, source.info, config.seed
    )


def _check_targets(tasks: tasks_lib.TaskSet, source: Source, is_run: bool) -> None:
    """Raises `InputError` for a task of which no training example has a target.

    Runs that have begun may have such a task, and only log a warning.
    """
    for name in tasks:
        if name in source.unknown.get("train", ()):
            if not is_run:
                raise InputError(
                    f"The task {name} must have targets in train, but none of its "
                    f"{source.info.splits['train']} examples has one; add targets, or "
                    "leave it out of --tasks."
                )
            logging.warning(
                "no example of train has a target of %s, which learns nothing", name
            )
        if name in source.unknown.get("validation", ()):
            logging.warning(
                "no example of validation has a target of %s, so no number there says "
                "how well it is learned",
                name,
            )


def _jit(
    config: TrainConfig, steps: int, image_size: Sequence[int], replicas: int
) -> bool:
    """Whether XLA compiles the step; all steps count, so that resumed runs agree."""
    pixels = math.prod(image_size) * config.batch_size / replicas
    passes = compiling.TRAINING_STEP * steps
    jit = compiling.worthwhile(config.jit, passes, pixels)
    reason = ""
    if jit and replicas > 1 and config.sync_batch_norm:
        jit, reason = False, "but --sync_batch_norm speaks to other replicas within it"
    compiling.say(
        "the training step" if jit else "no training step", config.jit, reason
    )
    return jit
