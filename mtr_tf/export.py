# SPDX-License-Identifier: Apache-2.0
"""Writes a trained model for use without mtr_tf: a SavedModel and a .keras file.

Example:
  python -m mtr_tf.export --ckpt=runs/NAME --out=exported

OUT/saved_model/ is for TensorFlow Serving, TFLite and others; outputs are named by
task. OUT/model.keras has only Keras's own layers: keras.saving.load_model needs nothing
else. OUT/model.json says what goes in and comes out: sizes, units, classes, the ranges
of images, and the range that pictures of each output are painted between.

Both give the outputs of the run's model.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import TYPE_CHECKING
from typing import Any

from mtr_tf import files
from mtr_tf.cli import flags as cli_flags
from mtr_tf.cli import startup
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import setting
from mtr_tf.errors import InputError
from mtr_tf.runs import cluster
from mtr_tf.runs import remote

if TYPE_CHECKING:
    import keras

    from mtr_tf.runs.loading import Run

_ABOUT = "model.json"
_UNFINISHED = {"state": "being written"}
_OMITTED_KEYS = ("name", "metrics", "places")  # Of tasks.


@dataclasses.dataclass(frozen=True)
class ExportConfig(Settings):
    """What `python -m mtr_tf.export` takes."""

    ckpt: str = setting(
        "",
        "Run of mtr_tf.train or mtr_tf.convert, or a checkpoint in one "
        "(runs/NAME/checkpoints/best), or an address of these. Required.",
        path=True,
        address=True,
    )
    out: str = setting(
        "",
        "Folder to write to, or its address: a new one, or an earlier export. "
        "Required.",
        path=True,
        address=True,
    )
    dataset: str = setting(
        "",
        "For a checkpoint whose run used your own data set, or a run with layers of "
        "your own that its module registers: that data set, module:function.",
    )
    data_dir: str = setting(
        "",
        "For a checkpoint: the folder of the data; empty: as in training.",
        path=True,
    )


def main(config: ExportConfig) -> None:
    """Exports; raises `InputError` for mistakes that the user can fix."""
    for flag in ("ckpt", "out"):
        if not getattr(config, flag):
            raise InputError(f"--{flag} must be given, but it is empty; see --help.")
    cluster.refuse("mtr_tf.export")
    with remote.copies():
        out = remote.local(config.out, "--out")
        with remote.held(out):
            _export(config, out)


def _export(config: ExportConfig, out: pathlib.Path) -> None:
    """Exports to a folder of this machine."""
    _check_out(out)
    startup.import_tensorflow()
    from absl import logging

    from mtr_tf.models import plain
    from mtr_tf.runs import loading

    run = loading.load_run(
        config.ckpt, data_dir=config.data_dir, dataset=config.dataset
    )
    if run.config is None:
        raise InputError(
            "--ckpt must be a run of mtr_tf.train or mtr_tf.convert, but "
            f"{config.ckpt} is a .keras file, which needs no export."
        )
    write(run, plain.plain(run.model), out)
    logging.info("the model is in %s: saved_model/, model.keras and %s", out, _ABOUT)


def _check_out(out: pathlib.Path) -> None:
    """Raises `InputError` if `--out` is a file or holds something else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out must be a directory, but {out} is a file.")
    content = files.read_object(out / _ABOUT)  # Other programs use this name, too.
    is_export = content == _UNFINISHED or content.keys() >= {"format", "run", "outputs"}
    if out.is_dir() and any(out.iterdir()) and not is_export:
        raise InputError(
            f"--out must be a new folder, or one that mtr_tf.export wrote, but {out} "
            "holds something else; give another."
        )


def write(run: Run, model: keras.Model, out: pathlib.Path) -> None:
    """Writes an export; `model` is the run's model with only Keras's own layers."""
    import tensorflow as tf

    files.write_json(out / _ABOUT, _UNFINISHED)
    remote.push(out, needed=True)
    with files.whole_file(out / "model.keras") as temp_path:
        model.save(temp_path)
    with files.write_errors_explained(out):
        shutil.rmtree(out / "saved_model", ignore_errors=True)
        module = _serving_module(model)
        signatures = {
            name: module.__call__.get_concrete_function(
                tf.TensorSpec(model.input_shape, dtype, "image")
            )
            for name, dtype in (("serving_default", tf.float32), ("uint8", tf.uint8))
        }
        tf.saved_model.save(module, str(out / "saved_model"), signatures)
    files.write_json(out / _ABOUT, about(run, model))


def _serving_module(model: keras.Model) -> Any:
    """A TensorFlow module of the model, for images of floats or bytes."""
    import tensorflow as tf

    class Serving(tf.Module):
        def __init__(self):
            self.variables_of_model = [v.value for v in model.variables]

        @tf.function
        def __call__(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
            if image.dtype == tf.uint8:
                image = tf.cast(image, tf.float32) / 255
            return dict(model(image, training=False))

    return Serving()


def about(run: Run, model: keras.Model) -> dict[str, Any]:
    """The content of model.json."""
    from mtr_tf.runs import directory
    from mtr_tf.tasks import TASKS

    run_tasks = directory.read_tasks(run.directory)
    outputs = {}
    for name, output in model.output.items():
        default_task = TASKS[name].to_dict() | {"unit": None} if name in TASKS else {}
        task = run_tasks.get(name) or default_task  # Whose unit is not known.
        task = {"kind": None, "unit": "", "classes": [], "range": None, **task}
        task = {key: task[key] for key in task if key not in _OMITTED_KEYS}
        outputs[name] = {
            **task,
            "channels": output.shape[-1],
            "shape": list(output.shape),
            "dtype": output.dtype,
            "logits": task["kind"] in ("classes", "labels"),
        }
    _, height, width, channels = model.input_shape
    return {
        "format": 1,
        "input": {
            "name": "image",
            "height": height,
            "width": width,
            "channels": channels,
            **({"order": "RGB"} if channels == 3 else {}),
            "ranges": {"float32": [0, 1], "uint8": [0, 255]},
        },
        "outputs": outputs,
        "run": {
            "name": run.directory.resolve().name,
            "fingerprint": run.fingerprint,
            "step": run.unfinished,
            "train": run.config.to_dict() if run.config else None,
        },
        **directory.environment(),
    }


def run() -> None:
    """The console entry point `mtr-export`."""
    cli_flags.run(
        "mtr_tf.export",
        __doc__,
        (ExportConfig,),
        main,
        "The export is not complete; the same command starts it again.",
    )


if __name__ == "__main__":
    run()
