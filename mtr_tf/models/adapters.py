# SPDX-License-Identifier: Apache-2.0
"""Wrappers that give a user's own model the form that attacks need.

That is a functional Keras model with one input, float images [batch, height, width,
channels] of any batch size. The model's own layers are called again one by one, not
hidden inside a new layer, so batch norms can still be folded.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from mtr_tf.errors import raise_out_of_memory
from mtr_tf.models import stateless

CHANNELS = (1, 2, 3, 4)  # Sizes that mark an axis of images as channels.


def is_functional(model: Any) -> bool:
    """Whether it is a Keras model that computes exactly its graph of layers.

    A model with its own `call` may have such a graph without following it.
    """
    return bool(
        isinstance(model, keras.Model)
        and str(getattr(model.call, "__module__", "")).startswith("keras.")
        and getattr(model, "inputs", None)
        and getattr(model, "outputs", None)
    )


def inputs_of(model: Any) -> Sequence[keras.KerasTensor]:
    """Returns a Keras model's symbolic inputs; () if unknown, or for other objects."""
    is_model = isinstance(model, keras.Model)
    return (getattr(model, "inputs", None) or ()) if is_model else ()


def structure_of(model: keras.Model) -> Any:
    """Returns a functional model's outputs; loaded Sequential ones have no `output`."""
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    return model.output


def names_in(model: keras.Model) -> set[str]:
    """Returns the names of a functional model's layers and operations, also inner ones.

    Keras refuses a graph in which a name occurs twice. It numbers names only within one
    process, so the names of a model from a file may collide with new ones.
    """
    sequential = isinstance(model, keras.Sequential)
    parts = model.layers if sequential else model.operations
    inner_names = [names_in(part) for part in parts if is_functional(part)]
    return {part.name for part in parts}.union(*inner_names)


def free_name(name: str, used_names: set[str]) -> str:
    """Appends `_` to `name` until it is not in `used_names`; adds and returns it."""
    while name in used_names:
        name += "_"
    used_names.add(name)
    return name


def new_image(
    model: keras.Model,
    shape: Sequence[int | None],
    batch: int | None = None,
    dtype: str = "float32",
) -> keras.KerasTensor:
    """Returns a new input of images that can replace the input of a model."""
    used_names = names_in(model) - {tensor.name for tensor in model.inputs}
    name = free_name("image", used_names)
    return keras.Input(tuple(shape), batch, dtype=dtype, name=name)


def as_functional(
    function: Callable[[Any], Any],
    shape: Sequence[int | None],
    batch: int | None = None,
) -> Any:
    """Returns any callable as a functional model.

    Args:
      function: Images [batch, ...] -> outputs: a Keras model or a plain function.
      shape: Shape of one image; a model with several inputs keeps its own shapes.
      batch: The only batch size that it takes; None: any.
    """
    has_graph = bool(getattr(function, "inputs", None))
    if isinstance(function, keras.Layer) and not has_graph:
        layer = function
    else:
        layer = Function(function)  # Keras would use a graph and ignore `call`.
    name = free_name("image", {layer.name})
    image: Any = keras.Input(tuple(shape), batch, dtype="float32", name=name)
    if isinstance(function, keras.Model) and len(inputs_of(function)) > 1:
        image = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
            function.input,
        )
    outputs = layer(image)
    return keras.Model(
        image, outputs, name=getattr(function, "name", None) or "function"
    )


class Function(keras.Layer):
    """Calls a function; the state of one that is not a Keras layer is not saved."""

    def __init__(self, function: Callable[[Any], Any], **kwargs: Any):
        """`function`: tensor -> tensors of any structure, a Keras layer or not."""
        super().__init__(dtype="float32", **kwargs)
        self._call = lambda x: function(x)  # Hides it from Keras's tracking.
        if isinstance(function, keras.Layer):
            self.layer = function

    def call(self, x):
        """Returns the function's outputs."""
        return self._call(x)


def called_on(model: keras.Model, *inputs: Any) -> Any:
    """Returns a functional model's outputs for other tensors, calling layer by layer.

    There are as many `inputs` as the model has; the outputs have the structure of the
    model's own.
    """
    if not isinstance(model, keras.Sequential):
        return model._run_through_graph(list(inputs))
    (image,) = inputs
    for layer in model.layers:
        image = layer(image)
    return image


def any_batch(model: keras.Model, size: int) -> keras.Model:
    """Returns a model that takes batches of `size` as one that takes any batch.

    If its layers do not need batches of that size, they are called directly; otherwise
    the model is called on one batch after another, and the last one is filled up with
    copies of the first image.
    """
    shape = tuple(model.inputs[0].shape[1:])
    image = new_image(model, shape, dtype=model.inputs[0].dtype)
    try:
        outputs = called_on(model, image)
        candidate = keras.Model(image, outputs, name=model.name)
        sides = [d or 32 for d in shape]
        # In a graph, where TensorFlow also checks shapes.
        call = tf.function(lambda x: stateless.outputs(candidate, x), autograph=False)
        with stateless.unchanged(candidate):
            results = [call(tf.zeros((n, *sides))) for n in (size, size + 1)]
        tensors = [tf.nest.flatten(result) for result in results]
        lengths = [{len(y) for y in outputs} for outputs in tensors]
        if lengths == [{size}, {size + 1}]:
            return candidate
        raise ValueError("outputs of another batch size")
    except Exception as error:  # Layers raise whatever they like.
        raise_out_of_memory(error)
        logging.info(
            "the model only takes batches of %d images, so it gets batches of that "
            "size",
            size,
        )
    return keras.Model(image, InBatches(model, size)(image), name=model.name)


class InBatches(keras.Layer):
    """A model that takes batches of one size, called on one after another."""

    def __init__(self, model: keras.Model, size: int, **kwargs: Any):
        """`size`: the batch size that the model takes."""
        super().__init__(dtype="float32", **kwargs)
        self.model = model
        self.size = size

    def call(self, x):
        """Returns the model's outputs, in its structure."""
        count = tf.shape(x)[0]
        num_batches = (count + self.size - 1) // self.size
        padding = num_batches * self.size - count
        x = tf.concat([x, tf.repeat(x[:1], padding, axis=0)], 0)
        batches = tf.reshape(x, (num_batches, self.size, *tf.unstack(tf.shape(x))[1:]))
        shape = (self.size, *self.model.inputs[0].shape[1:])
        structure = structure_of(self.model)
        templates = keras.tree.flatten(structure)

        def call(batch):
            results = self.model(tf.ensure_shape(batch, shape), training=False)
            return tuple(keras.tree.flatten(results))

        def join(y, template):
            rows = tf.reshape(y, (-1, *tf.unstack(tf.shape(y))[2:]))[:count]
            return tf.ensure_shape(rows, (None, *template.shape[1:]))

        outputs = tf.map_fn(
            call,
            batches,
            fn_output_signature=tuple(
                tf.TensorSpec(y.shape, y.dtype) for y in templates
            ),
            parallel_iterations=1,
        )
        tensors = list(map(join, outputs, templates))
        return keras.tree.pack_sequence_as(structure, tensors)

    def compute_output_spec(self, x):
        """Returns the spec of the model's outputs, for any batch size."""
        return keras.tree.map_structure(
            lambda y: keras.KerasTensor((None, *y.shape[1:]), y.dtype),
            structure_of(self.model),
        )


def channels_first(model: keras.Model) -> bool:
    """Whether the model's images are [batch, channels, height, width]."""
    _, *shape = model.inputs[0].shape
    if len(shape) != 3 or shape[0] not in CHANNELS:
        return False
    return shape[2] is not None and shape[2] not in CHANNELS


def channels_last(model: keras.Model) -> keras.Model:
    """Returns a channels-first model as one of images [batch, height, width, channels].

    Outputs that are maps get channels last too, unless their first two axes are
    the image's height and width.
    """
    channels, height, width = model.inputs[0].shape[1:]
    image = new_image(model, (height, width, channels))
    used_names = names_in(model) | {image.name}

    def permute(x, axes, name):  # In float32, whatever the global policy is.
        name = free_name(name, used_names)
        return keras.layers.Permute(axes, dtype="float32", name=name)(x)

    outputs = called_on(model, permute(image, (3, 1, 2), "to_channels_first"))

    def put_channels_last(y):
        if len(y.shape) != 4 or (height and tuple(y.shape[1:3]) == (height, width)):
            return y
        return permute(y, (2, 3, 1), "to_channels_last")

    outputs = keras.tree.map_structure(put_channels_last, outputs)
    return keras.Model(image, outputs, name=model.name)


def with_two_logits(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Returns the model of {name: output} with two logits, not one, for `names`."""
    outputs, used_names = dict(model.output), names_in(model)
    for name in names:
        layer = TwoLogits(name=free_name(f"{name}_of_two", used_names))
        outputs[name] = layer(outputs[name])
    return keras.Model(model.inputs[0], outputs, name=model.name)


def resized(model: keras.Model, sizes: Mapping[str, tuple[int, int]]) -> keras.Model:
    """Returns the model of {name: map} with some of its maps at another size."""
    outputs, used_names = dict(model.output), names_in(model)
    for name, size in sizes.items():
        layer = Resize(*size, name=free_name(f"{name}_resized", used_names))
        outputs[name] = layer(outputs[name])
    return keras.Model(model.inputs[0], outputs, name=model.name)


@keras.saving.register_keras_serializable(package="mtr_tf")
class Resize(keras.layers.Layer):
    """Resizes maps bilinearly, with half-pixel centres, up or down without a filter.

    As `tf.image.resize` does, but by two matrix products, whose gradient has the same
    bits on GPUs each time. In float32.
    """

    def __init__(self, height: int, width: int, **kwargs: Any):
        """Takes the size that maps are resized to."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.height = height
        self.width = width

    def call(self, x):
        """Maps [batch, h, w, channels] to [batch, height, width, channels]."""
        rows, columns = keras.ops.shape(x)[1:3]
        x = keras.ops.einsum("oh,bhwc->bowc", _weights(self.height, rows), x)
        return keras.ops.einsum("pw,bowc->bopc", _weights(self.width, columns), x)

    def compute_output_shape(self, input_shape):
        """Returns the shape at the new size."""
        return (input_shape[0], self.height, self.width, input_shape[3])

    def get_config(self):
        """Returns the config with the size."""
        return {**super().get_config(), "height": self.height, "width": self.width}


def _weights(outputs: int, inputs: Any) -> Any:
    """Returns float32 [outputs, inputs]: the weight of each input in each output."""
    places = keras.ops.arange(outputs, dtype="float32") + 0.5
    inputs_float = keras.ops.cast(inputs, "float32")
    places = keras.ops.clip(places * inputs_float / outputs - 0.5, 0, inputs_float - 1)
    numbers = keras.ops.arange(inputs, dtype="float32")
    return keras.ops.maximum(0.0, 1 - keras.ops.abs(places[:, None] - numbers[None]))


@keras.saving.register_keras_serializable(package="mtr_tf")
class TwoLogits(keras.layers.Layer):
    """The logit of the second of two classes, as logits of both: 0 and itself.

    Their softmax is 1 - sigmoid(z) and sigmoid(z). In float32.
    """

    def __init__(self, **kwargs: Any):
        """Computes in float32 whatever the global policy is."""
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, z):
        """Maps [..., 1] to [..., 2]."""
        return keras.ops.concatenate([keras.ops.zeros_like(z), z], axis=-1)

    def compute_output_shape(self, input_shape):
        """Returns the input's shape with two channels."""
        return (*input_shape[:-1], 2)


@keras.saving.register_keras_serializable(package="mtr_tf")
class ExpandDims(keras.layers.Layer):
    """Appends an axis of one channel; unlike Keras's operation, it takes a name."""

    def call(self, x):
        """Maps [...] to [..., 1]."""
        return keras.ops.expand_dims(x, -1)

    def compute_output_shape(self, input_shape):
        """Returns the input's shape with an axis of one channel."""
        return (*input_shape, 1)
