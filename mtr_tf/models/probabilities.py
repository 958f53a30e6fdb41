# SPDX-License-Identifier: Apache-2.0
"""Replaces outputs that are probabilities by logits.

Losses take the softmax of a model's outputs. If these are probabilities already, that
is a second softmax, which hides most of the loss from an attack. Since softmax(log p)
is p, the logs of probabilities are logits, up to a constant that changes nothing. Even
better are the logits that the probabilities were computed from, if they can be reached:
softmaxes in half precision may be exactly 0 or 1, and have no gradient there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtr_tf.errors import raise_out_of_memory
from mtr_tf.models import adapters
from mtr_tf.models import stateless

_SUM = 0.01  # How far sums of probabilities may be from 1, being rounded,
_SHARE = 0.9  # for so many of the pixels: where a resizing pads, sums are smaller.
_CLOSE = 0.05  # How far logits' probabilities may be from those of the model.

# Layers and operations that leave probabilities, and logits, what they are.
_MEANS = (
    *("AveragePooling2D", "Dropout", "GetItem", "GlobalAveragePooling2D"),
    *("GlobalMaxPooling2D", "MaxPooling2D", "Resize", "Resizing", "SpatialDropout2D"),
    *("UpSampling2D", "ZeroPadding2D"),
)
_LINEAR = (*_MEANS, "BatchNormalization", "Multiply", "Rescaling")  # Logits alone.
_SUMS = ("Add", "Average", "Subtract")
_ACTIVATIONS = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}
_BY_NAME = ("Softmax", "Sigmoid")  # Layers or operations that are nothing else.
_KNOWN = {  # What layers may be given as such.
    "softmax": (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax),
    "sigmoid": (keras.activations.sigmoid, keras.ops.sigmoid, tf.sigmoid),
}


def kind(output: np.ndarray, tensor: keras.KerasTensor, single: bool = False) -> str:
    """What outputs of a task with classes are.

    Args:
      output: Some, `[..., classes]`.
      tensor: Where they come from.
      single: Whether each channel stands for itself: labels, or one channel for the
        second of two classes.

    Returns:
      "softmax" for probabilities that sum to one, whatever they come from; "sigmoid"
      for others in [0, 1], of each class by itself, if they come from a sigmoid, or are
      single and do not come from a layer that is linear; "" for logits.
    """
    output = _finite(output)
    if not _may_be(output):
        return ""
    if single:
        return "sigmoid" if output.max() <= 1 and not is_linear(tensor) else ""
    whole = np.abs(output.sum(axis=-1) - 1) <= _SUM
    if whole.mean() >= _SHARE:
        return "softmax"
    return "sigmoid" if _comes_from(tensor, "sigmoid") else ""


def unclear(output: np.ndarray, tensor: keras.KerasTensor) -> bool:
    """Whether outputs that `kind` takes for logits may be sigmoids all the same.

    They are in [0, 1], and nothing shows that a linear layer made them.
    """
    return in_range(output) and not is_linear(tensor)


def in_range(output: np.ndarray) -> bool:
    """Whether outputs that are finite are in [0, 1], as probabilities are."""
    return _may_be(_finite(output))


def _finite(output: np.ndarray) -> np.ndarray:
    output = np.asarray(output, np.float32)
    return output[np.isfinite(output).all(axis=-1)]


def _may_be(output: np.ndarray) -> bool:
    """Whether numbers are in [0, 1], but for rounding, and not all 0."""
    return bool(output.size and output.min() >= 0 and 0 < output.max() <= 1 + _SUM)


def activation_of(tensor: keras.KerasTensor) -> str:
    """The "softmax" or "sigmoid" whose values it has, moved or averaged; or ""."""
    last = len(tensor.shape) - 1
    return next((of for of in _ACTIVATIONS if _has_values(tensor, of, last)), "")


def with_logits(
    model: keras.Model,
    kinds: Mapping[str, str],
    images: tf.Tensor | None,
    exact: Mapping[str, bool] | None = None,
    shares: bool = False,
) -> tuple[keras.Model, dict[str, bool]]:
    """Replaces outputs that are probabilities by logits.

    Args:
      model: A functional model from images to {task: output}.
      kinds: {task: "softmax" or "sigmoid"} of the outputs to replace.
      images: Some, to see that the new outputs stand for the same probabilities.
      exact: What was seen of the same outputs before; None: it is seen now.
      shares: Whether all weights are shared, so that the new outputs stay right while
        the model is trained. Else a layer that is taken without its activation is a
        copy, of a kind that can be folded.

    Returns:
      The model, which shares its layers with the one given; and of each task whether
      the outputs are what the probabilities were made of (True) or their logs (False):
      log p of a softmax, log p - log(1 - p) of a sigmoid.
    """
    outputs, found, twins = dict(model.output), {}, _Twins(model, shares)
    for task, of in kinds.items():
        given = model.output[task]
        reached = exact is None or exact[task]
        logits = _before(given, of, twins) if reached else None
        if exact is None and logits is not None:
            both = keras.Model(model.inputs[0], {task: logits, "p": given})
            logits = logits if _stands_for(both, of, task, images) else None
        found[task] = logits is not None
        logs = Logits(of, name=twins.name(f"{task}_logits_of_{of}"))
        outputs[task] = logs(given) if logits is None else logits
    return keras.Model(model.inputs[0], outputs, name=model.name), found


def _stands_for(both: keras.Model, of: str, task: str, images: tf.Tensor) -> bool:
    """Whether logits give the probabilities "p" beside them."""
    with stateless.unchanged(both):
        outputs = stateless.outputs(both, images)
    again = _ACTIVATIONS[of](tf.cast(outputs[task], tf.float32))
    off = np.abs(again - tf.cast(outputs["p"], tf.float32))
    return bool(np.nanmax(off, initial=0) <= _CLOSE)


@keras.saving.register_keras_serializable(package="mtr_tf")
class Logits(keras.layers.Layer):
    """Logs of probabilities, in float32; none is below that of the least float32."""

    def __init__(self, of: str = "softmax", **kwargs: Any):
        """`of`: "softmax", or "sigmoid" for the logs of the odds."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.of = of

    def call(self, p):
        """Returns the logs, of p's shape."""
        if self.of == "softmax":
            return self._log(p)
        return self._log(p) - self._log(1 - p)

    def _log(self, p):
        return keras.ops.log(keras.ops.maximum(p, np.finfo(np.float32).tiny))

    def compute_output_shape(self, input_shape):
        """The input's."""
        return input_shape

    def get_config(self):
        """With `of`."""
        return {**super().get_config(), "of": self.of}


# The way back to what the probabilities were made of.


class _Twins:
    """A model's layers without their activations: one of each, under a free name."""

    def __init__(self, model: keras.Model, shares: bool):
        """`shares`: as in `with_logits`."""
        self._taken = adapters.names_in(model)
        self._shares = shares
        self._of: dict[int, keras.Layer] = {}

    def name(self, name: str) -> str:
        """A name like that one which is free in the model."""
        return adapters.free_name(name, self._taken)

    def called(self, layer: Any, source: keras.KerasTensor) -> keras.KerasTensor | None:
        """What a layer makes of `source` but for its activation.

        None where it cannot be copied: if it is quantized, or of other code whose
        config has no activation.
        """
        if id(layer) in self._of:
            return self._of[id(layer)](source)
        name = self.name(f"{layer.name}_logits")
        if self._shares:
            twin = self._of[id(layer)] = _Linear(layer, name)
            return twin(source)
        if getattr(layer, "quantization_mode", None):
            return None
        try:
            config = {**layer.get_config(), "activation": "linear", "name": name}
            twin = type(layer).from_config(config)
            made = twin(source)
            twin.set_weights(layer.get_weights())
        except Exception as error:  # Layers raise whatever they like.
            raise_out_of_memory(error)
            return None
        self._of[id(layer)] = twin
        return made


def _before(
    tensor: keras.KerasTensor, of: str, twins: _Twins, axis: int | None = None
) -> keras.KerasTensor | None:
    """What a softmax or sigmoid is taken of to give `tensor`; None if not known.

    Looks behind what treats each value alone or moves it, and into models within the
    model. `axis`: that of the classes; None: the last.
    """
    axis = len(tensor.shape) - 1 if axis is None else axis
    layer, number, place = tensor._keras_history
    node = layer._inbound_nodes[number]
    if not node.input_tensors:
        return None
    if adapters.is_functional(layer):
        inner = _before(keras.tree.flatten(layer.outputs)[place], of, twins, axis)
        if inner is None:
            return None
        args, kwargs = node.arguments.args, node.arguments.kwargs
        inputs = layer.inputs[0] if len(layer.inputs) == 1 else layer.inputs
        name = twins.name(f"{layer.name}_logits")
        return keras.Model(inputs, inner, name=name)(*args, **kwargs)
    (source, *others) = node.input_tensors
    if others:
        return None
    axis_before = _moved(layer, source, tensor, axis, of)
    if axis_before is not None:
        inner = _before(source, of, twins, axis_before)
        return None if inner is None else layer(inner)
    if not _ends_in(layer, of, axis, len(tensor.shape)):
        return None
    return source if _is_activation(layer) else twins.called(layer, source)


def _comes_from(tensor: keras.KerasTensor, of: str) -> bool:
    """Whether it is made of a softmax or sigmoid, by layers without weights."""
    layer, sources = _made_by(tensor)
    last = len(tensor.shape) - 1
    if _ends_in(layer, of, last, last + 1):
        return True
    plain = len(sources) == 1 and not getattr(layer, "weights", ())
    return plain and _comes_from(sources[0], of)


def _has_values(tensor: keras.KerasTensor, of: str, axis: int) -> bool:
    """Whether it has the values of a softmax or sigmoid, moved, resized or averaged."""
    layer, sources = _made_by(tensor)
    if _ends_in(layer, of, axis, len(tensor.shape)):
        return True
    if len(sources) != 1:
        return False
    before = _moved(layer, sources[0], tensor, axis, of)
    if before is None and type(layer).__name__ in _MEANS:
        before = axis + len(sources[0].shape) - len(tensor.shape)
    return before is not None and _has_values(sources[0], of, before)


def _made_by(tensor: keras.KerasTensor) -> tuple[Any, list[keras.KerasTensor]]:
    """The layer that makes it, within a model within the model, and what it takes."""
    layer, number, place = tensor._keras_history
    if adapters.is_functional(layer):
        return _made_by(keras.tree.flatten(layer.outputs)[place])
    return layer, layer._inbound_nodes[number].input_tensors


def is_linear(tensor: keras.KerasTensor) -> bool:
    """Whether it comes from a layer with weights and no activation, or sums of such.

    Resizing, normalising and the like may stand between. Such values are logits, also
    where all of them happen to lie in [0, 1].
    """
    layer, sources = _made_by(tensor)
    name = type(layer).__name__
    if len(sources) != 1:
        return name in _SUMS and bool(sources) and all(map(is_linear, sources))
    if name != "BatchNormalization" and getattr(layer, "weights", ()):
        return getattr(layer, "activation", None) is keras.activations.linear
    last = len(tensor.shape) - 1
    passes = (
        name in _LINEAR
        or name in _SUMS
        or _moved(layer, sources[0], tensor, last, "sigmoid") is not None
    )
    return passes and is_linear(sources[0])


def _moved(
    layer: Any,
    source: keras.KerasTensor,
    made: keras.KerasTensor,
    axis: int,
    of: str,
) -> int | None:
    """Where values are only copied, moved, dropped or rounded, each by itself.

    Returns:
      The axis of classes before; None where something else is done.
    """
    name = type(layer).__name__
    if name == "Permute":
        return (0, *layer.dims)[axis]
    if name == "Transpose":
        axes = layer.axes or tuple(range(len(made.shape)))[::-1]
        return axes[axis]
    if name in ("Reshape", "ExpandDims", "Squeeze"):
        same = source.shape[-1] == made.shape[-1] and axis == len(made.shape) - 1
        return len(source.shape) - 1 if same or of == "sigmoid" else None
    if isinstance(layer, keras.layers.Activation):
        return axis if layer.activation is keras.activations.linear else None
    if isinstance(layer, keras.layers.UpSampling2D):
        return axis if layer.interpolation == "nearest" else None
    kinds = (keras.layers.Identity, keras.layers.Cropping2D)
    return axis if isinstance(layer, kinds) or name == "Cast" else None


def _ends_in(layer: Any, of: str, axis: int, rank: int) -> bool:
    """Whether the last thing that a layer does is the softmax or sigmoid `of`.

    A softmax must be over the axis of classes.
    """
    name = type(layer).__name__
    if name in _BY_NAME:
        over = getattr(layer, "axis", axis)
        over = over % rank if isinstance(over, int) else None
        return name.lower() == of and (of == "sigmoid" or over == axis)
    activation = getattr(layer, "activation", None)
    known = any(activation is each for each in _KNOWN[of])
    return known and (of == "sigmoid" or axis == rank - 1)


def _is_activation(layer: Any) -> bool:
    """Whether it does nothing else."""
    is_layer = isinstance(layer, keras.layers.Activation)
    return is_layer or type(layer).__name__ in _BY_NAME


class _Linear(keras.layers.Layer):
    """A layer without its activation, whose weights it shares."""

    def __init__(self, layer: Any, name: str):
        super().__init__(dtype=layer.dtype_policy, name=name)
        self.layer = layer

    def call(self, x):
        """Returns what the layer's activation is of."""
        given = self.layer.activation
        self.layer.activation = keras.activations.linear
        try:
            return self.layer(x)
        finally:
            self.layer.activation = given
