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

_SUM = 0.01  # How far rounded sums of probabilities may be from 1,
_SHARE = 0.9  # for this share of pixels: where a resizing pads, sums are smaller.
_CLOSE = 0.05  # How far probabilities of logits may be from the model's.

# Layers and operations that turn probabilities into probabilities, logits into logits.
_MEANS = (
    *("AveragePooling2D", "Dropout", "GetItem", "GlobalAveragePooling2D"),
    *("GlobalMaxPooling2D", "MaxPooling2D", "Resize", "Resizing", "SpatialDropout2D"),
    *("UpSampling2D", "ZeroPadding2D"),
)
_LINEAR = (*_MEANS, "BatchNormalization", "Multiply", "Rescaling")  # For logits only.
_SUMS = ("Add", "Average", "Subtract")
_ACTIVATIONS = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}
_BY_NAME = ("Softmax", "Sigmoid")  # Layers or operations that do nothing else.
_FUNCTIONS = {  # Functions that layers may have as their activation.
    "softmax": (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax),
    "sigmoid": (keras.activations.sigmoid, keras.ops.sigmoid, tf.sigmoid),
}


def kind(output: np.ndarray, tensor: keras.KerasTensor, single: bool = False) -> str:
    """Returns what the outputs of a task with classes are.

    Args:
      output: Some outputs, `[..., classes]`.
      tensor: The symbolic tensor of these outputs.
      single: Whether each channel stands for itself: labels, or one channel for the
        second of two classes.

    Returns:
      "softmax" for probabilities that sum to one, whatever they come from; "sigmoid"
      for others in [0, 1], of each class by itself, if they come from a sigmoid, or are
      single and do not come from a layer that is linear; "" for logits.
    """
    output = _finite_rows(output)
    if not _may_be_probabilities(output):
        return ""
    if single:
        return "sigmoid" if output.max() <= 1 and not is_linear(tensor) else ""
    sums_to_one = np.abs(output.sum(axis=-1) - 1) <= _SUM
    if sums_to_one.mean() >= _SHARE:
        return "softmax"
    return "sigmoid" if _comes_from(tensor, "sigmoid") else ""


def unclear(output: np.ndarray, tensor: keras.KerasTensor) -> bool:
    """Whether outputs that `kind` takes for logits may be sigmoids all the same.

    They are in [0, 1], and nothing shows that a linear layer made them.
    """
    return in_range(output) and not is_linear(tensor)


def in_range(output: np.ndarray) -> bool:
    """Whether outputs that are finite are in [0, 1], as probabilities are."""
    return _may_be_probabilities(_finite_rows(output))


def _finite_rows(output: np.ndarray) -> np.ndarray:
    output = np.asarray(output, np.float32)
    return output[np.isfinite(output).all(axis=-1)]


def _may_be_probabilities(output: np.ndarray) -> bool:
    """Whether numbers are in [0, 1], up to rounding, and not all 0."""
    return bool(output.size and output.min() >= 0 and 0 < output.max() <= 1 + _SUM)


def activation_of(tensor: keras.KerasTensor) -> str:
    """Returns the "softmax" or "sigmoid" whose values `tensor` has, or "".

    The values may be moved, resized or averaged.
    """
    axis = len(tensor.shape) - 1
    for activation in _ACTIVATIONS:
        if _has_values(tensor, activation, axis):
            return activation
    return ""


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
      images: Some images, to check that the new outputs give the same probabilities.
      exact: What an earlier call returned for the same outputs; None: find out.
      shares: Whether all weights are shared, so that the new outputs stay right while
        the model is trained. Otherwise a layer without its activation is a copy, of
        a type that can be folded.

    Returns:
      The new model, which shares the layers of `model`; and for each task whether its
      outputs are the logits that the probabilities were computed from (True) or logs of
      the probabilities (False): log p for a softmax, log p - log(1 - p) for a sigmoid.
    """
    outputs, is_exact, twins = dict(model.output), {}, _Twins(model, shares)
    for task, activation in kinds.items():
        output = model.output[task]
        is_reachable = exact is None or exact[task]
        logits = _logits_before(output, activation, twins) if is_reachable else None
        if exact is None and logits is not None:
            pair = keras.Model(model.inputs[0], {task: logits, "p": output})
            logits = (
                logits if _gives_probabilities(pair, activation, task, images) else None
            )
        is_exact[task] = logits is not None
        layer = Logits(activation, name=twins.name(f"{task}_logits_of_{activation}"))
        outputs[task] = layer(output) if logits is None else logits
    return keras.Model(model.inputs[0], outputs, name=model.name), is_exact


def _gives_probabilities(
    pair: keras.Model, activation: str, task: str, images: tf.Tensor
) -> bool:
    """Whether the task's logits give the probabilities, the output "p" of `pair`."""
    with stateless.unchanged(pair):
        outputs = stateless.outputs(pair, images)
    probabilities = _ACTIVATIONS[activation](tf.cast(outputs[task], tf.float32))
    errors = np.abs(probabilities - tf.cast(outputs["p"], tf.float32))
    return bool(np.nanmax(errors, initial=0) <= _CLOSE)


@keras.saving.register_keras_serializable(package="mtr_tf")
class Logits(keras.layers.Layer):
    """Logs of probabilities, in float32, at least that of the smallest float32."""

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
        """Returns the input's shape."""
        return input_shape

    def get_config(self):
        """Returns the config with `of`."""
        return {**super().get_config(), "of": self.of}


# The way back from probabilities to their logits.


class _Twins:
    """A model's layers without their activations, one twin each, with free names."""

    def __init__(self, model: keras.Model, shares: bool):
        """`shares`: as in `with_logits`."""
        self._taken = adapters.names_in(model)
        self._shares = shares
        self._of: dict[int, keras.Layer] = {}

    def name(self, name: str) -> str:
        """Returns a name that is free in the model, `name` itself if possible."""
        return adapters.free_name(name, self._taken)

    def called(self, layer: Any, source: keras.KerasTensor) -> keras.KerasTensor | None:
        """Returns what a layer makes of `source` before its activation.

        None if the layer cannot be copied: it is quantized, or is a user's own whose
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
            output = twin(source)
            twin.set_weights(layer.get_weights())
        except Exception as error:  # Layers raise whatever they like.
            raise_out_of_memory(error)
            return None
        self._of[id(layer)] = twin
        return output


def _logits_before(
    tensor: keras.KerasTensor, activation: str, twins: _Twins, axis: int | None = None
) -> keras.KerasTensor | None:
    """Returns the logits whose softmax or sigmoid gives `tensor`; None if not known.

    Looks through layers that treat each value alone or move it, and into models inside
    the model. `axis` is that of the classes; None means the last.
    """
    axis = len(tensor.shape) - 1 if axis is None else axis
    layer, number, index = tensor._keras_history
    node = layer._inbound_nodes[number]
    if not node.input_tensors:
        return None
    if adapters.is_functional(layer):
        logits = _logits_before(
            keras.tree.flatten(layer.outputs)[index], activation, twins, axis
        )
        if logits is None:
            return None
        args, kwargs = node.arguments.args, node.arguments.kwargs
        inputs = layer.inputs[0] if len(layer.inputs) == 1 else layer.inputs
        name = twins.name(f"{layer.name}_logits")
        return keras.Model(inputs, logits, name=name)(*args, **kwargs)
    (source, *more_sources) = node.input_tensors
    if more_sources:
        return None
    source_axis = _source_axis(layer, source, tensor, axis, activation)
    if source_axis is not None:
        logits = _logits_before(source, activation, twins, source_axis)
        return None if logits is None else layer(logits)
    if not _ends_in(layer, activation, axis, len(tensor.shape)):
        return None
    return source if _is_activation(layer) else twins.called(layer, source)


def _comes_from(tensor: keras.KerasTensor, activation: str) -> bool:
    """Whether layers without weights make `tensor` from a softmax or sigmoid."""
    layer, sources = _origin(tensor)
    axis = len(tensor.shape) - 1
    if _ends_in(layer, activation, axis, axis + 1):
        return True
    is_weightless = len(sources) == 1 and not getattr(layer, "weights", ())
    return is_weightless and _comes_from(sources[0], activation)


def _has_values(tensor: keras.KerasTensor, activation: str, axis: int) -> bool:
    """Whether `tensor` has values of the activation, moved, resized or averaged."""
    layer, sources = _origin(tensor)
    if _ends_in(layer, activation, axis, len(tensor.shape)):
        return True
    if len(sources) != 1:
        return False
    source_axis = _source_axis(layer, sources[0], tensor, axis, activation)
    if source_axis is None and type(layer).__name__ in _MEANS:
        source_axis = axis + len(sources[0].shape) - len(tensor.shape)
    return source_axis is not None and _has_values(sources[0], activation, source_axis)


def _origin(tensor: keras.KerasTensor) -> tuple[Any, list[keras.KerasTensor]]:
    """Returns the layer that makes `tensor`, also in an inner model, and its inputs."""
    layer, number, index = tensor._keras_history
    if adapters.is_functional(layer):
        return _origin(keras.tree.flatten(layer.outputs)[index])
    return layer, layer._inbound_nodes[number].input_tensors


def is_linear(tensor: keras.KerasTensor) -> bool:
    """Whether it comes from layers with weights and no activation, or their sums.

    Resizing, normalising and the like may follow. Such values are logits, even if all
    of them happen to lie in [0, 1].
    """
    layer, sources = _origin(tensor)
    name = type(layer).__name__
    if len(sources) != 1:
        return name in _SUMS and bool(sources) and all(map(is_linear, sources))
    if name != "BatchNormalization" and getattr(layer, "weights", ()):
        return getattr(layer, "activation", None) is keras.activations.linear
    axis = len(tensor.shape) - 1
    keeps_logits = (
        name in _LINEAR
        or name in _SUMS
        or _source_axis(layer, sources[0], tensor, axis, "sigmoid") is not None
    )
    return keeps_logits and is_linear(sources[0])


def _source_axis(
    layer: Any,
    source: keras.KerasTensor,
    output: keras.KerasTensor,
    axis: int,
    activation: str,
) -> int | None:
    """Returns the axis of classes in `source`, the input of a layer that moves values.

    Such a layer copies, moves, drops or rounds each value by itself. None for other
    layers.
    """
    name = type(layer).__name__
    if name == "Permute":
        return (0, *layer.dims)[axis]
    if name == "Transpose":
        axes = layer.axes or tuple(range(len(output.shape)))[::-1]
        return axes[axis]
    if name in ("Reshape", "ExpandDims", "Squeeze"):
        is_last = source.shape[-1] == output.shape[-1] and axis == len(output.shape) - 1
        return len(source.shape) - 1 if is_last or activation == "sigmoid" else None
    if isinstance(layer, keras.layers.Activation):
        return axis if layer.activation is keras.activations.linear else None
    if isinstance(layer, keras.layers.UpSampling2D):
        return axis if layer.interpolation == "nearest" else None
    types = (keras.layers.Identity, keras.layers.Cropping2D)
    return axis if isinstance(layer, types) or name == "Cast" else None


def _ends_in(layer: Any, activation: str, axis: int, rank: int) -> bool:
    """Whether a layer ends in the given activation, softmax or sigmoid.

    A softmax must be over the axis of classes.
    """
    name = type(layer).__name__
    if name in _BY_NAME:
        layer_axis = getattr(layer, "axis", axis)
        layer_axis = layer_axis % rank if isinstance(layer_axis, int) else None
        return name.lower() == activation and (
            activation == "sigmoid" or layer_axis == axis
        )
    value = getattr(layer, "activation", None)  # Perhaps an array: == is no bool.
    matches = any(value is function for function in _FUNCTIONS[activation])
    return matches and (activation == "sigmoid" or axis == rank - 1)


def _is_activation(layer: Any) -> bool:
    """Whether a layer is only an activation."""
    is_layer = isinstance(layer, keras.layers.Activation)
    return is_layer or type(layer).__name__ in _BY_NAME


class _Linear(keras.layers.Layer):
    """A layer without its activation, whose weights it shares."""

    def __init__(self, layer: Any, name: str):
        super().__init__(dtype=layer.dtype_policy, name=name)
        self.layer = layer

    def call(self, x):
        """Returns the layer's output before its activation."""
        activation = self.layer.activation
        self.layer.activation = keras.activations.linear
        try:
            return self.layer(x)
        finally:
            self.layer.activation = activation
