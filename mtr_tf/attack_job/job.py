# SPDX-License-Identifier: Apache-2.0
"""An attack command with all settings resolved: runs it and writes its results."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from mtr_tf import files
from mtr_tf.config.attack import DEFAULT_BATCH
from mtr_tf.config.attack import NO_EXECUTOR
from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_store
from mtr_tf.evaluation import consistency
from mtr_tf.evaluation import largest_batch
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
from mtr_tf.runs import directory
from mtr_tf.runs import remote
from mtr_tf.runs import store as files_store
from mtr_tf.show import curves
from mtr_tf.show import gallery
from mtr_tf.show import measure_files
from mtr_tf.show import style
from mtr_tf.show import tables
from mtr_tf.show import tensorboard
from mtr_tf.tasks import Task


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The results of attacks.

    Attributes:
      clean: The result of the clean images.
      results: Those of the attacks, in the order of the cells.
      records: All results as `results.json` has them.
      consistency: How well outputs that determine each other agree, likewise.
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
      images: The images of the subject, in words.
      trained: The settings of the attacked run; None for a model of the user's own.
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
        """Runs what is not finished, and keeps finished cells in the folder.

        `write`: whether to write what people look at, too, and return text to print.
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
                    stack.enter_context(self._lock())
                    self._check_out()
                    folders = (path for path in self.folder.rglob("*") if path.is_dir())
                    files.clear_leftovers(*folders)
                    if pathlib.Path(self.config.ckpt).is_file():
                        sha = files_store.file_digest(self.config.ckpt)
                        settings["ckpt_sha256"] = sha
                    origin = settings | directory.environment()
                    files.write_json(self.folder / "settings.json", origin)
            if self.cells:
                attacked = self._run_attacks()
                texts += [self._write_attacks(attacked)] if write and attacked else []
            if self.measures:
                measures = self._run_measures(self.measures)
                if write:
                    texts.append(self._write_measures(self.measures, measures))
            workers.any(False)  # No worker ends before all is written.
        return Outcome(attacked, measures, "\n\n".join(filter(None, texts)))

    def run_part(self, part: tuple[int, int]) -> None:
        """Runs what is not finished of a part, and writes only the finished cells."""
        with self._lock(shared=True):
            sweep.run(self.subject, self.cells, self._store, self.predictions, part)

    def spread(self) -> None:
        """Runs in other processes what is not finished; `run` then finds it."""
        if self.subject.workers.several:
            raise InputError(
                f"--executor={self.config.executor} spreads attacks over processes, "
                "and so do several workers; start it in one process, or leave out "
                "--executor."
            )
        with self._lock(shared=True):
            pass  # Raises early if nothing can be written there.
        if self.cells:
            gpus = len(tf.config.list_physical_devices("GPU"))
            spreading.run(self.config, self.cells, self._store, self.predictions, gpus)

    def after_parts(self) -> Job:
        """Returns the job without an executor, with the batches of this process."""
        config = dataclasses.replace(self.config, executor=NO_EXECUTOR)
        size = batch_size(config, self.subject)
        return dataclasses.replace(
            self, subject=dataclasses.replace(self.subject, batch_size=size)
        )

    def _check_out(self) -> None:
        """Raises `InputError` where --out holds the results of another model."""
        settings = files.read_object(self.folder / "settings.json")
        same_model = settings.get("model_fingerprint") == self.provenance.model
        if self.config.out and settings and not same_model:
            raise InputError(
                "--out must be a new folder, or one of results on the same model, but "
                f"{self.config.out} holds those of another model, or of other weights; "
                "give another folder."
            )

    def _lock(self, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Locks the folder of results; see `files.locked`."""
        is_default = self.folder.parent.name == "attacks" and not self.config.out
        hint = "Let results go to a folder of yours with --out=DIR"
        advice = hint if is_default else files.ANOTHER_PLACE
        return files.locked(self.folder, shared, advice)

    @property
    def _store(self) -> cell_store.Store:
        """The store of finished cells."""
        facts, tasks = self.provenance.to_dict(), self.subject.tasks
        return cell_store.Store(self.folder, facts, self.config.save_examples, tasks)

    def _run_attacks(self) -> Attacked | None:
        """Runs what is not finished of the cells, and keeps it in the folder.

        Returns None on workers that only take part.
        """
        config, subject, folder = self.config, self.subject, self.folder
        facts = self.provenance.to_dict()
        store = self._store
        noise = subject.say_if_random(config.eot)
        sweep_results = sweep.run(subject, self.cells, store, self.predictions)
        doubts = []
        if config.checks:
            doubts = sanity_checks.check_once(
                subject,
                self.cells,
                sweep_results[1] if sweep_results else (),
                facts,
                folder / "checks.json",
                examples=config.check_examples,
                transfer=self.provenance.source is not None,
            )
        if sweep_results is None:
            return None
        clean, results = sweep_results
        problems = results_lib.without_targets(clean)
        for sentence in problems:
            logging.warning("%s", sentence)
        problems += results_lib.not_finite(clean, results)
        problems += results_lib.negative_losses(clean, self.cells)
        warnings = [*self.warnings, *noise, *problems, *doubts]
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
        agreement = consistency.records(subject.relations, clean, results, targets)
        return Attacked(clean, results, records, agreement)

    def _write_attacks(self, attacked: Attacked) -> str:
        """Writes what people look at of the attacks; returns the text to print."""
        config, subject, folder = self.config, self.subject, self.folder
        clean, results, records = attacked.clean, attacked.results, attacked.records
        results_lib.write(records, folder)
        if attacked.consistency:
            files.write_json(folder / "consistency.json", attacked.consistency)
        plots = {"curves": folder / "curves.png"}
        curves.save_run(records, plots["curves"], self.details)
        colors = gallery.class_colors(subject.tasks.values(), subject.info)
        path = folder / "gallery.png"
        gallery.save_run(clean, results, path, colors, self.details)
        settings, units = config.to_dict(), subject.info.units
        tensorboard.write_attacks(
            settings, clean, results, folder, units, plots, subject.tasks, self.details
        )
        text = tables.printed(
            config.format, self.title, records, folder, config.metrics
        )
        if attacked.consistency and config.format == "text":
            text += "\n\n" + tables.consistency(attacked.consistency)
        return text

    @property
    def title(self) -> str:
        """The heading of tables."""
        config, subject = self.config, self.subject
        details = f", {self.details}" if self.details else ""
        return (
            f"{config.ckpt} on {self.images} of {subject.info.name} {config.split}"
            f"{details}\neps: {config.norm}, {style.unit_of(config.norm)}; "
            "loss: attacked / clean"
        )

    @property
    def details(self) -> str:
        """Remarks that accompany the attacks wherever they are shown.

        They say whether outputs are compared with the model's own, which other model
        images are made on, and which part of the output is attacked; empty if all is
        usual.
        """
        config, parts = self.config, []
        if config.targets == OWN_TARGETS:
            agreement = "agreement with the model's own clean outputs (--targets=own)"
            parts.append(agreement)
        if config.source_ckpt:
            parts.append(f"attacked images made on {config.source_ckpt}")
        if config.attack_pixels:
            parts.append(
                f"{config.attack_pixels} output pixels attacked{self._map_note}"
            )
        if config.attack_block:
            parts.append(
                f"output pixels {config.attack_block} attacked{self._map_note}"
            )
        if config.attack_classes:
            names = ", ".join(config.attack_classes)
            note = self._restriction(lambda task: task.discrete)
            parts.append(f"only pixels of {names} attacked{note}")
        if config.attack_pixels or config.attack_block or config.attack_classes:
            parts.append("metrics over all pixels")
        return "; ".join(parts)

    @property
    def _map_note(self) -> str:
        return self._restriction(lambda task: task.is_map)

    def _restriction(self, restricts: Callable[[Task], bool]) -> str:
        """Names the attacked tasks that a choice of pixels restricts; empty if all."""
        tasks = {t: cell.all_tasks[t] for cell in self.cells for t in cell.tasks}
        names = [name for name, task in tasks.items() if restricts(task)]
        free = [name for name in tasks if name not in names]
        if not free:
            return ""
        free_text = ", ".join(free) if len(free) < 4 else "the others"
        return f" (of {', '.join(names)}; {free_text} everywhere)"

    def _run_measures(self, settings: measure.MeasureSettings) -> list[dict[str, Any]]:
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
        """Writes what people look at of the measures; returns the text to print.

        In the formats json and csv, the attacks' records are printed alone, if any.
        """
        subject = self.subject
        facts = self.provenance.to_dict() | settings.of_channels
        table = measure_files.write(records, self.folder, settings.measures, facts)
        if self.config.format in tables.RECORDS:
            return "" if self.cells else tables.as_records(self.config.format, records)
        has_intervals = any(
            end is not None for r in records for end in r.get("interval") or ()
        )
        note = resampling.note(subject.units.over, subject.num_examples, has_intervals)
        images = f"{self.images} of {subject.info.name}"
        if self.config.attack_channels:
            names = "+".join(map(str, self.config.attack_channels))
            images = f"channels {names} of {images}"
        return f"measured on {images} {self.config.split}:\n\n{table}\n{note}"


def batch_size(config: AttackConfig, subject: sweep.Subject) -> int:
    """The number of images in a step, over all replicas.

    At most the number of images there are, rounded up to a multiple of the replicas.
    """
    replicas = subject.workers.replicas
    most = -(-subject.num_examples // replicas) * replicas
    if config.batch_size != "auto":
        return min(config.batch_size, most)
    # Memory that is tried out stays with this process, but the parts need it.
    in_parts = config.executor != NO_EXECUTOR
    if not compiling.on_gpu() or subject.random or in_parts:
        return min(-(-DEFAULT_BATCH // replicas) * replicas, most)
    size = largest_batch.fitting(
        subject.models, subject.columns, most // replicas, subject.workers.local
    )
    logging.info("--batch_size=auto: %d images at a time", size * replicas)
    return size * replicas
