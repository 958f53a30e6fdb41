# SPDX-License-Identifier: Apache-2.0
"""A functional Keras model as plain data: for other libraries, and to count its work.

A specification is {"nodes": [...], "outputs": {task: name}}; a node has a name, an op,
the names of its inputs and its settings. Padding and subsampling before a convolution
are settings of that convolution.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from mtr_tf.models import folding
from mtr_tf.models import layers as own_layers

_Arrays = dict[str, np.ndarray]


def describe(model: keras.Model) -> tuple[dict[str, Any], _Arrays]:
    """Returns the specification and {name of a node/name of a weight: array}."""
    image = model.layers[0].name
    nodes = [{"name": image, "inputs": [], "op": "input"}]
    arrays, names = {}, {id(model.input): image}
    for node in folding._nodes(model, model.output.values()):
        layer, (output,) = node.operation, node.output_tensors
        inputs = [names[id(tensor)] for tensor in node.input_tensors]
        settings, weights = _node(layer, nodes, inputs)
        if settings is None:  # The layer changes nothing.
            names[id(output)] = inputs[0]
            continue
        names[id(output)] = layer.name
        nodes.append({"name": layer.name, "inputs": inputs, **settings})
        arrays |= {f"{layer.name}/{key}": np.array(a) for key, a in weights.items()}
    outputs = {task: names[id(tensor)] for task, tensor in model.output.items()}
    return {"nodes": _merge_padding(nodes, outputs), "outputs": outputs}, arrays


def save(path: pathlib.Path, arrays: _Arrays) -> None:
    """Writes the weights as .npz, in which slashes are dots."""
    np.savez(path, **{name.replace("/", "."): array for name, array in arrays.items()})


def _node(layer: Any, nodes: list, inputs: list) -> tuple[dict | None, dict]:
    """Returns the settings and weights of a layer; None for one that does nothing."""
    if isinstance(layer, keras.layers.Rescaling):
        weights = {"scale": layer.scale, "offset": layer.offset}
        return {"op": "rescale"}, weights
    if isinstance(layer, keras.layers.Activation):
        return None, {}  # A cast; the others are layers of their own.
    if isinstance(layer, keras.layers.ReLU):
        return {"op": "relu"}, {}
    if isinstance(layer, keras.layers.Add):
        return {"op": "add"}, {}
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return {"op": "pad", "size": layer.padding[0][0]}, {}
    if isinstance(layer, keras.layers.MaxPooling2D):
        size, stride = layer.pool_size[0], layer.strides[0]
        return {"op": "pool", "size": size, "stride": stride, "same": True}, {}
    if isinstance(layer, own_layers.BilinearUpSampling):
        return {"op": "up", "factor": layer.factor, "edge": layer.replicate}, {}
    if isinstance(layer, keras.layers.BatchNormalization):
        keys = ("gamma", "beta", "moving_mean", "moving_variance")
        weights = {key: getattr(layer, key) for key in keys}
        return {"op": "norm", "epsilon": layer.epsilon}, weights
    transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    if not isinstance(layer, keras.layers.Conv2D | keras.layers.Conv2DTranspose):
        raise NotImplementedError(f"layer {layer.name}: {type(layer).__name__}")
    size, dilation = layer.kernel_size[0], layer.dilation_rate[0]
    settings = {
        "op": "transposed" if transposed else "conv",
        "in": layer.kernel.shape[3 if transposed else 2],
        "out": layer.filters,
        "size": size,
        "stride": layer.strides[0],
        "dilation": dilation,
        "padding": dilation * (size // 2) if layer.padding == "same" else 0,
        "bias": layer.use_bias,
    }
    weights = {"kernel": layer.kernel}
    return settings, weights | ({"bias": layer.bias} if layer.use_bias else {})


def _merge_padding(nodes: Sequence[dict], outputs: dict[str, str]) -> list[dict]:
    """Returns the nodes with padding and subsampling merged into convolutions."""
    by_name = {node["name"]: node for node in nodes}
    reader_counts: dict[str, int] = {}
    for name in [n for node in nodes for n in node["inputs"]] + list(outputs.values()):
        reader_counts[name] = reader_counts.get(name, 0) + 1
    dropped_names = set()
    for node in nodes:
        if node["op"] != "conv":
            continue
        source = by_name[node["inputs"][0]]
        if reader_counts[source["name"]] > 1:
            continue
        if source["op"] == "pad":
            node["padding"] += source["size"]
        elif source["op"] == "pool" and source["size"] == 1:
            node["stride"] *= source["stride"]
        else:
            continue
        dropped_names.add(source["name"])
        node["inputs"] = source["inputs"]
    return [node for node in nodes if node["name"] not in dropped_names]


def forward_flops(spec: dict[str, Any], height: int, width: int) -> float:
    """Returns twice the multiplications of all convolutions in an image's forward pass.

    The gradient by the images costs the same again, and so does that by the weights.
    """
    sides, total = {}, 0.0
    for node in spec["nodes"]:
        if node["op"] == "input":
            sides[node["name"]] = (height, width)
            continue
        rows, columns = sides[node["inputs"][0]]
        if node["op"] in ("conv", "transposed"):
            stride = node["stride"]
            if node["op"] == "conv":
                rows, columns = -(-rows // stride), -(-columns // stride)
                places = rows * columns
            else:
                places, rows, columns = rows * columns, rows * stride, columns * stride
            total += 2.0 * node["size"] ** 2 * node["in"] * node["out"] * places
        elif node["op"] == "pool":
            stride = node["stride"]
            rows, columns = -(-rows // stride), -(-columns // stride)
        elif node["op"] == "up":
            rows, columns = rows * node["factor"], columns * node["factor"]
        sides[node["name"]] = (rows, columns)
    return total
