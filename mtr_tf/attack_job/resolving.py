# SPDX-License-Identifier: Apache-2.0
"""From the settings of an attack to its job: what is loaded, and whether it fits."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import mtr_tf
from mtr_tf import files
from mtr_tf.attack_job import job as job_lib
from mtr_tf.attack_job.job import Job
from mtr_tf.attacks import channels
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.config.attack import NO_ATTACK
from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.settings import EXTRAS
from mtr_tf.config.settings import LEAST_LEVELS
from mtr_tf.config.settings import RESULTS
from mtr_tf.config.settings import is_step_of_one
from mtr_tf.data import batching
from mtr_tf.data.custom import facts as custom_facts
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_store
from mtr_tf.evaluation import cityscapes_export
from mtr_tf.evaluation import first_look
from mtr_tf.evaluation import largest_batch
from mtr_tf.evaluation import model_fit
from mtr_tf.evaluation import own_targets
from mtr_tf.evaluation import plan
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.plan import Cell
from mtr_tf.evaluation.provenance import Provenance
from mtr_tf.measures import measure
from mtr_tf.models import folding
from mtr_tf.runs import cluster
from mtr_tf.runs import loading
from mtr_tf.runs import remote
from mtr_tf.runs import strategy as strategy_lib
from mtr_tf.runs import workers as workers_lib
from mtr_tf.runs.loading import Run
from mtr_tf.runs.model_files import File
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import groups
from mtr_tf.tasks import more_metrics
from mtr_tf.tasks import own_code

# A folder of results has at least one of these.
_RESULT_NAMES = ("settings.json", "cells", "parts", "predictions", "measures")
# Defaults of settings that came later: only other values enter a folder's name.
_DEFAULTS = {"attack_channels": [], "targets": "data", "spare": []}


def resolve(
    config: AttackConfig,
    source: Source | None = None,
    file: File | None = None,
    folder: pathlib.Path | None = None,
    workers: Workers | None = None,
) -> Job:
    """Loads models and data, and checks that they fit together; writes nothing.

    Args:
      config: The settings.
      source: The data; None: those that the settings name.
      file: The model, if it is the user's own and loaded already; None: the one that
        the settings name.
      folder: Where results go; None: where the settings say, or else a folder beside
        the model.
      workers: Those that attack; None: this process alone.

    Raises:
      InputError: Settings, checkpoint and data do not go together, or are not the same
        on all workers.
    """
    workers = workers or _single_worker(config)
    facts: dict[str, Any] = {}
    with workers.agreeing(facts):
        job = _resolve(config, workers, source, file, folder)
        if workers.several:
            facts |= _facts(job)
    if workers.several and config.batch_size == "auto":  # What fits all of them.
        sizes = workers.joined(np.array([job.subject.batch_size]))
        subject = dataclasses.replace(job.subject, batch_size=int(sizes.min()))
        job = dataclasses.replace(job, subject=subject)
    return job


def _single_worker(config: AttackConfig) -> Workers:
    """This process alone; `InputError` where the environment names several workers."""
    if strategy_lib.takes_workers(config.strategy):
        cluster.refuse("this function of mtr_tf")
    return Workers(strategy_lib.create(config.strategy, config.replicas))


def _facts(job: Job) -> dict[str, Any]:
    """What must be the same on all workers: settings, code, models and data."""
    config, provenance = job.config, job.provenance
    settings = config.that_change(RESULTS, EXTRAS)
    is_auto = config.batch_size == "auto"  # Then they take the smallest of their sizes.
    size = "auto" if is_auto else job.subject.batch_size
    settings |= {"batch_size": size, "jit": config.jit}
    facts = workers_lib.facts(settings)
    facts |= {"the model": provenance.model, "the other model": provenance.source}
    facts["the half precision of --fast"] = job.subject.half  # By the card.
    if config.targets != OWN_TARGETS:  # Each worker makes those of its share.
        facts["the data"] = provenance.data
    return facts


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Models and data that fit together.

    Attributes:
      run: The attacked model.
      source_run: The model on which adversarial images are made, if it is another.
      source: The data set.
      columns: The split that is attacked.
      tasks: The scored tasks, with all metrics that are asked for.
      warnings: What must be said of the data, for the results.
    """

    run: Run
    source_run: Run | None
    source: Source
    columns: Columns
    tasks: TaskSet
    warnings: tuple[str, ...]

    @property
    def info(self) -> DatasetInfo:
        """About the data set."""
        return self.source.info


def _resolve(
    config: AttackConfig,
    workers: Workers,
    source: Source | None,
    file: File | None,
    folder: pathlib.Path | None,
) -> Job:
    """Does the part of `resolve` that each worker does by itself."""
    if folder is None and config.out:
        folder = _out_folder(config.out)  # Raises early.
    if config.batch_size != "auto":
        batching.check_divisible(config.batch_size, workers.replicas)
    unit_warnings = (*_small_radii(config), *_small_steps(config))
    inputs = _load_inputs(config, workers.local, source, file)
    info, tasks = inputs.info, inputs.tasks
    channels.check(config.attack_channels, info.image_shape[-1])
    cells = _cells(config, inputs)
    measures = measure.settings_of(config, tasks) if config.measure else None
    if measures and config.targets == OWN_TARGETS:
        measure.check_own_targets(measures, tasks)
    attacked_names = tuple(
        t for t in tasks if any(t in cell.looked_at for cell in cells)
    )
    inputs = _fit_models(config, workers.local, inputs, attacked_names)
    if config.targeted and len(inputs.columns) < 2:
        raise InputError(
            "--targeted draws outputs to the targets of other images, but "
            f"{config.split} has one image; give more, or leave out --targeted."
        )
    for cell in cells:  # Raises early.
        cell.check(info.image_shape)
    with workers.local.scope():
        run, source_run, model_warnings = first_look.look_at(
            config,
            inputs.run,
            inputs.source_run,
            info,
            inputs.columns,
            tuple(tasks),
            attacked_names,
            workers.replicas,
        )
    inputs = dataclasses.replace(inputs, run=run, source_run=source_run)
    subject = _subject(config, workers, inputs)
    folder = folder or _default_folder(config, run)
    predictions = None
    if config.export_predictions:
        predictions = cityscapes_export.open_predictions(
            folder / "predictions",
            info,
            subject.columns,
            tuple(tasks),
            subject.num_examples,
        )
    return Job(
        config=config,
        subject=subject,
        cells=cells,
        measures=measures,
        provenance=_provenance(config, run, source_run, subject),
        warnings=(*unit_warnings, *inputs.warnings, *model_warnings),
        checkpoint_step=run.unfinished,
        folder=folder,
        predictions=predictions,
        images=_images(
            subject.num_examples, len(subject.columns), inputs.source.is_cut
        ),
        trained=run.config,
    )


def _load_inputs(
    config: AttackConfig,
    strategy: tf.distribute.Strategy,
    source: Source | None,
    file: File | None,
) -> _Inputs:
    """Loads the models and opens the data; the attacked model fits the data."""
    own_data = source or loading.own_data(config, file)
    with strategy.scope():
        run, source_run = _load(config, own_data, file)
    source, names = loading.open_data(config, run, own_data)
    columns = source.columns(config.split)
    warnings = tuple(loading.data_changes(config, run, source))
    with strategy.scope():
        run, source_run = loading.with_inputs(run, source_run, columns.layout)
    columns = columns if run.packed else columns.without_inputs()
    run = model_fit.fitted(run, source.info.with_layout(columns.layout), names)
    tasks = TaskSet(_task(run, source.info, name) for name in names)
    tasks = more_metrics.with_more(tasks, config.metrics, source.info.num_classes)
    return _Inputs(run, source_run, source, columns, tasks, warnings)


def _fit_models(
    config: AttackConfig,
    strategy: tf.distribute.Strategy,
    inputs: _Inputs,
    attacked_names: tuple[str, ...],
) -> _Inputs:
    """Returns the inputs, the attacked model in its precision, the other one fitted."""
    run, source_run = inputs.run, inputs.source_run
    if config.precision not in ("own", run.config and run.config.precision):
        with strategy.scope():
            run = run.with_precision(config.precision, inputs.info)
    if source_run:
        groups.check_has(attacked_names, source_run.tasks, "--source_ckpt")
        source_run = model_fit.fitted(
            source_run,
            inputs.info.with_layout(inputs.columns.layout),
            attacked_names,
            "the model of --source_ckpt",
            "--source_heads",
        )
    return dataclasses.replace(inputs, run=run, source_run=source_run)


def _subject(config: AttackConfig, workers: Workers, inputs: _Inputs) -> sweep.Subject:
    """What is attacked: models, data, batch size."""
    run, info, columns = inputs.run, inputs.info, inputs.columns
    surrogate = inputs.source_run.model if inputs.source_run else None
    half = folding.half_type() if config.fast else ""
    if half:
        images = batching.first_images(columns, 2)
        model = (inputs.source_run or run).model
        with workers.local.scope():
            surrogate = folding.in_half(model, half, images)
        if surrogate is model:  # No copy could be made.
            half = ""
    subject = sweep.Subject(
        model=run.model,
        tasks=inputs.tasks,
        info=info,
        columns=columns,
        num_examples=min(config.num_examples or len(columns), len(columns)),
        workers=workers,
        batch_size=workers.replicas,  # For now.
        seed=config.seed,
        surrogate=surrogate,
        jit=config.jit,
        image_channels=info.image_shape[2] if run.packed else None,
        half=half,
    )
    size = job_lib.batch_size(config, subject)
    subject = dataclasses.replace(subject, batch_size=size)
    if config.targets != OWN_TARGETS:
        return subject
    # A targeted attack may take targets from anywhere in the split.
    target_count = len(columns) if config.targeted else subject.num_examples
    columns = largest_batch.halving(
        lambda size: own_targets.of_model(
            run.model, columns, inputs.tasks, target_count, size
        ),
        own_targets.AT_ONCE,
    )
    info = _with_ranges(info, columns, inputs.tasks)
    return dataclasses.replace(subject, columns=columns, info=info)


def _default_folder(config: AttackConfig, run: Run) -> pathlib.Path:
    """The folder of results beside a model."""
    if run.config and ":" in config.dataset and config.dataset == run.config.dataset:
        config = dataclasses.replace(config, dataset="")  # As if not given.
    name = config.name or default_name(config, run.fingerprint)
    return run.directory / "attacks" / name


def _out_folder(path: str) -> pathlib.Path:
    """The folder of `--out`; `InputError` where it holds other things."""
    folder = remote.local(path, "--out")
    names = remote.names(path, "--out")
    other_names = {name for name in names if not files.is_systems(name)}
    if folder.is_file() or (other_names and names.isdisjoint(_RESULT_NAMES)):
        raise InputError(
            "--out must be a new folder, or one of results of mtr_tf.attack, but "
            f"{path} {'is a file' if folder.is_file() else 'holds other things'}; give "
            f"another one{'' if folder.is_file() else f', such as {path}/results'}."
        )
    return folder


def _with_ranges(info: DatasetInfo, columns: Columns, tasks: TaskSet) -> DatasetInfo:
    """Returns the info, in which numbers without a range get that of their targets.

    Clean and attacked outputs are thus painted on one scale.
    """
    ranges = custom_facts.ranges_of(columns, tasks)
    ranges = {
        name: ends for name, ends in ranges.items() if tasks[name].kind == "numbers"
    }
    return dataclasses.replace(info, ranges={**ranges, **info.ranges})


def _task(run: Run, info: DatasetInfo, name: str) -> Task:
    """The task of a name; if the data lack it, its output gives channels, places."""
    task = model_fit.task_of(run, info, name)
    if name in info.tasks:
        return task
    shape = run.model.output[name].shape
    return task.bound(channels=task.channels or shape[-1], places=len(shape) - 2)


def _load(
    config: AttackConfig, own_data: Source | None, file: File | None
) -> tuple[Run, Run | None]:
    """The attacked run, and another one if adversarial images are made on that."""
    data = (config.data_dir, config.dataset)
    facts = loading.ModelFacts.of(config, own_data)
    if file:
        run = loading.own_run(file, config.tasks, facts)
    else:
        run = loading.load_run(config.ckpt, config.tasks, *data, facts=facts)
    source_run = None
    if config.source_ckpt:
        source_run = loading.load_run(
            config.source_ckpt,
            config.tasks,
            *data,
            flag="--source_ckpt",
            facts=loading.ModelFacts.of(config, own_data, source=True),
        )
    loading.check_heads(config, run, source_run)
    return run, source_run


def _cells(config: AttackConfig, inputs: _Inputs) -> tuple[Cell, ...]:
    """The attacks."""
    if config.attack == NO_ATTACK:
        return ()
    run = inputs.source_run or inputs.run  # The one that gradients are taken of.
    unbounded = [name for name in config.attack if not KINDS[name].bounded]
    our_names = [name for name in unbounded if KINDS[name].ours]
    # A user's attack may do without a scale, where the model does not state one.
    names = our_names or (unbounded if run.config else [])
    scale = run.normalization(names[0]) if names else ()
    info, packed = inputs.info, inputs.run.packed
    return tuple(plan.make_cells(config, inputs.tasks, info.classes, scale, packed))


def _images(count: int, total: int, is_cut: bool) -> str:
    """The number of images in words; `is_cut`: the data have more than `total`."""
    if total > count:
        return f"the first {count} of {total} images"
    return f"the first {count} images" if is_cut else f"{count} images"


def _small_radii(config: AttackConfig) -> list[str]:
    """Logs what radii mean where they look as if meant for images in [0, 1].

    Returns:
      The warning, for the results, if the radii hardly change a picture.
    """
    radius = max(config.eps)
    unused = config.attack == NO_ATTACK and "first_order" not in config.measure
    if config.norm != "linf" or not 0 < radius <= 1 or unused:
        return []
    warning = _log_levels("eps", radius)
    return [warning] if radius < LEAST_LEVELS else []


def _small_steps(config: AttackConfig) -> list[str]:
    """Logs the same for steps that look so and do not reach the radius.

    Returns:
      The warning, for the results.
    """
    names = [name for name in config.attack if name in KINDS]
    if any("ensemble" in KINDS[name].uses for name in names):
        names = [n for n in names if "ensemble" not in KINDS[n].uses]
        names += config.ensemble
    used = config.norm == "linf" and any("step_size" in KINDS[n].uses for n in names)
    if used and is_step_of_one(config.step_size, config.steps, max(config.eps)):
        return [_log_levels("step_size", config.step_size)]
    return []


def _log_levels(name: str, length: float) -> str:
    """Logs a warning of what a length in levels means, and returns the warning."""
    warning = (
        f"--{name} is in levels of 0-255 under --norm=linf, so {length:g} means "
        f"{length / 255:.3g} in an image in [0, 1]; if you meant {length:g}, give "
        f"--{name}={length * 255:g}"
    )
    logging.warning("%s", warning)
    return warning


def default_name(config: AttackConfig, fingerprint: str) -> str:
    """A readable name of the main settings, and a hash of all of them and the model."""
    facts = config.that_change(RESULTS) | {"model": fingerprint}
    # Names of folders depend on these; data that is moved is the same data.
    facts |= {"source_ckpt": config.source_ckpt, "data_dir": ""}
    facts = {n: v for n, v in facts.items() if n not in _DEFAULTS or v != _DEFAULTS[n]}
    digest = files.digest(facts)[:6]
    radii = "-".join(f"{eps:g}" for eps in config.eps)
    kind = "measures" if config.attack == NO_ATTACK else "-".join(config.attack)
    name = f"{kind}_{config.norm}_{radii}_{config.split}"
    return f"{files.cut(name, files.LONGEST_NAME - len(digest) - 1)}_{digest}"


def _own_tasks(tasks: TaskSet) -> tuple[dict[str, Any], ...]:
    """Facts, which results depend on, of tasks that differ from the eleven."""
    records = []
    for task in tasks.values():
        code = own_code.digest(task)
        if code or not own_code.is_standard(task):
            records.append(task.to_dict() | ({"code": code} if code else {}))
    return tuple(records)


def _provenance(
    config: AttackConfig, run: Run, source_run: Run | None, subject: sweep.Subject
) -> Provenance:
    """All that results depend on besides the attack."""
    run_precision = run.config.precision if run.config else "own"
    return Provenance(
        mtr_tf=mtr_tf.__version__,
        tensorflow=tf.__version__,
        keras=keras.__version__,
        model=run.fingerprint,
        source=source_run.fingerprint if source_run else None,
        fast=config.fast,
        precision=run_precision if config.precision == "own" else config.precision,
        input=config.input_affine,
        dataset=subject.info.name,
        split=config.split,
        num_examples=subject.num_examples,
        data=cell_store.data_fingerprint(
            subject.columns, subject.num_examples, config.targeted
        ),
        tasks=tuple(subject.tasks),
        own_tasks=_own_tasks(subject.tasks),
        seed=config.seed,
        # The noise of a replica depends on it.
        batch_size=subject.batch_size // subject.workers.replicas
        if subject.random
        else None,
        interval_over=subject.units.over,
        images=cell_store.images_fingerprint(subject.columns, subject.num_examples),
        targets=config.targets,
    )
