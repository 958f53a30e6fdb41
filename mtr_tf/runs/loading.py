# SPDX-License-Identifier: Apache-2.0
"""What is attacked: a run, a checkpoint in one, or a `.keras` file; and its data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from mtr_tf import data
from mtr_tf import models  # Registers the layers of our own, too.
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.models import keras_files
from mtr_tf.runs import building
from mtr_tf.runs import checkpoints
from mtr_tf.runs import directory
from mtr_tf.tasks.names import resolve

# What TensorFlow's checkpoint reader makes of a file that is damaged or does not fit.
READ_ERRORS = (
    tf.errors.OpError,
    AssertionError,
    LookupError,
    RuntimeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A model to attack, and what is known of it."""

    model: Any  # keras.Model: images [B, H, W, 3] in [0, 1] -> {task: output}.
    tasks: tuple[str, ...]
    config: TrainConfig | None  # None for a .keras file of the user's own.
    directory: pathlib.Path  # Where results of attacks go.
    fingerprint: str  # Of architecture and weights; a cached result depends on it.
    unfinished: int | None = None  # The step of a checkpoint; None: a whole model.

    def normalization(self, attack: str) -> tuple[tuple[float, ...], ...]:
        """(mean, std) per colour that the model standardises images with.

        Raises:
          InputError: It is a .keras file, which does not tell; `attack` needs them.
        """
        if self.config is None:
            raise InputError(
                f"--attack={attack} needs the mean and standard deviation that the "
                "model standardises images with, which only runs of mtr_tf.train and "
                "mtr_tf.convert tell, and gradients are taken of a .keras file; "
                "attack a run, or give another --attack."
            )
        return models.normalization(self.model)

    def with_precision(self, policy: str, info: DatasetInfo) -> Run:
        """The run with its model built anew under another precision policy.

        Raises:
          InputError: It is a .keras file, or `info` is not of the run's own data set.
        """
        if self.config is None:
            raise InputError(
                "--precision can be changed for runs of mtr_tf.train only, and "
                f"{self.directory} is none; leave it at --precision=own."
            )
        if info.name != self.config.dataset:
            raise InputError(
                "--precision can be changed only on the run's own data set, "
                f"{self.config.dataset}, since the model is built anew; got "
                f"{info.name}."
            )
        config = dataclasses.replace(self.config, precision=policy)
        mean, std = models.normalization(self.model)  # Not info's after a conversion.
        info = dataclasses.replace(info, mean=mean, std=std)
        model = building.build_model(config, info)
        model.set_weights(self.model.get_weights())
        return dataclasses.replace(self, model=model)


def load_run(
    ckpt: str,
    single_task: tuple[str, ...] = (),
    data_dir: str = "",
    dataset: str = "",
    flag: str = "--ckpt",
) -> Run:
    """Loads a run directory, a checkpoint in one, or a `.keras` file.

    Args:
      ckpt: `runs/NAME`, `runs/NAME/checkpoints[/best][/ckpt-N]`, or `FILE.keras`.
      single_task: for a `.keras` file with one unnamed output, the task it predicts.
      data_dir: where the run's data set is now; empty: where it was in training.
      dataset: the data set that the user has named, which `data_dir` is of; empty: that
        of the run. A checkpoint's model is built for its data set, which must be named
        if it is a user's own: see `check_named`.
      flag: that which says `ckpt`.

    Raises:
      InputError: nothing is there, the file is damaged or foreign, it would run code
        when loaded, or its outputs are not tasks.
    """
    path = pathlib.Path(ckpt)
    root = _run_root(path)
    if path.suffix == ".keras" and path.name != "model.keras":
        root = None  # A file of the user's own, wherever it lies.
    if root is None and path.suffix == ".keras":
        return _foreign(path, single_task)
    config = directory.read_config(root) if root else None
    if root is None or config is None:
        near = sorted(p.parent.name for p in path.parent.glob("*/config.json"))
        hint = f" Runs beside it: {', '.join(near)}." if near else ""
        raise InputError(
            f"{flag} must be a run directory of mtr_tf.train, a checkpoint in one, or "
            f"a .keras file; got {ckpt!r}, which {_what_is(path)}.{hint}"
        )
    if path == root and (root / "model.keras").exists():
        path = root / "model.keras"
    step = None
    if path.suffix == ".keras":
        model = _load_keras(path)
    else:
        check_named(config.dataset, dataset, root)
        if data_dir and dataset in ("", config.dataset):
            config = dataclasses.replace(config, data_dir=data_dir)
        model, step = _restore(root, path, config)
        logging.info("this is the model after %d steps, from a checkpoint", step)
    return Run(model, tuple(model.output), config, root, fingerprint(model), step)


def check_named(dataset: str, given: str, root: pathlib.Path) -> None:
    """Raises `InputError` for code that only a file names, which may be anybody's.

    Args:
      dataset: What the settings of a run say.
      given: What the user has said, with `--dataset`.
      root: The run's directory.
    """
    if ":" in dataset and dataset != given:
        raise InputError(
            f"{root} was trained on the data of {dataset}, a function that only its "
            "config.json names, and code that a file names is not run unasked; give "
            f"--dataset={dataset} if you trust that module."
        )


def _what_is(path: pathlib.Path) -> str:
    if path.is_dir():
        return "is a directory without config.json"
    return "is some other file" if path.exists() else "does not exist"


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
    model = building.build_model(config, building.open_source(config).info)
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
        f"the checkpoint {folder / checkpoints.name(steps[0])} is damaged or of "
        "another model, and there is no older one beside it that is not; go on with "
        "the training, or attack another run."
    )


def _no_checkpoint(root: pathlib.Path, path: pathlib.Path) -> str:
    """Says that a checkpoint is not there, and which there are."""
    place = root / "checkpoints"
    names = [
        str((folder / checkpoints.name(step)).relative_to(root))
        for folder in (place, place / "best")
        for step in checkpoints.steps(folder)
    ]
    there = f"the run has {', '.join(names)}" if names else "go on with its training"
    return f"there is no checkpoint at {place if path == root else path}; {there}."


def _load_keras(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the path.")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no .keras file that can be loaded here: it is truncated, or "
            "something else with that name; copy or save it again."
        )
    try:
        keras_files.check_size(path)
        with warnings.catch_warnings():
            # What weights a file lacks would stay random.
            warnings.filterwarnings("error", "Skipping nested container")
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except InputError:
        raise
    except Exception as error:  # Keras raises nearly every kind on a damaged file.
        if "safe_mode" in str(error) or "unsafe" in str(error).lower():
            raise InputError(
                f"{path} holds Python code (such as a Lambda layer) that would run "
                "when it is loaded, which is refused. Save the model without it."
            ) from error
        detail = str(error).strip().splitlines()
        raise InputError(
            f"{path} is no .keras file that can be loaded here: it is truncated, or "
            "not of Keras 3, or uses layers that are not Keras's own "
            f"({type(error).__name__}{': ' + detail[0][:200] if detail else ''})."
        ) from error


def open_data(config: AttackConfig, run: Run, tasks: Sequence[str]) -> Source:
    """The data set to attack a model on: the named one, or that of its training.

    Raises:
      InputError: There is none, or it has not the tasks or the split.
    """
    trained = run.config
    name = config.dataset or (trained.dataset if trained else "")
    if not name:
        raise InputError(
            f"--dataset must say what {config.ckpt} is attacked on, since it is not a "
            f"run of mtr_tf.train; choose one of {', '.join(data.DATASETS)}, or "
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
        **_options(config, trained),
    )
    source.check(config.split)
    return source


def _options(config: AttackConfig, trained: TrainConfig | None) -> dict[str, object]:
    """The data set's options: the flags', else the run's, else the defaults."""
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


def _foreign(path: pathlib.Path, single_task: tuple[str, ...]) -> Run:
    """A model of the user's own: a dict of outputs named after tasks, or one output."""
    model = _load_keras(path)
    names = None
    if not isinstance(getattr(model, "output", None), dict):
        names = resolve(single_task) if single_task else ()
        count = len(getattr(model, "outputs", ()))
        if len(names) != 1 or count != 1:
            raise InputError(
                f"the outputs of {path} must be a dict named after tasks, such as "
                "keras.Model(x, {'seg': ..., 'depth': ...}), or one output whose task "
                f"--tasks=NAME says; got {count} output(s) and "
                f"--tasks={','.join(single_task)}."
            )
    _check_input(path, model.inputs)
    given = {names[0]: model.outputs[0]} if names else model.output
    outputs = {resolve([name])[0]: out for name, out in given.items()}
    if len(outputs) < len(given):
        raise InputError(
            f"each output of {path} must be another task, got "
            f"{', '.join(given)}, two of which are one; rename or drop one."
        )
    if names or set(outputs) != set(given) or model.input is not model.inputs[0]:
        model = keras.Model(model.inputs[0], outputs)
    unique = fingerprint(model)
    directory = pathlib.Path("runs", f"{path.stem}-{unique[:8]}")
    return Run(model, tuple(outputs), None, directory, unique)


def _check_input(path: pathlib.Path, inputs: Sequence[Any]) -> None:
    """Raises `InputError` unless a model has one input, RGB images of floats."""
    shapes = [tuple(tensor.shape) for tensor in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][-1] not in (3, None):
        raise InputError(
            f"the model of {path} must have one input, RGB images of shape (batch, "
            f"height, width, 3); it has {', '.join(map(str, shapes))}."
        )
    dtype = str(inputs[0].dtype)
    if "float" not in dtype:
        raise InputError(
            f"the model of {path} must take images of floats, which have a gradient, "
            f"and it takes {dtype}; save it with keras.Input(shape, dtype='float32') "
            "in place of that, and give --input_range=0,255 if it wants 0 to 255."
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
