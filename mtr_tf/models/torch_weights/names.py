# SPDX-License-Identifier: Apache-2.0
"""Names of weights in PyTorch's files of DRN and ResNet, and of our variables.

Both are brought to a name in common, `Name(part, weight)`: the weight is spelled as the
published classification networks spell it (`layer3.0.conv1.weight`, `layer0.1.bias`,
`conv1.weight`; `head.weight` for a task's last convolution), and the part says whose it
is: the encoder's, a task's, or all tasks'. What the files call it:

    released multi-task        encoder.3.0.conv1     task_to_decoder.TASK.0.1.bn2
    official segmentation      base.3.0.conv1        base.6.1.bn2, seg
    official classification    layer3.0.conv1        layer6.1.bn2, fc
    released, ResNet           encoder.layer1.0.bn1  task_to_decoder.TASK.upconv0
    torchvision, ResNet        layer1.0.bn1          fc

A number after `encoder`, `base` and `task_to_decoder.TASK` counts the modules of the
network: layers 0 to 8 in DRN-D; in DRN-C layer 0 is three modules of its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mtr_tf import tasks as task_table
from mtr_tf.errors import InputError
from mtr_tf.models import MODELS

ENCODER = "encoder"
SHARED = "shared"  # Belongs to the decoders of all tasks.
CLASSIFIER = "classifier"  # Belongs to a task that is none of ours.
_KINDS = {  # PyTorch's names of a Keras layer's variables.
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_IN_BLOCKS = [  # Our names in blocks, then those of plain convolutions.
    (r"_block(\d+)_([123])_conv$", r".\1.conv\2"),
    (r"_block(\d+)_([123])_norm$", r".\1.bn\2"),
    (r"_block(\d+)_shortcut_conv$", r".\1.downsample.0"),
    (r"_block(\d+)_shortcut_norm$", r".\1.downsample.1"),
    (r"^(layer\d)_conv$", r"\1.0"),
    (r"^(layer\d)_norm$", r"\1.1"),
    (r"^stem_conv$", "conv1"),
    (r"^stem_norm$", "bn1"),
    (r"^up(\d)_conv$", r"upconv\1"),
    (r"^up(\d)_norm$", r"bn_upconv\1"),
    (r"^stage(\d)_conv$", r"conv_decode\1"),
    (r"^stage(\d)_norm$", r"bn_decode\1"),
]


class Name(NamedTuple):
    """A weight's name in common: `part` is ENCODER, SHARED, CLASSIFIER or a task."""

    part: str
    weight: str


def of_variable(path: str) -> Name:
    """The common name of a variable, by its Keras path such as `head_seg/bias`."""
    layer, kind = path.split("/")
    kind = _KINDS[kind]
    if layer.startswith("head_"):
        return Name(layer.removeprefix("head_"), f"head.{kind}")
    if layer.startswith("encoder_"):
        part, layer = ENCODER, layer.removeprefix("encoder_")
    else:
        match = re.match(r"decoder_(\w+?)_((?:layer|up|stage)\d.*)", layer)
        if match is None:
            raise ValueError(f"not a variable of a model of ours: {path}")
        part, layer = match.groups()
    for pattern, replacement in _IN_BLOCKS:
        layer = re.sub(pattern, replacement, layer)
    return Name(part, f"{layer}.{kind}")


def of_tensor(name: str, model: str) -> Name | None:
    """The common name of a tensor in a file; None if it has none.

    Args:
      name: As in the file, without `module.`.
      model: Key of MODELS, a DRN or a ResNet.
    """
    if match := re.match(r"task_to_decoder\.(\w+)\.(.+)", name):
        weight = _decoder_weight(match[2], model)
        return Name(_task(match[1]), weight) if weight else None
    if name.startswith("fc."):
        return Name(CLASSIFIER, name)
    if MODELS[model].family == "resnet":
        name = name.removeprefix("encoder.")
        is_encoder = re.match(r"(conv1|bn1|layer[1-4]\.\d+)\.", name)
        return Name(ENCODER, name) if is_encoder else None
    return _drn_name(name, model)


def _drn_name(name: str, model: str) -> Name | None:
    if match := re.match(r"(seg|up)\.(.+)", name):
        part = "head" if match[1] == "seg" else "up"
        return Name("seg", f"{part}.{match[2]}")
    if match := re.match(r"(?:encoder|base)\.(\d+)\.(.+)", name):
        weight = _module_weight(int(match[1]), match[2], model)
    else:  # Layer 0 of DRN-C has no name.
        weight = re.sub(r"^conv1\.", "layer0.0.", re.sub(r"^bn1\.", "layer0.1.", name))
    layer = re.match(r"layer([0-8])\.", weight)
    if not layer:
        return None
    return Name(ENCODER if int(layer[1]) < 6 else SHARED, weight)


def _module_weight(number: int, suffix: str, model: str) -> str:
    """Returns a module's weight name, by the module's number in the whole network."""
    if MODELS[model].family != "drn_c":
        return f"layer{number}.{suffix}"
    # Convolution, norm and ReLU come before layer 1.
    return f"layer0.{number}.{suffix}" if number < 2 else f"layer{number - 2}.{suffix}"


def _decoder_weight(suffix: str, model: str) -> str | None:
    if MODELS[model].family == "resnet":
        return re.sub(r"^conv_decode4\.", "head.", suffix)
    number, _, weight = suffix.partition(".")
    layers = {"0": "layer6", "1": "layer7", "2": "layer8", "3": "head", "4": "up"}
    return f"{layers[number]}.{weight}" if number in layers else None


def _task(name: str) -> str:
    """Returns our name of a task in a file; the file's name if it is none of ours."""
    try:
        return task_table.resolve([name])[0]
    except InputError:
        return name
