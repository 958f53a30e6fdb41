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

# What names model and results for the command, and for processes of its own.
LEFT_OUT = (
    "ckpt",
    "name",
    "out",  # Of the command: the call has an argument of that name.
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
        path of a run or a file, as for the command's --ckpt. Of an `AdversarialModel`
        it is the model that is trained. One that was made under a `MirroredStrategy`
        is attacked on its replicas.
      examples: An iterable or `tf.data.Dataset` of examples or batches, `{"image":
        ..., "targets": {task: ...}, "masks": {task: ...}}` or `(image, targets)` or
        `(image, targets, masks)`; or one such batch. Dicts may have `"inputs": {name:
        ...}`, what the model takes beside the image. Images are uint8 or floats in [0,
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
    given = {"attack": attacks, "eps": eps, "attack_tasks": attack_tasks, **settings}
    with contextlib.ExitStack() as stack:
        stack.enter_context(remote.copies())
        passes = out is None or files.is_remote(out)  # The folder goes away.
        folder = out or stack.enter_context(tempfile.TemporaryDirectory())
        folder = remote.local(folder, "out")
        job = job_of(model, examples, tasks, heads, facts, given, folder)
        outcome = job.run(write=out is not None)
        attacked = outcome.attacked
        if attacked and passes:
            attacked = dataclasses.replace(
                attacked,
                clean=cell_files.held(attacked.clean),
                results=[cell_files.held(result) for result in attacked.results],
            )
    records = attacked.records if attacked else []
    if out is None:  # Where nothing is written, no files are told of.
        records = [record | {"rows": "", "clean_rows": ""} for record in records]
    return Results(
        job.title,
        records,
        outcome.measures,
        attacked.clean if attacked else None,
        attacked.results if attacked else [],
        remote.shown(out) if out is not None else None,
        attacked.consistency if attacked else [],
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
    """The command's job for objects in memory; arguments are those of `evaluate`.

    Raises:
      InputError: They do not fit together.
    """
    for name in LEFT_OUT:
        if name in settings:
            raise InputError(
                f"{name} is a flag of the command only, not of the Python function; "
                "leave it out."
            )
    listed = examples_lib.tasks_given(tasks)
    own = [task for task in listed if isinstance(task, Task)]
    names = [task.name if isinstance(task, Task) else task for task in listed]
    if isinstance(heads, Mapping):
        own += [task for task in heads.values() if isinstance(task, Task)]
        heads = {o: getattr(t, "name", t) for o, t in heads.items()}
    facts = dict(facts or {})
    _check_facts(facts, examples)
    own = _with_declared(own, facts)
    given: dict[str, Any] = {**DEFAULTS, **settings}
    if heads:
        given["heads"] = heads
    if isinstance(model, AdversarialModel):
        model = model.inner
    path = isinstance(model, str | os.PathLike)
    by_name = examples is None or isinstance(examples, str)
    if by_name and own:
        raise InputError(
            'tasks of your own must be declared with examples, or in the "tasks" of '
            "the data function; give only their names here."
        )
    if isinstance(examples, str):
        given["dataset"] = examples
    elif not by_name and not isinstance(examples, Source):  # Or read already.
        for name in _OF_DATA:
            if given.get(name):
                raise InputError(
                    f"{name} is only for named data sets, but you gave examples; "
                    "leave it out."
                )
    given["ckpt"] = os.fspath(model) if path else _name(model)
    given |= {"tasks": names, "deterministic": False}
    config = settings_lib.record(AttackConfig, given)
    if not path:
        file = model_files.of_object(model, "the model", "model")
    else:
        is_file = not by_name and loading.is_own(config.ckpt)
        file = loading.own_file(config.ckpt) if is_file else None
    if examples is None and not (path or config.dataset):
        raise InputError(
            "examples must be an iterable of examples or batches, or the name of a "
            "data set, and none was given."
        )
    if by_name:
        source = None
    elif isinstance(examples, Source):  # Whose own tasks have their classes.
        source = dataclasses.replace(examples, declared=own)
    else:
        if file:
            own = _with_classes(file, own, names, config, "classes" in facts)
        source = examples_lib.open_source(
            examples, own, names, facts, config.split, config.num_examples
        )
    return attack_job.resolve(config, source, file, folder, _workers(model))


def _workers(model: Any) -> Workers | None:
    """The replicas that a model was made on, as no other strategy can read its weights.

    None: it was made on none.
    """
    strategy = getattr(model, "distribute_strategy", None)
    is_mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)
    return Workers(strategy) if is_mirrored else None


def _check_facts(facts: Mapping[str, Any], examples: Any) -> None:
    """Raises `InputError` where facts are said of other data than the examples."""
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


def _with_declared(own: Sequence[Task], facts: dict[str, Any]) -> list[Task]:
    """Tasks of one's own, and those of facts, which are taken out there."""
    declared = facts_lib.declared(facts).replaced(*own) if "tasks" in facts else {}
    facts.pop("tasks", None)
    return list(dict.fromkeys([*own, *declared.values()]))


def _with_classes(
    file: File,
    own: Sequence[Task],
    names: Sequence[str],
    config: AttackConfig,
    named: bool,
) -> list[Task]:
    """Tasks of one's own, and those that a model's heads make, with their classes.

    Examples need not show all classes: there are as many as the model has logits for,
    unless all are `named`. The model's own targets are of any of its tasks.
    """
    model, known = file.model, tasks_lib.TASKS.replaced(*own)
    any_task = config.targets == OWN_TARGETS
    if not adapters.is_functional(model):
        asked = known.select(names) if any_task and names else {}
        return list(dict.fromkeys([*own, *asked.values()]))
    if len(model.inputs) == 1:  # Its outputs' channels come last then.
        model = model_files.functional(file, None, config.channels_first)
    asked = parse_heads(config.heads)
    heads = heads_lib.find(file.name, model, asked, known, names, "--heads")
    found = {task.name: task for task in own}
    for name, task in heads.tasks.items():
        if task.discrete and task.channels is None and not named:
            output = heads.outputs[name].tensor
            count = heads_lib.classes_of(output, heads_lib.image_shape(model))
            task = task.bound(channels=count)
        found[name] = task
    usual = {} if any_task else tasks_lib.TASKS
    return [task for task in found.values() if task is not usual.get(task.name)]


def _name(model: Any) -> str:
    name = getattr(model, "name", None) or getattr(model, "__name__", "")
    by_keras = re.fullmatch(r"(functional|sequential)(_\d+)?", name)
    return "the model" if by_keras or not name else name
