# SPDX-License-Identifier: Apache-2.0
"""One image in, one output per task: encoder, decoders and heads as a Keras model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence

import keras

from mtr_tf.errors import InputError
from mtr_tf.errors import is_whole
from mtr_tf.models.layers import BilinearUpSampling
from mtr_tf.models.layers import Blocks
from mtr_tf.tasks import TaskSet

DECODERS = ("separate", "shared")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What distinguishes one model from another.

    Attributes:
      stride: Image sides must be multiples of it.
      width: Default channels of the first layer; all others scale with it.
      stages: How many stages the encoder has.
      stage: (blocks, features, width, name, number) -> features, one stage of the
        encoder; stage 0 takes the image.
      decoder: (blocks, features, width, name) -> features for the heads.
      head: (blocks, features, channels, name) -> one task's output.
      upsample: How many times smaller than the image a head's output is.
      replicate: Whether up-sampling continues a map with its edge; DRN's uses zeros.
      family: resnet, drn_c or drn_d, whose published weights fit; "" for others.
    """

    stride: int
    width: int
    stages: int
    stage: Callable
    decoder: Callable
    head: Callable
    upsample: int = 1
    replicate: bool = False
    family: str = ""


def assemble(
    name: str,
    architecture: Architecture,
    tasks: TaskSet,
    image_shape: Sequence[int | None],
    num_classes: int | None,
    *,
    width: int | None,
    decoders: str,
    shared_stages: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    blocks: Blocks,
) -> keras.Model:
    """Checks the settings and builds the model; `mtr_tf.models.build` explains them."""
    width = architecture.width if width is None else width
    check_image_shape(name, image_shape, architecture.stride)
    _check_tasks(tasks, num_classes)
    channels = image_shape[2] or 0
    mean = [0.5 for _ in range(channels)] if mean is None else mean
    std = [0.25 for _ in range(channels)] if std is None else std
    _check_settings(width, decoders, mean, std, channels)
    shared_stages = checked_stages(name, architecture, decoders, shared_stages)

    image = keras.Input(tuple(image_shape), name="image", dtype="float32")
    x = _normalize(image, mean, std)
    for number in range(shared_stages):
        x = architecture.stage(blocks, x, width, "encoder", number)
    shared_features, outputs = None, {}
    if decoders == "shared":
        shared_features = architecture.decoder(blocks, x, width, "decoder_shared")
    for task, record in tasks.items():
        features = (
            shared_features
            if shared_features is not None
            else _branch(architecture, blocks, x, width, task, shared_stages)
        )
        channels = record.output_channels(num_classes)
        if record.is_map:
            output = architecture.head(blocks, features, channels, f"head_{task}")
            outputs[task] = _finish(output, architecture, task)
        else:
            outputs[task] = _image_head(blocks, features, channels, task)
    return keras.Model(image, outputs, name=name)


def _branch(architecture, blocks, x, width, task, shared_stages):
    """Applies a task's own stages of the encoder, after the shared, and its decoder."""
    blocks = dataclasses.replace(blocks, branch=task)
    for number in range(shared_stages, architecture.stages):
        x = architecture.stage(blocks, x, width, f"encoder_{task}", number)
    return architecture.decoder(blocks, x, width, f"decoder_{task}")


def _normalize(image, mean, std):
    """Applies (x - mean) / std, in float32 under any precision policy.

    A step of one grey level vanishes in bfloat16 near 1, where its spacing is 1/256.
    """
    scale = [1 / s for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    return keras.layers.Rescaling(scale, offset, name="normalize", dtype="float32")(
        image
    )


def _finish(x, architecture, task):
    """Brings a head's output to float32 and to the image's resolution."""
    x = keras.layers.Activation("linear", name=f"output_{task}", dtype="float32")(x)
    if architecture.upsample == 1:
        return x
    return BilinearUpSampling(
        architecture.upsample,
        architecture.replicate,
        name=f"upsample_{task}",
        dtype="float32",
    )(x)


def _image_head(blocks, x, channels, task):
    """Applies a head for whole-image values: mean and dense layer, in float32."""
    x = keras.layers.GlobalAveragePooling2D(name=f"pool_{task}", dtype="float32")(x)
    return keras.layers.Dense(
        channels,
        kernel_initializer=blocks.uniform(x.shape[-1], f"head_{task}"),
        name=f"head_{task}",
        dtype="float32",
    )(x)


def check_image_shape(
    name: str, image_shape: Sequence[int | None], stride: int
) -> None:
    """Raises InputError unless the sides are multiples of the stride, or None."""
    if len(image_shape) != 3 or not image_shape[2] or image_shape[2] < 1:
        raise InputError(
            f"image_shape must be (height, width, channels), got {tuple(image_shape)}."
        )
    sides = image_shape[:2]
    if all(side is None or (side > 0 and side % stride == 0) for side in sides):
        return
    height, width = (
        side if side is None else max(stride, round(side / stride) * stride)
        for side in sides
    )
    raise InputError(
        f"{name} takes images whose height and width are multiples of {stride}, got "
        f"{sides[0]}x{sides[1]}; the nearest size that fits is {height}x{width}."
    )


def _check_tasks(tasks: TaskSet, num_classes: int | None) -> None:
    for task in tasks.values():
        if not task.is_map and task.axes:
            raise InputError(
                "Built-in models have heads for maps and for whole-image values only, "
                f"but targets of the task {task.name} have {task.axes} axes of places; "
                "leave it out of --tasks, or build the model yourself: "
                "--model=module:function."
            )
        if task.discrete and task.output_channels(num_classes) < 2:
            raise InputError(
                f"num_classes must be at least 2 for the task {task.name}, got "
                f"{task.channels if task.channels else num_classes}."
            )


def checked_stages(name, architecture, decoders, shared_stages):
    """Returns how many stages of the encoder are shared; None means all of them."""
    stages = architecture.stages
    if shared_stages is None:
        return stages
    if not is_whole(shared_stages) or not 0 <= shared_stages <= stages:
        raise InputError(
            f"shared_stages must be a whole number from 0 to {stages}, as many stages "
            f"as the encoder of {name} has, got {shared_stages!r}."
        )
    if decoders == "shared" and shared_stages < stages:
        raise InputError(
            "A decoder that all tasks share needs features that all share, but only "
            f"{shared_stages} of {stages} stages of the encoder are shared; leave out "
            "shared_stages, or give decoders=separate."
        )
    return shared_stages


def _check_settings(width, decoders, mean, std, channels):
    if not is_whole(width) or width < 1:
        raise InputError(f"width must be a whole number, 1 or more; got {width}.")
    if decoders not in DECODERS:
        raise InputError(f"decoders must be {' or '.join(DECODERS)}, got {decoders!r}.")
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise InputError(
            f"mean and std must have {channels} numbers each, one per channel, and std "
            f"must be above 0; got mean {tuple(mean)} and std {tuple(std)}."
        )
