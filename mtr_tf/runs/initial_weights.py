# SPDX-License-Identifier: Apache-2.0
"""Weights to start training from (`--init`), and layers to keep (`--frozen`).

Files are read as arrays by layer names: no code in them is run, and unknown layers do
no harm.
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

_MAX_NAMES = 6  # The most layers that a message names.

Arrays = dict[str, list[np.ndarray]]
"""{path of a layer: its weights, in the layer's order}"""


def start_from(
    model: keras.Model,
    path: str,
    frozen: Sequence[str] = (),
    tasks: Iterable[str] = (),
) -> None:
    """Gives a model the weights of a file, for layers with equal names and shapes.

    Layers match if they have the same path, or else the same name, if that occurs just
    once in the file and in the model. If the file lacks a task's own stage of the
    encoder (encoder_TASK_...), the stage starts from the shared one (encoder_...). The
    matches are logged, and a warning says if the two standardise images differently.

    Args:
      model: A built model.
      path: A `.keras` file, `.weights.h5` or another `.h5` file of weights, or a run
        directory.
      frozen: Prefixes of the names of layers that will keep these weights.
      tasks: The tasks of a built-in model, which may have stages of their own; empty
        for other models, whose layer names say nothing of tasks.

    Raises:
      InputError: The file cannot be read, or nothing in it matches, or it lacks a layer
        that will be frozen.
    """
    arrays = read(path)
    layers = _layers(model)
    matching_layers, missing_layers, mismatched_layers = [], [], []
    for name, variables in layers.items():
        weights = _find_weights(name, arrays, layers)
        if weights is None:
            weights = _shared_weights(name, tasks, arrays)
        if weights is None:
            missing_layers.append(name)
        elif [a.shape for a in weights] != [tuple(v.shape) for v in variables]:
            mismatched_layers.append(name)
        else:
            for variable, array in zip(variables, weights, strict=True):
                variable.assign(array)
            matching_layers.append(name)
    if not matching_layers:
        why = "have other shapes there" if mismatched_layers else "are not there"
        raise InputError(
            f"--init={path} must have weights for some of the model's layers, but the "
            f"layers {_format_names(mismatched_layers or missing_layers)} {why}: the "
            f"file has {_format_names(list(arrays))}."
        )
    frozen_paths = {
        _owner(v) for layer in _named_layers(model, frozen) for v in layer.weights
    }
    if new_layers := [
        name for name in (*missing_layers, *mismatched_layers) if name in frozen_paths
    ]:
        raise InputError(
            f"--frozen={','.join(frozen)} keeps layers as --init={path} has them, but "
            f"{_format_names(new_layers)} are not there, or have other shapes, and "
            "would stay untrained; freeze only layers that the file has."
        )
    logging.info(
        "%d of the model's %d layers with weights start from %s",
        len(matching_layers),
        len(layers),
        path,
    )
    for reason, names in (
        ("are not in it", missing_layers),
        ("have other shapes", mismatched_layers),
    ):
        if names:
            logging.info("new weights: %s, which %s", _format_names(names), reason)
    if tasks:
        _compare_normalization(model, path)


def freeze(model: keras.Model, prefixes: Sequence[str]) -> None:
    """Freezes layers: their weights and the statistics of batch norms do not change.

    Args:
      model: A built model.
      prefixes: Prefixes of layer names, such as "encoder".

    Raises:
      InputError: A prefix fits no layer, or nothing is left to train.
    """
    names = [layer.name for layer in _named_layers(model, ("",))]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise InputError(
                "--frozen must be the beginnings of layer names, but no layer of the "
                f"model begins with {prefix!r}; its layers are {_format_names(names)}."
            )
    for layer in _named_layers(model, prefixes):
        layer.trainable = False
    if prefixes and not model.trainable_variables:
        raise InputError(
            f"--frozen={','.join(prefixes)} leaves nothing to train; freeze fewer "
            "layers."
        )


def _named_layers(model: keras.Model, prefixes: Sequence[str]) -> list[keras.Layer]:
    """The layers with weights whose names have a given prefix; nested ones, too."""
    layers = model._flatten_layers(include_self=False)
    layers = [layer for layer in layers if layer.name.startswith(tuple(prefixes))]
    return [layer for layer in layers if layer.weights]


def check(path: str) -> pathlib.Path:
    """Returns the file that a path means; raises `InputError` if there is none."""
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
      InputError: The file does not exist, would fill the memory, is damaged, or holds
        no named weights.
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
    """A hash of the weights of a file and their names; raises as `read` does."""
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
            return _keras_3_arrays(file)
    with h5py.File(path) as file:
        group = file.get("model_weights", file)
        if "layer_names" in group.attrs:
            return _keras_2_arrays(group)
        return _keras_3_arrays(file)


def _keras_3_arrays(group: h5py.Group, path: str = "") -> Arrays:
    """The arrays of Keras 3, whose groups `vars` hold a layer's name and weights."""
    arrays, layer_path = {}, path
    variables = group.get("vars")
    if variables is not None and group.name != "/" and "name" in variables.attrs:
        layer_path = f"{path}/{variables.attrs['name']}".lstrip("/")
        if len(variables):
            numbers = sorted(variables, key=int)
            arrays[layer_path] = [_array(variables[number]) for number in numbers]
    for key, child in group.items():
        if key != "vars" and isinstance(child, h5py.Group):
            arrays |= _keras_3_arrays(child, layer_path)
    return arrays


def _keras_2_arrays(group: h5py.Group) -> Arrays:
    """The arrays of Keras 2, whose layer groups list weights as `layer/kernel:0`."""
    arrays: Arrays = {}
    for layer in map(_text, group.attrs["layer_names"]):
        for name in map(_text, group[layer].attrs["weight_names"]):
            owner = name.rpartition("/")[0] or layer
            arrays.setdefault(owner, []).append(_array(group[layer][name]))
    return arrays


def _array(dataset: h5py.Dataset) -> np.ndarray:
    """The array of a weight; raises `ValueError` if it holds no numbers."""
    array = np.asarray(dataset[()])
    if array.dtype == "V2":  # bfloat16: unknown to HDF5, so Keras writes bytes.
        return array.view(tf.bfloat16.as_numpy_dtype)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{dataset.name} holds no numbers")
    return array


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _layers(model: keras.Model) -> dict[str, list[keras.Variable]]:
    layers: dict[str, list[keras.Variable]] = {}
    for variable in model.weights:
        layers.setdefault(_owner(variable), []).append(variable)
    return layers


def _owner(variable: keras.Variable) -> str:
    """The path of the layer that a weight belongs to."""
    return variable.path.rpartition("/")[0]


def _find_weights(
    path: str, arrays: Arrays, layers: dict[str, list[keras.Variable]]
) -> list[np.ndarray] | None:
    """The weights of the layer with this path, or else the only one with its name."""
    if path in arrays:
        return arrays[path]
    name = path.rpartition("/")[2]
    in_file = [key for key in arrays if key.rpartition("/")[2] == name]
    in_model = [key for key in layers if key.rpartition("/")[2] == name]
    return arrays[in_file[0]] if len(in_file) == len(in_model) == 1 else None


def _shared_weights(
    name: str, tasks: Iterable[str], arrays: Arrays
) -> list[np.ndarray] | None:
    """The weights of the shared stage that a task's own stage corresponds to.

    Every task is tried: one name may begin with another (depth, depth_euclidean).
    """
    shared_names = (layers_lib.shared_name(name, task) for task in tasks)
    return next((arrays[n] for n in shared_names if n != name and n in arrays), None)


def _compare_normalization(model: keras.Model, path: str) -> None:
    """Warns if the weights were trained on images that were standardised differently.

    That is, if mean or std differ by more than a tenth of the std. Only for built-in
    models, and files (`.keras`) of such models.
    """
    file_stats = _normalization_of(check(path))
    model_stats = models.normalization(model)
    if not file_stats or len(model_stats[0]) != len(file_stats[0]):
        return
    differences = np.abs(np.subtract(model_stats, file_stats))
    if (differences > 0.1 * np.array(file_stats[1])).any():
        logging.warning(
            "The weights of --init=%s were trained on images standardised with mean %s "
            "and std %s, but here images are standardised with mean %s and std %s: "
            'layers of --frozen would see other numbers than they learnt from. "mean" '
            'and "std" of data of your own set these.',
            path,
            *(_format_numbers(part) for part in (*file_stats, *model_stats)),
        )


def _normalization_of(file: pathlib.Path) -> tuple[Sequence[float], ...] | None:
    """Mean and std per channel in a built-in model's file; None for other files."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive, contextlib.suppress(*files.DAMAGED):
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
        configs = {layer["config"].get("name"): layer["config"] for layer in layers}
        scale, offset = (configs["normalize"][part] for part in ("scale", "offset"))
        return models.mean_and_std(scale, offset)
    return None


def _format_numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _format_names(names: Sequence[str]) -> str:
    suffix = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return (", ".join(names[:_MAX_NAMES]) or "none") + suffix
