# SPDX-License-Identifier: Apache-2.0
"""Where a run computes: one device, or a replica on each of several."""

from __future__ import annotations

import tensorflow as tf

from mtr_tf.errors import InputError


def create(name: str, replicas: int = 0) -> tf.distribute.Strategy:
    """The strategy of a name.

    `auto` is mirrored if there are several GPUs or replicas are asked for, else the one
    GPU, else the CPU. `mirrored` with no GPU splits the CPU into `replicas` logical
    devices, which computes what as many GPUs would and is there for trials and tests.

    Args:
      name: auto, one_device or mirrored.
      replicas: how many devices `mirrored` takes; 0 takes all GPUs.

    Raises:
      InputError: more replicas are asked for than there are GPUs (where there are
        any) or than one device has, or TensorFlow has started before the CPU could be
        split.
    """
    gpus = [f"GPU:{i}" for i in range(len(tf.config.list_physical_devices("GPU")))]
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 or replicas > 1 else "one_device"
    if name == "one_device":
        if replicas > 1:
            raise InputError(
                f"--replicas={replicas} needs --strategy=mirrored, but got "
                "one_device; leave out one of the two."
            )
        return tf.distribute.OneDeviceStrategy(gpus[0] if gpus else "CPU:0")
    if gpus:
        if replicas > len(gpus):
            raise InputError(
                f"--replicas must be at most the number of GPUs, {len(gpus)}; got "
                f"{replicas}."
            )
        return tf.distribute.MirroredStrategy(gpus[: replicas or None])
    return tf.distribute.MirroredStrategy(
        _split_cpu(max(replicas, 1)),
        # The default for CPUs fails on collectives of changing shapes, and in loops.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def _split_cpu(count: int) -> list[str]:
    physical = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(physical)
    if len(configured or [None]) < count:
        try:
            tf.config.set_logical_device_configuration(
                physical, [tf.config.LogicalDeviceConfiguration()] * count
            )
        except RuntimeError as error:
            raise InputError(
                f"the CPU can be split into {count} devices only before TensorFlow "
                "runs anything; start a new process."
            ) from error
    return [f"CPU:{i}" for i in range(count)]
