# SPDX-License-Identifier: Apache-2.0
"""The user's own models: `.keras`, `.h5`, SavedModels, `module:function`."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from mtr_tf import files
from mtr_tf.data.custom import reading
from mtr_tf.data.layout import Layout
from mtr_tf.errors import InputError
from mtr_tf.errors import first_line
from mtr_tf.errors import raise_out_of_memory
from mtr_tf.models import adapters
from mtr_tf.models import keras_files
from mtr_tf.models import stateless
from mtr_tf.runs import checkpoints
from mtr_tf.runs import packing

KINDS = ".keras or .h5 file, a SavedModel or module:function of your own"
_H5 = (".h5", ".hdf5")
_FUNCTION_HINT = (
    "--ckpt=module:function, a function of yours that builds and returns it"
)
_NOISE_IMAGES = 2  # Images of noise whose outputs identify a model.
_SIDES = (32, 256)  # In pixels, for models of any size; the first that works is used.
_PROJECTIONS = 8  # Random directions on which outputs and gradients are projected.


@dataclasses.dataclass(frozen=True)
class File:
    """A model as it was loaded.

    Attributes:
      name: What messages call it.
      model: A Keras model, or a plain function of images.
      stem: What its results are named after.
      shape: (height, width, channels) that a plain function takes, if known.
      content: A hash of its files, if they identify it; else empty.
      batch: The only batch size that a plain function takes, if known.
    """

    name: str
    model: Any
    stem: str
    shape: tuple[int | None, ...] | None = None
    content: str = ""
    batch: int | None = None


def is_function(ckpt: str) -> bool:
    """Whether `ckpt` names a function rather than a file."""
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", ckpt)) and not (
        pathlib.Path(ckpt).exists()
    )


def is_own(path: pathlib.Path) -> bool:
    """Whether a path, which need not exist, is that of a user's own model."""
    if path.suffix in (".keras", *_H5):
        return path.name != "model.keras"
    return (path / "saved_model.pb").is_file()


def load(ckpt: str, flag: str = "--ckpt") -> File:
    """Loads a user's own model, which `flag` names.

    Raises:
      InputError: It does not exist, is damaged, has no architecture, or would run code.
    """
    path = pathlib.Path(ckpt)
    if is_function(ckpt):
        return _function_model(ckpt, flag)
    if path.is_dir():
        return _saved_model(path)
    return File(str(path), keras_file(path, flag), path.stem)


def keras_file(path: pathlib.Path, flag: str = "--ckpt") -> Any:
    """Loads a `.keras` or `.h5` file without running any code in it."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; check {flag}.")
    if path.name.endswith(".weights.h5"):
        raise _weights_only_error(path)
    is_h5 = path.suffix in _H5
    if not (h5py.is_hdf5(path) if is_h5 else zipfile.is_zipfile(path)):
        raise InputError(
            f"{path} cannot be loaded as a {path.suffix} file: it is truncated, or "
            "something else with that name; copy or save it again."
        )
    try:
        keras_files.check_size(path)
        if is_h5:
            with h5py.File(path) as file:
                if "model_config" not in file.attrs:
                    raise _weights_only_error(path)
        with warnings.catch_warnings():  # Missing weights would stay random.
            warnings.filterwarnings("error", "Skipping nested container")
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except InputError:
        raise
    except Exception as error:  # A damaged file may raise nearly anything.
        raise_out_of_memory(error)
        raise _loading_error(path, error) from error


def _weights_only_error(path: pathlib.Path) -> InputError:
    return InputError(
        f"{path} must hold a whole model, but it holds only weights; save the model "
        f"with model.save('{path.name.split('.')[0]}.keras'), or give {_FUNCTION_HINT} "
        "after model.load_weights."
    )


def _loading_error(path: pathlib.Path, error: Exception) -> InputError:
    """The error that says why Keras could not load a file, and what to do."""
    text = str(error)
    if "safe_mode" in text or "unsafe" in text.lower() or "Lambda" in text:
        return InputError(
            f"{path} holds Python code (such as a Lambda layer) that would run when "
            "it is loaded, so it is refused. Save the model without that code, or "
            f"give {_FUNCTION_HINT}."
        )
    match = re.search(r"Could not (?:locate|deserialize) \w+ '([^']+)'", text)
    match = match or re.search(r"Unknown layer: '?([\w>]+)'?", text)
    if match:
        return InputError(
            f"{path} has a layer or function {match[1]} that is not Keras's own. "
            "Decorate it with @keras.saving.register_keras_serializable() in the "
            "module of --dataset=module:function, which is imported before the model "
            f"is loaded, or give {_FUNCTION_HINT}."
        )
    return InputError(
        f"{path} cannot be loaded as a {path.suffix} file: it is truncated, or not "
        f"from Keras 3, or uses layers that are not Keras's own ({first_line(error)})."
    )


def _function_model(name: str, flag: str) -> File:
    """The model that a function of the user's own returns."""
    model = reading.called(name, reading.own_function(name, flag), "a model")
    if not callable(model):
        raise InputError(
            f"{flag}={name} must return a Keras model, or a function of images "
            f"[batch, height, width, channels]; it returned {type(model).__name__}."
        )
    return of_object(model, f"{flag}={name}", re.sub(r"[.:]", "-", name))


def of_object(model: Any, name: str, stem: str) -> File:
    """A `File` of a Keras model or layer, or of a plain function of images.

    Args:
      model: The object.
      name: What messages call it.
      stem: What its results are named after.
    """
    if isinstance(model, keras.Layer) and not isinstance(model, keras.Model):
        model = adapters.Function(model)._call
    return File(name, model, stem)


def _saved_model(path: pathlib.Path) -> File:
    """A SavedModel, called by its signature `serving_default`."""
    try:
        with checkpoints.plain(path) as place:
            loaded = tf.saved_model.load(place)
    except Exception as error:
        raise_out_of_memory(error)
        raise InputError(
            f"{path} cannot be loaded as a SavedModel: {first_line(error)}; export it "
            "again."
        ) from error
    signatures = getattr(loaded, "signatures", {})
    if "serving_default" not in signatures:
        raise InputError(
            f"{path} must have the signature serving_default, which model.export "
            f"writes, but it has {', '.join(signatures) or 'none'}; export it again, "
            f"or give {_FUNCTION_HINT}."
        )
    signature = signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    if len(specs) != 1:
        raise _input_count_error(str(path), [tuple(s.shape) for s in specs.values()])
    ((argument, spec),) = specs.items()
    packing.check_dtype(str(path), spec.dtype.name)
    batch, *shape = tuple(spec.shape) if spec.shape.rank else (None,)
    batch_shapes = [tuple(y.shape[:1]) for y in signature.structured_outputs.values()]
    # Keras leaves the batch size of the input open, even if the outputs have one.
    if batch is None and len({*batch_shapes}) == 1 and batch_shapes[0]:
        (batch,) = batch_shapes[0]

    def call(images, keep=loaded):
        del keep  # Its variables live as long as this function.
        outputs = signature(**{argument: tf.cast(images, spec.dtype)})
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        return {name: outputs[name] for name in sorted(outputs, key=_number_key)}

    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != "fingerprint.pb":
            digest.update(file.relative_to(path).as_posix().encode())
            digest.update(files.read_bytes(file))
    size = tuple(shape) or None
    return File(str(path), call, path.name, size, digest.hexdigest(), batch)


def _first_cause(error: Exception) -> str:
    """The first cause of an error, in one line: Keras wraps errors and may hide it."""
    while isinstance(cause := error.__cause__ or error.__context__, Exception):
        error = cause
    return first_line(error)


def _number_key(name: str) -> list[tuple[bool, int, str]]:
    """The sort key of a name, with which output_2 comes before output_10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts]


def functional(
    file: File,
    shape: Sequence[int | None] | None,
    channels_first: bool = False,
    layout: Layout | None = None,
) -> keras.Model:
    """Returns a functional model of images [batch, height, width, channels].

    Args:
      file: The model.
      shape: The shape of the images that it is for, used if the model does not tell
        what it takes; None if it is not known yet.
      channels_first: Whether it takes images with the channels first, even if its shape
        does not tell.
      layout: The inputs that come with the images; if the model has further inputs, the
        result takes packed images.

    Raises:
      InputError: It takes anything but float images and the inputs that come with them,
        or cannot be called.
    """
    model = file.model
    if not adapters.is_functional(model):
        model = _build_functional(file, shape, channels_first)
    if len(model.inputs) > 1:
        if channels_first:
            raise InputError(
                "--channels_first is only for models with one input, but that of "
                f"{file.name} has {len(model.inputs)}; put "
                "keras.layers.Permute((3, 1, 2)) in front of its image."
            )
        model = packing.packed(model, layout, file.name)
    inputs = model.inputs
    shapes = [tuple(tensor.shape) for tensor in inputs]
    if not shapes:
        raise _input_count_error(file.name, shapes)
    if len(shapes[0]) != 4:
        raise InputError(
            f"{file.name} must take images of shape (batch, height, "
            f"width, channels), but it takes {shapes[0]}. Put layers in front that "
            f"turn an image into that, or give {_FUNCTION_HINT}."
        )
    packing.check_dtype(file.name, str(inputs[0].dtype))
    if shapes[0][0]:
        model = adapters.any_batch(model, shapes[0][0])
    if channels_first or adapters.channels_first(model):
        model = adapters.channels_last(model)
    return model


def _build_functional(
    file: File, shape: Sequence[int | None] | None, channels_first: bool
) -> keras.Model:
    """Makes a functional model of one that is none; same arguments as `functional`.

    If the shape of the images is not known, it is the one that the model was made for.
    """
    image_shape = tuple(file.shape or shape or (None, None, 3))
    if channels_first and not file.shape:
        image_shape = (image_shape[-1], *image_shape[:-1])
    if not (file.shape or shape):
        image_shape = _model_shape(file.model) or image_shape
    try:
        return adapters.as_functional(file.model, image_shape, file.batch)
    except InputError:
        raise
    except Exception as error:  # It may raise anything.
        raise_out_of_memory(error)
        raise InputError(
            f"{file.name} cannot be called on images of "
            f"{'x'.join(map(str, image_shape))}: {_first_cause(error)}. It must be "
            "made of TensorFlow or Keras operations, without NumPy or predict; if the "
            "size is wrong, give --image_size."
        ) from error


def _model_shape(model: Any) -> tuple[int | None, ...]:
    """The shape of one image that a Keras model was made for; () if unknown.

    It is that of its graph, or the one that it was first called on, unless it takes
    other shapes.
    """
    if not isinstance(model, keras.Model):
        return ()
    inputs = adapters.inputs_of(model)
    if len(inputs) == 1:
        return tuple(inputs[0].shape[1:])
    build_shape = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(build_shape, tuple | list) or len(build_shape) != 4:
        return ()
    other_sides = [
        s if s in adapters.CHANNELS else 2 * (s or 32) for s in build_shape[1:]
    ]
    try:
        with stateless.unchanged(model):
            stateless.outputs(model, tf.zeros((1, *other_sides)))
    except Exception:  # It may raise anything, or lack the memory.
        return tuple(build_shape[1:])
    return ()


def _input_count_error(name: str, shapes: Sequence[tuple]) -> InputError:
    """The error for a model that has not exactly one input."""
    return InputError(
        f"{name} must have one input, images of shape (batch, height, "
        f"width, channels), but it has {len(shapes)}: {', '.join(map(str, shapes))}. "
        "Give a .keras file, whose further inputs may come with the examples, or "
        f"{packing.FILLED}."
    )


def noise(
    model: keras.Model, shape: Sequence[int | None] | None, name: str
) -> tf.Tensor:
    """Images of noise whose outputs identify a model, always the same ones.

    They have the model's own size, or else the first of some sizes that it takes.

    Args:
      model: A model of images, from `functional`.
      shape: The shape of the images that it is for; None if it is not known yet.
      name: What messages call the model.

    Returns:
      float32 [2, height, width, channels] in [0, 1].

    Raises:
      InputError: The model takes none of these sizes.
    """
    candidates = [(side,) * 3 for side in _SIDES] + ([tuple(shape)] if shape else [])
    model_shape = model.inputs[0].shape[1:]
    sizes = dict.fromkeys(
        tuple(a or b or _SIDES[0] for a, b in zip(model_shape, candidate, strict=True))
        for candidate in candidates
    )
    errors = []
    for size in sizes:
        random = np.random.default_rng(0)
        images = tf.constant(random.random((_NOISE_IMAGES, *size), np.float32))
        try:
            with stateless.unchanged(model):
                stateless.outputs(model, images)
            return images
        except Exception as error:  # It may raise anything.
            raise_out_of_memory(error)
            errors.append(error)
    raise InputError(
        f"{name} must take images of some size, but it fails on those of "
        f"{' and '.join(f'{h}x{w}' for h, w, _ in sizes)} "
        f"({_first_cause(errors[-1])}); give the right --image_size."
    ) from errors[-1]


def behaviour(model: keras.Model, images: tf.Tensor) -> str:
    """A few numbers that describe a model's outputs for images and their gradients.

    These are random projections, to three digits so that rounding hardly ever changes
    them; empty if they differ from call to call, as with random models.
    """
    with stateless.unchanged(model):
        first, second = _projections(model, images), _projections(model, images)
    return first if first == second else ""


def _projections(model: keras.Model, images: tf.Tensor) -> str:
    random = np.random.default_rng(1)

    def project(values: tf.Tensor) -> tf.Tensor:
        shape = (_PROJECTIONS, *values.shape)
        directions = random.normal(size=shape).astype(np.float32)
        return tf.reduce_sum(directions * values, range(1, len(shape)))

    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = tf.nest.flatten(stateless.outputs(model, images))
        sums = tf.add_n([project(tf.cast(output, tf.float32)) for output in outputs])
        total = tf.reduce_sum(sums)
    try:
        gradient = tape.gradient(total, images)
    except (LookupError, TypeError, ValueError, tf.errors.OpError):
        gradient = None  # Some operation has no gradient.
    numbers = list(sums.numpy())
    if gradient is not None:
        numbers += list(project(gradient).numpy())
    return " ".join(f"{number:.3g}" for number in numbers)


def outputs_digest(model: keras.Model, images: tf.Tensor) -> str:
    """A hash of a model's outputs for images."""
    digest = hashlib.sha256()
    for output in tf.nest.flatten(stateless.outputs(model, images)):
        output = tf.cast(output, tf.float32).numpy()
        digest.update(f"{output.shape}".encode())
        digest.update(np.round(output.astype(np.float64), 4).tobytes())
    return digest.hexdigest()
