# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.evaluate`: the command `attack`, for models and examples in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mtr_tf import attack_job
from mtr_tf import files
from mtr_tf import tasks as tasks_lib
from mtr_tf.api import examples as examples_lib
from mtr_tf.api import settings as settings_lib
from mtr_tf.api.adversarial import AdversarialModel
from mtr_tf.api.results import Results
from mtr_tf.attack_job import Job
from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.attack import parse_heads
from mtr_tf.data.custom import facts as facts_lib
from mtr_tf.data.custom import reading
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_files
from mtr_tf.models import adapters
from mtr_tf.runs import heads as heads_lib
from mtr_tf.runs import loading
from mtr_tf.runs import model_files
from mtr_tf.runs import remote
from mtr_tf.runs.model_files import File
from mtr_tf.runs.workers import Workers
from mtr_tf.show import gallery
from mtr_tf.tasks import Task

# Flags that name the command's model and results, or start other processes.
LEFT_OUT = (
    "ckpt",
    "name",
    "out",  # The command's flag: the call has an argument of that name.
    "format",
    "deterministic",
    "export_predictions",
    "executor",
    "executor_options",
    "workers",
    "part",
)
# Where the command has another default.
DEFAULTS = {"strategy": "one_device"}
_OF_DATA = ("dataset", "data_dir", "depth_target", "validation_share", "image_size")


@settings_lib.shown(AttackConfig, without=(*LEFT_OUT, "attack"), defaults=DEFAULTS)
def evaluate(
    model: Any,
    examples: Any = None,
    *,
    tasks: str | Iterable[str | Task] = (),
    attacks: str | Iterable[str] = ("pgd",),
    eps: float | Iterable[float] = (1, 2, 4, 8),
    attack_tasks: str | Iterable[str] = ("each", "all"),
    heads: Mapping[str | int, str | Task] | Iterable[str] = (),
    facts: Mapping[str, Any] | None = None,
    out: str | os.PathLike | None = None,
    **settings: Any,
) -> Results:
    """Attacks a model with all combinations of attacks, radii and groups of tasks.

        results = mtr_tf.evaluate(model, examples, attacks=["pgd", "apgd"], eps=[2, 4])
        print(results.table())

    Nothing is written unless `out` names a folder, and the model is not changed.

    Args:
      model: A Keras model, or any function of images `[batch, height, width, channels]`
        in [0, 1] that returns outputs: a dict, a list, a tuple, or a single one. Or the
        path of a run or a file, as for the command's --ckpt. For an
        `AdversarialModel`, the model that it trains is attacked. A model that was made
        under a `MirroredStrategy` is attacked on its replicas.
      examples: An iterable or `tf.data.Dataset` of examples or batches, `{"image":
        ..., "targets": {task: ...}, "masks": {task: ...}}` or `(image, targets)` or
        `(image, targets, masks)`; or one such batch. Dicts may have `"inputs": {name:
        ...}`, which the model takes besides images. Images are uint8 or floats in [0,
        1]. Targets without names are in the order of `tasks`. Or the name of a data
        set, as for the command's --dataset; None: the one that the run was trained on.
      tasks: The tasks of the outputs: names of the paper's tasks, or your own, such as
        `tasks.Task("flow", kind="numbers", channels=2)`. Empty: taken from the names of
        the outputs.
      attacks: Names of attacks, as for the command's --attack.
      eps: Radii: with norm="linf" in levels of 0-255, with "l2" norms of differences
        between images in [0, 1].
      attack_tasks: Groups of tasks to attack together: "seg+depth", "each", "all".
      heads: Which output is which task, if the names do not show it: {output: task}
        with an output's name or number, and a task's name, kind or `Task`.
      facts: What a data function returns besides its splits, such as {"classes": [...],
        "ignore_label": 255} (docs/own_data.md).
      out: A folder, or its address, for results.json, plots, TensorBoard's files and
        finished cells, which are not computed again.
      **settings: the command's flags.

    Returns:
      The results: `.table()`, `.records`, `.to_pandas()`, `.plot()`, `.gallery()`.

    Raises:
      InputError: The settings, the model and the examples do not fit together.
    """
    flags = {"attack": attacks, "eps": eps, "attack_tasks": attack_tasks, **settings}
    with contextlib.ExitStack() as stack:
        stack.enter_context(remote.copies())
        is_temporary = out is None or files.is_remote(out)
        folder = out or stack.enter_context(tempfile.TemporaryDirectory())
        folder = remote.local(folder, "out")
        job = job_of(model, examples, tasks, heads, facts, flags, folder)
        outcome = job.run(write=out is not None)
        attack_results = outcome.attacked
        if attack_results and is_temporary:
            attack_results = dataclasses.replace(
                attack_results,
                clean=cell_files.held(attack_results.clean),
                results=[cell_files.held(result) for result in attack_results.results],
            )
    records = attack_results.records if attack_results else []
    if out is None:  # Nothing is written, so records name no files.
        records = [record | {"rows": "", "clean_rows": ""} for record in records]
    return Results(
        job.title,
        records,
        outcome.measures,
        attack_results.clean if attack_results else None,
        attack_results.results if attack_results else [],
        remote.shown(out) if out is not None else None,
        attack_results.consistency if attack_results else [],
        job.config.metrics,
        gallery.class_colors(job.subject.tasks.values(), job.subject.info),
        job.details,
    )


def job_of(
    model: Any,
    examples: Any,
    tasks: str | Iterable[str | Task],
    heads: Mapping[str | int, str | Task] | Iterable[str],
    facts: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    folder: pathlib.Path,
) -> Job:
    """Returns the command's job for objects in memory; `evaluate` has the arguments.

    Raises:
      InputError: They do not fit together.
    """
    for name in LEFT_OUT:
        if name in settings:
            raise InputError(
                f"{name} is a flag of the command only, not of the Python function; "
                "leave it out."
            )
    task_list = examples_lib.tasks_given(tasks)
    own_tasks = [task for task in task_list if isinstance(task, Task)]
    names = [task.name if isinstance(task, Task) else task for task in task_list]
    if isinstance(heads, Mapping):
        own_tasks += [task for task in heads.values() if isinstance(task, Task)]
        heads = {o: getattr(t, "name", t) for o, t in heads.items()}
    facts = dict(facts or {})
    _check_facts(facts, examples)
    own_tasks = _add_declared(own_tasks, facts)
    flags: dict[str, Any] = {**DEFAULTS, **settings}
    if heads:
        flags["heads"] = heads
    if isinstance(model, AdversarialModel):
        model = model.inner
    is_path = isinstance(model, str | os.PathLike)
    is_named = examples is None or isinstance(examples, str)
    if is_named and own_tasks:
        raise InputError(
            'tasks of your own must be declared with examples, or in the "tasks" of '
            "the data function; give only their names here."
        )
    if isinstance(examples, str):
        flags["dataset"] = examples
    elif not is_named and not isinstance(examples, Source):  # They are not read yet.
        for name in _OF_DATA:
            if flags.get(name):
                raise InputError(
                    f"{name} is only for named data sets, but you gave examples; "
                    "leave it out."
                )
    flags["ckpt"] = os.fspath(model) if is_path else _model_name(model)
    flags |= {"tasks": names, "deterministic": False}
    config = settings_lib.record(AttackConfig, flags)
    if not is_path:
        file = model_files.of_object(model, "the model", "model")
    else:
        is_file = not is_named and loading.is_own(config.ckpt)
        file = loading.own_file(config.ckpt) if is_file else None
    if examples is None and not (is_path or config.dataset):
        raise InputError(
            "examples must be an iterable of examples or batches, or the name of a "
            "data set, and none was given."
        )
    if is_named:
        source = None
    elif isinstance(examples, Source):  # Its tasks have their classes.
        source = dataclasses.replace(examples, declared=own_tasks)
    else:
        if file:
            own_tasks = _add_classes(file, own_tasks, names, config, "classes" in facts)
        source = examples_lib.open_source(
            examples, own_tasks, names, facts, config.split, config.num_examples
        )
    return attack_job.resolve(config, source, file, folder, _workers(model))


def _workers(model: Any) -> Workers | None:
    """Returns the replicas that a model was made on; None if it was made on none.

    No other strategy can read its weights.
    """
    strategy = getattr(model, "distribute_strategy", None)
    is_mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)
    return Workers(strategy) if is_mirrored else None


def _check_facts(facts: Mapping[str, Any], examples: Any) -> None:
    """Raises `InputError` if facts are given for other data than examples in memory."""
    if facts and (examples is None or isinstance(examples, str)):
        raise InputError(
            "facts are only for examples in memory, but you gave the name of a data "
            "set, or of a run alone; leave them out, or return them from your data "
            "function."
        )
    splits = [name for name in facts if name in reading.SPLITS]
    if splits:
        raise InputError(
            "facts must be what a data function returns besides its splits, but have "
            f"{', '.join(splits)}; give these as examples."
        )


def _add_declared(tasks: Sequence[Task], facts: dict[str, Any]) -> list[Task]:
    """Returns the user's own tasks and those in `facts`, which it removes there."""
    declared_tasks = (
        facts_lib.declared(facts).replaced(*tasks) if "tasks" in facts else {}
    )
    facts.pop("tasks", None)
    return list(dict.fromkeys([*tasks, *declared_tasks.values()]))


def _add_classes(
    file: File,
    own_tasks: Sequence[Task],
    names: Sequence[str],
    config: AttackConfig,
    has_class_names: bool,
) -> list[Task]:
    """Returns the user's own tasks and those of a model's heads, with their classes.

    Examples need not show all classes: a task has as many as the model has logits for,
    unless facts name them (`has_class_names`). The model's own outputs as targets can
    be of any of its tasks.
    """
    model, all_tasks = file.model, tasks_lib.TASKS.replaced(*own_tasks)
    any_task = config.targets == OWN_TARGETS
    if not adapters.is_functional(model):
        named_tasks = all_tasks.select(names) if any_task and names else {}
        return list(dict.fromkeys([*own_tasks, *named_tasks.values()]))
    if len(model.inputs) == 1:  # Then its outputs have channels last.
        model = model_files.functional(file, None, config.channels_first)
    pairs = parse_heads(config.heads)
    heads = heads_lib.find(file.name, model, pairs, all_tasks, names, "--heads")
    tasks = {task.name: task for task in own_tasks}
    for name, task in heads.tasks.items():
        if task.discrete and task.channels is None and not has_class_names:
            output = heads.outputs[name].tensor
            count = heads_lib.classes_of(output, heads_lib.image_shape(model))
            task = task.bound(channels=count)
        tasks[name] = task
    standard_tasks = {} if any_task else tasks_lib.TASKS
    return [
        task for task in tasks.values() if task is not standard_tasks.get(task.name)
    ]


def _model_name(model: Any) -> str:
    name = getattr(model, "name", None) or getattr(model, "__name__", "")
    is_default = re.fullmatch(r"(functional|sequential)(_\d+)?", name)
    return "the model" if is_default or not name else name
