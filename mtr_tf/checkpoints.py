# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: keeping them during training, and loading a model to attack."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import shutil
import zipfile
from collections.abc import Sequence
from typing import Any

from absl import logging

from mtr_tf import runs
from mtr_tf.config import TrainConfig
from mtr_tf.errors import InputError

# What TensorFlow's checkpoint reader makes of a file that is damaged or does not fit.
_READ_ERRORS = (AssertionError, LookupError, RuntimeError, ValueError)


class Keeper:
    """The checkpoints of a training run: the newest few, and the best.

    A checkpoint is a `tf.train.Checkpoint` of the model, the optimizer, the step, the
    best score so far, and what else is trained. It is complete or absent: TensorFlow
    writes it beside.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        model: Any,
        optimizer: Any,
        keep: int,
        variables: Sequence[Any] = (),
    ):
        """Looks at `workdir/checkpoints`, and clears what a killed save left there."""
        import tensorflow as tf

        self._folder = workdir / "checkpoints"
        for leftover in self._folder.glob("**/*_temp"):
            shutil.rmtree(leftover)
        for leftover in workdir.glob(".[0-9]*.model.keras"):
            leftover.unlink()
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._best = tf.Variable(math.nan, dtype=tf.float64, trainable=False)
        self._checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=optimizer,
            step=self._step,
            best=self._best,
            **{variable.name: variable.value for variable in variables},
        )
        self._newest = tf.train.CheckpointManager(
            self._checkpoint, str(self._folder), max_to_keep=keep
        )
        self._kept_best = tf.train.CheckpointManager(
            self._checkpoint, str(self._folder / "best"), max_to_keep=1
        )

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read; returns the steps done.

        Raises:
          InputError: there are some, and none can be read.
        """
        import tensorflow as tf

        kept = self._newest.checkpoints
        for path in reversed(kept):
            try:
                self._checkpoint.restore(path).assert_consumed()
            except (tf.errors.OpError, *_READ_ERRORS) as error:
                reason = str(error).splitlines()[0] if str(error) else "unreadable"
                logging.warning("%s is damaged (%s)", path, reason[:100])
            else:
                return int(self._step.numpy())
        if kept:
            raise InputError(
                f"all checkpoints in {self._folder} are damaged or of another model; "
                "delete the folder to start again, or give another --workdir."
            )
        return 0

    def save(self, step: int) -> None:
        """Saves a checkpoint, and deletes the oldest beyond those to keep."""
        self._write(self._newest, step)

    def save_if_best(self, step: int, score: float, better: str) -> None:
        """Saves to `best/` when the score beats all before; `better`: higher, lower."""
        best = float(self._best.numpy())
        improved = score > best if better == "higher" else score < best
        if improved or (math.isnan(best) and not math.isnan(score)):
            self._best.assign(score)
            self._write(self._kept_best, step)

    def _write(self, manager: Any, step: int) -> None:
        self._step.assign(step)
        with runs.write_errors_explained(self._folder):
            manager.save(checkpoint_number=step)


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
        from mtr_tf import models

        if self.config is None:
            raise InputError(
                f"--attack={attack} needs the mean and standard deviation that the "
                "model standardises images with, which only runs of mtr_tf.train and "
                "mtr_tf.convert tell, and gradients are taken of a .keras file; "
                "attack a run, or give another --attack."
            )
        return models.normalization(self.model)


def load_run(ckpt: str, single_task: tuple[str, ...] = (), data_dir: str = "") -> Run:
    """Loads a run directory, a checkpoint in one, or a `.keras` file.

    Args:
      ckpt: `runs/NAME`, `runs/NAME/checkpoints[/best][/ckpt-N]`, or `FILE.keras`.
      single_task: for a `.keras` file with one unnamed output, the task it predicts.
      data_dir: where the run's data set is now; empty: where it was in training.

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
    config = runs.read_config(root) if root else None
    if config is None:
        near = sorted(p.parent.name for p in path.parent.glob("*/config.json"))
        known = f" Runs beside it: {', '.join(near)}." if near else ""
        raise InputError(
            "--ckpt must be a run directory of mtr_tf.train, a checkpoint in one, or a "
            f".keras file; got {ckpt!r}, which {_what_is(path)}.{known}"
        )
    if path == root and (root / "model.keras").exists():
        path = root / "model.keras"
    step = None
    if path.suffix == ".keras":
        model = _load_keras(path)
    else:
        config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
        model, step = _restore(root, path, config)
        logging.info("this is the model after %d steps, from a checkpoint", step)
    return Run(model, tuple(model.output), config, root, fingerprint(model), step)


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
    import tensorflow as tf

    from mtr_tf import training

    folder = root / "checkpoints" if path == root else path
    prefix = str(folder).removesuffix(".index")
    if folder.is_dir():
        prefix = tf.train.latest_checkpoint(folder)
    if not prefix or not pathlib.Path(f"{prefix}.index").exists():
        kept = sorted((root / "checkpoints").glob("**/*.index"))
        names = ", ".join(str(p.with_suffix("").relative_to(root)) for p in kept)
        raise InputError(
            f"there is no checkpoint at {folder}; "
            + (f"the run has {names}." if names else "go on with its training first.")
        )
    model = training.build_model(config, training.open_source(config).info)
    try:
        step = int(tf.train.load_variable(prefix, "step/.ATTRIBUTES/VARIABLE_VALUE"))
        status = tf.train.Checkpoint(model=model).restore(prefix).expect_partial()
        status.assert_existing_objects_matched()
    except (tf.errors.OpError, *_READ_ERRORS) as error:
        raise InputError(
            f"the checkpoint {prefix} is damaged or of another model; try an older one "
            "from the same folder."
        ) from error
    return model, step


def _load_keras(path: pathlib.Path) -> Any:
    import keras

    from mtr_tf import models  # noqa: F401  (registers the layers of our own)

    if not path.is_file():
        raise InputError(f"there is no file {path}; check --ckpt.")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no .keras file that can be loaded here: it is truncated, or "
            "something else with that name; copy or save it again."
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
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


def _foreign(path: pathlib.Path, single_task: tuple[str, ...]) -> Run:
    """A model of the user's own: a dict of outputs named after tasks, or one output."""
    import keras

    from mtr_tf import tasks

    model = _load_keras(path)
    names = None
    if not isinstance(getattr(model, "output", None), dict):
        names = tasks.resolve(single_task) if single_task else ()
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
    outputs = {tasks.resolve([name])[0]: out for name, out in given.items()}
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
