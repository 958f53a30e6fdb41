# SPDX-License-Identifier: Apache-2.0
"""Models: an image in [0, 1] to a dict of outputs, one per task, at its resolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.errors import is_whole
from mtr_tf.models import drn
from mtr_tf.models import resnet
from mtr_tf.models import small
from mtr_tf.models import tiny
from mtr_tf.models.layers import BilinearUpSampling
from mtr_tf.models.layers import Blocks
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import task_set

__all__ = ["MODELS", "build", "check_image_size", "check_stages", "normalization"]

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


def _drn(family: str, *depths: int, bottleneck: bool = False) -> Architecture:
    net = drn.DRN(family, depths, bottleneck)
    return Architecture(
        drn.STRIDE,
        drn.WIDTH,
        drn.STAGES,
        net.stage,
        net.decoder,
        drn.head,
        drn.STRIDE,
        family=f"drn_{family}",
    )


def _resnet(*depths: int, bottleneck: bool = False) -> Architecture:
    return Architecture(
        resnet.STRIDE,
        resnet.WIDTH,
        resnet.STAGES,
        resnet.ResNet(depths, bottleneck).stage,
        resnet.decoder,
        resnet.head,
        family="resnet",
    )


def _of_module(module: Any, **options: Any) -> Architecture:
    """The architecture whose parts are all in a module, such as `small`."""
    return Architecture(
        module.STRIDE,
        module.WIDTH,
        module.STAGES,
        module.stage,
        module.decoder,
        module.head,
        **options,
    )


MODELS = {
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "drn_c_26": _drn("c", 2, 2, 2, 2),
    "drn_d_22": _drn("d", 2, 2, 2, 2),
    "drn_d_38": _drn("d", 3, 4, 6, 3),
    "drn_d_54": _drn("d", 3, 4, 6, 3, bottleneck=True),
    "drn_d_105": _drn("d", 3, 4, 23, 3, bottleneck=True),
    "small": _of_module(small, upsample=small.STRIDE, replicate=True),
    "tiny": _of_module(tiny, upsample=tiny.STRIDE),
}


def build(
    name: str,
    tasks: str | Iterable[str | Task] | Mapping[str, Task],
    image_shape: Sequence[int | None],
    num_classes: int | None,
    *,
    width: int | None = None,
    decoders: str = "separate",
    shared_stages: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    sync_batch_norm: bool = False,
) -> keras.Model:
    """Builds a multi-task model with new weights.

    The weights are a pure function of (seed, layer name), so nets with the same seed
    start with the same encoder, and with the same heads for the tasks that they share.
    A task's own stages start as shared ones would.

    Args:
      name: Key of MODELS.
      tasks: Tasks, or names, aliases or letters of the eleven; the outputs come in this
        order.
      image_shape: (height, width, channels). The sides must be multiples of the model's
        stride (32 for ResNets, 8 for DRNs, 4 for the others), or None for any such
        multiple.
      num_classes: Number of classes of tasks that have classes but do not say how many;
        may be None if there are no such tasks.
      width: Channels of the first layer; None is the published size.
      decoders: "separate" gives each task its own decoder; "shared" gives it only its
        own last convolution.
      shared_stages: How many stages of the encoder all tasks share, counted from the
        image; each task has its own copy of the others, named encoder_TASK_.... None:
        all; 0: tasks share no weights. ResNets have 5 stages (the stem and layers 1 to
        4), DRNs 6 (layers 0 to 5), small 3 and tiny 2.
      mean: What the layer "normalize" subtracts from images in [0, 1], per channel;
        None: 0.5 for each.
      std: What it then divides by, per channel; None: 0.25 for each.
      seed: Seed of the initial weights.
      sync_batch_norm: Whether batch statistics are taken over all replicas.

    Returns:
      A functional model from float32 [batch, H, W, C] in [0, 1] to a dict of float32
      [batch, H, W, channels], or [batch, channels] for tasks of one value per image
      (logits for classes and labels), under any precision policy.

    Raises:
      InputError: If a setting cannot be used; the message says what can.
    """
    architecture, tasks = _architecture(name), _task_set(tasks)
    width = architecture.width if width is None else width
    _check_image_shape(name, image_shape, architecture.stride)
    _check_tasks(tasks, num_classes)
    channels = image_shape[2] or 0
    mean = [0.5 for _ in range(channels)] if mean is None else mean
    std = [0.25 for _ in range(channels)] if std is None else std
    _check_settings(width, decoders, mean, std, channels)
    shared_stages = _checked_stages(name, architecture, decoders, shared_stages)

    blocks = Blocks(seed, sync_batch_norm)
    image = keras.Input(tuple(image_shape), name="image", dtype="float32")
    x = _normalize(image, mean, std)
    for number in range(shared_stages):
        x = architecture.stage(blocks, x, width, "encoder", number)
    features, outputs = None, {}
    if decoders == "shared":
        features = architecture.decoder(blocks, x, width, "decoder_shared")
    for task, record in tasks.items():
        if decoders == "separate":
            features = _branch(architecture, blocks, x, width, task, shared_stages)
        channels = record.output_channels(num_classes)
        if record.is_map:
            output = architecture.head(blocks, features, channels, f"head_{task}")
            outputs[task] = _finish(output, architecture, task)
        else:
            outputs[task] = _image_head(blocks, features, channels, task)
    return keras.Model(image, outputs, name=name)


def normalization(model: keras.Model) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and std that `build` gave a model, one number per channel.

    Raises:
      InputError: The model was not built by `build`.
    """
    layer = next((layer for layer in model.layers if layer.name == "normalize"), None)
    scale, offset = (getattr(layer, part, None) for part in ("scale", "offset"))
    if not isinstance(scale, list | tuple) or not isinstance(offset, list | tuple):
        raise InputError(
            "The mean and standard deviation that images are standardised with are "
            f"known only for built-in models, and {model.name} is not one; choose "
            "something that does not need them."
        )
    return mean_and_std(scale, offset)


def mean_and_std(
    scale: Sequence[float], offset: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std of x * scale + offset = (x - mean) / std, by channel."""
    mean = (round(-o / s, 12) for o, s in zip(offset, scale, strict=True))
    return tuple(mean), tuple(round(1 / s, 12) for s in scale)


def check_stages(name: str, decoders: str, shared_stages: int | None) -> None:
    """Raises `InputError` unless the model exists and can share this many stages.

    Args:
      name: Key of MODELS.
      decoders: As for `build`.
      shared_stages: As for `build`.
    """
    _checked_stages(name, _architecture(name), decoders, shared_stages)


def check_image_size(name: str, size: Sequence[int | None]) -> None:
    """Raises `InputError` unless a model takes images of size (height, width)."""
    _check_image_shape(name, (*size, 3), _architecture(name).stride)


def _task_set(tasks: str | Iterable[str | Task] | Mapping[str, Task]) -> TaskSet:
    """Returns the tasks as a set: one or more, with distinct names."""
    if isinstance(tasks, str | Mapping):
        return task_set(tasks)
    tasks = tuple(tasks)
    names = [task for task in tasks if isinstance(task, str)]
    return TASKS.select(names) if len(names) == len(tasks) else task_set(tasks)


def _architecture(name: str) -> Architecture:
    if name not in MODELS:
        hint = did_you_mean(name, MODELS)
        raise InputError(
            f"Unknown model {name!r}.{hint} The models are {', '.join(MODELS)}."
        )
    return MODELS[name]


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


def _check_image_shape(
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


def _checked_stages(name, architecture, decoders, shared_stages):
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
