# SPDX-License-Identifier: Apache-2.0
"""Attacks a trained model as `AttackConfig` says, and writes a folder of results.

RUN/attacks/NAME/settings.json    settings, versions, commit, command
                 results.json     a record per attack, task and metric; also .csv
                 curves.png       metrics against the radius
                 gallery.png      a few examples
                 events.*         the same for TensorBoard
                 checks.json      whether the attack can be trusted
                 cells/           what is finished, so that nothing is run twice
                 examples/        with --save_examples
                 predictions/     with --export_predictions (`cityscapes_export`)
                 consistency.json how well outputs agree (`evaluation.consistency`)
                 measures.json    with --measure (`measures.measure`)

With --out=DIR, all of it is in DIR.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import mtr_tf
from mtr_tf import files
from mtr_tf.attacks import channels
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.cli import stopping
from mtr_tf.config.attack import DEFAULT_BATCH
from mtr_tf.config.attack import NO_ATTACK
from mtr_tf.config.attack import NO_EXECUTOR
from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.attack import parse_part
from mtr_tf.config.settings import EXTRAS
from mtr_tf.config.settings import LEAST_LEVELS
from mtr_tf.config.settings import RESULTS
from mtr_tf.config.settings import is_step_of_one
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.data.custom import facts as custom_facts
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_store
from mtr_tf.evaluation import cityscapes_export
from mtr_tf.evaluation import consistency
from mtr_tf.evaluation import first_look
from mtr_tf.evaluation import largest_batch
from mtr_tf.evaluation import model_fit
from mtr_tf.evaluation import own_targets
from mtr_tf.evaluation import plan
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation import results as results_lib
from mtr_tf.evaluation import sanity_checks
from mtr_tf.evaluation import spreading
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.cityscapes_export import Predictions
from mtr_tf.evaluation.plan import Cell
from mtr_tf.evaluation.provenance import Provenance
from mtr_tf.evaluation.results import Record
from mtr_tf.measures import measure
from mtr_tf.models import compiling
from mtr_tf.models import folding
from mtr_tf.models import randomness
from mtr_tf.runs import cluster
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.runs import remote
from mtr_tf.runs import store as files_store
from mtr_tf.runs import strategy as strategy_lib
from mtr_tf.runs import workers as workers_lib
from mtr_tf.runs.loading import Run
from mtr_tf.runs.model_files import File
from mtr_tf.runs.workers import Workers
from mtr_tf.show import curves
from mtr_tf.show import gallery
from mtr_tf.show import measure_files
from mtr_tf.show import tables
from mtr_tf.show import tensorboard
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import groups
from mtr_tf.tasks import more_metrics
from mtr_tf.tasks import own_code

_AGAIN = (
    "Finished attacks are kept; run the same command on all workers to continue with "
    "the others."
)
# What a folder of results has once anything was kept in it.
_MADE = ("settings.json", "cells", "parts", "predictions", "measures")
# Settings that older folders were not named with, where they say nothing.
_LATER = {"attack_channels": [], "targets": "data", "spare": []}


def attack(config: AttackConfig) -> str:
    """Runs what is not finished yet, writes the folder, and returns the text to print.

    Of several workers the chief alone writes and returns it; the others return none.

    Raises:
      InputError: The settings, the checkpoint and the data do not fit together; raised
        before anything is written or attacked.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    workers = workers_lib.join(config.strategy, config.replicas)
    with contextlib.ExitStack() as stack:
        stack.enter_context(remote.copies())
        stack.enter_context(workers.explaining_loss(_AGAIN))
        tf.random.set_seed(config.seed)  # Of a model's own draws that name no seed.
        job = resolve(config, workers=workers)
        if workers.several:  # They stop together.
            stack.enter_context(stopping.later())
        if part := parse_part(config.part):
            job.run_part(part)
            return f"part {config.part} is finished; its results are in {job.folder}"
        if config.executor != NO_EXECUTOR:
            job.spread()
            job = job.after_parts()  # Which leave it their GPUs.
        return remote.named(job.run().text)


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The results of attacks.

    Attributes:
      clean: The result of the clean images.
      results: Those of the attacks, in the order of the cells.
      records: All of it as `results.json` has it.
      consistency: How well outputs agree that determine each other, likewise.
    """

    clean: Result
    results: list[Result]
    records: list[Record]
    consistency: list[Record]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of a job: of its attacks (None: there were none) and its measures."""

    attacked: Attacked | None
    measures: list[dict[str, Any]]
    text: str  # To print; empty where nothing was to be written.


@dataclasses.dataclass(frozen=True)
class Job:
    """All that an attack needs, after its settings were checked.

    Attributes:
      config: The settings.
      subject: The model, its images, and how to go through them.
      cells: The attacks.
      measures: What is measured; None for nothing.
      provenance: What results depend on besides the attack.
      warnings: Sentences to show wherever results are shown.
      checkpoint_step: That of the attacked checkpoint; None for a whole model.
      folder: Where results go.
      predictions: Where predicted classes go; None where they are not asked for.
      images: Which images those of the subject are, in words.
      trained: The settings of the run that is attacked; None for a model of one's own.
    """

    config: AttackConfig
    subject: sweep.Subject
    cells: tuple[Cell, ...]
    measures: measure.MeasureSettings | None
    provenance: Provenance
    warnings: tuple[str, ...]
    checkpoint_step: int | None
    folder: pathlib.Path
    predictions: Predictions | None
    images: str
    trained: TrainConfig | None = None

    def run(self, write: bool = True) -> Outcome:
        """Runs what is not finished; finished cells are kept in the folder.

        `write`: also what people look at, and the text to print.
        """
        settings = {
            "attack": self.config.to_dict(),
            "model_fingerprint": self.provenance.model,
            "checkpoint_step": self.checkpoint_step,
        }
        if self.config.out and self.trained:  # RUN/config.json is not beside it.
            settings["train"] = self.trained.to_dict()
        attacked, measures, texts = None, [], []
        workers = self.subject.workers
        write = write and workers.chief
        with contextlib.ExitStack() as stack:
            with workers.agreeing({}):
                if workers.chief:
                    stack.enter_context(remote.held(self.folder))
                    stack.enter_context(self._held())
                    self._check_out()
                    folders = (path for path in self.folder.rglob("*") if path.is_dir())
                    files.clear_leftovers(*folders)
                    if pathlib.Path(self.config.ckpt).is_file():
                        sha = files_store.file_digest(self.config.ckpt)
                        settings["ckpt_sha256"] = sha
                    origin = settings | directory.environment()
                    files.write_json(self.folder / "settings.json", origin)
            if self.cells:
                attacked = self._attacked()
                texts += [self._write(attacked)] if write and attacked else []
            if self.measures:
                measures = self._measured(self.measures)
                if write:
                    texts.append(self._write_measures(self.measures, measures))
            workers.any(False)  # None ends before all is written.
        return Outcome(attacked, measures, "\n\n".join(filter(None, texts)))

    def run_part(self, part: tuple[int, int]) -> None:
        """Runs what is not finished of a part, and writes finished cells only."""
        with self._held(shared=True):
            sweep.run(self.subject, self.cells, self._store, self.predictions, part)

    def spread(self) -> None:
        """Runs what is not finished in other processes; `run` then finds it."""
        if self.subject.workers.several:
            raise InputError(
                f"--executor={self.config.executor} spreads attacks over processes, "
                "and so do several workers; start it in one process, or leave out "
                "--executor."
            )
        with self._held(shared=True):
            pass  # Complains now if nothing can be written there.
        if self.cells:
            gpus = len(tf.config.list_physical_devices("GPU"))
            spreading.run(self.config, self.cells, self._store, self.predictions, gpus)

    def after_parts(self) -> Job:
        """The same without an executor, with the batches of this process."""
        config = dataclasses.replace(self.config, executor=NO_EXECUTOR)
        size = _batch_size(config, self.subject)
        return dataclasses.replace(
            self, subject=dataclasses.replace(self.subject, batch_size=size)
        )

    def _check_out(self) -> None:
        """Raises `InputError` where --out holds the results of another model."""
        before = files.read_object(self.folder / "settings.json")
        same = before.get("model_fingerprint") == self.provenance.model
        if self.config.out and before and not same:
            raise InputError(
                "--out must be a new folder, or one of results on the same model, but "
                f"{self.config.out} holds those of another model, or of other weights; "
                "give another folder."
            )

    def _held(self, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Holds the folder of results; see `files.locked`."""
        beside = self.folder.parent.name == "attacks" and not self.config.out
        with_out = "Let results go to a folder of yours with --out=DIR"
        instead = with_out if beside else files.ANOTHER_PLACE
        return files.locked(self.folder, shared, instead)

    @property
    def _store(self) -> cell_store.Store:
        """Where finished cells are."""
        facts, tasks = self.provenance.to_dict(), self.subject.tasks
        return cell_store.Store(self.folder, facts, self.config.save_examples, tasks)

    def _attacked(self) -> Attacked | None:
        """Runs what is not finished of the cells, and keeps it in the folder.

        None on workers that only take part in it.
        """
        config, subject, folder = self.config, self.subject, self.folder
        facts = self.provenance.to_dict()
        store = self._store
        noise = subject.say_if_random(config.eot)
        found = sweep.run(subject, self.cells, store, self.predictions)
        doubts = []
        if config.checks:
            doubts = sanity_checks.check_once(
                subject,
                self.cells,
                found[1] if found else (),
                facts,
                folder / "checks.json",
                examples=config.check_examples,
                transfer=self.provenance.source is not None,
            )
        if found is None:
            return None
        clean, results = found
        broken = results_lib.without_targets(clean)
        for sentence in broken:
            logging.warning("%s", sentence)
        broken += results_lib.not_finite(clean, results)
        broken += results_lib.negative_losses(clean, self.cells)
        warnings = [*self.warnings, *noise, *broken, *doubts]
        records = results_lib.make_records(
            clean,
            results,
            self.provenance.of_attacks(warnings),
            subject.info.units,
            store.rows_file,
            subject.tasks,
        )
        targets = {}
        if config.targets != OWN_TARGETS:
            targets = consistency.of_targets(
                subject.relations, subject.columns, subject.num_examples
            )
        agree = consistency.records(subject.relations, clean, results, targets)
        return Attacked(clean, results, records, agree)

    def _write(self, attacked: Attacked) -> str:
        """Writes what shows of the attacks; returns the text to print."""
        config, subject, folder = self.config, self.subject, self.folder
        clean, results, records = attacked.clean, attacked.results, attacked.records
        results_lib.write(records, folder)
        if attacked.consistency:
            files.write_json(folder / "consistency.json", attacked.consistency)
        plots = {"curves": folder / "curves.png"}
        curves.save_run(records, plots["curves"], self.details)
        colors = gallery.class_colors(subject.tasks.values(), subject.info)
        shown = (clean, results, folder / "gallery.png", colors, self.details)
        gallery.save_run(*shown)
        given, units = config.to_dict(), subject.info.units
        tensorboard.write_attacks(
            given, clean, results, folder, units, plots, subject.tasks, self.details
        )
        told = tables.printed(
            config.format, self.title, records, folder, config.metrics
        )
        if attacked.consistency and config.format == "text":
            told += "\n\n" + tables.consistency(attacked.consistency)
        return told

    @property
    def title(self) -> str:
        """What stands above tables."""
        config, subject = self.config, self.subject
        unit = "levels of 0-255" if config.norm == "linf" else "plain l2 norm"
        details = f", {self.details}" if self.details else ""
        return (
            f"{config.ckpt} on {self.images} of {subject.info.name} {config.split}"
            f"{details}\neps: {config.norm}, {unit}; loss: attacked / clean"
        )

    @property
    def details(self) -> str:
        """What is said wherever the attacks are shown, beside their names.

        Whether outputs are compared with the model's own, where images are made on
        another model, and which part of the output is attacked; empty if all is usual.
        """
        config, parts = self.config, []
        if config.targets == OWN_TARGETS:
            own = "agreement with the model's own clean outputs (--targets=own)"
            parts.append(own)
        if config.source_ckpt:
            parts.append(f"attacked images made on {config.source_ckpt}")
        if config.attack_pixels:
            parts.append(
                f"{config.attack_pixels} output pixels attacked{self._of_maps}"
            )
        if config.attack_block:
            parts.append(f"output pixels {config.attack_block} attacked{self._of_maps}")
        if config.attack_classes:
            names = ", ".join(config.attack_classes)
            which = self._restricted(lambda task: task.discrete)
            parts.append(f"only pixels of {names} attacked{which}")
        if config.attack_pixels or config.attack_block or config.attack_classes:
            parts.append("metrics over all pixels")
        return "; ".join(parts)

    @property
    def _of_maps(self) -> str:
        return self._restricted(lambda task: task.is_map)

    def _restricted(self, restricts: Callable[[Task], bool]) -> str:
        """Which attacked tasks a choice of pixels is of; empty where it is of all."""
        tasks = {t: cell.known[t] for cell in self.cells for t in cell.tasks}
        chosen = [name for name, task in tasks.items() if restricts(task)]
        others = [name for name in tasks if name not in chosen]
        if not others:
            return ""
        named = ", ".join(others) if len(others) < 4 else "the others"
        return f" (of {', '.join(chosen)}; {named} everywhere)"

    def _measured(self, settings: measure.MeasureSettings) -> list[dict[str, Any]]:
        """Measures what is not finished, and keeps it in the folder."""
        subject = self.subject
        folding.check(subject.model, tuple(subject.tasks), subject.first_images)
        noise = randomness.say_once(subject.model, subject.first_images, eot=None)
        warnings = [*self.warnings, *filter(None, [noise])]
        return measure.measure(
            subject, settings, self.provenance, warnings, self.folder
        )

    def _write_measures(
        self, settings: measure.MeasureSettings, records: list[dict[str, Any]]
    ) -> str:
        """Writes what shows of the measures; returns the text to print.

        As json and csv, the records of attacks are printed alone where there are any.
        """
        subject = self.subject
        facts = self.provenance.to_dict() | settings.of_channels
        table = measure_files.write(records, self.folder, settings.measures, facts)
        if self.config.format in tables.RECORDS:
            return "" if self.cells else tables.as_records(self.config.format, records)
        exist = any(end is not None for r in records for end in r.get("interval") or ())
        note = resampling.note(subject.units.over, subject.num_examples, exist)
        images = f"{self.images} of {subject.info.name}"
        if self.config.attack_channels:
            names = "+".join(map(str, self.config.attack_channels))
            images = f"channels {names} of {images}"
        return f"measured on {images} {self.config.split}:\n\n{table}\n{note}"


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
    workers = workers or _alone(config)
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


def _alone(config: AttackConfig) -> Workers:
    """This process alone; `InputError` where the environment names several."""
    if strategy_lib.takes_workers(config.strategy):
        cluster.refuse("this function of mtr_tf")
    return Workers(strategy_lib.create(config.strategy, config.replicas))


def _facts(job: Job) -> dict[str, Any]:
    """What must be the same on all workers: settings, code, models and data."""
    config, provenance = job.config, job.provenance
    settings = config.that_change(RESULTS, EXTRAS)
    auto = config.batch_size == "auto"  # Then they take the least of them all.
    size = "auto" if auto else job.subject.batch_size
    settings |= {"batch_size": size, "jit": config.jit}
    facts = workers_lib.facts(settings)
    facts |= {"the model": provenance.model, "the other model": provenance.source}
    if config.targets != OWN_TARGETS:  # Each makes those of its share.
        facts["the data"] = provenance.data
    return facts


def _resolve(
    config: AttackConfig,
    workers: Workers,
    source: Source | None,
    file: File | None,
    folder: pathlib.Path | None,
) -> Job:
    """See `resolve`; this worker's part of it."""
    strategy = workers.local
    if folder is None and config.out:
        folder = _out(config.out)  # Complains now.
    if config.batch_size != "auto":
        batching.check_divisible(config.batch_size, workers.replicas)
    small = [*_small_radii(config), *_small_steps(config)]
    own_data = source or loading.own_data(config, file)
    with strategy.scope():
        run, source_run = _load(config, own_data, file)
    source, names = loading.open_data(config, run, own_data)
    columns = source.columns(config.split)
    changed = loading.data_changes(config, run, source)
    with strategy.scope():
        run, source_run = loading.with_inputs(run, source_run, columns.layout)
    columns = columns if run.packed else columns.without_inputs()
    taken = source.info.with_layout(columns.layout)
    run = model_fit.fitted(run, taken, names)
    tasks = TaskSet(_task(run, source.info, name) for name in names)
    tasks = more_metrics.with_more(tasks, config.metrics, source.info.num_classes)
    channels.check(config.attack_channels, source.info.image_shape[-1])
    cells = _cells(config, source_run or run, tasks, source.info, run.packed)
    measures = measure.settings_of(config, tasks) if config.measure else None
    if measures and config.targets == OWN_TARGETS:
        measure.check_own_targets(measures, tasks)
    attacked = tuple(t for t in tasks if any(t in cell.looked_at for cell in cells))
    if config.precision not in ("own", run.config and run.config.precision):
        with strategy.scope():
            run = run.with_precision(config.precision, source.info)
    if source_run:
        groups.check_has(attacked, source_run.tasks, "--source_ckpt")
        source_run = model_fit.fitted(
            source_run,
            taken,
            attacked,
            "the model of --source_ckpt",
            "--source_heads",
        )
    if config.targeted and len(columns) < 2:
        raise InputError(
            "--targeted draws outputs to the targets of other images, but "
            f"{config.split} has one image; give more, or leave out --targeted."
        )
    for cell in cells:  # Complains now.
        cell.check(source.info.image_shape, source.info.num_classes)
    with strategy.scope():
        run, source_run, warnings = first_look.look_at(
            config,
            run,
            source_run,
            source.info,
            columns,
            names,
            attacked,
            workers.replicas,
        )
        surrogate = source_run.model if source_run else None
        if config.fast:
            images = batching.first_images(columns, 2)
            surrogate = folding.in_half((source_run or run).model, images=images)
    count = min(config.num_examples or len(columns), len(columns))
    subject = sweep.Subject(
        model=run.model,
        tasks=tasks,
        info=source.info,
        columns=columns,
        num_examples=count,
        workers=workers,
        batch_size=workers.replicas,  # For now.
        seed=config.seed,
        surrogate=surrogate,
        jit=config.jit,
        image_channels=source.info.image_shape[2] if run.packed else None,
    )
    subject = dataclasses.replace(subject, batch_size=_batch_size(config, subject))
    if config.targets == OWN_TARGETS:
        # The targets that others are drawn to may be anywhere in the split.
        looked_at = len(columns) if config.targeted else count
        columns = largest_batch.halving(
            lambda size: own_targets.of_model(
                run.model, columns, tasks, looked_at, size
            ),
            own_targets.AT_ONCE,
        )
        info = _with_ranges(subject.info, columns, tasks)
        subject = dataclasses.replace(subject, columns=columns, info=info)
    named = config
    if run.config and ":" in config.dataset and config.dataset == run.config.dataset:
        named = dataclasses.replace(config, dataset="")  # As when it was not asked for.
    name = config.name or default_name(named, run.fingerprint)
    folder = folder or run.directory / "attacks" / name
    predictions = None
    if config.export_predictions:
        predictions = cityscapes_export.open_predictions(
            folder / "predictions",
            source.info,
            columns,
            names,
            subject.num_examples,
        )
    return Job(
        config=config,
        subject=subject,
        cells=cells,
        measures=measures,
        provenance=_provenance(config, run, source_run, subject),
        warnings=(*small, *changed, *warnings),
        checkpoint_step=run.unfinished,
        folder=folder,
        predictions=predictions,
        images=_images(count, len(columns), source.is_cut),
        trained=run.config,
    )


def _out(path: str) -> pathlib.Path:
    """The folder of `--out`; `InputError` where it holds other things."""
    folder = remote.local(path, "--out")
    held = remote.names(path, "--out")
    others = {name for name in held if not files.is_systems(name)}
    if folder.is_file() or (others and held.isdisjoint(_MADE)):
        raise InputError(
            "--out must be a new folder, or one of results of mtr_tf.attack, but "
            f"{path} {'is a file' if folder.is_file() else 'holds other things'}; give "
            f"another one{'' if folder.is_file() else f', such as {path}/results'}."
        )
    return folder


def _with_ranges(info: DatasetInfo, columns: Columns, tasks: TaskSet) -> DatasetInfo:
    """With what numbers are painted between where nobody says: as of the targets.

    So clean and attacked outputs are painted on one scale.
    """
    found = custom_facts.ranges_of(columns, tasks)
    found = {
        name: ends for name, ends in found.items() if tasks[name].kind == "numbers"
    }
    return dataclasses.replace(info, ranges={**found, **info.ranges})


def _batch_size(config: AttackConfig, subject: sweep.Subject) -> int:
    """How many images a step takes over all replicas.

    No more than there are: a batch would be filled up with nothing.
    """
    replicas = subject.workers.replicas
    most = -(-subject.num_examples // replicas) * replicas
    if config.batch_size != "auto":
        return min(config.batch_size, most)
    # Memory that is tried out stays with this process, and the parts need it.
    spread = config.executor != NO_EXECUTOR
    if not compiling.on_gpu() or subject.random or spread:
        return min(-(-DEFAULT_BATCH // replicas) * replicas, most)
    each = largest_batch.fitting(
        subject.models, subject.columns, most // replicas, subject.workers.local
    )
    logging.info("--batch_size=auto: %d images at a time", each * replicas)
    return each * replicas


def _task(run: Run, info: DatasetInfo, name: str) -> Task:
    """The task of a name; one that data have no targets of is as its output is."""
    task = model_fit.task_of(run, info, name)
    if name in info.tasks:
        return task
    shape = run.model.output[name].shape
    return task.bound(channels=task.channels or shape[-1], places=len(shape) - 2)


def _load(
    config: AttackConfig, own_data: Source | None, file: File | None
) -> tuple[Run, Run | None]:
    """What is attacked, and what adversarial images are made on if not on that."""
    data = (config.data_dir, config.dataset)
    own = loading.Own.of(config, own_data)
    if file:
        run = loading.own_run(file, config.tasks, own)
    else:
        run = loading.load_run(config.ckpt, config.tasks, *data, own=own)
    if not config.source_ckpt:
        loading.check_heads(config, run, None)
        return run, None
    source = loading.load_run(
        config.source_ckpt,
        config.tasks,
        *data,
        flag="--source_ckpt",
        own=loading.Own.of(config, own_data, source=True),
    )
    loading.check_heads(config, run, source)
    return run, source


def _cells(
    config: AttackConfig, run: Run, tasks: TaskSet, info: DatasetInfo, packed: bool
) -> tuple[Cell, ...]:
    """The attacks; gradients are taken of `run`. `packed`: see `Subject`."""
    if config.attack == NO_ATTACK:
        return ()
    unbound = [name for name in config.attack if not KINDS[name].bounded]
    ours = [name for name in unbound if KINDS[name].ours]
    # A user's may do without, where the model does not tell.
    needed = ours or (unbound if run.config else [])
    scale = run.normalization(needed[0]) if needed else ()
    return tuple(plan.make_cells(config, tasks, info.classes, scale, packed))


def _images(count: int, total: int, is_cut: bool) -> str:
    """So many images of all, in words; `is_cut`: there are more than the total."""
    if total > count:
        return f"the first {count} of {total} images"
    return f"the first {count} images" if is_cut else f"{count} images"


def _small_radii(config: AttackConfig) -> list[str]:
    """Says what radii mean where they look as if meant for images in [0, 1].

    Returns:
      That, as a warning for the results, of radii that hardly change a picture.
    """
    radius = max(config.eps)
    unused = config.attack == NO_ATTACK and "first_order" not in config.measure
    if config.norm != "linf" or not 0 < radius <= 1 or unused:
        return []
    said = _said_of_levels("eps", radius)
    return [said] if radius < LEAST_LEVELS else []


def _small_steps(config: AttackConfig) -> list[str]:
    """Says the same of steps that look so and do not reach the radius.

    Returns:
      That, as a warning for the results.
    """
    named = [name for name in config.attack if name in KINDS]
    if any("ensemble" in KINDS[name].uses for name in named):
        named = [n for n in named if "ensemble" not in KINDS[n].uses]
        named += [name for name in config.ensemble if name in KINDS]
    used = config.norm == "linf" and any("step_size" in KINDS[n].uses for n in named)
    if used and is_step_of_one(config.step_size, config.steps, max(config.eps)):
        return [_said_of_levels("step_size", config.step_size)]
    return []


def _said_of_levels(name: str, length: float) -> str:
    """Logs what a length in levels means, and returns it."""
    said = (
        f"--{name} is in levels of 0-255 under --norm=linf, so {length:g} means "
        f"{length / 255:.3g} in an image in [0, 1]; if you meant {length:g}, give "
        f"--{name}={length * 255:g}"
    )
    logging.warning("%s", said)
    return said


def default_name(config: AttackConfig, fingerprint: str) -> str:
    """A readable name of the main settings, and a hash of all of them and the model."""
    facts = config.that_change(RESULTS) | {"model": fingerprint}
    # Folders have been named with these; data that is moved is the same data.
    facts |= {"source_ckpt": config.source_ckpt, "data_dir": ""}
    facts = {n: v for n, v in facts.items() if n not in _LATER or v != _LATER[n]}
    unique = files.digest(facts)[:6]
    radii = "-".join(f"{eps:g}" for eps in config.eps)
    kind = "measures" if config.attack == NO_ATTACK else "-".join(config.attack)
    said = f"{kind}_{config.norm}_{radii}_{config.split}"
    return f"{files.cut(said, files.LONGEST_NAME - len(unique) - 1)}_{unique}"


def _own(tasks: TaskSet) -> tuple[dict[str, Any], ...]:
    """What results depend on of tasks that are none of the eleven, or unlike them."""
    found = []
    for task in tasks.values():
        code = own_code.digest(task)
        if code or not own_code.is_standard(task):
            found.append(task.to_dict() | ({"code": code} if code else {}))
    return tuple(found)


def _provenance(
    config: AttackConfig, run: Run, source_run: Run | None, subject: sweep.Subject
) -> Provenance:
    """All that results depend on beside the attack."""
    saved = run.config.precision if run.config else "own"
    return Provenance(
        mtr_tf=mtr_tf.__version__,
        tensorflow=tf.__version__,
        keras=keras.__version__,
        model=run.fingerprint,
        source=source_run.fingerprint if source_run else None,
        fast=config.fast,
        precision=saved if config.precision == "own" else config.precision,
        input=config.input_affine,
        dataset=subject.info.name,
        split=config.split,
        num_examples=subject.num_examples,
        data=cell_store.data_fingerprint(
            subject.columns, subject.num_examples, config.targeted
        ),
        tasks=tuple(subject.tasks),
        own_tasks=_own(subject.tasks),
        seed=config.seed,
        # What the noise of a replica goes by.
        batch_size=subject.batch_size // subject.workers.replicas
        if subject.random
        else None,
        interval_over=subject.units.over,
        images=cell_store.images_fingerprint(subject.columns, subject.num_examples),
        targets=config.targets,
    )
