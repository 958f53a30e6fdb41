# SPDX-License-Identifier: Apache-2.0
"""A Keras model as attacks need it: the same outputs, less work, weights read once.

Without training, a batch normalisation is a fixed scale and offset per channel. Where
it follows a convolution, `s (W * x) + b` is `(s W) * x + b`: one pass over the features
less forwards and one less backwards. So is the scale of a Rescaling before it.
"""

from __future__ import annotations

import collections
import functools
import inspect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtr_tf import compiling

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.Conv2DTranspose)


def can_fold(model: object, names: Iterable[str]) -> bool:
    """Whether `fold` takes it: a functional model of one input with these outputs."""
    return (
        type(model).__name__ == "Functional"
        and isinstance(model.input, keras.KerasTensor)
        and isinstance(model.output, dict)
        and all(name in model.output for name in names)
    )


def fold(
    model: keras.Model, names: Sequence[str]
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns images -> {name: output}, equal to the model's with `training=False`.

    Equal but for rounding. Weights are read and folded here, so call it where a run
    begins, within the graph: later changes of the model do not show. Batch norms that
    do not directly follow a convolution stay as they are.

    Args:
      model: What `can_fold` accepts.
      names: Which outputs; what only the others need is not computed.
    """
    outputs = {name: model.output[name] for name in names}
    nodes = _nodes(outputs.values())
    calls = _folded_calls(nodes, list(outputs.values()))
    return _runner(model, outputs, nodes, calls)


def outputs(
    model: keras.Model, images: tf.Tensor, training: bool = False
) -> dict[str, tf.Tensor]:
    """Returns what the model does, and under XLA with gradients that it can compile.

    There layers whose gradients have no deterministic form are written otherwise, if
    `can_fold` accepts the model.
    """
    if not compiling.in_xla() or not can_fold(model, ()):
        return model(images, training=training)
    nodes = _nodes(model.output.values())
    return _runner(model, model.output, nodes, {}, training)(images)


def _runner(
    model: keras.Model,
    outputs: dict[str, keras.KerasTensor],
    nodes: Sequence[Any],
    calls: dict[int, Callable[..., tf.Tensor]],
    training: bool = False,
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns images -> outputs; `calls` has what is not the layer itself, by node."""
    calls = {id(n): _plain_call(n.operation, training) for n in nodes} | calls

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        values = {id(model.input): x}
        for node in nodes:
            if node.is_input:
                continue
            args, kwargs = keras.tree.map_structure(
                lambda given: values.get(id(given), given),
                (node.arguments.args, node.arguments.kwargs),
            )
            made = calls[id(node)](*args, **kwargs)
            symbols = map(id, node.output_tensors)
            values.update(zip(symbols, keras.tree.flatten(made), strict=True))
        return {name: values[id(output)] for name, output in outputs.items()}

    return run


def _nodes(outputs: Iterable[keras.KerasTensor]) -> list[Any]:
    """The calls of layers that the outputs need, each after those that it reads."""
    nodes, seen = [], set()
    pending = [(_node(output), False) for output in outputs]
    while pending:  # No recursion: nets may be deeper than Python's stack.
        node, ready = pending.pop()
        if ready:
            nodes.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            pending.append((node, True))
            pending += [(_node(source), False) for source in node.input_tensors]
    return nodes


def _node(tensor: keras.KerasTensor) -> Any:
    """Returns the call of a layer that `tensor` comes from."""
    layer, number, _ = tensor._keras_history
    return layer._inbound_nodes[number]


def _plain_call(layer: Callable[..., Any], training: bool) -> Callable[..., Any]:
    if compiling.in_xla() and type(layer) is keras.layers.MaxPooling2D:
        return functools.partial(_max_pooling, layer)
    takes_training = "training" in inspect.signature(layer.call).parameters
    return functools.partial(layer, training=training) if takes_training else layer


def _max_pooling(layer: keras.layers.MaxPooling2D, x: tf.Tensor) -> tf.Tensor:
    """Returns what the layer does, by slices, columns first.

    XLA fuses that, and has no deterministic gradient of max pooling itself.
    """
    if layer.data_format != "channels_last" or None in x.shape[1:3]:
        return layer(x)
    for axis in (2, 1):
        size, stride = layer.pool_size[axis - 1], layer.strides[axis - 1]
        length = x.shape[axis]
        if layer.padding == "same":
            count = -(-length // stride)
            missing = max(0, (count - 1) * stride + size - length)
            pads = [[0, 0]] * 4
            pads[axis] = [missing // 2, missing - missing // 2]
            x = tf.pad(x, pads, constant_values=x.dtype.min)
        else:
            count = (length - size) // stride + 1
        x = functools.reduce(
            tf.maximum,
            [
                _every(x, axis, i, i + (count - 1) * stride + 1, stride)
                for i in range(size)
            ],
        )
    return x


def _every(x: tf.Tensor, axis: int, start: int, stop: int, step: int) -> tf.Tensor:
    return x[:, start:stop:step] if axis == 1 else x[:, :, start:stop:step]


def _folded_calls(
    nodes: Sequence[Any], outputs: Sequence[keras.KerasTensor]
) -> dict[int, Callable[..., tf.Tensor]]:
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
        if read[id(source)] == 1 and _foldable(_node(source), node.operation):
            before = _rescaling(_node(source), read)
            rescaling = before and before.operation
            convolution = _node(source).operation
            calls[id(_node(source))] = _folded(convolution, node.operation, rescaling)
            calls[id(node)] = lambda x, **_: x
            if before:
                calls[id(before)] = functools.partial(_shifted, rescaling)
    return calls


def _rescaling(convolution: Any, read: collections.Counter) -> Any | None:
    """Returns the call of a Rescaling that this convolution alone reads, if any.

    There may be padding with zeros between: zeros stay zeros, whatever the scale.
    """
    node = _node(convolution.input_tensors[0])
    if type(convolution.operation) is not keras.layers.Conv2D:
        return None
    while read[id(node.output_tensors[0])] == 1:
        if type(node.operation) is keras.layers.Rescaling:
            return node if np.all(node.operation.scale) else None
        if type(node.operation) is not keras.layers.ZeroPadding2D:
            return None
        node = _node(node.input_tensors[0])
    return None


def _shifted(layer: keras.layers.Rescaling, x: tf.Tensor) -> tf.Tensor:
    """Returns what `layer` does to x, divided by its scale: one pass for two."""
    shift = tf.constant(layer.offset, tf.float32) / _scale(layer)
    return tf.cast(x, layer.compute_dtype) + tf.cast(shift, layer.compute_dtype)


def _scale(layer: keras.layers.Rescaling) -> tf.Tensor:
    return tf.constant(layer.scale, tf.float32)


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
    scale = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
    if norm.scale:
        scale *= norm.gamma
    offset = -norm.moving_mean * scale
    if norm.center:
        offset += norm.beta
    if layer.use_bias:
        offset += layer.bias * scale
    transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    # A transposed kernel is [rows, columns, out, in], a plain one [..., in, out].
    kernel = layer.kernel * (scale[:, tf.newaxis] if transposed else scale)
    if rescaling is not None:
        kernel *= tf.reshape(_scale(rescaling), (-1, 1))
    kernel, offset = (tf.cast(t, layer.compute_dtype) for t in (kernel, offset))
    convolution = _convolution(layer, kernel.dtype)
    return lambda x: tf.nn.bias_add(
        convolution(tf.cast(x, kernel.dtype), kernel), offset
    )


def _convolution(
    layer: keras.layers.Layer, dtype: tf.DType
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns (x, kernel) -> what the layer computes with that kernel."""
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return functools.partial(
            keras.ops.conv_transpose,
            strides=layer.strides,
            padding=layer.padding,
            output_padding=layer.output_padding,
            dilation_rate=layer.dilation_rate,
        )
    if max(layer.dilation_rate) > 1 and _dilates_directly(dtype):
        # Without rearranging the input, as TensorFlow does for layers.
        return functools.partial(
            tf.nn.conv2d,
            strides=layer.strides,
            padding=layer.padding.upper(),
            dilations=layer.dilation_rate,
        )
    return layer.convolution_op


@functools.cache
def _dilates_directly(dtype: tf.DType) -> bool:
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


def in_bfloat16(model: keras.Model) -> keras.Model:
    """Returns the copy of `in_half` in bfloat16."""
    return in_half(model, "bfloat16")


def in_half(model: keras.Model, dtype: str) -> keras.Model:
    """Returns a copy that computes in `dtype` where the model computes in float32.

    Its variables are float32 and the model's values of now. The first layer after the
    input and the last before each output stay as they are, so that images are not
    rounded (steps of one grey level vanish in bfloat16) and losses are float32. So does
    max pooling, which on CPUs is slow in bfloat16.

    Args:
      model: a Keras model.
      dtype: bfloat16, or float16: there gradients of a mean over many pixels are too
        small for its range, and must be taken of a multiple.
    """
    inputs = {id(tensor) for tensor in model.inputs}
    exact = {id(_node(output).operation) for output in keras.tree.flatten(model.output)}
    for layer in model.layers:
        if isinstance(layer, keras.layers.MaxPooling2D):
            exact.add(id(layer))
        for node in layer._inbound_nodes:
            if any(id(tensor) in inputs for tensor in node.input_tensors):
                exact.add(id(layer))

    def copy(layer):
        config = layer.get_config()
        if id(layer) not in exact and layer.dtype_policy.name == "float32":
            config["dtype"] = f"mixed_{dtype}"
        return type(layer).from_config(config)

    made = keras.models.clone_model(model, clone_function=copy)
    made.set_weights(model.get_weights())
    return made
