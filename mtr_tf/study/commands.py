# SPDX-License-Identifier: Apache-2.0
"""The cells of a study: one public command each, in a folder named by its content.

    runs/SLUG-seedK-HASH8/                         a run of mtr_tf.train
    runs/SLUG-seedK-HASH8/attacks/SLUG-HASH8/      of mtr_tf.attack

HASH8 covers all settings that change results and differ from their defaults, the
package's version, and the hashes of the runs that the cell needs, but not where these
runs are. So cells with different settings never mix, and a study can be moved. A new
setting at its default does not change the hash; a changed default does.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

import mtr_tf
from mtr_tf import files
from mtr_tf.config.attack import NO_ATTACK
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.settings import EXTRAS
from mtr_tf.config.settings import RESULTS
from mtr_tf.config.settings import Settings
from mtr_tf.config.train import TrainConfig
from mtr_tf.executors import command
from mtr_tf.executors.command import Ended
from mtr_tf.runs import directory
from mtr_tf.runs import store
from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study
from mtr_tf.study.design import slug

MARKER = "finished.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One command.

    Attributes:
      kind: train or attack.
      variant: Name of the variant.
      seed: The seed.
      attack: The attack's name in the study; None for training.
      folder: Where its results are, relative to the study's folder.
      needs: Folders of the cells that must be done first.
      command: Module and flags, as `("mtr_tf.train", "--tasks=seg")`.
      hash: A hash of all that its results depend on.
      files: Names of the files that it leaves.
      config: Its settings.
    """

    kind: str
    variant: str
    seed: int
    attack: str | None
    folder: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    hash: str
    files: tuple[str, ...]
    config: Settings

    @property
    def shown(self) -> str:
        """The command as it can be pasted into a shell."""
        return command.shown(self.command)

    @property
    def title(self) -> str:
        """What it does, for one line of text."""
        run = f"{self.variant}, seed {self.seed}"
        return f"{self.attack} on {run}" if self.attack else f"training of {run}"

    @property
    def begins_with(self) -> str:
        """The folder of the run whose model this training begins with; else empty."""
        return self.needs[0] if self.kind == "train" and self.needs else ""

    @property
    def log(self) -> str:
        """The file of its command's output, relative to the study's folder."""
        return f"logs/{'-'.join(pathlib.PurePath(self.folder).parts[1::2])}.log"


def make_cells(study: Study, workdir: pathlib.Path) -> list[Cell]:
    """All cells, seed by seed, each after its needs; in a seed, training comes first.

    Args:
      study: The study.
      workdir: The study's folder, for the commands.
    """
    cells = []
    for seed in study.seeds:
        runs = {}
        for variant in study.in_training_order:
            init_run = runs.get(variant.init_from)
            cell = _train_cell(study, variant.name, seed, init_run, workdir)
            runs[variant.name] = cell
        cells += runs.values()
        for variant in study.variants:
            for spec in study.attacks:
                if variant.name in spec.variants:
                    source = runs.get(spec.source)
                    run = runs[variant.name]
                    cells.append(_attack_cell(study, spec, run, source, workdir))
    return cells


def has_files(cell: Cell, workdir: pathlib.Path) -> bool:
    """Whether all files that its command leaves are there."""
    return all((workdir / cell.folder / name).exists() for name in cell.files)


def is_done(cell: Cell, workdir: pathlib.Path) -> bool:
    """Whether its command has ended well, with the settings that it has now.

    Training is done if its model is there; an attack, if the marker is, which the
    runner writes last. A marker that cannot be read counts as missing; a model whose
    config.json cannot be read counts as done, and what attacks it says so.
    """
    try:
        return has_files(cell, workdir) and _is_current(cell, workdir / cell.folder)
    except files.DAMAGED as error:
        files.say_damaged(workdir / cell.folder, error)
        return False


def _is_current(cell: Cell, folder: pathlib.Path) -> bool:
    """As `is_done`, where all files are there."""
    if cell.kind == "train":
        old_settings = files.read_object(folder / "config.json").get("train", {})
    else:
        marker = store.read_kept(folder / MARKER)
        if marker.get("hash") != cell.hash:
            return False
        if marker.get("checksums") != _checksums(cell, folder):
            logging.warning("%s was changed or damaged; it is done again", folder)
            return False
        old_settings = marker.get("settings", {})
    if not isinstance(old_settings, Mapping):  # Damaged.
        return False
    config = cell.config
    if isinstance(config, TrainConfig):  # A run keeps each task by its one name.
        config = directory.canonical(config)
    new_settings = _settings(config)
    if cell.begins_with:
        del new_settings["init"]  # The hash says which run it is; that may have moved.
    return all(
        old_settings[name] == new_settings[name]
        for name in new_settings
        if name in old_settings
    )


def renew_init(cell: Cell, workdir: pathlib.Path) -> None:
    """Lets a training that begins with another run's model go on, or begin anew.

    If the study was moved, config.json has the old path of that run, which is replaced;
    training compares the weights themselves. If no step is kept, config.json is
    deleted, because the other run may have been trained again, with other bits.
    """
    folder = workdir / cell.folder
    path = folder / "config.json"
    if not cell.begins_with or not path.exists():
        return
    if directory.kept_work(folder) is None:
        path.unlink()
        return
    content = files.read_object(path)
    if isinstance(train := content.get("train"), dict):
        train["init"] = os.path.abspath(workdir / cell.begins_with)
        files.write_json(path, content)


def write_marker(
    cell: Cell,
    workdir: pathlib.Path,
    outcome: Ended,
    is_new: bool,
) -> None:
    """Writes the file that says that a cell's command has ended well.

    Args:
      cell: The cell.
      workdir: The study's folder.
      outcome: How its command ended.
      is_new: Whether the command did all the work; False if it continued earlier work.
    """
    marker = {
        "hash": cell.hash,
        "settings": _settings(cell.config),
        "command": cell.shown,
        "seconds": round(outcome.seconds, 1),
        "whole": is_new,
        "environment": dict(outcome.environment),
        "host": outcome.host,
        "checksums": _checksums(cell, workdir / cell.folder),
    }
    store.write_file(workdir / cell.folder / MARKER, marker)


def _checksums(cell: Cell, folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of each file that the command leaves."""
    return {name: store.file_digest(folder / name) for name in cell.files}


def _train_cell(
    study: Study, variant: str, seed: int, init_run: Cell | None, workdir: pathlib.Path
) -> Cell:
    config = study.train_config(variant, seed)
    content: dict[str, Any] = {"train": _content(config)}
    if init_run:
        content["init_from"] = init_run.hash
        config = dataclasses.replace(config, init=str(workdir / init_run.folder))
    digest = _hash(content)
    folder = f"runs/{slug(variant)}-seed{seed}-{digest[:8]}"
    flags = [*config.flags(), f"--workdir={workdir / folder}"]
    return Cell(
        kind="train",
        variant=variant,
        seed=seed,
        attack=None,
        folder=folder,
        needs=(init_run.folder,) if init_run else (),
        command=("mtr_tf.train", *flags),
        hash=digest,
        files=("model.keras",),
        config=config,
    )


def _attack_cell(
    study: Study,
    spec: AttackSpec,
    run: Cell,
    source: Cell | None,
    workdir: pathlib.Path,
) -> Cell:
    fields = study.attack_fields(spec.name, run.variant, run.seed)
    checkpoints = {"ckpt": str(workdir / run.folder)}
    if source:
        checkpoints["source_ckpt"] = str(workdir / source.folder)
    config = AttackConfig(**fields, **checkpoints)
    digest = _hash(
        {
            "attack": _content(config),
            "run": run.hash,
            "source": source.hash if source else None,
        }
    )
    config = dataclasses.replace(config, name=f"{slug(spec.name)}-{digest[:8]}")
    flags = config.flags()
    run_dataset = study.train_config(run.variant, run.seed).dataset
    # Only a flag may name code: a run may not name its own.
    if ":" in run_dataset and not config.dataset:
        flags.append(f"--dataset={run_dataset}")
    result_files = ["results.json"] if config.attack != NO_ATTACK else []
    result_files += ["measures.json"] if config.measure else []
    return Cell(
        kind="attack",
        variant=run.variant,
        seed=run.seed,
        attack=spec.name,
        folder=f"{run.folder}/attacks/{config.name}",
        needs=tuple(cell.folder for cell in (run, source) if cell),
        command=("mtr_tf.attack", *flags),
        hash=digest,
        files=tuple(result_files),
        config=config,
    )


def _settings(config: Settings) -> dict[str, Any]:
    """The settings that change results."""
    return config.that_change(RESULTS, EXTRAS)


def _content(config: Settings) -> dict[str, Any]:
    """The settings that change results and are not at their defaults."""
    changes = config.not_default()
    return {k: v for k, v in _settings(config).items() if k in changes}


def _hash(content: Mapping[str, Any]) -> str:
    return files.digest({"mtr_tf": mtr_tf.__version__, **content})
