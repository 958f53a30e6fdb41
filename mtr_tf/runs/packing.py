# SPDX-License-Identifier: Apache-2.0
"""Makes models of several inputs take one: the image, the others packed behind it.

A layer in front of the model unpacks what `data.layout` has packed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtr_tf.data.layout import Layout
from mtr_tf.errors import InputError
from mtr_tf.models import adapters

IMAGE = "image"
FILLED = (
    "--ckpt=module:function, a function that returns keras.Model(image, "
    "model([image, ...])) with the other inputs filled in"
)


class Unpack(keras.Layer):
    """Unpacks images into {name: tensor}: the image and the inputs behind it."""

    def __init__(self, layout: Layout, dtypes: Mapping[str, str], **kwargs: Any):
        """Takes the layout, and the dtypes of inputs by name, if not float32."""
        super().__init__(dtype="float32", **kwargs)
        self._layout = layout
        self._dtypes = dict(dtypes)

    def call(self, x):
        """Returns the image and the inputs, each in its own shape."""
        parts = {IMAGE: x[..., : self._layout.image[2]]}
        for name, part in self._layout.unpack(x, keras.ops.reshape).items():
            parts[name] = keras.ops.cast(part, self._dtypes.get(name, "float32"))
        return parts

    def compute_output_spec(self, x):
        """The shapes and dtypes of the parts."""
        parts = {IMAGE: keras.KerasTensor((x.shape[0], *self._layout.image), x.dtype)}
        for name, shape in self._layout.shapes:
            dtype = self._dtypes.get(name, "float32")
            parts[name] = keras.KerasTensor((x.shape[0], *shape), dtype)
        return parts


def packed(model: keras.Model, layout: Layout | None, where: str) -> keras.Model:
    """Returns a functional model of any inputs as a model of packed images.

    Its layers are called again, one by one. Inputs that it does not take are ignored.

    Args:
      model: A model of an image and perhaps further inputs.
      layout: The inputs that come with images; None: no such inputs.
      where: What messages call the model.

    Raises:
      InputError: The model needs an input that is missing or has another shape.
    """
    inputs = _inputs(model)
    layout = layout and _adapt_layout(layout, inputs)
    image = _image_name(inputs, layout, where)
    other_inputs = {name: tensor for name, tensor in inputs.items() if name != image}
    shapes = dict(layout.shapes) if layout else {}
    for name, tensor in other_inputs.items():
        _check_input(name, tensor, shapes, where)
    if layout is None:  # The image is the only input.
        return model
    _check_input(image, inputs[image], {image: layout.image}, where)
    check_dtype(where, str(inputs[image].dtype))
    packed_image = adapters.new_image(model, layout.packed, inputs[image].shape[0])
    layer_names = adapters.names_in(model) | {packed_image.name}
    dtypes = {name: str(tensor.dtype) for name, tensor in other_inputs.items()}
    parts = Unpack(layout, dtypes, name=adapters.free_name("unpack", layer_names))(
        packed_image
    )
    tensors = [parts[IMAGE if name == image else name] for name in inputs]
    return keras.Model(
        packed_image, adapters.called_on(model, *tensors), name=model.name
    )


def _inputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The model's inputs in order, by their keys, or else by the names of tensors."""
    structure = getattr(model, "input", None)
    keys = (
        {id(tensor): key for key, tensor in structure.items()}
        if isinstance(structure, Mapping)
        else {}
    )
    return {str(keys.get(id(tensor), tensor.name)): tensor for tensor in model.inputs}


def _adapt_layout(layout: Layout, inputs: Mapping[str, keras.KerasTensor]) -> Layout:
    """The layout with scalars as shape `[1]` where the model takes them like that."""
    ones = {name for name, tensor in inputs.items() if tuple(tensor.shape[1:]) == (1,)}
    shapes = [
        (name, (1,) if name in ones and not shape else shape)
        for name, shape in layout.shapes
    ]
    return dataclasses.replace(layout, shapes=tuple(shapes))


def _image_name(
    inputs: Mapping[str, keras.KerasTensor], layout: Layout | None, where: str
) -> str:
    """The name of the image's input: the one that is not in the layout."""
    if len(inputs) == 1:
        return next(iter(inputs))
    layout_names = [name for name, _ in layout.shapes] if layout else []
    candidates = [name for name in inputs if name not in layout_names]
    if IMAGE in candidates:
        return IMAGE
    pictures = [name for name in candidates if len(inputs[name].shape) == 4]
    if len(pictures) == 1 or (pictures and not layout_names):
        return pictures[0]
    takes = ", ".join(
        f"{key} {tuple(tensor.shape[1:])}" for key, tensor in inputs.items()
    )
    missing_name = (candidates[1:] or [*inputs])[0]
    raise InputError(
        f"one input of {where} must be the image, and the others must "
        f"come with the examples, but it takes {takes}, and the examples have the "
        f"inputs {layout or 'none'}. Call the image's input image, and give each "
        f'example "inputs": {{"{missing_name}": ...}} (docs/own_data.md), or give '
        f"{FILLED}."
    )


def check_dtype(name: str, dtype: str) -> None:
    """Raises `InputError` unless a model takes floats."""
    if "float" not in dtype:
        raise InputError(
            f"{name} must take float images, because only floats have a "
            f"gradient, but it takes {dtype}; save it with keras.Input(shape, "
            "dtype='float32') instead, and give --input_range=0,255 if it expects 0 "
            "to 255."
        )


def _check_input(
    name: str, tensor: Any, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    input_shape = tuple(tensor.shape[1:])
    if name not in shapes:
        have = ", ".join(f"{n} {shape}" for n, shape in shapes.items()) or "none"
        raise InputError(
            f"{where} takes the input {name} of shape {input_shape} besides "
            f"the image, but the examples have the inputs {have}; give each one "
            f'"inputs": {{"{name}": ...}} (docs/own_data.md), or give {FILLED}.'
        )
    if "str" in str(tensor.dtype):
        raise InputError(
            f"the input {name} of {where} must be numbers, and it is "
            f"{tensor.dtype}; give {FILLED}."
        )
    if not tf.TensorShape(input_shape).is_compatible_with(shapes[name]):
        raise InputError(
            f"the input {name} of {where} must have shape {input_shape}, but "
            f"in the examples it has {shapes[name]}; reshape it there, or change the "
            "model."
        )
