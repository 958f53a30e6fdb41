# SPDX-License-Identifier: Apache-2.0
"""Which strategy a name gives; conftest.py has split the CPU in two already."""

import pytest
import tensorflow as tf

from mtr_tf.errors import InputError
from mtr_tf.runs import strategy

needs_cpu = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU"
)


@needs_cpu
@pytest.mark.parametrize("name", ["auto", "one_device"])
def test_one_cpu_is_one_device(name):
    made = strategy.create(name)
    assert isinstance(made, tf.distribute.OneDeviceStrategy)
    assert made.num_replicas_in_sync == 1


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
