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

CHANNELS = (1, 2, 3, 4)  # What an axis is of channels by, where shapes are looked at.


def is_functional(model: Any) -> bool:
    """Whether it is a Keras model that does what its graph of layers says.

    One with a `call` of its own need not, though it may have such a graph.
    """
    return bool(
        isinstance(model, keras.Model)
        and str(getattr(model.call, "__module__", "")).startswith("keras.")
        and getattr(model, "inputs", None)
        and getattr(model, "outputs", None)
    )


def inputs_of(model: Any) -> Sequence[keras.KerasTensor]:
    """What a Keras model was made of; () where that is not known, or it is none."""
    is_model = isinstance(model, keras.Model)
    return (getattr(model, "inputs", None) or ()) if is_model else ()


def structure_of(model: keras.Model) -> Any:
    """A functional model's outputs; Sequential ones have no `output` when loaded."""
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    return model.output


def names_in(model: keras.Model) -> set[str]:
    """The names of a functional model's layers and operations, and of those within.

    Keras refuses a graph that has a name twice. It numbers names, but a model from a
    file has been numbered by another process.
    """
    sequential = isinstance(model, keras.Sequential)
    parts = model.layers if sequential else model.operations
    within = [names_in(part) for part in parts if is_functional(part)]
    return {part.name for part in parts}.union(*within)


def free_name(name: str, taken: set[str]) -> str:
    """Returns `name`, with `_` behind it until it is not `taken`, and adds it there."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def new_image(
    model: keras.Model,
    shape: Sequence[int | None],
    batch: int | None = None,
    dtype: str = "float32",
) -> keras.KerasTensor:
    """Returns an input of images that takes the place of those of a model."""
    taken = names_in(model) - {tensor.name for tensor in model.inputs}
    name = free_name("image", taken)
    return keras.Input(tuple(shape), batch, dtype=dtype, name=name)


def as_functional(
    function: Callable[[Any], Any],
    shape: Sequence[int | None],
    batch: int | None = None,
) -> Any:
    """Returns what any callable does as a functional model.

    Args:
      function: Images [batch, ...] -> outputs: a Keras model or a plain function.
      shape: Of one image; a model that was made with several inputs has its own.
      batch: The one size of batches that it takes; None: any.
    """
    is_graph = bool(getattr(function, "inputs", None))
    if isinstance(function, keras.Layer) and not is_graph:
        layer = function
    else:
        layer = Function(function)  # Keras would look at a graph, not at `call`.
    name = free_name("image", {layer.name})
    image: Any = keras.Input(tuple(shape), batch, dtype="float32", name=name)
    if isinstance(function, keras.Model) and len(inputs_of(function)) > 1:
        image = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
            function.input,
        )
    made = layer(image)
    return keras.Model(image, made, name=getattr(function, "name", None) or "function")


class Function(keras.Layer):
    """Calls a function; what a plain one holds is its own, and is saved nowhere."""

    def __init__(self, function: Callable[[Any], Any], **kwargs: Any):
        """`function`: tensor -> tensors of any structure, a Keras layer or not."""
        super().__init__(dtype="float32", **kwargs)
        self._call = lambda x: function(x)  # Not tracked, whatever it is.
        if isinstance(function, keras.Layer):
            self.layer = function

    def call(self, x):
        """Returns what the function does."""
        return self._call(x)


def called_on(model: keras.Model, *inputs: Any) -> Any:
    """Returns a functional model's outputs of other tensors, layer by layer.

    In the structure of the model's own; `inputs` are as many as the model's.
    """
    if not isinstance(model, keras.Sequential):
        return model._run_through_graph(list(inputs))
    (image,) = inputs
    for layer in model.layers:
        image = layer(image)
    return image


def any_batch(model: keras.Model, size: int) -> keras.Model:
    """Returns a model that was made for batches of `size` as one that takes any batch.

    If its layers do not need batches of that size, they are called directly; otherwise
    they are called on one batch after another, the last one filled up with its first.
    """
    shape = tuple(model.inputs[0].shape[1:])
    image = new_image(model, shape, dtype=model.inputs[0].dtype)
    try:
        outputs = called_on(model, image)
        free = keras.Model(image, outputs, name=model.name)
        whole = [d or 32 for d in shape]
        # As a graph, as everywhere: TensorFlow then compares shapes, too.
        call = tf.function(lambda x: stateless.outputs(free, x), autograph=False)
        with stateless.unchanged(free):
            given = [call(tf.zeros((n, *whole))) for n in (size, size + 1)]
        flat = [tf.nest.flatten(each) for each in given]
        lengths = [{len(y) for y in outputs} for outputs in flat]
        if lengths == [{size}, {size + 1}]:
            return free
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
        """`size`: that of the model's batches."""
        super().__init__(dtype="float32", **kwargs)
        self.model = model
        self.size = size

    def call(self, x):
        """Returns the model's outputs, in its structure."""
        count = tf.shape(x)[0]
        parts = (count + self.size - 1) // self.size
        missing = parts * self.size - count
        x = tf.concat([x, tf.repeat(x[:1], missing, axis=0)], 0)
        batches = tf.reshape(x, (parts, self.size, *tf.unstack(tf.shape(x))[1:]))
        shape = (self.size, *self.model.inputs[0].shape[1:])
        structure = structure_of(self.model)
        like = keras.tree.flatten(structure)

        def call(batch):
            made = self.model(tf.ensure_shape(batch, shape), training=False)
            return tuple(keras.tree.flatten(made))

        def joined(y, like):
            whole = tf.reshape(y, (-1, *tf.unstack(tf.shape(y))[2:]))[:count]
            return tf.ensure_shape(whole, (None, *like.shape[1:]))

        outputs = tf.map_fn(
            call,
            batches,
            fn_output_signature=tuple(tf.TensorSpec(y.shape, y.dtype) for y in like),
            parallel_iterations=1,
        )
        whole = list(map(joined, outputs, like))
        return keras.tree.pack_sequence_as(structure, whole)

    def compute_output_spec(self, x):
        """The model's, of any batch size."""
        return keras.tree.map_structure(
            lambda y: keras.KerasTensor((None, *y.shape[1:]), y.dtype),
            structure_of(self.model),
        )


def channels_first(model: keras.Model) -> bool:
    """Whether the shape of its images is [batch, channels, height, width]."""
    _, *shape = model.inputs[0].shape
    if len(shape) != 3 or shape[0] not in CHANNELS:
        return False
    return shape[2] is not None and shape[2] not in CHANNELS


def channels_last(model: keras.Model) -> keras.Model:
    """Returns a model of images [batch, channels, height, width] as one of ours.

    Outputs that are maps get their channels last too, unless their first two axes are
    the image's height and width.
    """
    channels, height, width = model.inputs[0].shape[1:]
    image = new_image(model, (height, width, channels))
    taken = names_in(model) | {image.name}

    def permuted(x, axes, name):  # In float32, whatever the global policy is.
        name = free_name(name, taken)
        return keras.layers.Permute(axes, dtype="float32", name=name)(x)

    outputs = called_on(model, permuted(image, (3, 1, 2), "to_channels_first"))

    def turned(y):
        if len(y.shape) != 4 or (height and tuple(y.shape[1:3]) == (height, width)):
            return y
        return permuted(y, (2, 3, 1), "to_channels_last")

    outputs = keras.tree.map_structure(turned, outputs)
    return keras.Model(image, outputs, name=model.name)


def with_two_logits(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Returns the model of {name: output} with two logits in place of one."""
    outputs, taken = dict(model.output), names_in(model)
    for name in names:
        layer = TwoLogits(name=free_name(f"{name}_of_two", taken))
        outputs[name] = layer(outputs[name])
    return keras.Model(model.inputs[0], outputs, name=model.name)


def resized(model: keras.Model, sizes: Mapping[str, tuple[int, int]]) -> keras.Model:
    """Returns the model of {name: map} with some of its maps at another size."""
    outputs, taken = dict(model.output), names_in(model)
    for name, size in sizes.items():
        layer = Resize(*size, name=free_name(f"{name}_resized", taken))
        outputs[name] = layer(outputs[name])
    return keras.Model(model.inputs[0], outputs, name=model.name)


@keras.saving.register_keras_serializable(package="mtr_tf")
class Resize(keras.layers.Layer):
    """Resizes maps bilinearly, with half-pixel centres, up or down without a filter.

    As `tf.image.resize` does, but by two matrix products, whose gradient has the same
    bits on GPUs each time. In float32.
    """

    def __init__(self, height: int, width: int, **kwargs: Any):
        """To this size."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.height = height
        self.width = width

    def call(self, x):
        """Maps [batch, h, w, channels] to [batch, height, width, channels]."""
        rows, columns = keras.ops.shape(x)[1:3]
        x = keras.ops.einsum("oh,bhwc->bowc", _weights(self.height, rows), x)
        return keras.ops.einsum("pw,bowc->bopc", _weights(self.width, columns), x)

    def compute_output_shape(self, input_shape):
        """The shape at the new size."""
        return (input_shape[0], self.height, self.width, input_shape[3])

    def get_config(self):
        """With the size."""
        return {**super().get_config(), "height": self.height, "width": self.width}


def _weights(outputs: int, inputs: Any) -> Any:
    """Float32 [outputs, inputs]: what each output takes from each input."""
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
        """Whatever the global policy is."""
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, z):
        """Maps [..., 1] to [..., 2]."""
        return keras.ops.concatenate([keras.ops.zeros_like(z), z], axis=-1)

    def compute_output_shape(self, input_shape):
        """The input's, with two channels."""
        return (*input_shape[:-1], 2)


@keras.saving.register_keras_serializable(package="mtr_tf")
class ExpandDims(keras.layers.Layer):
    """Puts an axis of one channel behind; an operation of Keras takes no name."""

    def call(self, x):
        """Maps [...] to [..., 1]."""
        return keras.ops.expand_dims(x, -1)

    def compute_output_shape(self, input_shape):
        """The input's, with one channel."""
        return (*input_shape, 1)
