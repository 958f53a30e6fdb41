# SPDX-License-Identifier: Apache-2.0
"""The keys that identify finished work, and those that records repeat."""

from __future__ import annotations

import dataclasses

from mtr_tf.evaluation.provenance import Provenance

PROVENANCE = Provenance(
    mtr_tf="0.2",
    tensorflow="2",
    keras="3",
    model="m",
    source="s",
    fast=False,
    precision="float32",
    input=None,
    dataset="rooms",
    split="validation",
    num_examples=4,
    data="d",
    tasks=("seg",),
    seed=1,
    interval_over="4 images",
    images="8x8x3 0123",
)


def test_finished_work_is_known_by_these_keys():
    keys = "mtr_tf tensorflow keras model source fast precision input dataset split"
    keys = [*keys.split(), "num_examples", "data", "tasks", "seed"]
    assert list(PROVENANCE.to_dict()) == keys
    random_model = dataclasses.replace(PROVENANCE, batch_size=8)
    assert list(random_model.to_dict()) == [*keys, "batch_size"]
    own_targets = dataclasses.replace(PROVENANCE, targets="own")
    assert list(own_targets.to_dict()) == keys  # The data's fingerprint has them.


def test_records_repeat_these_keys_in_this_order():
    measures = {
        "seed": 1,
        "dataset": "rooms",
        "split": "validation",
        "images": "8x8x3 0123",
        "model_fingerprint": "m",
        "precision": "float32",
        "interval_over": "4 images",
        "warnings": ["w"],
    }
    assert list(PROVENANCE.of_measures(["w"]).items()) == list(measures.items())
    attacks = measures | {"source_fingerprint": "s", "fast": False}
    assert list(PROVENANCE.of_attacks(["w"]).items()) == list(attacks.items())
    own_targets = dataclasses.replace(PROVENANCE, targets="own")
    assert own_targets.of_attacks(["w"]) == attacks | {"targets": "own"}
    scaled_input = dataclasses.replace(PROVENANCE, input=((2.0,), (-1.0,)))
    assert scaled_input.of_attacks(["w"]) == attacks | {"input": ((2.0,), (-1.0,))}
