# SPDX-License-Identifier: Apache-2.0
"""A Keras model as attacks need it: the same outputs, less work, weights read once.

Without training, a batch normalisation is a fixed scale and offset per channel. Where
it follows a convolution, `s (W * x) + b` is `(s W) * x + b`: one pass over the features
less forwards and one less backwards. So is the scale of a Rescaling before it.
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

_CHECKED = weakref.WeakSet()  # Models whose folded copies were looked at,
_DIFFERENT = weakref.WeakSet()  # and those that came out as other functions.
_HALF_SHARE = 0.2  # A deep net's outputs may differ so much in half precision.
_EPSILONS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def can_fold(model: Any, names: Iterable[str]) -> bool:
    """Whether `fold` takes it: a functional model of one input with these outputs.

    It also must not have failed a `check` before.
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

    Equal but for rounding. Weights are read and folded here, so call it where a run
    begins, within the graph: later changes of the model do not show. Batch norms that
    do not directly follow a convolution stay as they are.

    Args:
      model: What `can_fold` accepts.
      names: Which outputs; what only the others need is not computed.
    """
    wanted = {name: model.output[name] for name in names}
    nodes = _nodes(model, wanted.values())
    calls = {id(node): _inference(node) for node in nodes}
    calls |= _folded_calls(nodes, list(wanted.values()))
    if compiling.in_xla():
        calls |= _pooling_calls(nodes)

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        (x,) = model._standardize_inputs(x)
        values = {id(model.input): x}
        for node in nodes:
            made = keras.tree.flatten(calls[id(node)](values))
            values.update(zip(map(id, node.output_tensors), made, strict=True))
        return {name: values[id(output)] for name, output in wanted.items()}

    inside = _Inside(model, run)
    return stateless.Copy(
        lambda x: inside(tf.convert_to_tensor(x), training=False), model
    )


def check(model: Any, names: Iterable[str], images: tf.Tensor) -> bool:
    """Whether attacks may fold the model: a first batch comes out as it should.

    This is checked once for each model, eagerly, before anything is compiled. If
    outputs differ by more than rounding, a warning is logged, and `can_fold` refuses
    the model from then on. Models that are not folded anyway are not checked.

    Args:
      model: What `can_fold` is asked about.
      names: The outputs that are attacked.
      images: [batch, ...]; a few of them do.
    """
    if model in _CHECKED or not can_fold(model, names):
        return can_fold(model, names)
    _CHECKED.add(model)
    try:
        names = [name for name, y in model.output.items() if _is_tensor(y)]
        with stateless.unchanged(model):
            given, made = stateless.outputs(model, images), fold(model, names)(images)
        reason = difference(given, made, _tolerance(model))
        reason = reason and f"its outputs differ ({reason})"
    except Exception as error:  # Whatever it is, the model itself may do without.
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
    given: Mapping[str, tf.Tensor], made: Mapping[str, tf.Tensor], tolerance: float
) -> str:
    """How outputs differ by more than a share of their magnitude; "" if they do not.

    Args:
      given: The outputs as they should be, at least those of `made`.
      made: Those in question. Where either is not finite, nothing is compared.
      tolerance: Of the largest difference, as a share of the largest output.
    """
    for name in made:
        one, other = (np.asarray(tf.cast(y[name], tf.float64)) for y in (given, made))
        known = np.isfinite(one) & np.isfinite(other)
        if not known.any():
            continue
        error = np.abs(one - other)[known].max()
        scale = np.abs(one)[known].max()
        if error > tolerance * scale:
            return f"{name} differs by up to {error:.2g}, values reach {scale:.2g}"
    return ""


def layer_types(model: keras.Model) -> str:
    """The types of all its layers, such as `BatchNormalization, Conv2D`."""
    types = {
        type(layer).__name__ for layer in model._flatten_layers(include_self=False)
    }
    return ", ".join(sorted(types - {"InputLayer"}))


def _tolerance(model: keras.Model) -> float:
    """What rounding may do to the largest output, as a share of it."""
    kinds = {layer.compute_dtype for layer in model._flatten_layers()}
    coarsest = max(_EPSILONS.get(kind, 0.0) for kind in kinds)
    exact = not tf.config.experimental.tensor_float_32_execution_enabled()
    if compiling.on_gpu() and not exact:  # TensorFloat-32 rounds as float16 does.
        coarsest = max(coarsest, _EPSILONS["float16"])
    return max(1e-3, 16 * coarsest)


class _Inside(keras.Layer):
    """Runs a function as if within a model: what layers look up there is the same.

    That is whether they train, where their `call` has no such argument but layers
    within have, and which dtype variables are read in.
    """

    def __init__(self, model: keras.Model, run: Callable[[tf.Tensor], Any]):
        super().__init__(
            dtype=model.dtype_policy, autocast=model.autocast, name="folded"
        )
        self._convert_input_args = model._convert_input_args
        self._run = run
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> Any:
        """Returns what the function does."""
        del training  # Passed on by Keras.
        return self._run(x)


def _nodes(model: keras.Model, outputs: Iterable[keras.KerasTensor]) -> list[Any]:
    """The calls of layers that the outputs need, in the order in which Keras calls."""
    needed = set()
    pending = [_node(output) for output in outputs]
    while pending:  # No recursion: nets may be deeper than Python's stack.
        node = pending.pop()
        if id(node) not in needed:
            needed.add(id(node))
            pending += map(_node, node.input_tensors)
    depths = sorted(model._nodes_by_depth, reverse=True)
    ordered = [node for depth in depths for node in model._nodes_by_depth[depth]]
    return [node for node in ordered if id(node) in needed and not node.is_input]


def _is_tensor(output: Any) -> bool:
    return isinstance(output, keras.KerasTensor)


def _node(tensor: keras.KerasTensor) -> Any:
    """Returns the call of a layer that `tensor` comes from."""
    layer, number, _ = tensor._keras_history
    return layer._inbound_nodes[number]


_Values = Mapping[int, tf.Tensor]  # By the id of the symbolic tensor.


def _inference(node: Any) -> Callable[[_Values], Any]:
    """Returns the call of the layer or operation itself, as `predict` makes it.

    There `training=False` counts more than what the layer was called with when the
    model was made, which Keras stores with the node.
    """
    operation = node.operation
    known = getattr(operation, "_call_context_args", ())
    context = {"training": False} if "training" in known else {}

    def call(values):
        args, kwargs = node.arguments.fill_in(values)
        return operation(*args, **{**kwargs, **context})

    return call


def _folded_calls(
    nodes: Sequence[Any], outputs: Sequence[keras.KerasTensor]
) -> dict[int, Callable[[_Values], tf.Tensor]]:
    """What to call in place of convolutions and the norms after them, by node id."""
    read = collections.Counter(
        id(tensor) for node in nodes for tensor in node.input_tensors
    )
    read.update(id(output) for output in outputs)
    calls = {}
    for node in nodes:
        if type(node.operation) is not keras.layers.BatchNormalization:
            continue
        source = node.input_tensors[0]
        convolution = _node(source)
        if read[id(source)] != 1 or not _foldable(convolution, node.operation):
            continue
        before = _rescaling(convolution, read)
        rescaling = before and before.operation
        calls[id(convolution)] = _on_input(
            convolution, _folded(convolution.operation, node.operation, rescaling)
        )
        calls[id(node)] = _on_input(node, lambda x: x)
        if before:
            shifted = functools.partial(_shifted, rescaling)
            calls[id(before)] = _on_input(before, shifted)
    return calls


def _pooling_calls(nodes: Sequence[Any]) -> dict[int, Callable[[_Values], tf.Tensor]]:
    """What to call in place of max pooling, which XLA cannot differentiate as it is."""
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


def _rescaling(convolution: Any, read: collections.Counter) -> Any | None:
    """Returns the call of a Rescaling that this convolution alone reads, if any.

    There may be padding with zeros between: zeros stay zeros, whatever the scale.
    """
    node = _node(convolution.input_tensors[0])
    if type(convolution.operation) is not keras.layers.Conv2D:
        return None
    while not node.is_input and read[id(node.output_tensors[0])] == 1:
        if type(node.operation) is keras.layers.Rescaling:
            return node if _per_channel(node.operation.scale) else None
        if type(node.operation) is not keras.layers.ZeroPadding2D:
            return None
        node = _node(node.input_tensors[0])
    return None


def half_type() -> str:
    """The half precision that this machine's GPUs are made for; "bfloat16" without one.

    NVIDIA's cards of compute capability 7.0 to 7.5 (V100, T4) multiply matrices in
    float16 only, those from 8.0 on in bfloat16 just as fast. Of several, the oldest
    counts: float16 is fast on all.
    """
    details = tf.config.experimental.get_device_details
    capabilities = [
        details(gpu).get("compute_capability", ())
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    old = any((7, 0) <= tuple(capability) < (8, 0) for capability in capabilities)
    return "float16" if old else "bfloat16"


def in_half(
    model: keras.Model, dtype: str = "bfloat16", images: tf.Tensor | None = None
) -> keras.Model:
    """Returns a copy that computes in half precision where the model is in float32.

    Its variables are float32 and the model's values of now. The first layer after the
    input and the last before each output stay as they are, so that images are not
    rounded (steps of one grey level vanish in bfloat16) and losses are float32. So does
    max pooling, which on CPUs is slow in bfloat16.

    Args:
      model: Functional.
      dtype: "bfloat16" or "float16".
      images: A few, [batch, ...]: with them the copy's outputs are compared to the
        model's. Where they differ by more than rounding explains, or no copy can be
        made, it is said and the model itself returned.
    """
    if images is None:
        return _in_half(model, dtype)
    copy = model
    try:
        copy = _in_half(model, dtype)
        with stateless.unchanged(model):
            given, made = (stateless.outputs(m, images) for m in (model, copy))
        reason = difference(given, made, _HALF_SHARE)
    except Exception as error:  # Whatever it is, the model itself may do without.
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
    exact = _kept_exact(model)

    def copy(layer):
        config = layer.get_config()
        policy = getattr(layer, "dtype_policy", None)  # Operations have none.
        if policy is not None and policy.name == "float32" and id(layer) not in exact:
            config["dtype"] = f"mixed_{dtype}"
        return type(layer).from_config(config)

    made = keras.models.clone_model(model, clone_function=copy, recursive=True)
    made.set_weights(model.get_weights())
    return made


def _before_logs(model: keras.Model) -> list[Any]:
    """The layers that make the probabilities whose logs the model gives.

    From the outputs back to the first layer with weights, and that one too: it may
    hold the softmax.
    """
    pending = [
        tensor
        for output in keras.tree.flatten(model.output)
        if isinstance(_node(output).operation, probabilities.Logits)
        for tensor in _node(output).input_tensors
    ]
    found = []
    while pending:
        node = _node(pending.pop())
        found.append(node.operation)
        if not getattr(node.operation, "weights", ()):
            pending += node.input_tensors
    return found


def _kept_exact(model: keras.Model) -> set[int]:
    """The ids of the layers that stay in float32, with all that is within them."""
    inputs = {id(tensor) for tensor in model.inputs}
    outermost = [_node(output).operation for output in keras.tree.flatten(model.output)]
    outermost += _before_logs(model)
    for layer in model._flatten_layers(include_self=False):
        nodes = layer._inbound_nodes
        reads = [id(tensor) for node in nodes for tensor in node.input_tensors]
        if isinstance(layer, keras.layers.MaxPooling2D) or inputs & set(reads):
            outermost.append(layer)
    within = [
        inner
        for layer in outermost
        if isinstance(layer, keras.Layer)
        for inner in layer._flatten_layers()
    ]
    return {id(layer) for layer in (*outermost, *within)}


# A convolution with the batch norm after it, and the Rescaling before it, in one.

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.Conv2DTranspose)


def _foldable(node: Any, norm: keras.layers.BatchNormalization) -> bool:
    """Whether it is a plain convolution over the channels that `norm` scales."""
    layer = node.operation
    return (
        type(layer) in _CONVOLUTIONS
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and norm.axis in (-1, 3)
        and norm.compute_dtype == layer.compute_dtype
        and not layer.quantization_mode
    )


def _folded(
    layer: keras.layers.Layer,
    norm: keras.layers.BatchNormalization,
    rescaling: keras.layers.Rescaling | None,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the convolution with what is around it in its kernel and offset.

    Args:
      layer: the convolution.
      norm: the norm after it.
      rescaling: what scales its input, and is to leave that to the kernel.
    """
    wide = tf.float64 if layer.compute_dtype == "float64" else tf.float32

    def widened(variable):
        return tf.cast(tf.convert_to_tensor(variable), wide)

    scale = tf.math.rsqrt(widened(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale *= widened(norm.gamma)
    offset = -widened(norm.moving_mean) * scale
    if norm.center:
        offset += widened(norm.beta)
    if layer.use_bias:
        offset += widened(layer.bias) * scale
    transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    # A transposed kernel is [rows, columns, out, in], a plain one [..., in, out].
    kernel = widened(layer.kernel) * (scale[:, tf.newaxis] if transposed else scale)
    if rescaling is not None:
        kernel *= tf.cast(_scale_of_kernel(layer, rescaling.scale), wide)
    kernel, offset = (tf.cast(t, layer.compute_dtype) for t in (kernel, offset))
    convolution = _convolution(layer, kernel.dtype)
    return lambda x: tf.nn.bias_add(
        convolution(tf.cast(x, kernel.dtype), kernel), offset
    )


def _scale_of_kernel(layer: keras.layers.Conv2D, scale: Any) -> np.ndarray:
    """The scale of its input as factors of a convolution's kernel, [in, 1 or out].

    Each of its groups of output channels reads another part of the input's channels,
    and the kernel has them at the same places.
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
    dilated = max(layer.dilation_rate) > 1 and layer.groups == 1
    if dilated and dilates_directly(dtype):
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

    TensorFlow's own CPU kernels have none, oneDNN's (except for float16 and float64)
    and cuDNN's have. Which will run is seen by running it.
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


def _per_channel(scale: Any) -> bool:
    """Whether it is one number, or one for each channel, and never zero."""
    sizes = np.shape(scale)
    plain = keras.config.image_data_format() == "channels_last"  # Rescaling looks too.
    return bool(
        np.all(scale)
        and (np.size(scale) == 1 or (plain and np.size(scale) == sizes[-1]))
    )


def _shifted(layer: keras.layers.Rescaling, x: tf.Tensor) -> tf.Tensor:
    """Returns what `layer` does to x, divided by its scale: one pass for two."""
    shift = np.asarray(layer.offset, np.float64) / np.asarray(layer.scale, np.float64)
    return tf.cast(x, layer.compute_dtype) + tf.cast(shift, layer.compute_dtype)
