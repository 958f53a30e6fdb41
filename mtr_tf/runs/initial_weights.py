# SPDX-License-Identifier: Apache-2.0
"""What training starts from: `--init`, weights from a file; `--frozen`, kept weights.

Files are read as arrays by the names of layers: no code in them is run, and unknown
layers do no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Iterable
from collections.abc import Sequence

import h5py
import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import files
from mtr_tf import models
from mtr_tf.errors import InputError
from mtr_tf.models import keras_files
from mtr_tf.models import layers as layers_lib
from mtr_tf.runs import remote

_LISTED = 6  # Layers that messages name at most.

Arrays = dict[str, list[np.ndarray]]
"""{path of a layer: its weights, in the layer's order}"""


def start_from(
    model: keras.Model,
    path: str,
    frozen: Sequence[str] = (),
    tasks: Iterable[str] = (),
) -> None:
    """Gives a model the weights of a file, for layers with equal names and shapes.

    A layer has the same path in both, or else its own name, if that is the only one of
    its kind in both. Where the file has no such layer, a stage of the encoder that a
    task has to itself (encoder_TASK_...) starts from the shared one (encoder_...). What
    matched is logged, and a warning says where both standardise images differently.

    Args:
      model: Built.
      path: A `.keras` file, `.weights.h5` or another `.h5` file of weights, or a run
        directory.
      frozen: What the names of layers begin with that will keep these weights.
      tasks: Those of a built-in model, which may have stages of their own; of others
        the names of layers say nothing of tasks.

    Raises:
      InputError: The file cannot be read, or nothing in it matches, or it lacks a layer
        that will be frozen.
    """
    arrays = read(path)
    layers = _layers(model)
    matched, lacking, other = [], [], []
    for name, variables in layers.items():
        found = _find(name, arrays, layers)
        if found is None:
            found = _in_common(name, tasks, arrays)
        if found is None:
            lacking.append(name)
        elif [a.shape for a in found] != [tuple(v.shape) for v in variables]:
            other.append(name)
        else:
            for variable, array in zip(variables, found, strict=True):
                variable.assign(array)
            matched.append(name)
    if not matched:
        why = "have other shapes there" if other else "are not there"
        raise InputError(
            f"--init={path} must have weights for some of the model's layers, but the "
            f"layers {_listed(other or lacking)} {why}: the file has "
            f"{_listed(list(arrays))}."
        )
    kept = {_owner(v) for layer in _named(model, frozen) for v in layer.weights}
    if new := [name for name in (*lacking, *other) if name in kept]:
        raise InputError(
            f"--frozen={','.join(frozen)} keeps layers as --init={path} has them, but "
            f"{_listed(new)} are not there, or have other shapes, and would stay "
            "untrained; freeze only layers that the file has."
        )
    logging.info(
        "%d of the model's %d layers with weights start from %s",
        len(matched),
        len(layers),
        path,
    )
    for what, names in (("are not in it", lacking), ("have other shapes", other)):
        if names:
            logging.info("new weights: %s, which %s", _listed(names), what)
    if tasks:
        _compare_normalization(model, path)


def freeze(model: keras.Model, prefixes: Sequence[str]) -> None:
    """Lets layers keep their weights; batch norms among them keep their statistics.

    Args:
      model: Built.
      prefixes: Of the names of layers, such as "encoder".

    Raises:
      InputError: No layer's name begins so, or nothing is left to train.
    """
    names = [layer.name for layer in _named(model, ("",))]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise InputError(
                "--frozen must be the beginnings of layer names, but no layer of the "
                f"model begins with {prefix!r}; its layers are {_listed(names)}."
            )
    for layer in _named(model, prefixes):
        layer.trainable = False
    if prefixes and not model.trainable_variables:
        raise InputError(
            f"--frozen={','.join(prefixes)} leaves nothing to train; freeze fewer "
            "layers."
        )


def _named(model: keras.Model, prefixes: Sequence[str]) -> list[keras.Layer]:
    """A model's layers with weights whose names begin so, also those within others."""
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    named = [layer for layer in layers if layer.name.startswith(tuple(prefixes))]
    return [layer for layer in named if layer.weights]


def check(path: str) -> pathlib.Path:
    """Returns the file that a path means; raises `InputError` where there is none."""
    file = remote.fetched(path, "--init")
    if file.is_dir():
        file /= "model.keras"
    if not file.is_file():
        raise InputError(
            "--init must be a .keras or .h5 file, or the directory of a finished run, "
            f"but there is no {file}."
        )
    return file


def read(path: str) -> Arrays:
    """Returns the weights of a file, or of the model of a run directory.

    Raises:
      InputError: There is no such file, or it would fill the memory, is damaged or
        holds no named weights.
    """
    file = check(path)
    try:
        arrays = _read(file)
    except InputError:
        raise
    except files.DAMAGED as error:
        raise InputError(
            f"--init={path} must be a .keras or .h5 file of Keras, but it cannot be "
            f"read ({type(error).__name__}: {' '.join(str(error).split())[:100]})."
        ) from error
    if not arrays:
        raise InputError(
            f"--init={path} must hold weights under the names of their layers, but "
            "has none; load the model where it was made, and save it again with Keras "
            "3."
        )
    return arrays


def digest(path: str) -> str:
    """A hash of the weights of a file, and of their names; raises as `read`."""
    return files.digest(
        {
            name: [
                f"{a.dtype}{a.shape}{hashlib.sha256(a.tobytes()).hexdigest()}"
                for a in weights
            ]
            for name, weights in read(path).items()
        }
    )


def _read(path: pathlib.Path) -> Arrays:
    if zipfile.is_zipfile(path) or h5py.is_hdf5(path):
        keras_files.check_size(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(content) as file:
            return _of_keras_3(file)
    with h5py.File(path) as file:
        whole = file.get("model_weights", file)
        if "layer_names" in whole.attrs:
            return _of_keras_2(whole)
        return _of_keras_3(file)


def _of_keras_3(group: h5py.Group, path: str = "") -> Arrays:
    """Groups `vars` hold a layer's weights by number, and its name."""
    arrays, inner = {}, path
    own = group.get("vars")
    if own is not None and group.name != "/" and "name" in own.attrs:
        inner = f"{path}/{own.attrs['name']}".lstrip("/")
        if len(own):
            numbers = sorted(own, key=int)
            arrays[inner] = [_array(own[number]) for number in numbers]
    for key, child in group.items():
        if key != "vars" and isinstance(child, h5py.Group):
            arrays |= _of_keras_3(child, inner)
    return arrays


def _of_keras_2(group: h5py.Group) -> Arrays:
    """Groups named after layers list their weights as `layer/kernel:0`."""
    arrays: Arrays = {}
    for layer in map(_text, group.attrs["layer_names"]):
        for name in map(_text, group[layer].attrs["weight_names"]):
            owner = name.rpartition("/")[0] or layer
            arrays.setdefault(owner, []).append(_array(group[layer][name]))
    return arrays


def _array(kept: h5py.Dataset) -> np.ndarray:
    """The numbers of a weight; raises `ValueError` where it is of something else."""
    array = np.asarray(kept[()])
    if array.dtype == "V2":  # HDF5 knows no bfloat16, and Keras writes its bytes.
        return array.view(tf.bfloat16.as_numpy_dtype)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{kept.name} holds no numbers")
    return array


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _layers(model: keras.Model) -> dict[str, list[keras.Variable]]:
    layers: dict[str, list[keras.Variable]] = {}
    for variable in model.weights:
        layers.setdefault(_owner(variable), []).append(variable)
    return layers


def _owner(variable: keras.Variable) -> str:
    """The path of the layer that a weight is of."""
    return variable.path.rpartition("/")[0]


def _find(
    path: str, arrays: Arrays, layers: dict[str, list[keras.Variable]]
) -> list[np.ndarray] | None:
    """The weights of the layer of that path; else of the only one of its name."""
    if path in arrays:
        return arrays[path]
    name = path.rpartition("/")[2]
    same = [other for other in arrays if other.rpartition("/")[2] == name]
    here = [other for other in layers if other.rpartition("/")[2] == name]
    return arrays[same[0]] if len(same) == len(here) == 1 else None


def _in_common(
    name: str, tasks: Iterable[str], arrays: Arrays
) -> list[np.ndarray] | None:
    """The weights of a task's own stage where tasks share it.

    A task may be called as another one and more: depth and depth_euclidean.
    """
    found = (layers_lib.shared_name(name, task) for task in tasks)
    return next((arrays[n] for n in found if n != name and n in arrays), None)


def _compare_normalization(model: keras.Model, path: str) -> None:
    """Warns where weights were trained on images that were standardised otherwise.

    It is said of a built-in model and the `.keras` files of such models, where mean or
    std differ by more than a tenth of the std.
    """
    before, now = _normalization_of(check(path)), models.normalization(model)
    if not before or len(now[0]) != len(before[0]):
        return
    if (np.abs(np.subtract(now, before)) > 0.1 * np.array(before[1])).any():
        logging.warning(
            "The weights of --init=%s were trained on images standardised with mean %s "
            "and std %s, but here images are standardised with mean %s and std %s: "
            'layers of --frozen would see other numbers than they learnt from. "mean" '
            'and "std" of data of your own set these.',
            path,
            *(_numbers(part) for part in (*before, *now)),
        )


def _normalization_of(file: pathlib.Path) -> tuple[Sequence[float], ...] | None:
    """The mean and std by channel in a file of our models; None for all other files."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive, contextlib.suppress(*files.DAMAGED):
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
        named = {layer["config"].get("name"): layer["config"] for layer in layers}
        scale, offset = (named["normalize"][part] for part in ("scale", "offset"))
        return models.mean_and_std(scale, offset)
    return None


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
