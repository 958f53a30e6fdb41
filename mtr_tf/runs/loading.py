# SPDX-License-Identifier: Apache-2.0
"""Loads what is attacked (a run, a checkpoint, a user's own model) and its data."""

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
from mtr_tf import models  # Registers the layers of our own, too.
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

# What TensorFlow's checkpoint reader makes of a file that is damaged or does not fit.
READ_ERRORS = (
    tf.errors.OpError,
    AssertionError,
    LookupError,
    RuntimeError,
    ValueError,
)


# Whose code has a version that results are kept with, and layers that hold any.
_KNOWN = ("keras.", "tensorflow.", "mtr_tf.")
_HOLDERS = (keras.layers.Lambda, keras.layers.TFSMLayer)


@dataclasses.dataclass(frozen=True)
class Run:
    """A model to attack, and what is known of it."""

    model: Any  # keras.Model: images [B, H, W, C] in [0, 1] -> {task: output}.
    tasks: tuple[str, ...]
    config: TrainConfig | None  # None for a model of the user's own.
    directory: pathlib.Path  # Where results of attacks go.
    fingerprint: str  # Of architecture and weights; a cached result depends on it.
    unfinished: int | None = None  # The step of a checkpoint; None: a whole model.
    heads: Heads | None = None  # Of a model of the user's own.
    packed: bool = False  # Whether its images have further inputs behind them.

    def normalization(self, attack: str) -> tuple[tuple[float, ...], ...]:
        """(mean, std) per colour that the model standardises images with.

        Raises:
          InputError: It is a .keras file, which does not tell; `attack` needs them.
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
        """The run with its model built anew under another precision policy.

        Raises:
          InputError: It is a .keras file, or `info` is not of the run's own data set.
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
class Own:
    """What must be known of a model of the user's own that it does not tell itself.

    Attributes:
      heads: Pairs (output, task), as `heads.find` takes them.
      known: The tasks that there may be; None: the eleven.
      image_shape: Of the data's images; None if that is not known yet.
      channels_first: Whether it takes images [batch, channels, height, width], though
        its shape may not tell.
      flag: What messages call the flag of the heads.
      layout: What comes with the images; None: nothing.
    """

    heads: Sequence[tuple[str, str]] = ()
    known: TaskSet | None = None
    image_shape: tuple[int | None, ...] | None = None
    channels_first: bool = False
    flag: str = "--heads"
    layout: Layout | None = None

    @classmethod
    def of(
        cls, config: AttackConfig, data: Source | None, *, source: bool = False
    ) -> Own:
        """What settings and opened data say; `source`: of --source_ckpt."""
        size, named = config.parsed_image_size, source and config.source_heads
        return cls(
            heads=parse_heads(named or config.heads),
            known=data.known if data else None,
            image_shape=data.info.image_shape if data else size and (*size, 3),
            channels_first=config.channels_first,
            flag="--source_heads" if named else "--heads",
            layout=data.columns(config.split).layout if data else None,
        )


def load_run(
    ckpt: str,
    single_task: Sequence[str] = (),
    data_dir: str = "",
    dataset: str = "",
    flag: str = "--ckpt",
    own: Own | None = None,
) -> Run:
    """Loads a run directory, a checkpoint in one, or a model of the user's own.

    Args:
      ckpt: `runs/NAME`, `runs/NAME/checkpoints[/best][/ckpt-N]`, `FILE.keras`,
        `FILE.h5`, the folder of a SavedModel, or `module:function`.
      single_task: for a model of one's own with one unnamed output, what it predicts.
      data_dir: where the run's data set is now; empty: where it was in training.
      dataset: the data set that the user has named, which `data_dir` is of; empty: that
        of the run. A checkpoint's model is built for its data set, which must be named
        if it is a user's own: see `check_named`. The module of one that is named is
        imported before the model is loaded, which may have layers that it registers.
      flag: that which says `ckpt`.
      own: what to know of a model of one's own; None: what its names say.

    Raises:
      InputError: nothing is there, the file is damaged or foreign, it would run code
        when loaded, or its outputs are not tasks.
    """
    path = remote.fetched(ckpt, flag)
    if is_own(ckpt):
        return own_run(own_file(ckpt, flag), single_task, own or Own())
    root = _run_root(path)
    config = directory.read_config(root) if root else None
    if root is None or config is None:
        found = path.parent.glob("*/config.json")
        near = sorted(file.parent.name for file in found if file.is_file())
        hint = f" Runs nearby: {', '.join(near)}." if near else ""
        raise InputError(
            f"{flag} must be a run directory of mtr_tf.train, a checkpoint in one, or "
            f"a {model_files.KINDS}; got {ckpt!r}, which {_what_is(path)}.{hint}"
        )
    if path == root and (root / "model.keras").exists():
        path = root / "model.keras"
    step = None
    if path.suffix == ".keras":
        if ":" in dataset:  # Registers its layers; the user has named it.
            reading.own_function(dataset)
        model = model_files.keras_file(path, flag)
    else:
        check_named(config.dataset, dataset, root)
        if data_dir and dataset in ("", config.dataset):
            config = dataclasses.replace(config, data_dir=data_dir)
        model, step = _restore(root, path, config)
        logging.info("using the model after %d steps, from a checkpoint", step)
    size = config.parsed_image_size
    unique = _functional_fingerprint(model, model, size and (*size, 3), str(root))
    return Run(model, tuple(model.output), config, root, unique, step)


def check_named(dataset: str, given: str, root: pathlib.Path) -> None:
    """Raises `InputError` for code that only a file names: it may come from anybody.

    Args:
      dataset: What the settings of a run say.
      given: What the user has said, with `--dataset`.
      root: The run's directory.
    """
    if ":" in dataset and dataset != given:
        raise InputError(
            f"{root} was trained on data from {dataset}, which only its config.json "
            "names, and code named in a file is never run unasked; give "
            f"--dataset={dataset} if you trust that module."
        )


def _what_is(path: pathlib.Path) -> str:
    if path.is_dir():
        return "is a directory without config.json"
    return "is another kind of file" if path.exists() else "does not exist"


def _run_root(path: pathlib.Path) -> pathlib.Path | None:
    """The run directory that a path lies in, by the files that only a run has."""
    for root in (path, *list(path.parents)[:3]):
        if all((root / name).is_file() for name in ("config.json", "train.flags")):
            return root
    return None


def _restore(
    root: pathlib.Path, path: pathlib.Path, config: TrainConfig
) -> tuple[Any, int]:
    """A model rebuilt from the settings, with a checkpoint's weights; and its step."""
    folder = root / "checkpoints" if path == root else path
    steps = checkpoints.newest_first(folder)
    if not steps:  # A checkpoint by its name?
        name = path.name.removesuffix(".index")
        folder = path.parent
        steps = [s for s in checkpoints.steps(folder) if checkpoints.name(s) == name]
    if not steps:
        raise InputError(_no_checkpoint(root, path))
    info = building.open_source(config).info
    info = building.standardised(info, directory.begun(root).normalization)
    model = building.build_model(config, info)
    kept = tf.Variable(0, dtype=tf.int64, trainable=False)
    checkpoint = tf.train.Checkpoint(model=model, step=kept)
    for step in steps:
        try:
            status = checkpoints.read(checkpoint, folder, step).expect_partial()
            status.assert_existing_objects_matched()
            return model, int(kept.numpy())
        except READ_ERRORS as error:
            checkpoints.say_skipped(folder, step, error)
    raise InputError(
        f"the checkpoint {folder / checkpoints.name(steps[0])} is damaged or belongs "
        "to another model, and there is no older intact one; continue the training, "
        "or attack another run."
    )


def _no_checkpoint(root: pathlib.Path, path: pathlib.Path) -> str:
    """Says that a checkpoint is not there, and which there are."""
    place = root / "checkpoints"
    names = [
        str((folder / checkpoints.name(step)).relative_to(root))
        for folder in (place, place / "best")
        for step in checkpoints.steps(folder)
    ]
    there = f"the run has {', '.join(names)}" if names else "continue its training"
    return f"there is no checkpoint at {place if path == root else path}; {there}."


def check_heads(config: AttackConfig, run: Run, source: Run | None) -> None:
    """Raises `InputError` for flags about a user's own model if there is none."""
    own = any(each and each.heads for each in (run, source))
    of_source = bool(source and source.heads)
    uses = {"heads": own, "channels_first": own, "source_heads": of_source}
    for name, used in uses.items():
        if getattr(config, name) and not used:
            flag = "--source_ckpt" if name == "source_heads" else "--ckpt"
            raise InputError(
                f"--{name} is only for a model of your own in {flag}; runs of "
                "mtr_tf.train know what their outputs are, so leave it out."
            )


def own_data(config: AttackConfig, file: File | None = None) -> Source | None:
    """The user's own data, all of it, where they say what a model's tasks may be.

    They are opened before the model is loaded: layers that their module registers are
    known then. `file`: the model, if it is the user's own and loaded already.
    """
    models_given = [name for name in (config.ckpt, config.source_ckpt) if name]
    if ":" not in config.dataset or not (file or any(map(is_own, models_given))):
        return None
    return data.open_source(
        config.dataset,
        image_size=config.parsed_image_size,
        data_dir=config.data_dir or None,
    )


def open_data(
    config: AttackConfig, run: Run, opened: Source | None = None
) -> tuple[Source, tuple[str, ...]]:
    """The data set to attack a model on: the named one, or that of its training.

    Args:
      config: The settings.
      run: The model.
      opened: What `own_data` has opened already.

    Returns:
      The data, and the tasks that are looked at, by their full names.

    Raises:
      InputError: There is none, or it has not the tasks or the split.
    """
    trained = run.config
    name = config.dataset or (trained.dataset if trained else "")
    tasks = _named_tasks(config, run, name)
    if opened:
        opened.check(config.split)
        return _with_tasks(config, run, opened)
    if not name:
        raise InputError(
            f"--dataset must name the data to attack {config.ckpt} on, because it is "
            f"not a run of mtr_tf.train; choose one of {', '.join(data.DATASETS)}, or "
            "package.module:function for data of your own (docs/own_data.md)."
        )
    check_named(name, config.dataset, run.directory)
    if trained and trained.dataset != name:
        trained = None  # Then its settings say nothing of this data set.
    size = config.parsed_image_size or (trained.parsed_image_size if trained else None)
    source = data.open_source(
        name,
        image_size=size or input_size(run.model),
        data_dir=config.data_dir or (trained.data_dir if trained else "") or None,
        tasks=tasks,
        **data_options(config, trained),
    )
    source.check(config.split)
    return (source, tasks) if tasks else _with_tasks(config, run, source)


def _named_tasks(
    config: AttackConfig, run: Run, dataset: str
) -> tuple[str, ...] | None:
    """The tasks that `--tasks` names; None where only data can tell what is meant.

    Raises:
      InputError: A task is unknown to a data set that declares none, or to a model.
    """
    has = run.heads.tasks if run.heads else run.tasks
    try:
        return groups.select(config.tasks, has, "--tasks")
    except InputError:
        if run.heads or not data.may_bring_tasks(dataset):
            raise
        return None


def _with_tasks(
    config: AttackConfig, run: Run, opened: Source
) -> tuple[Source, tuple[str, ...]]:
    """Data that are open with all their tasks, for those that `--tasks` names."""
    known = {**opened.info.tasks, **(run.heads.tasks if run.heads else {})}
    named = {task: known.get(task, Names(task, "")) for task in run.tasks}
    tasks = groups.select(config.tasks, named, "--tasks")
    _check_targets(config, run, opened.info, tasks)
    load = opened.load
    return (
        dataclasses.replace(
            opened, load=lambda split: reading.only(load(split), tasks)
        ),
        tasks,
    )


def data_changes(config: AttackConfig, run: Run, source: Source) -> list[str]:
    """Warns where a run is attacked on its own data set, and this has changed.

    Splits may be made anew of what is there: images of the validation split may then
    have been trained on. What config.json says is compared: the sizes of splits, and
    two images of the one that is attacked.
    """
    trained = run.config
    if trained is None or source.info.name != trained.dataset:
        return []
    if older := directory.older_targets(run.directory):
        logging.warning("%s", older)
        return [older]
    before = directory.data_facts(run.directory)
    if not before:
        return []
    now: dict[str, dict[str, Any]] = {
        split: {"examples": count, "means": None}
        for split, count in source.info.splits.items()
    }
    if trained.train_examples and "train" in now:
        now["train"]["examples"] = trained.train_examples
    if config.parsed_image_size in (None, trained.parsed_image_size):
        facts, columns = now[config.split], source.columns(config.split)
        count = min(facts["examples"], len(columns))
        facts["means"] = batching.first_and_last(columns.without_inputs(), count)
    changed = directory.data_changes(before, now)
    if not changed:
        return []
    said = (
        f"the data are not those that the run was trained on ({'; '.join(changed)}), "
        f"so that it may have been trained on images of {config.split}, and look "
        "better than it is: give the data as they were in training (--data_dir)."
    )
    logging.warning("%s", said)
    return [said]


def _check_targets(
    config: AttackConfig, run: Run, info: DatasetInfo, tasks: Sequence[str]
) -> None:
    """Raises `InputError` for tasks that only a kind in --heads has made."""
    made = run.heads.tasks if run.heads and config.targets == OWN_TARGETS else ()
    missing = [task for task in tasks if task not in (*info.tasks, *made)]
    if missing:
        raise InputError(
            f"{info.name} must have targets for the attacked tasks, but has none for "
            f"{', '.join(missing)}, only for {', '.join(info.tasks) or 'no task'}; add "
            "them, name other tasks, or attack the model's own outputs "
            "(--targets=own)."
        )


def data_options(config: AttackConfig, trained: TrainConfig | None) -> dict[str, Any]:
    """The data set's options: the flags', else the run's, else the defaults.

    `trained`: the settings of a run on the same data set.
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
    """(height, width) of a model's input; None where it takes any."""
    size = model.input_shape[1:3]
    return None if None in size else tuple(size)


def is_own(ckpt: str) -> bool:
    """Whether `--ckpt` names a model of the user's own, wherever it lies."""
    path = remote.fetched(ckpt, "--ckpt")
    if model_files.is_function(ckpt) or model_files.is_own(path):
        return True
    return path.suffix == ".keras" and _run_root(path) is None


def own_file(ckpt: str, flag: str = "--ckpt") -> File:
    """Loads a model of the user's own, wherever it lies, which `flag` names.

    Raises:
      InputError: It is not there, damaged, has no architecture, or would run code.
    """
    path = remote.fetched(ckpt, flag)
    return model_files.load(str(path) if files.is_remote(ckpt) else ckpt, flag)


def own_run(file: File, single_task: Sequence[str], own: Own) -> Run:
    """A model of the user's own, with those of its outputs that are of tasks.

    Args:
      file: The model.
      single_task: What it predicts if it has one output that does not tell.
      own: What to know of it.

    Raises:
      InputError: It does not take images, or its outputs are not tasks.
    """
    whole = model_files.functional(
        file, own.image_shape, own.channels_first, own.layout
    )
    several = len(adapters.inputs_of(file.model)) > 1
    known = own.known or tasks_lib.TASKS
    heads = heads_lib.find(file.name, whole, own.heads, known, single_task, own.flag)
    model = heads.model(whole)
    unique = file.content or _fingerprint_of(file, model, own.image_shape)
    if model is not file.model:
        unique = hashlib.sha256(f"{unique} {heads.spec}".encode()).hexdigest()
    folder = pathlib.Path("runs", f"{file.stem}-{unique[:8]}")
    return Run(
        model, tuple(heads.tasks), None, folder, unique, heads=heads, packed=several
    )


def with_inputs(
    run: Run, source: Run | None, layout: Layout | None
) -> tuple[Run, Run | None]:
    """Returns both as models of packed images, or neither.

    Args:
      run: What is attacked.
      source: What adversarial images are made on, if that is something else.
      layout: What comes with the images; None: nothing.

    Raises:
      InputError: A run of `mtr_tf.train` is beside a model with further inputs.
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
    return _packed(run, layout), source and _packed(source, layout)


def _packed(run: Run, layout: Layout) -> Run:
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
    """That of a functional model; of any other, what `model` makes of it counts.

    And of any code but Keras's and ours: its outputs and gradients, if it takes images
    of noise. `shape`: of the data's images; None if that is not known yet.
    """
    given = file.model
    if adapters.is_functional(given):
        return _functional_fingerprint(given, model, shape, file.name)
    images = model_files.noise(model, shape, file.name)
    name = getattr(given, "__name__", type(given).__name__)
    outputs = model_files.outputs_digest(model, images)
    about = f"{name} {outputs} {model_files.behaviour(model, images)}"
    digest = hashlib.sha256(about.encode())
    for variable in getattr(given, "variables", ()):
        digest.update(np.asarray(variable).tobytes())
    return digest.hexdigest()


def _functional_fingerprint(
    given: keras.Model,
    model: keras.Model,
    shape: Sequence[int | None] | None,
    name: str,
) -> str:
    """`fingerprint` of `given`, and what code of its own makes `model` do."""
    if not _has_own_code(given):
        return fingerprint(given)
    about = f"{fingerprint(given)} "
    with contextlib.suppress(InputError):
        images = model_files.noise(model, shape, name)
        about += model_files.behaviour(model, images)
    return hashlib.sha256(about.encode()).hexdigest()


def _has_own_code(model: keras.Model) -> bool:
    """Whether some code of it is neither Keras's nor TensorFlow's nor ours.

    Its class, layers and operations count, and functions that these hold, such as
    activations, but not what only its training uses.
    """
    layers = model._flatten_layers()
    operations = [getattr(layer, "operations", ()) for layer in layers]
    lists = [given for given in operations if isinstance(given, list | tuple)]
    inner = [part for parts in lists for part in parts]
    parts = [*layers, *(part for part in inner if isinstance(part, keras.Operation))]
    held = [
        value
        for part in parts
        for name, value in vars(part).items()
        if not isinstance(part, keras.Model)
        and not name.endswith(("_initializer", "_regularizer", "_constraint"))
    ]
    held += [
        value
        for part in parts
        for node in part._inbound_nodes
        for value in node.arguments._flat_arguments
    ]
    code = [*map(type, parts), *filter(callable, held)]
    modules = {getattr(c, "__module__", type(c).__module__) for c in code}
    return any(isinstance(part, _HOLDERS) for part in parts) or not all(
        str(module).startswith(_KNOWN) for module in modules
    )


def fingerprint(model: Any) -> str:
    """SHA-256 over a model's architecture and the values of all its variables."""
    architecture = json.dumps(_lasting(model.get_config()), default=str)
    digest = hashlib.sha256(architecture.encode())
    for variable in model.variables:
        value = variable.numpy()
        digest.update(f"{variable.path} {value.shape} {value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _lasting(config: Any) -> Any:
    """A model's config without its initialisers, which no longer matter."""
    if isinstance(config, dict):
        return {
            key: _lasting(value)
            for key, value in config.items()
            if not str(key).endswith("_initializer")
        }
    if isinstance(config, list | tuple):
        return [_lasting(value) for value in config]
    return config
