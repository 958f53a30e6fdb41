# SPDX-License-Identifier: Apache-2.0
"""Where a run computes: on one device or several, of one machine or many.

Without a GPU the CPU is split into logical devices, which compute the same as that many
GPUs; this is meant for trials and tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

from mtr_tf.errors import InputError
from mtr_tf.errors import first_line
from mtr_tf.runs import rendezvous
from mtr_tf.runs.cluster import Cluster


def create(
    name: str, replicas: int = 0, cluster: Cluster | None = None
) -> tf.distribute.Strategy:
    """Creates the strategy of a name.

    `auto` is multi_worker if there are several workers, else mirrored if there are
    several GPUs or replicas are asked for, else the one GPU, else the CPU.
    multi_worker_ring is multi_worker without NCCL between GPUs.

    Args:
      name: auto, one_device, mirrored, multi_worker or multi_worker_ring.
      replicas: The number of devices of `mirrored`, or of each worker; 0: all GPUs.
      cluster: The workers; one_device and mirrored do not use several.

    Raises:
      InputError: More replicas are asked for than there are GPUs (if there are any) or
        than one device has, or TensorFlow has started before the CPU could be split,
        or the workers cannot be joined.
    """
    gpus = [f"GPU:{i}" for i in range(len(tf.config.list_physical_devices("GPU")))]
    if name.startswith("multi_worker") and not cluster:
        raise InputError(
            f"--strategy={name} must find the addresses of the workers in the "
            "variable TF_CONFIG or in those of SLURM's srun, and there are none; start "
            "it by launch/workers.sh, or leave it out."
        )
    ring = name == "multi_worker_ring"
    if takes_workers(name):
        many_devices = len(gpus) > 1 or replicas > 1
        name = "mirrored" if many_devices else "one_device"
        if cluster and cluster.several:
            name = "multi_worker"
    if name == "one_device":
        if replicas > 1:
            raise InputError(
                f"--replicas={replicas} needs --strategy=mirrored, but got "
                "one_device; leave out one of the two."
            )
        return tf.distribute.OneDeviceStrategy(gpus[0] if gpus else "CPU:0")
    if replicas > len(gpus) > 0:
        raise InputError(
            f"--replicas must be at most the number of GPUs, {len(gpus)}; got "
            f"{replicas}."
        )
    devices = gpus[: replicas or None] or _split_cpu(max(replicas, 1))
    if name == "multi_worker" and cluster:
        return _join_workers(cluster, devices, _communication(devices, ring))
    return _mirrored_strategy(devices)


def takes_workers(name: str) -> bool:
    """Whether a strategy of this name uses the workers that the environment names."""
    return name not in ("one_device", "mirrored")


def local(strategy: tf.distribute.Strategy) -> tf.distribute.Strategy:
    """A strategy on the devices of this worker alone, which is one of several."""
    return _mirrored_strategy(strategy.extended.worker_devices)


def gathered(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """The values of this process's replicas as arrays, joined along the first axis.

    `strategy.gather` is not used: between GPUs it does not take all types (not bool),
    and it makes a new graph for each tensor.

    Args:
      strategy: A strategy of this process alone; see `local`.
      values: A structure of per-replica `[batch, ...]` tensors.
    """

    def join(value: Any) -> np.ndarray:
        parts = strategy.experimental_local_results(value)
        arrays = [part.numpy() for part in parts]
        return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]

    return tf.nest.map_structure(join, values)


def _mirrored_strategy(devices: Sequence[str]) -> tf.distribute.Strategy:
    if len(devices) == 1:  # XLA cannot compile an update in a mirrored replica.
        return tf.distribute.OneDeviceStrategy(devices[0])
    if "GPU" in devices[0]:
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.MirroredStrategy(
        devices,
        # The default for CPUs, collectives, fails where their shapes change.
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


class _Extended(collective_all_reduce_strategy.CollectiveAllReduceExtended):
    """The extended part of MultiWorkerMirroredStrategy, on named devices.

    TensorFlow's own takes all GPUs, but only one of the devices of a split CPU.
    """

    def __init__(self, strategy: tf.distribute.Strategy, devices: list[str], **options):
        self._named = devices
        super().__init__(strategy, **options)

    def _initialize_local_devices(self, cluster_resolver, worker_device):
        devices = tuple(f"{worker_device}/device:{name}" for name in self._named)
        return devices, self._named[0].partition(":")[0]


class _MultiWorker(tf.distribute.MultiWorkerMirroredStrategy):
    """MultiWorkerMirroredStrategy on given devices of each worker."""

    def __init__(self, cluster: Cluster, devices: list[str], communication: str):
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
            task_type="worker",
            task_id=cluster.index,
            rpc_layer="grpc",
        )
        extended = _Extended(
            self,
            devices,
            cluster_resolver=resolver,
            communication_options=tf.distribute.experimental.CommunicationOptions(
                implementation=communication
            ),
        )
        tf.distribute.Strategy.__init__(self, extended)


def _communication(devices: Sequence[str], ring: bool) -> str:
    """How replicas of several workers communicate, by TensorFlow's name.

    NCCL supports all that is needed: sums of the types that variables may have, and
    gathered int32 and int64. The initial values of variables are sent by TensorFlow's
    own tree in any case.
    """
    return "NCCL" if "GPU" in devices[0] and not ring else "RING"


def _join_workers(
    cluster: Cluster, devices: list[str], communication: str
) -> tf.distribute.Strategy:
    """Waits for all workers, and joins them."""
    address = cluster.addresses[cluster.index]
    facts = {
        "replicas": len(devices),
        "collectives": communication,
        "addresses": ", ".join(cluster.addresses),
    }
    rendezvous.meet(cluster, facts)
    try:
        return _MultiWorker(cluster, devices, communication)
    except RuntimeError as error:
        raise InputError(
            "the workers can only be joined before TensorFlow runs anything "
            f"({first_line(error)}); start a new process."
        ) from error
    except tf.errors.OpError as error:
        if "Could not start gRPC server" in error.message:
            raise InputError(
                f"worker {cluster.index} must have the address {address} for itself, "
                f"and its port is in use; end what has it, or give another port in "
                f"{cluster.said_by}."
            ) from error
        raise InputError(
            f"worker {cluster.index} ({address}) cannot join the others "
            f"({first_line(error)}); start all of them, each once, with the same "
            f"{cluster.said_by}."
        ) from error
