# SPDX-License-Identifier: Apache-2.0
"""Runs a study: trains, attacks, measures, and says which claims hold.

Example:
  python -m mtr_tf.reproduce
  python -m mtr_tf.reproduce --study=rooms-quick
  python -m mtr_tf.reproduce --study=cityscapes --data_dir=DIR

Without --study it lists the studies.

Finished work is kept in --workdir: the same command continues where the last one
stopped. The report is WORKDIR/report/index.html.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import TYPE_CHECKING

from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.settings import EXECUTOR_OPTIONS
from mtr_tf.config.settings import EXECUTORS
from mtr_tf.config.settings import WORKERS
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import setting
from mtr_tf.errors import InputError
from mtr_tf.runs import cluster

if TYPE_CHECKING:
    from mtr_tf.study.design import Study
    from mtr_tf.study.runner import Runner


@dataclasses.dataclass(frozen=True)
class ReproduceConfig(Settings):
    """What `python -m mtr_tf.reproduce` takes."""

    study: str = setting(
        "",
        "Name of a study that comes with mtr_tf, or path of your own .toml file. "
        "Empty: list the studies.",
        path=True,
    )
    workdir: str = setting("", "The study's folder; empty: runs/study-NAME.", path=True)
    executor: str = setting(
        "local",
        "Where cells run. local: as processes of this machine. ray: on a Ray cluster. "
        "slurm: as jobs of SLURM, by submitit. See docs/cluster.md.",
        choices=EXECUTORS,
    )
    executor_options: tuple[str, ...] = EXECUTOR_OPTIONS
    workers: int = WORKERS
    seeds: tuple[int, ...] = setting(
        (), "Seeds to use instead of the study's.", within=(0, 2**32 - 1)
    )
    only: tuple[str, ...] = setting(
        (), "Train and attack only these variants; empty: all."
    )
    dataset: str = setting(
        "",
        "Data set to use instead of the study's; models with tasks that it does not "
        "have are left out.",
    )
    data_dir: str = setting("", "Folder of the data; empty: as in training.", path=True)
    image_size: str = setting(
        "", "Image size to use instead of the study's: 96x128, or one number."
    )
    report: bool = setting(
        False,
        "Train and attack nothing; only write the report from the results that "
        "are there.",
    )
    export: str = setting(
        "",
        "Copy the report's README.md, tables and main plots to this folder, to keep "
        "in a repository.",
        path=True,
    )
    dry_run: bool = setting(
        False, "Only list the cells that would be run, with their commands."
    )


def main(config: ReproduceConfig) -> None:
    """Runs a study; raises `InputError` for mistakes that the user can fix."""
    from mtr_tf.cli import startup

    if not config.study:
        print(_listing())
        return
    cluster.refuse("mtr_tf.reproduce")
    startup.import_tensorflow()
    from absl import logging

    from mtr_tf import files
    from mtr_tf.runs import directory
    from mtr_tf.study import claims
    from mtr_tf.study import runner as runner_lib
    from mtr_tf.study import study_file
    from mtr_tf.study.report import export

    overrides = {
        name: value
        for name in ("dataset", "data_dir", "image_size")
        if (value := getattr(config, name))
    }
    study = study_file.load(config.study, seeds=config.seeds or None, train=overrides)
    claims.check(study)  # Shows mistakes now, not after hours.
    if config.dataset:
        study = _fit_study(study)
        claims.check(study)
    for name in config.only:
        study.variant(name)  # Raises for an unknown one.
    workdir = pathlib.Path(config.workdir or f"runs/study-{study.name}")
    directory.check_path(workdir)
    if config.export:
        export.check(pathlib.Path(config.export))
    if config.dry_run:
        runner = runner_lib.Runner(study, workdir, config.only)
        runner.queue.retry()
        print(_plan(runner))
        return
    if config.report:
        runner = runner_lib.Runner(study, workdir, config.only)
        _check_report(runner, workdir, config.export)
        try:
            with files.locked(workdir):
                runner.write(computes=False)
        except files.InUse:
            logging.info("the study is running; the report covers what is done so far")
            record = files.read_object(workdir / "study.json")
            if record | {"provenance": None} != study.to_dict() | {"provenance": None}:
                logging.warning(
                    "the report is of the study that is running, whose seeds, claims "
                    "or other settings differ from those that are asked for"
                )
    else:
        with files.locked(workdir):
            runner = runner_lib.Runner(study, workdir, config.only)
            _run_cells(runner, study, config, workdir)
    _write_report(workdir, config.export)
    from mtr_tf.study import unchanged

    unchanged.check_starts(runner.queue, workdir)  # Some may have been trained again.
    failures = runner.failures()
    if failures:
        raise InputError(
            f"{len(failures)} of {len(runner.queue.cells)} cells failed and are "
            "missing from the report; read their logs, then repeat the command"
            f"{' without --report' if config.report else ''}. The first: {failures[0]}"
        )


def _check_report(runner: Runner, workdir: pathlib.Path, export: str) -> None:
    """Raises `InputError` if a report would replace one of finished work."""
    from mtr_tf.study import queue

    if not (workdir / "study.json").exists():
        raise InputError(
            "--workdir must be the folder of a study that mtr_tf.reproduce has begun, "
            f"but {workdir} is not one; leave out --report to begin it there."
        )
    cells = runner.queue.cells
    done_kinds = {cell.kind for cell in cells if runner.queue.state(cell) == queue.DONE}
    old_cells = [cell for cell in runner.before.values() if cell["state"] == queue.DONE]
    if any(cell["kind"] not in done_kinds for cell in old_cells):
        raise InputError(
            f"What is done in {workdir} is of another study, or of other settings or "
            "another version of mtr_tf than this one, of which "
            f"{'no attack' if done_kinds else 'nothing'} is done; report it with those "
            "that it was run with."
        )
    if export and not runner.queue.count(queue.DONE):
        raise InputError(
            f"There is nothing to export: no cell of the study is done in {workdir}; "
            "leave out --export until some are."
        )


def _fit_study(study: Study) -> Study:
    """The study without the parts for which its data set lacks the tasks."""
    from absl import logging

    from mtr_tf.runs import building
    from mtr_tf.study import fitting

    dataset = study.train["dataset"]
    variant_names = [
        variant.name for variant in study.variants if variant.is_on(dataset)
    ]
    if not variant_names:
        return study
    config = study.train_config(variant_names[0], study.seeds[0])
    # A task that all data sets have, so that only little is prepared.
    config = dataclasses.replace(config, tasks=("autoencoder",), main_tasks=())
    tasks = building.open_source(config).info.tasks
    fitted_study = fitting.to_tasks(study, dataset, tasks)
    if fitted_study is not study:
        logging.warning("%s", fitted_study.about.removeprefix(study.about).strip())
    return fitted_study


def _run_cells(
    runner: Runner, study: Study, config: ReproduceConfig, workdir: pathlib.Path
) -> None:
    """Runs the cells that are not done."""
    import tensorflow as tf
    from absl import logging

    from mtr_tf import executors
    from mtr_tf.data import parts
    from mtr_tf.executors import local
    from mtr_tf.runs import building
    from mtr_tf.study import queue
    from mtr_tf.study import unchanged

    gpus = local.gpus(len(tf.config.list_physical_devices("GPU")))
    tf.config.set_visible_devices([], "GPU")  # The workers use them.
    runner.queue.retry()
    unchanged.check(runner.queue, workdir)
    waiting_cells = runner.queue.waiting()
    runner.write(computes=bool(waiting_cells))
    if not waiting_cells:
        done_count = runner.queue.count(queue.DONE)
        logging.info("%s is already finished: %d cells", study.name, done_count)
        return
    engine = executors.create(
        config.executor,
        workdir / "jobs",
        config.workers,
        config.executor_options,
        gpus,
        parts.cores(),
    )
    with engine.executor:
        # Prepares data once, and shows mistakes in them now.
        for variant in dict.fromkeys(cell.variant for cell in waiting_cells):
            building.open_source(study.train_config(variant, study.seeds[0]))
        logging.info(
            "%s: %d of %d cells to do, at most %d at a time (%s); their logs are in %s",
            study.name,
            len(waiting_cells),
            len(runner.queue.cells),
            engine.at_once,
            config.executor,
            workdir / "logs",
        )
        runner.run(engine)


def _write_report(workdir: pathlib.Path, export: str) -> None:
    from mtr_tf import files
    from mtr_tf.study import report

    with open(workdir / ".report.lock", "a") as file:
        files.lock(file, wait=True)  # A watcher of the study may write it, too.
        text = report.write(workdir, pathlib.Path(export) if export else None)
    print(text)
    print(f"\nthe report is {workdir / 'report' / 'index.html'}")


def _listing() -> str:
    """The studies that come with the package, a line each."""
    from mtr_tf.study import study_file
    from mtr_tf.study import toml_table

    lines = ["Choose a study with --study=NAME. There are:", ""]
    for name, path in study_file.shipped().items():
        about = " ".join(toml_table.read(path).get("about", "").split())
        lines.append(f"  {name:14} {re.split(r'(?<=[.?!]) ', about)[0]}")
    return "\n".join(lines)


def _plan(runner: Runner) -> str:
    """The cells that would be run, each with its share of the work and its command."""
    from mtr_tf.study import costs
    from mtr_tf.study import queue

    waiting_cells, cell_costs = runner.queue.waiting(), runner.clock.costs
    total = sum(cell_costs[cell.folder] for cell in waiting_cells) or 1
    lines = []
    for cell in waiting_cells:
        share = cell_costs[cell.folder] / total
        seconds = runner.clock.seconds(cell)
        about = f", about {costs.in_words(seconds)}" if seconds else ""
        lines += [f"# {cell.title}: {share:.1%} of the work{about}", cell.shown]
    done_count = runner.queue.count(queue.DONE)
    lines.append(f"# {len(waiting_cells)} cells to do, {done_count} done")
    return "\n".join(lines)


def run() -> None:
    """The console entry point `mtr-reproduce`."""
    cli_flags.run(
        "mtr_tf.reproduce",
        __doc__,
        (ReproduceConfig,),
        main,
        "What is done is kept; the same command continues from there.",
    )


if __name__ == "__main__":
    run()
