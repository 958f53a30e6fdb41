# SPDX-License-Identifier: Apache-2.0
"""Models of several inputs, as models of one: the image with the others packed behind.

A layer in front of the model takes apart again what `data.layout` has packed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from mtr_tf.data.layout import Layout
from mtr_tf.errors import InputError
from mtr_tf.models import adapters

IMAGE = "image"
FILLED = (
    "--ckpt=module:function, a function that returns keras.Model(image, "
    "model([image, ...])) with the other inputs filled in"
)


class Unpack(keras.Layer):
    """Takes packed images apart: {name: tensor}, the image and what comes with it."""

    def __init__(self, layout: Layout, dtypes: Mapping[str, str], **kwargs: Any):
        """`dtypes`: of the inputs, by name, where a model says which."""
        super().__init__(dtype="float32", **kwargs)
        self._layout = layout
        self._dtypes = dict(dtypes)

    def call(self, x):
        """Returns the image and the inputs, each in its own shape."""
        found = {IMAGE: x[..., : self._layout.image[2]]}
        for name, part in self._layout.unpack(x, keras.ops.reshape).items():
            found[name] = keras.ops.cast(part, self._dtypes.get(name, "float32"))
        return found

    def compute_output_spec(self, x):
        """The shapes of the parts."""
        found = {IMAGE: keras.KerasTensor((x.shape[0], *self._layout.image), x.dtype)}
        for name, shape in self._layout.shapes:
            dtype = self._dtypes.get(name, "float32")
            found[name] = keras.KerasTensor((x.shape[0], *shape), dtype)
        return found


def packed(model: keras.Model, layout: Layout | None, where: str) -> keras.Model:
    """Returns a functional model of any inputs as one of packed images.

    Its layers are called anew one by one. Inputs that it does not take are left alone.

    Args:
      model: Of an image, and perhaps of further inputs.
      layout: What comes with images; None: nothing.
      where: What messages call the model.

    Raises:
      InputError: The model needs what does not come, or not in that shape.
    """
    inputs = _inputs(model)
    layout = layout and _as_taken(layout, inputs)
    image = _image_of(inputs, layout, where)
    others = {name: tensor for name, tensor in inputs.items() if name != image}
    shapes = dict(layout.shapes) if layout else {}
    for name, tensor in others.items():
        _check(name, tensor, shapes, where)
    if layout is None:  # There is but the image, and nothing comes with it.
        return model
    _check(image, inputs[image], {image: layout.image}, where)
    check_dtype(where, str(inputs[image].dtype))
    whole = adapters.new_image(model, layout.packed, inputs[image].shape[0])
    taken = adapters.names_in(model) | {whole.name}
    dtypes = {name: str(tensor.dtype) for name, tensor in others.items()}
    parts = Unpack(layout, dtypes, name=adapters.free_name("unpack", taken))(whole)
    given = [parts[IMAGE if name == image else name] for name in inputs]
    return keras.Model(whole, adapters.called_on(model, *given), name=model.name)


def _inputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The model's inputs, in their order, by their keys, else by their layers."""
    structure = getattr(model, "input", None)
    keys = (
        {id(tensor): key for key, tensor in structure.items()}
        if isinstance(structure, Mapping)
        else {}
    )
    return {str(keys.get(id(tensor), tensor.name)): tensor for tensor in model.inputs}


def _as_taken(layout: Layout, inputs: Mapping[str, keras.KerasTensor]) -> Layout:
    """The layout with plain numbers as `[1]` where the model takes them so."""
    ones = {name for name, tensor in inputs.items() if tuple(tensor.shape[1:]) == (1,)}
    shapes = [
        (name, (1,) if name in ones and not shape else shape)
        for name, shape in layout.shapes
    ]
    return dataclasses.replace(layout, shapes=tuple(shapes))


def _image_of(
    inputs: Mapping[str, keras.KerasTensor], layout: Layout | None, where: str
) -> str:
    """The name of the input that is the image: the one that nothing else is for."""
    if len(inputs) == 1:
        return next(iter(inputs))
    known = [name for name, _ in layout.shapes] if layout else []
    left = [name for name in inputs if name not in known]
    if IMAGE in left:
        return IMAGE
    pictures = [name for name in left if len(inputs[name].shape) == 4]
    if len(pictures) == 1 or (pictures and not known):
        return pictures[0]
    raise _missing(where, inputs, layout, (left[1:] or [*inputs])[0])


def check_dtype(name: str, dtype: str) -> None:
    """Raises `InputError` unless a model takes floats."""
    if "float" not in dtype:
        raise InputError(
            f"{name} must take float images, because only floats have a "
            f"gradient, but it takes {dtype}; save it with keras.Input(shape, "
            "dtype='float32') instead, and give --input_range=0,255 if it expects 0 "
            "to 255."
        )


def _check(
    name: str, tensor: Any, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    taken = tuple(tensor.shape[1:])
    if name not in shapes:
        have = ", ".join(f"{n} {shape}" for n, shape in shapes.items()) or "none"
        raise InputError(
            f"{where} takes the input {name} of shape {taken} besides "
            f"the image, but the examples have the inputs {have}; give each one "
            f'"inputs": {{"{name}": ...}} (docs/own_data.md), or give {FILLED}.'
        )
    if "str" in str(tensor.dtype):
        raise InputError(
            f"the input {name} of {where} must be numbers, and it is "
            f"{tensor.dtype}; give {FILLED}."
        )
    fits = len(taken) == len(shapes[name]) and all(
        side in (None, given) for side, given in zip(taken, shapes[name], strict=True)
    )
    if not fits:
        raise InputError(
            f"the input {name} of {where} must have shape {taken}, but "
            f"in the examples it has {shapes[name]}; reshape it there, or change the "
            "model."
        )


def _missing(
    where: str,
    inputs: Mapping[str, keras.KerasTensor],
    layout: Layout | None,
    name: str,
) -> InputError:
    takes = ", ".join(
        f"{other} {tuple(tensor.shape[1:])}" for other, tensor in inputs.items()
    )
    return InputError(
        f"one input of {where} must be the image, and the others must "
        f"come with the examples, but it takes {takes}, and the examples have the "
        f"inputs {layout or 'none'}. Call the image's input image, and give each "
        f'example "inputs": {{"{name}": ...}} (docs/own_data.md), or give {FILLED}.'
    )
