# SPDX-License-Identifier: Apache-2.0
"""A Keras model as attacks need it: the same outputs, less work, weights read once.

Without training, a batch normalisation is a fixed scale and offset per channel. Where
it follows a convolution, `s (W * x) + b` is `(s W) * x + b`: one pass over the features
less forwards and one less backwards. The scale of a Rescaling before the convolution
goes into its kernel in the same way.
"""

from __future__ import annotations

import collections
import functools
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf.errors import raise_out_of_memory
from mtr_tf.models import compiling
from mtr_tf.models import pooling
from mtr_tf.models import probabilities
from mtr_tf.models import stateless

_CHECKED = weakref.WeakSet()  # Models whose folded copies were compared,
_DIFFERENT = weakref.WeakSet()  # and those whose copies have other outputs.
_HALF_SHARE = 0.2  # How far a deep net's outputs may differ in half precision.
_EPSILONS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def can_fold(model: Any, names: Iterable[str]) -> bool:
    """Whether `fold` takes the model: functional, of one input, with these outputs.

    It must also not have failed a `check` before.
    """
    return (
        type(model).__name__ == "Functional"
        and isinstance(model.input, keras.KerasTensor)
        and isinstance(model.output, dict)
        and all(_is_tensor(model.output.get(name)) for name in names)
        and model not in _DIFFERENT
    )


def fold(model: keras.Model, names: Sequence[str]) -> stateless.Copy:
    """Returns images -> {name: output}, equal to the model's with `training=False`.

    They are equal up to rounding. Weights are read and folded here, so later changes of
    the model do not show: call this at the start of a run, within the graph. Batch
    norms that do not directly follow a convolution stay as they are.

    Args:
      model: What `can_fold` accepts.
      names: Which outputs; what only other outputs need is not computed.
    """
    outputs = {name: model.output[name] for name in names}
    nodes = _nodes(model, outputs.values())
    calls = {id(node): _inference(node) for node in nodes}
    calls |= _folded_calls(nodes, list(outputs.values()))
    if compiling.in_xla():
        calls |= _pooling_calls(nodes)

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        (x,) = model._standardize_inputs(x)
        values = {id(model.input): x}
        for node in nodes:
            results = keras.tree.flatten(calls[id(node)](values))
            values.update(zip(map(id, node.output_tensors), results, strict=True))
        return {name: values[id(output)] for name, output in outputs.items()}

    runner = _Inside(model, run)
    return stateless.Copy(
        lambda x: runner(tf.convert_to_tensor(x), training=False), model
    )


def check(model: Any, names: Iterable[str], images: tf.Tensor) -> bool:
    """Whether attacks may fold the model: its outputs for a first batch are right.

    This is checked once for each model, eagerly, before anything is compiled. If
    outputs differ by more than rounding, a warning is logged, and `can_fold` refuses
    the model from then on. Models that are not folded anyway are not checked.

    Args:
      model: The model that is attacked.
      names: The outputs that are attacked.
      images: A few images, [batch, ...].
    """
    if model in _CHECKED or not can_fold(model, names):
        return can_fold(model, names)
    _CHECKED.add(model)
    try:
        all_names = [name for name, y in model.output.items() if _is_tensor(y)]
        with stateless.unchanged(model):
            references = stateless.outputs(model, images)
            outputs = fold(model, all_names)(images)
        reason = difference(references, outputs, _tolerance(model))
        reason = reason and f"its outputs differ ({reason})"
    except Exception as error:  # Of any kind; the model itself may still work.
        raise_out_of_memory(error)
        reason = f"it cannot be computed ({type(error).__name__}: {error})"
    if reason:
        _DIFFERENT.add(model)
        logging.warning(
            "the copy of the model with folded batch norms is not used, because %s; "
            "the model itself is attacked, which takes longer. Its layers: %s",
            reason,
            layer_types(model),
        )
    return not reason


def difference(
    references: Mapping[str, tf.Tensor],
    outputs: Mapping[str, tf.Tensor],
    tolerance: float,
) -> str:
    """How outputs differ by more than a share of their magnitude; "" if they do not.

    Args:
      references: The right outputs, at least those named in `outputs`.
      outputs: The outputs to compare, where both are finite.
      tolerance: Limit of the largest difference, as a share of the largest output.
    """
    for name in outputs:
        reference, output = (
            np.asarray(tf.cast(y[name], tf.float64)) for y in (references, outputs)
        )
        is_finite = np.isfinite(reference) & np.isfinite(output)
        if not is_finite.any():
            continue
        error = np.abs(reference - output)[is_finite].max()
        scale = np.abs(reference)[is_finite].max()
        if error > tolerance * scale:
            return f"{name} differs by up to {error:.2g}, values reach {scale:.2g}"
    return ""


def layer_types(model: keras.Model) -> str:
    """Returns the types of all layers, such as `BatchNormalization, Conv2D`."""
    types = {
        type(layer).__name__ for layer in model._flatten_layers(include_self=False)
    }
    return ", ".join(sorted(types - {"InputLayer"}))


def _tolerance(model: keras.Model) -> float:
    """Returns the error that rounding may cause, as a share of the largest output."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    epsilon = max(_EPSILONS.get(dtype, 0.0) for dtype in dtypes)
    is_exact = not tf.config.experimental.tensor_float_32_execution_enabled()
    if compiling.on_gpu() and not is_exact:  # TensorFloat-32 rounds as float16 does.
        epsilon = max(epsilon, _EPSILONS["float16"])
    return max(1e-3, 16 * epsilon)


class _Inside(keras.Layer):
    """Runs a function in the context that layers find when a model calls them.

    The context says whether layers train (needed where their `call` has no such
    argument but that of their inner layers has) and as which dtype variables are read.
    """

    def __init__(self, model: keras.Model, run: Callable[[tf.Tensor], Any]):
        super().__init__(
            dtype=model.dtype_policy, autocast=model.autocast, name="folded"
        )
        self._convert_input_args = model._convert_input_args
        self._run = run
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> Any:
        """Returns the function's result."""
        del training  # Keras passes it on.
        return self._run(x)


def _nodes(model: keras.Model, outputs: Iterable[keras.KerasTensor]) -> list[Any]:
    """Returns the calls of layers that the outputs need, in the order of Keras."""
    needed_ids = set()
    stack = [_node(output) for output in outputs]
    while stack:  # No recursion: nets may be deeper than Python's stack.
        node = stack.pop()
        if id(node) not in needed_ids:
            needed_ids.add(id(node))
            stack += map(_node, node.input_tensors)
    depths = sorted(model._nodes_by_depth, reverse=True)
    all_nodes = [node for depth in depths for node in model._nodes_by_depth[depth]]
    return [node for node in all_nodes if id(node) in needed_ids and not node.is_input]


def _is_tensor(output: Any) -> bool:
    return isinstance(output, keras.KerasTensor)


def _node(tensor: keras.KerasTensor) -> Any:
    """Returns the call of a layer that `tensor` comes from."""
    layer, number, _ = tensor._keras_history
    return layer._inbound_nodes[number]


_Values = Mapping[int, tf.Tensor]  # By the id of the symbolic tensor.


def _inference(node: Any) -> Callable[[_Values], Any]:
    """Returns the call of the layer or operation itself, as `predict` makes it.

    `training=False` overrides the argument of the layer's call when the model was made,
    which Keras stores with the node.
    """
    operation = node.operation
    context_args = getattr(operation, "_call_context_args", ())
    context = {"training": False} if "training" in context_args else {}

    def call(values):
        args, kwargs = node.arguments.fill_in(values)
        return operation(*args, **{**kwargs, **context})

    return call


def _folded_calls(
    nodes: Sequence[Any], outputs: Sequence[keras.KerasTensor]
) -> dict[int, Callable[[_Values], tf.Tensor]]:
    """Returns replacements for convolutions and the norms after them, by node id."""
    uses = collections.Counter(
        id(tensor) for node in nodes for tensor in node.input_tensors
    )
    uses.update(id(output) for output in outputs)
    calls = {}
    for node in nodes:
        if type(node.operation) is not keras.layers.BatchNormalization:
            continue
        source = node.input_tensors[0]
        convolution = _node(source)
        if uses[id(source)] != 1 or not _is_foldable(convolution, node.operation):
            continue
        rescaling_node = _rescaling(convolution, uses)
        rescaling = rescaling_node and rescaling_node.operation
        calls[id(convolution)] = _on_input(
            convolution,
            _folded_convolution(convolution.operation, node.operation, rescaling),
        )
        calls[id(node)] = _on_input(node, lambda x: x)
        if rescaling_node:
            add_shift = functools.partial(_add_shift, rescaling)
            calls[id(rescaling_node)] = _on_input(rescaling_node, add_shift)
    return calls


def _pooling_calls(nodes: Sequence[Any]) -> dict[int, Callable[[_Values], tf.Tensor]]:
    """Returns replacements for max pooling, by node id: XLA cannot differentiate it."""
    return {
        id(node): _on_input(node, functools.partial(pooling.by_slices, node.operation))
        for node in nodes
        if type(node.operation) is keras.layers.MaxPooling2D
    }


def _on_input(
    node: Any, function: Callable[[tf.Tensor], tf.Tensor]
) -> Callable[[_Values], tf.Tensor]:
    """Returns a call of the function on the one tensor that the node reads."""
    (tensor,) = node.input_tensors
    return lambda values: function(values[id(tensor)])


def _rescaling(convolution: Any, uses: collections.Counter) -> Any | None:
    """Returns the call of a Rescaling that this convolution alone reads, if any.

    Zero padding may stand between them: zeros stay zeros, whatever the scale.
    """
    node = _node(convolution.input_tensors[0])
    if type(convolution.operation) is not keras.layers.Conv2D:
        return None
    while not node.is_input and uses[id(node.output_tensors[0])] == 1:
        if type(node.operation) is keras.layers.Rescaling:
            return node if _is_per_channel(node.operation.scale) else None
        if type(node.operation) is not keras.layers.ZeroPadding2D:
            return None
        node = _node(node.input_tensors[0])
    return None


def half_type() -> str:
    """Returns the half precision that suits this machine's GPUs; "bfloat16" if none.

    NVIDIA's cards of compute capability 7.0 to 7.5 (V100, T4) multiply matrices in
    float16 only, those from 8.0 on in bfloat16 just as fast. Of several cards, the
    oldest counts: float16 is fast on all.
    """
    details = tf.config.experimental.get_device_details
    capabilities = [
        details(gpu).get("compute_capability", ())
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    has_old_gpu = any(
        (7, 0) <= tuple(capability) < (8, 0) for capability in capabilities
    )
    return "float16" if has_old_gpu else "bfloat16"


def in_half(
    model: keras.Model, dtype: str = "bfloat16", images: tf.Tensor | None = None
) -> keras.Model:
    """Returns a copy that computes in half precision where the model is in float32.

    Its variables are float32, with the model's current values. The first layer after
    the input and the last before each output stay as they are, so that images are not
    rounded (steps of one grey level vanish in bfloat16) and losses are float32. So does
    max pooling, which on CPUs is slow in bfloat16.

    Args:
      model: Functional.
      dtype: "bfloat16" or "float16".
      images: A few images, [batch, ...], for which the copy's outputs are compared to
        the model's. If they differ by more than rounding explains, or no copy can be
        made, a warning is logged and the model itself is returned.
    """
    if images is None:
        return _in_half(model, dtype)
    copy = model
    try:
        copy = _in_half(model, dtype)
        with stateless.unchanged(model):
            references, outputs = (stateless.outputs(m, images) for m in (model, copy))
        reason = difference(references, outputs, _HALF_SHARE)
    except Exception as error:  # Of any kind; the model itself may still work.
        raise_out_of_memory(error)
        reason = f"{type(error).__name__}: {error}"
    if reason:
        logging.warning(
            "no copy of the model in %s gives the same outputs (%s), so gradients are "
            "taken from the model itself. Its layers: %s",
            dtype,
            reason,
            layer_types(model),
        )
        return model
    return copy


def _in_half(model: keras.Model, dtype: str) -> keras.Model:
    exact_ids = _exact_ids(model)

    def half_layer(layer):
        config = layer.get_config()
        policy = getattr(layer, "dtype_policy", None)  # Operations have none.
        if (
            policy is not None
            and policy.name == "float32"
            and id(layer) not in exact_ids
        ):
            config["dtype"] = f"mixed_{dtype}"
        return type(layer).from_config(config)

    half_model = keras.models.clone_model(
        model, clone_function=half_layer, recursive=True
    )
    half_model.set_weights(model.get_weights())
    return half_model


def _probability_layers(model: keras.Model) -> list[Any]:
    """Returns the layers that make the probabilities whose logs the model outputs.

    They reach from the outputs back to the first layer with weights, including that
    one: it may hold the softmax.
    """
    stack = [
        tensor
        for output in keras.tree.flatten(model.output)
        if isinstance(_node(output).operation, probabilities.Logits)
        for tensor in _node(output).input_tensors
    ]
    layers = []
    while stack:
        node = _node(stack.pop())
        layers.append(node.operation)
        if not getattr(node.operation, "weights", ()):
            stack += node.input_tensors
    return layers


def _exact_ids(model: keras.Model) -> set[int]:
    """Returns the ids of the layers that stay in float32, and of their inner layers."""
    inputs = {id(tensor) for tensor in model.inputs}
    layers = [_node(output).operation for output in keras.tree.flatten(model.output)]
    layers += _probability_layers(model)
    for layer in model._flatten_layers(include_self=False):
        nodes = layer._inbound_nodes
        reads = [id(tensor) for node in nodes for tensor in node.input_tensors]
        if isinstance(layer, keras.layers.MaxPooling2D) or inputs & set(reads):
            layers.append(layer)
    inner_layers = [
        inner_layer
        for layer in layers
        if isinstance(layer, keras.Layer)
        for inner_layer in layer._flatten_layers()
    ]
    return {id(layer) for layer in (*layers, *inner_layers)}


# A convolution with the batch norm after it, and the Rescaling before it, in one.

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.Conv2DTranspose)


def _is_foldable(node: Any, norm: keras.layers.BatchNormalization) -> bool:
    """Whether the node is a plain convolution over the channels that `norm` scales."""
    layer = node.operation
    return (
        type(layer) in _CONVOLUTIONS
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and norm.axis in (-1, 3)
        and norm.compute_dtype == layer.compute_dtype
        and not layer.quantization_mode
    )


def _folded_convolution(
    layer: keras.layers.Layer,
    norm: keras.layers.BatchNormalization,
    rescaling: keras.layers.Rescaling | None,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the convolution with the layers around it in its kernel and offset.

    Args:
      layer: The convolution.
      norm: The norm after it.
      rescaling: The layer before it, whose scale goes into the kernel, if any.
    """
    dtype = tf.float64 if layer.compute_dtype == "float64" else tf.float32

    def widen(variable):
        return tf.cast(tf.convert_to_tensor(variable), dtype)

    scale = tf.math.rsqrt(widen(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale *= widen(norm.gamma)
    offset = -widen(norm.moving_mean) * scale
    if norm.center:
        offset += widen(norm.beta)
    if layer.use_bias:
        offset += widen(layer.bias) * scale
    is_transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    # A transposed kernel is [rows, columns, out, in], a plain one [..., in, out].
    kernel = widen(layer.kernel) * (scale[:, tf.newaxis] if is_transposed else scale)
    if rescaling is not None:
        kernel *= tf.cast(_scale_of_kernel(layer, rescaling.scale), dtype)
    kernel, offset = (tf.cast(t, layer.compute_dtype) for t in (kernel, offset))
    convolution = _convolution(layer, kernel.dtype)
    return lambda x: tf.nn.bias_add(
        convolution(tf.cast(x, kernel.dtype), kernel), offset
    )


def _scale_of_kernel(layer: keras.layers.Conv2D, scale: Any) -> np.ndarray:
    """Returns the scale of the input as factors of the kernel, [in, 1 or out].

    Each group of output channels reads its own part of the input's channels, and the
    kernel has these parts at the same places.
    """
    factors = np.reshape(scale, (-1,)).astype(np.float64)
    if factors.size == 1 or layer.groups == 1:
        return factors[:, np.newaxis]
    by_group = factors.reshape(layer.groups, -1)
    return np.repeat(by_group.T, layer.filters // layer.groups, axis=1)


def _convolution(
    layer: keras.layers.Layer, dtype: tf.DType
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns (x, kernel) -> what the layer computes with that kernel."""
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return functools.partial(
            keras.ops.conv_transpose,
            data_format=layer.data_format,
            strides=layer.strides,
            padding=layer.padding,
            output_padding=layer.output_padding,
            dilation_rate=layer.dilation_rate,
        )
    is_dilated = max(layer.dilation_rate) > 1 and layer.groups == 1
    if is_dilated and dilates_directly(dtype):
        # Without rearranging the input, as TensorFlow does for layers.
        return functools.partial(
            tf.nn.conv2d,
            strides=layer.strides,
            padding=layer.padding.upper(),
            dilations=layer.dilation_rate,
        )
    return layer.convolution_op


@functools.cache
def dilates_directly(dtype: tf.DType) -> bool:
    """Whether this machine has the gradient of a dilated convolution.

    TensorFlow's own CPU kernels lack it, oneDNN's (except for float16 and float64) and
    cuDNN's have it. Running one shows which are used.
    """

    @tf.function(autograph=False)
    def gradient(kernel, upstream):  # No tape would record in tf.init_scope.
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=upstream.shape,
            filter=kernel,
            out_backprop=upstream,
            strides=[1, 1, 1, 1],
            padding="SAME",
            dilations=[1, 2, 2, 1],
        )

    with tf.init_scope():  # Now, not in the graph that is being built.
        try:
            gradient(tf.ones((3, 3, 4, 4), dtype), tf.ones((1, 8, 8, 4), dtype))
        except tf.errors.OpError:
            return False
    return True


def _is_per_channel(scale: Any) -> bool:
    """Whether the scale is one number, or one for each channel, and never zero."""
    shape = np.shape(scale)
    channels_last = (
        keras.config.image_data_format() == "channels_last"
    )  # As Rescaling does.
    return bool(
        np.all(scale)
        and (np.size(scale) == 1 or (channels_last and np.size(scale) == shape[-1]))
    )


def _add_shift(layer: keras.layers.Rescaling, x: tf.Tensor) -> tf.Tensor:
    """Returns `layer(x)` divided by the layer's scale: one pass instead of two."""
    shift = np.asarray(layer.offset, np.float64) / np.asarray(layer.scale, np.float64)
    return tf.cast(x, layer.compute_dtype) + tf.cast(shift, layer.compute_dtype)
