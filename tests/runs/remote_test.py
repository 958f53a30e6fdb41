# SPDX-License-Identifier: Apache-2.0
"""Runs at addresses: the same bits and numbers as runs in folders, whatever fails."""

from __future__ import annotations

import json
import pathlib
import sys
import types

import fsspec
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attack_job
from mtr_tf import compare
from mtr_tf.cli import stopping
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import sweep
from mtr_tf.runs import addresses
from mtr_tf.runs import checkpoints
from mtr_tf.runs import loading
from mtr_tf.runs import remote
from mtr_tf.training import loop as training

SIZE = (8, 8)


def example(seed):
    rng = np.random.default_rng(seed)
    seg = (np.arange(8) > seed % 6)[:, None] & np.ones(SIZE, bool)
    image = np.where(seg[..., None], 0.8, 0.2) + rng.uniform(0, 0.2, (*SIZE, 3))
    return {"image": image, "targets": {"seg": seg.astype(int), "depth": image[..., 0]}}


def examples():
    return {
        "train": [example(i) for i in range(8)],
        "validation": [example(i) for i in range(8, 12)],
        "classes": ["ground", "block"],
    }


@pytest.fixture(scope="module", autouse=True)
def module():
    made = types.ModuleType("own_remote")
    made.examples = examples
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "own_remote", made)
        yield


CONFIG = TrainConfig(
    dataset="own_remote:examples",
    tasks=("seg", "depth"),
    model="tiny",
    batch_size=4,
    epochs=2,
    schedule="constant",
    checkpoint_every=1,
    eval_every=2,
    eval_steps=1,
    summary_every=1,
    deterministic=False,
    strategy="one_device",
)


def attack(ckpt):
    return AttackConfig(
        ckpt=str(ckpt),
        dataset="own_remote:examples",
        attack=("fgsm",),
        eps=(4.0,),
        attack_tasks=("each",),
        name="a",
        checks=False,
        deterministic=False,
        strategy="one_device",
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "run"
    training.train(CONFIG, folder)
    attack_job.attack(attack(folder))
    return folder

def test_it(here):
    address = "ram://bucket/it/run"
    training.train(CONFIG, address)
    told = attack_job.attack(attack(address))
    print(told)
    place = addresses.place(address, "x")
    print(place.names())
    print(place.read("train.flags").decode())
    print(place.read("attacks/a/settings.json").decode())
    print(place.read("config.json").decode()[:600])
    a = place.read("attacks/a/results.json"); b = (here/"attacks/a/results.json").read_bytes()
    assert a == b
    assert 0
