# SPDX-License-Identifier: Apache-2.0
"""Models: an image in [0, 1] to a dict of outputs, one per task, at its resolution."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import keras

from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.models import drn
from mtr_tf.models import resnet
from mtr_tf.models import small
from mtr_tf.models import tiny
from mtr_tf.models.layers import Blocks
from mtr_tf.models.multitask import Architecture
from mtr_tf.models.multitask import assemble
from mtr_tf.models.multitask import check_image_shape
from mtr_tf.models.multitask import checked_stages
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import task_set

__all__ = ["MODELS", "build", "check_image_size", "check_stages", "normalization"]


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


MODELS = {
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "drn_c_26": _drn("c", 2, 2, 2, 2),
    "drn_d_22": _drn("d", 2, 2, 2, 2),
    "drn_d_38": _drn("d", 3, 4, 6, 3),
    "drn_d_54": _drn("d", 3, 4, 6, 3, bottleneck=True),
    "drn_d_105": _drn("d", 3, 4, 23, 3, bottleneck=True),
    "small": Architecture(
        small.STRIDE,
        small.WIDTH,
        small.STAGES,
        small.stage,
        small.decoder,
        small.head,
        small.STRIDE,
        replicate=True,
    ),
    "tiny": Architecture(
        tiny.STRIDE,
        tiny.WIDTH,
        tiny.STAGES,
        tiny.stage,
        tiny.decoder,
        tiny.head,
        tiny.STRIDE,
    ),
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
    return assemble(
        name,
        _architecture(name),
        _task_set(tasks),
        image_shape,
        num_classes,
        width=width,
        decoders=decoders,
        shared_stages=shared_stages,
        mean=mean,
        std=std,
        blocks=Blocks(seed, sync_batch_norm),
    )


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
    checked_stages(name, _architecture(name), decoders, shared_stages)


def check_image_size(name: str, size: Sequence[int | None]) -> None:
    """Raises `InputError` unless a model takes images of size (height, width)."""
    check_image_shape(name, (*size, 3), _architecture(name).stride)


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
