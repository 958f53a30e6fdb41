# SPDX-License-Identifier: Apache-2.0
"""Loads a model to attack (a run, a checkpoint or a user's own model) and its data."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import data
from mtr_tf import files
from mtr_tf import models  # Also registers our own layers.
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.attack import parse_heads
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.data.custom import reading
from mtr_tf.data.layout import Layout
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.models import adapters
from mtr_tf.runs import building
from mtr_tf.runs import checkpoints
from mtr_tf.runs import directory
from mtr_tf.runs import heads as heads_lib
from mtr_tf.runs import model_files
from mtr_tf.runs import packing
from mtr_tf.runs import remote
from mtr_tf.runs.heads import Heads
from mtr_tf.runs.model_files import File
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import groups
from mtr_tf.tasks.names import Names

# What TensorFlow raises for a checkpoint that is damaged or does not fit.
READ_ERRORS = (
    tf.errors.OpError,
    AssertionError,
    LookupError,
    RuntimeError,
    ValueError,
)


# Modules whose versions are kept with results, and layers that hold any code.
_KNOWN_MODULES = ("keras.", "tensorflow.", "mtr_tf.")
_CODE_LAYERS = (keras.layers.Lambda, keras.layers.TFSMLayer)


@dataclasses.dataclass(frozen=True)
class Run:
    """A model to attack, and what is known about it."""

    model: Any  # keras.Model: images [B, H, W, C] in [0, 1] -> {task: output}.
    tasks: tuple[str, ...]
    config: TrainConfig | None  # None for a model of the user's own.
    directory: pathlib.Path  # Where results of attacks go.
    fingerprint: str  # Of architecture and weights; part of a result's key.
    unfinished: int | None = None  # Step of a checkpoint; None: a finished model.
    heads: Heads | None = None  # Only for a model of the user's own.
    packed: bool = False  # Whether further inputs are packed behind its images.

    def normalization(self, attack: str) -> tuple[tuple[float, ...], ...]:
        """(mean, std) per channel with which the model standardises images.

        Raises:
          InputError: The model is a .keras file, which does not tell them; the message
            names `attack`, which needs them.
        """
        if self.config is None:
            raise InputError(
                f"--attack={attack} needs the mean and standard deviation that the "
                "model standardises images with. Only runs of mtr_tf.train and "
                "mtr_tf.convert have them, not a .keras file; attack a run, or give "
                "another --attack."
            )
        return models.normalization(self.model)

    def with_precision(self, policy: str, info: DatasetInfo) -> Run:
        """The run with its model rebuilt under another precision policy.

        Raises:
          InputError: The model is a .keras file, or `info` is not of its own data set.
        """
        if self.config is None or ":" in self.config.model:
            raise InputError(
                "--precision can be changed only for built-in models in runs of "
                f"mtr_tf.train, and {self.directory} has none; leave it at "
                "--precision=own."
            )
        if info.name != self.config.dataset:
            raise InputError(
                "--precision can be changed only on the run's own data set, "
                f"{self.config.dataset}, because the model is built again; got "
                f"{info.name}."
            )
        config = dataclasses.replace(self.config, precision=policy)
        mean, std = models.normalization(self.model)  # Not info's after a conversion.
        info = dataclasses.replace(info, mean=mean, std=std)
        model = building.build_model(config, info)
        model.set_weights(self.model.get_weights())
        return dataclasses.replace(self, model=model)


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Facts about a model of the user's own that the model itself does not tell.

    Attributes:
      heads: Pairs (output, task), as `heads.find` takes them.
      tasks: The tasks that are possible; None: the eleven built-in ones.
      image_shape: The shape of the data's images; None if it is not known yet.
      channels_first: Whether it takes images [batch, channels, height, width], even if
        its shape does not tell.
      flag: What messages call the flag of the heads.
      layout: The inputs that come with the images; None: no such inputs.
    """

    heads: Sequence[tuple[str, str]] = ()
    tasks: TaskSet | None = None
    image_shape: tuple[int | None, ...] | None = None
    channels_first: bool = False
    flag: str = "--heads"
    layout: Layout | None = None

    @classmethod
    def of(
        cls, config: AttackConfig, data: Source | None, *, source: bool = False
    ) -> ModelFacts:
        """The facts from settings and open data; with `source`, for --source_ckpt."""
        size, source_heads = config.parsed_image_size, source and config.source_heads
        return cls(
            heads=parse_heads(source_heads or config.heads),
            tasks=data.all_tasks if data else None,
            image_shape=data.info.image_shape if data else size and (*size, 3),
            channels_first=config.channels_first,
            flag="--source_heads" if source_heads else "--heads",
            layout=data.columns(config.split).layout if data else None,
        )


def load_run(
    ckpt: str,
    single_task: Sequence[str] = (),
    data_dir: str = "",
    dataset: str = "",
    flag: str = "--ckpt",
    facts: ModelFacts | None = None,
) -> Run:
    """Loads a run directory, a checkpoint in one, or a model of the user's own.

    Args:
      ckpt: `runs/NAME`, `runs/NAME/checkpoints[/best][/ckpt-N]`, `FILE.keras`,
        `FILE.h5`, the folder of a SavedModel, or `module:function`.
      single_task: The task of a user's own model with one unnamed output.
      data_dir: Where the run's data set is now; empty: where it was in training.
      dataset: The data set that the user names, which `data_dir` belongs to; empty: the
        run's. A checkpoint's model is built for the run's data set, which the user must
        name if it is their own: see `check_named`. Its module is then imported before
        the model is loaded, because it may register layers of the model.
      flag: The flag that `ckpt` was given to, for messages.
      facts: Facts about a user's own model; None: as its names say.

    Raises:
      InputError: Nothing is there, the file is damaged or foreign, it would run code
        when loaded, or its outputs are not tasks.
    """
    path = remote.fetched(ckpt, flag)
    if is_own(ckpt):
        return own_run(own_file(ckpt, flag), single_task, facts or ModelFacts())
    root = _run_root(path)
    config = directory.read_config(root) if root else None
    if root is None or config is None:
        config_files = path.parent.glob("*/config.json")
        nearby_runs = sorted(
            file.parent.name for file in config_files if file.is_file()
        )
        hint = f" Runs nearby: {', '.join(nearby_runs)}." if nearby_runs else ""
        raise InputError(
            f"{flag} must be a run directory of mtr_tf.train, a checkpoint in one, or "
            f"a {model_files.KINDS}; got {ckpt!r}, which {_kind_of(path)}.{hint}"
        )
    if path == root and (root / "model.keras").exists():
        path = root / "model.keras"
    step = None
    if path.suffix == ".keras":
        if ":" in dataset:  # The user names it, so its layers may be registered.
            reading.own_function(dataset)
        model = model_files.keras_file(path, flag)
    else:
        check_named(config.dataset, dataset, root)
        if data_dir and dataset in ("", config.dataset):
            config = dataclasses.replace(config, data_dir=data_dir)
        model, step = _restore_model(root, path, config)
        logging.info("using the model after %d steps, from a checkpoint", step)
    size = config.parsed_image_size
    digest = _functional_fingerprint(model, model, size and (*size, 3), str(root))
    return Run(model, tuple(model.output), config, root, digest, step)


def check_named(dataset: str, named_dataset: str, root: pathlib.Path) -> None:
    """Raises `InputError` for code that only a file names: anybody may have made it.

    Args:
      dataset: The data set in the settings of a run.
      named_dataset: The data set that the user names with `--dataset`.
      root: The run's directory.
    """
    if ":" in dataset and dataset != named_dataset:
        raise InputError(
            f"{root} was trained on data from {dataset}, which only its config.json "
            "names, and code named in a file is never run unasked; give "
            f"--dataset={dataset} if you trust that module."
        )


def _kind_of(path: pathlib.Path) -> str:
    if path.is_dir():
        return "is a directory without config.json"
    return "is another kind of file" if path.exists() else "does not exist"


def _run_root(path: pathlib.Path) -> pathlib.Path | None:
    """The run directory that a path is or lies in, found by its settings files."""
    for root in (path, *list(path.parents)[:3]):
        if all((root / name).is_file() for name in ("config.json", "train.flags")):
            return root
    return None


def _restore_model(
    root: pathlib.Path, path: pathlib.Path, config: TrainConfig
) -> tuple[Any, int]:
    """Rebuilds a model with a checkpoint's weights; returns it and its step."""
    folder = root / "checkpoints" if path == root else path
    steps = checkpoints.newest_first(folder)
    if not steps:  # A checkpoint by its name?
        name = path.name.removesuffix(".index")
        folder = path.parent
        steps = [s for s in checkpoints.steps(folder) if checkpoints.name(s) == name]
    if not steps:
        raise InputError(_no_checkpoint_message(root, path))
    info = building.open_source(config).info
    info = building.standardised(info, directory.begun(root).normalization)
    model = building.build_model(config, info)
    step_variable = tf.Variable(0, dtype=tf.int64, trainable=False)
    checkpoint = tf.train.Checkpoint(model=model, step=step_variable)
    for step in steps:
        try:
            status = checkpoints.read(checkpoint, folder, step).expect_partial()
            status.assert_existing_objects_matched()
            return model, int(step_variable.numpy())
        except READ_ERRORS as error:
            checkpoints.say_skipped(folder, step, error)
    raise InputError(
        f"the checkpoint {folder / checkpoints.name(steps[0])} is damaged or belongs "
        "to another model, and there is no older intact one; continue the training, "
        "or attack another run."
    )


def _no_checkpoint_message(root: pathlib.Path, path: pathlib.Path) -> str:
    """The message that a checkpoint does not exist, and which ones do."""
    place = root / "checkpoints"
    names = [
        str((folder / checkpoints.name(step)).relative_to(root))
        for folder in (place, place / "best")
        for step in checkpoints.steps(folder)
    ]
    advice = f"the run has {', '.join(names)}" if names else "continue its training"
    return f"there is no checkpoint at {place if path == root else path}; {advice}."


def check_heads(config: AttackConfig, run: Run, source: Run | None) -> None:
    """Raises `InputError` for flags about a user's own model if none is given."""
    has_heads = any(r and r.heads for r in (run, source))
    source_has_heads = bool(source and source.heads)
    relevance = {
        "heads": has_heads,
        "channels_first": has_heads,
        "source_heads": source_has_heads,
    }
    for name, is_relevant in relevance.items():
        if getattr(config, name) and not is_relevant:
            flag = "--source_ckpt" if name == "source_heads" else "--ckpt"
            raise InputError(
                f"--{name} is only for a model of your own in {flag}; runs of "
                "mtr_tf.train know what their outputs are, so leave it out."
            )


def own_data(config: AttackConfig, file: File | None = None) -> Source | None:
    """The user's own data with all tasks, if a user's own model is attacked on them.

    They are opened before the model is loaded, so that layers that their module
    registers are known, and tell which tasks are possible. `file`: the model, if it is
    the user's own and already loaded.
    """
    model_names = [name for name in (config.ckpt, config.source_ckpt) if name]
    if ":" not in config.dataset or not (file or any(map(is_own, model_names))):
        return None
    return data.open_source(
        config.dataset,
        image_size=config.parsed_image_size,
        data_dir=config.data_dir or None,
    )


def open_data(
    config: AttackConfig, run: Run, own_source: Source | None = None
) -> tuple[Source, tuple[str, ...]]:
    """The data set to attack a model on: the named one, or the one of its training.

    Args:
      config: The settings.
      run: The model.
      own_source: The data that `own_data` has opened, if any.

    Returns:
      The data, and the full names of the tasks to look at.

    Raises:
      InputError: There is no such data set, or it lacks the tasks or the split.
    """
    trained = run.config
    name = config.dataset or (trained.dataset if trained else "")
    tasks = _named_tasks(config, run, name)
    if own_source:
        own_source.check(config.split)
        return _select_tasks(config, run, own_source)
    if not name:
        raise InputError(
            f"--dataset must name the data to attack {config.ckpt} on, because it is "
            f"not a run of mtr_tf.train; choose one of {', '.join(data.DATASETS)}, or "
            "package.module:function for data of your own (docs/own_data.md)."
        )
    check_named(name, config.dataset, run.directory)
    if trained and trained.dataset != name:
        trained = None  # Its settings say nothing of this data set.
    size = config.parsed_image_size or (trained.parsed_image_size if trained else None)
    source = data.open_source(
        name,
        image_size=size or input_size(run.model),
        data_dir=config.data_dir or (trained.data_dir if trained else "") or None,
        tasks=tasks,
        **data_options(config, trained),
    )
    source.check(config.split)
    return (source, tasks) if tasks else _select_tasks(config, run, source)


def _named_tasks(
    config: AttackConfig, run: Run, dataset: str
) -> tuple[str, ...] | None:
    """The tasks that `--tasks` names; None if only the data can tell what is meant.

    Raises:
      InputError: A task is unknown to a user's own model, or to a data set that cannot
        declare tasks.
    """
    model_tasks = run.heads.tasks if run.heads else run.tasks
    try:
        return groups.select(config.tasks, model_tasks, "--tasks")
    except InputError:
        if run.heads or not data.may_bring_tasks(dataset):
            raise
        return None


def _select_tasks(
    config: AttackConfig, run: Run, source: Source
) -> tuple[Source, tuple[str, ...]]:
    """Restricts data that have all their tasks to those that `--tasks` names."""
    known_tasks = {**source.info.tasks, **(run.heads.tasks if run.heads else {})}
    run_tasks = {task: known_tasks.get(task, Names(task, "")) for task in run.tasks}
    tasks = groups.select(config.tasks, run_tasks, "--tasks")
    _check_targets(config, run, source.info, tasks)
    load = source.load
    return (
        dataclasses.replace(
            source, load=lambda split: reading.only(load(split), tasks)
        ),
        tasks,
    )


def data_changes(config: AttackConfig, run: Run, source: Source) -> list[str]:
    """Warns if a run is attacked on its own data set and that has changed.

    Splits may be made anew from the files that exist, so validation images may have
    been trained on. The sizes of the splits, and two images of the attacked one, are
    compared with config.json. Returns the warnings.
    """
    trained = run.config
    if trained is None or source.info.name != trained.dataset:
        return []
    if change := directory.older_targets(run.directory):
        logging.warning("%s", change)
        return [change]
    old_facts = directory.data_facts(run.directory)
    if not old_facts:
        return []
    new_facts: dict[str, dict[str, Any]] = {
        split: {"examples": count, "means": None}
        for split, count in source.info.splits.items()
    }
    if trained.train_examples and "train" in new_facts:
        new_facts["train"]["examples"] = trained.train_examples
    if config.parsed_image_size in (None, trained.parsed_image_size):
        facts, columns = new_facts[config.split], source.columns(config.split)
        count = min(facts["examples"], len(columns))
        facts["means"] = batching.first_and_last(columns.without_inputs(), count)
    changes = directory.data_changes(old_facts, new_facts)
    if not changes:
        return []
    warning = (
        f"the data are not those that the run was trained on ({'; '.join(changes)}), "
        f"so that it may have been trained on images of {config.split}, and look "
        "better than it is: give the data as they were in training (--data_dir)."
    )
    logging.warning("%s", warning)
    return [warning]


def _check_targets(
    config: AttackConfig, run: Run, info: DatasetInfo, tasks: Sequence[str]
) -> None:
    """Raises `InputError` for tasks that only --heads declares, without targets."""
    head_tasks = run.heads.tasks if run.heads and config.targets == OWN_TARGETS else ()
    missing_tasks = [task for task in tasks if task not in (*info.tasks, *head_tasks)]
    if missing_tasks:
        raise InputError(
            f"{info.name} must have targets for the attacked tasks, but has none for "
            f"{', '.join(missing_tasks)}, only for {', '.join(info.tasks) or 'no task'}"
            "; add them, name other tasks, or attack the model's own outputs "
            "(--targets=own)."
        )


def data_options(config: AttackConfig, trained: TrainConfig | None) -> dict[str, Any]:
    """The data set's options: from the flags, else from the run, else the defaults.

    `trained`: the settings of a run on the same data set, if there is one.
    """
    options = {name: default for name, (default, _) in data.OPTIONS.items()}
    if trained:
        options = {name: getattr(trained, name) for name in options}
    if config.depth_target != "own":
        options["depth_target"] = config.depth_target
    if config.validation_share:
        options["validation_share"] = config.validation_share
    return options


def input_size(model: keras.Model) -> tuple[int, int] | None:
    """(height, width) of a model's input; None if it takes any."""
    size = model.input_shape[1:3]
    return None if None in size else tuple(size)


def is_own(ckpt: str) -> bool:
    """Whether `--ckpt` names a model of the user's own, local or at an address."""
    path = remote.fetched(ckpt, "--ckpt")
    if model_files.is_function(ckpt) or model_files.is_own(path):
        return True
    return path.suffix == ".keras" and _run_root(path) is None


def own_file(ckpt: str, flag: str = "--ckpt") -> File:
    """Loads a model of the user's own, local or at an address, which `flag` names.

    Raises:
      InputError: It does not exist, is damaged, has no architecture, or would run code.
    """
    path = remote.fetched(ckpt, flag)
    return model_files.load(str(path) if files.is_remote(ckpt) else ckpt, flag)


def own_run(file: File, single_task: Sequence[str], facts: ModelFacts) -> Run:
    """A model of the user's own as a `Run`, with the outputs that belong to tasks.

    Args:
      file: The model.
      single_task: Its task if it has one output whose name is no task.
      facts: Facts about the model.

    Raises:
      InputError: It does not take images, or its outputs are not tasks.
    """
    full_model = model_files.functional(
        file, facts.image_shape, facts.channels_first, facts.layout
    )
    packed = len(adapters.inputs_of(file.model)) > 1
    tasks = facts.tasks or tasks_lib.TASKS
    heads = heads_lib.find(
        file.name, full_model, facts.heads, tasks, single_task, facts.flag
    )
    model = heads.model(full_model)
    digest = file.content or _fingerprint_of(file, model, facts.image_shape)
    if model is not file.model:
        digest = hashlib.sha256(f"{digest} {heads.spec}".encode()).hexdigest()
    folder = pathlib.Path("runs", f"{file.stem}-{digest[:8]}")
    return Run(
        model, tuple(heads.tasks), None, folder, digest, heads=heads, packed=packed
    )


def with_inputs(
    run: Run, source: Run | None, layout: Layout | None
) -> tuple[Run, Run | None]:
    """Returns both as models of packed images, or both unchanged.

    Args:
      run: The model that is attacked.
      source: The model on which adversarial images are made, if it is another one.
      layout: The inputs that come with the images; None: no such inputs.

    Raises:
      InputError: One is a run of `mtr_tf.train`, and the other has further inputs.
    """
    if layout is None:
        return run, source
    if not (run.packed or (source and source.packed)):
        logging.info(
            "the model takes only images; these inputs are ignored: %s", layout
        )
        return run, source
    logging.info(
        "attacks change only the image; these inputs come with it unchanged: %s",
        layout,
    )
    return _pack_run(run, layout), source and _pack_run(source, layout)


def _pack_run(run: Run, layout: Layout) -> Run:
    if run.packed:
        return run
    if run.config:
        raise InputError(
            f"{run.directory} is a run of mtr_tf.train, which takes only images, so "
            "it cannot be attacked together with a model that has further inputs; "
            "give two models of your own."
        )
    model = packing.packed(run.model, layout, str(run.directory))
    return dataclasses.replace(run, model=model, packed=True)


def _fingerprint_of(
    file: File, model: keras.Model, shape: Sequence[int | None] | None
) -> str:
    """The fingerprint of a model of the user's own.

    For a functional model see `_functional_fingerprint`. For any other it covers the
    name, the variables, and the outputs and gradients that `model`, its functional
    form, gives for images of noise. `shape`: the shape of the data's images; None if it
    is not known yet.
    """
    original = file.model
    if adapters.is_functional(original):
        return _functional_fingerprint(original, model, shape, file.name)
    images = model_files.noise(model, shape, file.name)
    name = getattr(original, "__name__", type(original).__name__)
    outputs = model_files.outputs_digest(model, images)
    description = f"{name} {outputs} {model_files.behaviour(model, images)}"
    digest = hashlib.sha256(description.encode())
    for variable in getattr(original, "variables", ()):
        digest.update(np.asarray(variable).tobytes())
    return digest.hexdigest()


def _functional_fingerprint(
    original: keras.Model,
    model: keras.Model,
    shape: Sequence[int | None] | None,
    name: str,
) -> str:
    """`fingerprint` of `original`; with own code, also the behaviour of `model`."""
    if not _has_own_code(original):
        return fingerprint(original)
    description = f"{fingerprint(original)} "
    with contextlib.suppress(InputError):
        images = model_files.noise(model, shape, name)
        description += model_files.behaviour(model, images)
    return hashlib.sha256(description.encode()).hexdigest()


def _has_own_code(model: keras.Model) -> bool:
    """Whether any code of a model is not from Keras, TensorFlow or mtr_tf.

    Its class, layers and operations count, and functions that these hold, such as
    activations, but not those used only in training.
    """
    layers = model._flatten_layers()
    parts = list(layers)
    for layer in layers:
        operations = getattr(layer, "operations", ())
        if isinstance(operations, list | tuple):
            parts += [part for part in operations if isinstance(part, keras.Operation)]
    attributes: list[Any] = []
    for part in parts:
        if not isinstance(part, keras.Model):
            attributes += [
                value
                for name, value in vars(part).items()
                if not name.endswith(("_initializer", "_regularizer", "_constraint"))
            ]
        for node in part._inbound_nodes:
            attributes += node.arguments._flat_arguments
    code = [*map(type, parts), *filter(callable, attributes)]
    modules = {getattr(c, "__module__", type(c).__module__) for c in code}
    return any(isinstance(part, _CODE_LAYERS) for part in parts) or not all(
        str(module).startswith(_KNOWN_MODULES) for module in modules
    )


def fingerprint(model: Any) -> str:
    """SHA-256 over a model's architecture and the values of all its variables."""
    architecture = json.dumps(_without_initializers(model.get_config()), default=str)
    digest = hashlib.sha256(architecture.encode())
    for variable in model.variables:
        value = variable.numpy()
        digest.update(f"{variable.path} {value.shape} {value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _without_initializers(config: Any) -> Any:
    """A model's config without initialisers, which no longer matter."""
    if isinstance(config, dict):
        return {
            key: _without_initializers(value)
            for key, value in config.items()
            if not str(key).endswith("_initializer")
        }
    if isinstance(config, list | tuple):
        return [_without_initializers(value) for value in config]
    return config
