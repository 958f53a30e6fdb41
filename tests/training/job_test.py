# SPDX-License-Identifier: Apache-2.0
"""What is decided before a training run begins."""

from __future__ import annotations

import logging
import types

import numpy as np
import pytest

from mtr_tf import data
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.custom import reading
from mtr_tf.errors import InputError
from mtr_tf.runs import directory
from mtr_tf.training import job as job_lib
from mtr_tf.training.monitor import Monitor


@pytest.mark.parametrize(
    ("sync", "replicas", "compiled"),
    [(True, 1, True), (False, 2, True), (True, 2, False)],
)
def test_no_xla_where_batch_norms_speak_to_other_replicas(
    caplog, sync, replicas, compiled
):
    config = TrainConfig(tasks=("seg",), sync_batch_norm=sync, jit="on")
    caplog.set_level(logging.INFO, "absl")
    assert job_lib._jit(config, 10, (16, 16), replicas) == compiled
    (message,) = caplog.messages
    reason = (
        "" if compiled else ", but --sync_batch_norm speaks to other replicas within"
    )
    assert f"(--jit=on{reason}" in message
    assert message.startswith("XLA compiles no") != compiled


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "small", "shared_stages": 6}, "from 0 to 3, .* small has, got 6"),
        ({"shared_stages": 1, "decoders": "shared"}, "give decoders=separate"),
    ],
)
def test_stages_that_cannot_be_shared_are_refused_before_data_are_opened(
    monkeypatch, settings, message
):
    monkeypatch.setitem(data.DATASETS, "rooms", None)
    with pytest.raises(InputError, match=message):
        job_lib.resolve(TrainConfig(tasks=("seg", "depth"), **settings))


def open_masked(**valid):
    """A source with one example per split, whose depth is valid or not."""
    image, seg = np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=int)
    targets = {"seg": seg, "depth": np.arange(64.0).reshape(8, 8)}
    examples = {
        split: [(image, targets, {"depth": np.full((8, 8), is_valid)})]
        for split, is_valid in valid.items()
    }
    return reading.open_given("masked", examples)


def test_a_task_without_any_target_to_train_on_is_refused(monkeypatch, caplog):
    source = open_masked(train=False, validation=True)
    monkeypatch.setitem(data.DATASETS, "masked", lambda **_: source)
    config = TrainConfig(tasks=("seg", "depth"), dataset="masked", model="tiny")
    with pytest.raises(InputError, match="depth must have targets in train, but none"):
        job_lib.resolve(config)
    job_lib._check_targets(source.info.tasks.select(["seg"]), source, False)
    job_lib._check_targets(source.info.tasks, source, True)  # A run that has begun.
    assert "no example of train has a target of depth" in caplog.text


def test_a_task_without_any_target_in_validation_is_warned_of(caplog):
    for valid, expected in ((True, []), (False, ["depth"])):
        caplog.clear()
        source = open_masked(train=True, validation=valid)
        job_lib._check_targets(source.info.tasks, source, False)
        assert [
            m.split("target of ")[1].split(",")[0] for m in caplog.messages
        ] == expected


def test_facts_of_data_that_have_become_fewer(tmp_path):
    """Fewer examples than were trained on are refused when facts are compared."""
    source = open_masked(train=True, validation=True)
    facts = job_lib.data_facts(source, 16)
    assert facts == job_lib.data_facts(source, 1)
    assert facts["train"]["examples"] == 1
    directory.check_data(tmp_path, facts, facts)
    old_facts = facts | {"train": facts["train"] | {"examples": 16}}
    with pytest.raises(InputError, match="train had 16 examples and has 1[.]"):
        directory.check_data(tmp_path, old_facts, facts)


def test_workers_do_not_agree_on_examples_that_are_others_at_each_look():
    """A reader that varies pictures itself gives each worker different ones."""
    rng = np.random.default_rng(0)

    class Varied:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            targets = {"seg": np.eye(8, dtype=int)}
            return {"image": rng.random((8, 8, 3)), "targets": targets}

    for examples, varies in ((Varied(), True), ([Varied()[0]] * 3, False)):
        facts = {"classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3}
        source = reading.open_given("some", {"train": examples, **facts})
        columns, tasks = source.columns("train"), source.info.tasks
        assert (job_lib._ends(columns, tasks) is None) == varies


def test_a_loss_of_zero_in_the_whole_first_epoch_is_warned_of(caplog):
    """As with data that are read lazily, whose masks are not checked beforehand."""
    run = types.SimpleNamespace(tasks=("a", "b", "c"), _per_epoch=4)
    run._silent = list(run.tasks)
    for step, losses in ((3, [1, 0, 0]), (6, [0, 0, 2]), (9, [0, 0, 0])):
        Monitor._warn_of_missing_targets(run, step, np.array(losses, np.float32))
    (message,) = caplog.messages
    assert message.startswith(
        "the loss of b was 0 in each of the first 6 steps: perhaps"
    )
