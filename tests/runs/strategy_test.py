# SPDX-License-Identifier: Apache-2.0
"""Which strategy a name gives; conftest.py has split the CPU in two already."""

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf.errors import InputError
from mtr_tf.runs import strategy
from mtr_tf.runs.cluster import Cluster

needs_cpu = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU"
)


@needs_cpu
@pytest.mark.parametrize("name", ["auto", "one_device", "mirrored"])
def test_one_cpu_is_one_device(name):
    result = strategy.create(name)
    assert isinstance(result, tf.distribute.OneDeviceStrategy)
    assert result.num_replicas_in_sync == 1


@needs_cpu
@pytest.mark.parametrize("name", ["auto", "mirrored"])
def test_replicas_on_logical_cpus(name):
    assert strategy.create(name, 2).num_replicas_in_sync == 2


@needs_cpu
def test_the_cpu_cannot_be_split_once_tensorflow_runs():
    with pytest.raises(InputError, match="split into 3 devices"):
        strategy.create("mirrored", 3)


def test_several_replicas_on_one_device_make_no_sense():
    with pytest.raises(InputError, match="--replicas=2 needs --strategy=mirrored"):
        strategy.create("one_device", 2)


@pytest.mark.parametrize("name", ["multi_worker", "multi_worker_ring"])
def test_workers_must_be_named(name):
    with pytest.raises(InputError, match=f"--strategy={name} must find the addresses"):
        strategy.create(name)


@pytest.mark.parametrize(
    ("devices", "name", "collectives"),
    [
        (["GPU:0"], "auto", "NCCL"),
        (["GPU:0", "GPU:1"], "multi_worker", "NCCL"),
        (["GPU:0", "GPU:1"], "multi_worker_ring", "RING"),
        ([], "auto", "RING"),
    ],
)
def test_workers_speak_by_nccl_on_gpus_unless_the_ring_is_asked_for(
    monkeypatch, devices, name, collectives
):
    sent_facts = {}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: devices)
    monkeypatch.setattr(strategy, "_split_cpu", lambda count: ["CPU:0"])
    monkeypatch.setattr(
        strategy.rendezvous, "meet", lambda _, facts: sent_facts.update(facts)
    )
    monkeypatch.setattr(strategy, "_MultiWorker", lambda *arguments: arguments)
    cluster = Cluster(("a:1", "b:1"), 0, "TF_CONFIG")
    assert strategy.create(name, 0, cluster) == (
        cluster,
        devices or ["CPU:0"],
        collectives,
    )
    assert sent_facts["collectives"] == collectives


DTYPES = (tf.bool, tf.uint8, tf.int32, tf.int64, tf.float16, tf.bfloat16, tf.float32)


@pytest.mark.parametrize("replicas", [1, 2])
def test_results_of_replicas_are_joined_in_order_whatever_their_type(
    mirrored, replicas
):
    replica_strategy = (
        mirrored if replicas == 2 else tf.distribute.OneDeviceStrategy("CPU:0")
    )
    rows = np.array([[0, 1], [1, 0], [1, 1]])

    def step():
        second = tf.distribute.get_replica_context().replica_id_in_sync_group == 1
        values = tf.constant(1 - rows if second else rows)
        return {dtype.name: {"leaf": tf.cast(values, dtype)} for dtype in DTYPES}

    results = strategy.gathered(replica_strategy, replica_strategy.run(step))
    for dtype in DTYPES:
        array = results[dtype.name]["leaf"]
        assert array.dtype == dtype.as_numpy_dtype
        want = np.concatenate([rows, 1 - rows][:replicas])
        np.testing.assert_array_equal(array, want)
