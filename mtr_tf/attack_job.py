# SPDX-License-Identifier: Apache-2.0
"""Attacks a trained model as `AttackConfig` says, and leaves a folder of results.

RUN/attacks/NAME/settings.json    settings, versions, commit, command
                 results.json     a record per attack, task and metric; also .csv
                 curves.png       metrics against the radius
                 gallery.png      a few examples
                 ATTACK/GROUP/    the same for TensorBoard
                 checks.json      whether the attack can be trusted
                 cells/           what is finished, so that nothing is run twice
                 examples/        with --save_examples
                 predictions/     with --export_predictions (see `exporting`)
                 measures.json    with --measure (see `measuring`)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

import mtr_tf
from mtr_tf import data
from mtr_tf import files
from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.attack import NO_ATTACK
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_store
from mtr_tf.evaluation import cityscapes_export
from mtr_tf.evaluation import first_look
from mtr_tf.evaluation import model_fit
from mtr_tf.evaluation import plan as plan_lib
from mtr_tf.evaluation import results as results_lib
from mtr_tf.evaluation import sanity_checks
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.results import Record
from mtr_tf.measures import measure
from mtr_tf.models import folding
from mtr_tf.models import randomness
from mtr_tf.runs import building
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.runs import strategy as strategy_lib
from mtr_tf.runs.loading import Run
from mtr_tf.show import curves
from mtr_tf.show import gallery
from mtr_tf.show import tensorboard
from mtr_tf.tasks import groups

# Settings that do not enter the default name: they change no result.
_PLACE_ONLY = (
    "ckpt",
    "name",
    "strategy",
    "replicas",
    "jit",
    "deterministic",
    "batch_size",
    "save_examples",
    "export_predictions",
    "checks",
    "check_examples",
    "measure",
    "measure_draws",
)


def attack(config: AttackConfig) -> str:
    """Runs what is not finished, writes the folder, returns the text to print.

    Raises:
      InputError: Settings, checkpoint and data do not go together; before anything is
        written or computed.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(config.seed)  # Of a model's own draws that name no seed.
    if config.norm == "linf" and 0 < max(config.eps) <= 1:
        logging.warning(
            "--eps is in levels of 0-255 under --norm=linf, so that %g is %g of an "
            "image in [0, 1]; for %g of it give --eps=%g",
            max(config.eps),
            max(config.eps) / 255,
            max(config.eps),
            max(config.eps) * 255,
        )
    strategy = strategy_lib.create(config.strategy, config.replicas)
    batching.check_divisible(config.batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        own_data = config.data_dir if not config.dataset else ""
        run = loading.load_run(config.ckpt, config.tasks, own_data)
        source_run = _source_run(config)
    tasks = _tasks(config, run)
    source = _open_source(config, run, tasks)
    cells = []
    if config.attack != NO_ATTACK:
        asked = [name for name in config.attack if name in plan_lib.OUTSIDE]
        scale = (source_run or run).normalization(asked[0]) if asked else ()
        cells = plan_lib.make_cells(config, tasks, source.info.classes, scale)
    columns = source.columns(config.split)
    if config.precision not in ("own", run.config and run.config.precision):
        with strategy.scope():
            run = _with_precision(run, source.info, config.precision)
    if source_run:
        for cell in cells:
            groups.check_has(cell.attacked, source_run.tasks, "--source_ckpt")
        attacked = {task for cell in cells for task in cell.attacked}
        model_fit.check(source_run.model, source.info, sorted(attacked))
    for cell in cells:  # Complains now.
        cell.check(source.info.image_shape, source.info.num_classes)
    with strategy.scope():
        run, source_run, said = first_look.look_at(
            config, run, source_run, source, tasks, [cell.attacked for cell in cells]
        )
    subject = sweep.Subject(
        model=run.model,
        tasks=tasks,
        info=source.info,
        columns=columns,
        num_examples=min(config.num_examples or len(columns), len(columns)),
        strategy=strategy,
        batch_size=config.batch_size,
        seed=config.seed,
        surrogate=_surrogate(config, source_run or run, strategy, columns),
        jit=config.jit,
    )
    name = config.name or default_name(config, run.fingerprint)
    folder = run.directory / "attacks" / name
    predictions = None
    if config.export_predictions:
        predictions = cityscapes_export.open_predictions(
            folder / "predictions",
            source.info,
            columns,
            tasks,
            subject.num_examples,
        )
    with files.locked(folder):
        settings = {
            "attack": config.to_dict(),
            "model_fingerprint": run.fingerprint,
            "checkpoint_step": run.unfinished,
            **directory.provenance(),
        }
        files.write_json(folder / "settings.json", settings)
        facts = _facts(config, run, source_run, subject)
        about = {
            "seed": config.seed,
            "dataset": source.info.name,
            "split": config.split,
            "model_fingerprint": run.fingerprint,
            "interval_over": subject.units.over,
            "warnings": said,
        }
        text = []
        if cells:
            records = _sweep(config, subject, cells, predictions, facts, about, folder)
            unit = "levels of 0-255" if config.norm == "linf" else "plain l2 norm"
            title = (
                f"{config.ckpt} on {subject.num_examples} images of {source.info.name} "
                f"{config.split}; eps: {config.norm}, {unit}; loss: attacked / clean"
            )
            text.append(results_lib.text(title, records, folder))
        if config.measure:
            few = batching.first_images(columns, 2)
            folding.check(run.model, tasks, few)
            random = randomness.say_once(run.model, few, eot=None)
            said = [*said, *filter(None, [random])]
            settings = measure.settings_of(config, tasks)
            about = {**about, "warnings": said}
            text.append(measure.measure(subject, settings, facts, about, folder))
    return "\n\n".join(text) + f"\nwatch it: tensorboard --logdir={folder}"


def _sweep(
    config: AttackConfig,
    subject: sweep.Subject,
    cells: Sequence[plan_lib.Cell],
    predictions: cityscapes_export.Predictions | None,
    facts: Mapping[str, Any],
    about: Mapping[str, Any],
    folder: pathlib.Path,
) -> list[Record]:
    """Runs what is not finished of an attack, and writes its files."""
    store = cell_store.Store(folder, facts, config.save_examples)
    attacked = dict.fromkeys((subject.model, subject.surrogate or subject.model))
    few = batching.first_images(subject.columns, 2)
    said = [randomness.say_once(model, few, config.eot) for model in attacked]
    random = [text for text in dict.fromkeys(said) if text]
    clean, results = sweep.run(subject, cells, store, predictions)
    unsound = results_lib.not_finite(clean, results)
    warnings = [*about["warnings"], *random, *unsound]
    if config.checks:
        warnings += sanity_checks.check_once(
            subject,
            results,
            facts,
            folder / "checks.json",
            examples=config.check_examples,
            transfer=facts["source"] is not None,
        )
    about = {
        **about,
        "source_fingerprint": facts["source"],
        "fast": config.fast,
        "warnings": warnings,
    }
    records = results_lib.make_records(
        clean, results, about, subject.info.units, store.rows_file
    )
    results_lib.write(records, folder)
    curves.save_run(records, folder / "curves.png")
    gallery.save_run(clean, results, folder / "gallery.png")
    settings = config.to_dict()
    tensorboard.write_attacks(settings, clean, results, folder, subject.info.units)
    return records


def _source_run(config: AttackConfig) -> Run | None:
    """What the adversarial images are made on, if not on --ckpt itself."""
    if not config.source_ckpt:
        return None
    return loading.load_run(config.source_ckpt, config.tasks, config.data_dir)


def _surrogate(
    config: AttackConfig,
    run: Run,
    strategy: tf.distribute.Strategy,
    columns: Columns,
) -> keras.Model | None:
    """The model that gradients are taken of; None: the attacked one as it is."""
    if config.fast:
        with strategy.scope():
            return folding.in_half(run.model, images=batching.first_images(columns, 2))
    return run.model if config.source_ckpt else None


def default_name(config: AttackConfig, fingerprint: str) -> str:
    """A readable name of the main settings, and a hash of all of them and the model."""
    settings = {k: v for k, v in config.to_dict().items() if k not in _PLACE_ONLY}
    text = json.dumps(settings | {"model": fingerprint}, sort_keys=True)
    unique = hashlib.sha256(text.encode()).hexdigest()[:6]
    radii = "-".join(f"{eps:g}" for eps in config.eps)
    kind = "measures" if config.attack == NO_ATTACK else "-".join(config.attack)
    return f"{kind}_{config.norm}_{radii}_{config.split}_{unique}"


def _tasks(config: AttackConfig, run: Run) -> tuple[str, ...]:
    """The tasks to look at, in the model's order."""
    if not config.tasks:
        return tuple(run.tasks)
    named = tasks_lib.resolve(config.tasks)
    groups.check_has(named, run.tasks, "--tasks")
    return tuple(task for task in run.tasks if task in named)


def _open_source(config: AttackConfig, run: Run, tasks: Sequence[str]) -> data.Source:
    """The data set to attack on, checked against the model."""
    own = run.config
    if not own and not config.dataset:
        raise InputError(
            f"--dataset must say what {config.ckpt} is attacked on, since it is not a "
            f"run of mtr_tf.train; choose one of {', '.join(data.DATASETS)}, or "
            "package.module:function for data of your own (docs/own_data.md)."
        )
    same = own and config.dataset in ("", own.dataset)
    size = parse_image_size(config.image_size or (own.image_size if same else ""))
    source = data.open_source(
        config.dataset or own.dataset,
        image_size=size or model_fit.input_size(run.model),
        data_dir=config.data_dir or (own.data_dir if same else "") or None,
        tasks=tasks,
        **_options(config, own if same else None),
    )
    source.check(config.split)
    model_fit.check(run.model, source.info, tasks)
    return source


def _options(config: AttackConfig, own: TrainConfig | None) -> dict[str, object]:
    """The data set's options: the flags', else the run's, else the defaults."""
    options = {name: default for name, (default, _) in data.OPTIONS.items()}
    if own:
        options = {name: getattr(own, name) for name in options}
    if config.depth_target != "own":
        options["depth_target"] = config.depth_target
    if config.validation_share:
        options["validation_share"] = config.validation_share
    return options


def _with_precision(run: Run, info: DatasetInfo, policy: str) -> Run:
    """The run with its model built anew under another precision policy."""
    if run.config is None:
        raise InputError(
            "--precision can be changed for runs of mtr_tf.train only, and "
            f"{run.directory} is none; leave it at --precision=own."
        )
    if info.name != run.config.dataset:
        raise InputError(
            "--precision can be changed only on the run's own data set, "
            f"{run.config.dataset}, since the model is built anew; got {info.name}."
        )
    config = dataclasses.replace(run.config, precision=policy)
    mean, std = models.normalization(run.model)  # Not info's where it was converted.
    info = dataclasses.replace(info, mean=mean, std=std)
    model = building.build_model(config, info)
    model.set_weights(run.model.get_weights())
    return dataclasses.replace(run, model=model)


def _facts(
    config: AttackConfig, run: Run, source_run: Run | None, subject: sweep.Subject
) -> dict[str, Any]:
    """All that a cell's result depends on beside the attack."""
    own = run.config.precision if run.config else "own"
    few = batching.first_images(subject.columns, 2)
    models = filter(None, (subject.model, subject.surrogate))
    random = any(randomness.kind(model, few) != randomness.NONE for model in models)
    return {
        "mtr_tf": mtr_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "model": run.fingerprint,
        "source": source_run.fingerprint if source_run else None,
        "fast": config.fast,
        "precision": own if config.precision == "own" else config.precision,
        "input": config.input_affine,
        "dataset": subject.info.name,
        "split": config.split,
        "num_examples": subject.num_examples,
        "data": cell_store.data_fingerprint(subject.columns, subject.num_examples),
        "tasks": subject.tasks,
        "seed": config.seed,
        # Noise is drawn by batch.
        **({"batch_size": config.batch_size} if random else {}),
    }
