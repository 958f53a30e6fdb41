# SPDX-License-Identifier: Apache-2.0
"""What is decided before a training run begins."""

from __future__ import annotations

import logging

import pytest

from mtr_tf.config.train import TrainConfig
from mtr_tf.training import job as job_lib


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
    (said,) = caplog.messages
    why = "" if compiled else ", but --sync_batch_norm speaks to other replicas within"
    assert f"(--jit=on{why}" in said
    assert said.startswith("XLA compiles no") != compiled
