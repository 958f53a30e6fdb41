# SPDX-License-Identifier: Apache-2.0
"""Which example comes in which step, and on which replica."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf.cli import flags as cli_flags
from mtr_tf.data import batching
from mtr_tf.data.augment import Augment
from mtr_tf.data.source import Columns
from mtr_tf.errors import InputError

STORED = ("seg", "depth", "normal")
TASKS = (*STORED, "autoencoder", "edge_texture", "keypoints2d")
HEIGHT, WIDTH = 6, 8
VARIED = Augment(flip=True, crop=(4, 5))


def make_columns(n: int = 11) -> Columns:
    rng = np.random.default_rng(0)
    shape = (n, HEIGHT, WIDTH)
    seg = rng.integers(0, 5, shape).astype(np.uint8)
    seg[:, 0] = 255  # void
    return Columns(
        images=rng.integers(0, 256, (*shape, 3)).astype(np.uint8),
        targets={
            "seg": seg,
            "depth": rng.normal(size=(*shape, 1)).astype(np.float32),
            "normal": rng.normal(size=(*shape, 3)).astype(np.float32),
        },
        masks={
            "seg": seg != 255,
            "depth": rng.random(shape) < 0.8,
            "normal": np.ones(shape, bool),
        },
    )


def context(replicas: int, pipelines: int = 1, pipeline: int = 0):
    return tf.distribute.InputContext(pipelines, pipeline, replicas)


def train(columns, first, last, *, batch_size=4, seed=7, **options):
    dataset = batching.train_batches(
        columns,
        TASKS,
        batch_size=batch_size,
        seed=seed,
        first_step=first,
        last_step=last,
        **options,
    )
    return list(dataset.as_numpy_iterator())


def assert_same(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def join(shares):
    """The global batch, from the shares of one step in the order of replicas."""

    def concat(*parts):
        return np.concatenate(parts) if np.ndim(parts[0]) else parts[0]

    return tf.nest.map_structure(concat, *shares)


# gather


def test_gather_reads_rows_and_pads():
    columns = make_columns()
    batch = batching.gather(columns, STORED, [3, -1, 0, 3])
    np.testing.assert_array_equal(batch["index"], [3, -1, 0, 3])
    assert batch["index"].dtype == np.int64
    for place, row in ((0, 3), (2, 0), (3, 3)):
        np.testing.assert_allclose(
            batch["image"][place], columns.images[row] / 255.0, rtol=1e-7
        )
        for task in STORED:
            np.testing.assert_array_equal(
                batch["targets"][task][place], columns.targets[task][row]
            )
            np.testing.assert_array_equal(
                batch["masks"][task][place], columns.masks[task][row]
            )
    for value in tf.nest.flatten([batch["image"], batch["targets"], batch["masks"]]):
        assert not value[1].any()
    assert batch["image"].dtype == np.float32
    assert batch["targets"]["seg"].dtype == np.int32
    assert batch["targets"]["normal"].dtype == np.float32
    assert {mask.dtype for mask in batch["masks"].values()} == {np.dtype("float32")}


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_labels_that_are_no_class_are_refused_where_they_are_known(label):
    labels = np.zeros((4, 5, 6), np.int64)
    labels[2, 1, 1] = label
    valid = np.ones((4, 5, 6), bool)
    images = np.zeros((4, 5, 6, 3), np.uint8)
    columns = Columns(images, {"seg": labels}, {"seg": valid})
    message = (
        f"seg must be from 0 to 2 where they are known, but example 2 has {label}; m"
    )
    with pytest.raises(InputError, match=message):
        batching.gather(columns, ["seg"], [3, 2, -1], num_classes=3)
    batching.gather(columns, ["seg"], [3, -1], num_classes=3)
    batching.gather(columns, ["seg"], [3, 2], num_classes=None)
    masked_columns = Columns(images, {"seg": labels}, {"seg": labels == 0})
    batching.gather(masked_columns, ["seg"], [3, 2], num_classes=3)
    options = {"batch_size": 1, "num_classes": 3}
    batches = batching.eval_batches(columns, ["seg"], **options)
    with pytest.raises(tf.errors.OpError) as error:
        list(batches)
    assert message in cli_flags.input_error_within(error.value)
    with pytest.raises((tf.errors.OpError, InputError), match=message):  # Shuffled.
        list(
            batching.train_batches(
                columns, ["seg"], seed=0, first_step=0, last_step=4, **options
            )
        )


def test_gather_of_padding_alone_keeps_the_shapes():
    batch = batching.gather(make_columns(), TASKS, [-1, -1])
    assert batch["image"].shape == (2, HEIGHT, WIDTH, 3)
    assert batch["targets"]["autoencoder"].shape == (2, HEIGHT, WIDTH, 3)
    assert batch["targets"]["edge_texture"].shape == (2, HEIGHT, WIDTH, 1)
    assert not any(mask.any() for mask in batch["masks"].values())


def test_padding_has_inputs_that_a_model_can_take():
    """Also at the end of a split, where a replica may get nothing but padding."""
    gains = np.arange(1, 13, dtype=np.float32).reshape(3, 2, 2)
    columns = dataclasses.replace(make_columns(3), inputs={"gain": gains})

    def gains_of(batch):
        images = batch["image"]
        padding = batch["index"] < 0
        assert not np.asarray(images)[padding][..., :3].any()
        return columns.layout.unpack(np.asarray(images), np.reshape)["gain"]

    padding_batch = batching.gather(columns, STORED, [-1, -1])
    np.testing.assert_array_equal(gains_of(padding_batch), gains[[0, 0]])
    mixed_batch = batching.gather(columns, STORED, [-1, 2, -1, 1])
    np.testing.assert_array_equal(gains_of(mixed_batch), gains[[2, 2, 2, 1]])
    shares = batching.eval_batches(columns, STORED, batch_size=2, context=context(2))
    result = np.concatenate([gains_of(share) for share in shares])
    np.testing.assert_array_equal(result, gains[[0, 1, 2, 0]])


def test_gather_computes_the_tasks_of_the_picture():
    columns = make_columns()
    batch = batching.gather(columns, ("autoencoder", "edge_texture"), [2, -1, 5])
    np.testing.assert_array_equal(batch["targets"]["autoencoder"], batch["image"])
    assert (batch["masks"]["autoencoder"] == np.array([1, 0, 1])[:, None, None]).all()
    single_batch = batching.gather(columns, ("edge_texture",), [5])
    np.testing.assert_array_equal(
        batch["targets"]["edge_texture"][2:], single_batch["targets"]["edge_texture"]
    )


def test_a_task_without_a_mask_is_known_everywhere():
    columns = dataclasses.replace(make_columns(), masks={})
    batch = batching.gather(columns, ("seg",), [4, -1])
    assert (batch["masks"]["seg"] == np.array([1, 0])[:, None, None]).all()


def test_memory_maps_give_the_same_batches(tmp_path):
    columns = make_columns()

    def memory_map(name, array):
        np.save(tmp_path / name, array)
        return np.load(tmp_path / f"{name}.npy", mmap_mode="r")

    disk_columns = Columns(
        images=memory_map("images", columns.images),
        targets={t: memory_map(f"t_{t}", v) for t, v in columns.targets.items()},
        masks={t: memory_map(f"m_{t}", v) for t, v in columns.masks.items()},
    )
    assert isinstance(disk_columns.images, np.memmap)
    for a, b in zip(train(columns, 0, 3), train(disk_columns, 0, 3), strict=True):
        assert_same(a, b)


# the order


@pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (11, 4), (5, 5), (7, 1)])
def test_each_epoch_is_a_permutation(n, batch_size):
    steps = batching.steps_per_epoch(n, batch_size)
    assert steps == n // batch_size
    epochs = [
        np.concatenate(
            [
                batching.train_indices(n, batch_size, 3, epoch * steps + i)
                for i in range(steps)
            ]
        )
        for epoch in range(4)
    ]
    for epoch in epochs:
        assert len(epoch) == steps * batch_size == len(set(epoch.tolist()))
        assert set(epoch.tolist()) <= set(range(n))
    for a, b in itertools.combinations(epochs, 2):
        assert a.tolist() != b.tolist()


def test_every_example_gets_its_turn_when_epochs_drop_a_tail():
    indices = [batching.train_indices(11, 4, 0, step) for step in range(2 * 12)]
    assert set(np.concatenate(indices).tolist()) == set(range(11))


def test_indices_are_numpys_own_permutation():
    order = np.random.default_rng([5, 2]).permutation(10)
    indices = batching.train_indices(10, 3, 5, 2 * 3 + 1)
    np.testing.assert_array_equal(indices, order[3:6])
    assert indices.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        indices[0] = 0


def test_seeds_give_other_orders():
    orders = [tuple(batching.train_indices(50, 10, seed, 0)) for seed in range(20)]
    assert len(set(orders)) == 20


@pytest.mark.slow
@pytest.mark.parametrize("augment", [None, VARIED])
def test_starting_anywhere_goes_on_as_the_full_run(augment):
    columns = make_columns()
    full_run = train(columns, 0, 9, augment=augment)
    assert [int(batch["step"]) for batch in full_run] == list(range(9))
    for first in (1, 2, 8):
        part = train(columns, first, 9, augment=augment)
        assert len(part) == 9 - first
        for a, b in zip(full_run[first:], part, strict=True):
            assert_same(a, b)
    assert train(columns, 5, 5, augment=augment) == []


def test_a_batch_is_what_gather_reads():
    columns = make_columns()
    for step, batch in enumerate(train(columns, 0, 5)):
        indices = batching.train_indices(11, 4, 7, step)
        expected = batching.gather(columns, TASKS, indices)
        assert_same({name: batch[name] for name in expected}, expected)
        np.testing.assert_array_equal(batch["position"], np.arange(4))


def test_only_the_first_examples():
    batches = train(make_columns(), 0, 20, num_examples=5)
    assert {int(i) for batch in batches for i in batch["index"]} == set(range(5))


def test_static_shapes_and_cardinality():
    dataset = batching.train_batches(
        make_columns(),
        TASKS,
        batch_size=4,
        seed=0,
        first_step=2,
        last_step=9,
        augment=Augment(crop=(4, 5)),
        context=context(2),
    )
    spec = dataset.element_spec
    assert spec["image"] == tf.TensorSpec((2, 4, 5, 3), tf.float32)
    assert spec["targets"]["seg"] == tf.TensorSpec((2, 4, 5), tf.int32)
    assert spec["targets"]["normal"] == tf.TensorSpec((2, 4, 5, 3), tf.float32)
    assert spec["masks"]["depth"] == tf.TensorSpec((2, 4, 5), tf.float32)
    assert spec["index"] == spec["position"] == tf.TensorSpec((2,), tf.int64)
    assert spec["step"] == tf.TensorSpec((), tf.int64)
    assert int(dataset.cardinality()) == 7 * 2


# replicas and workers


@functools.cache
def of_one(augment):
    """Steps 1 to 5 as one replica gets them."""
    return train(make_columns(), 1, 6, augment=augment)


@pytest.mark.parametrize(("replicas", "augment"), [(2, None), (4, VARIED)])
def test_replicas_share_the_batch_of_one(augment, replicas):
    columns, batches = make_columns(), of_one(augment)
    shares = train(columns, 1, 6, augment=augment, context=context(replicas))
    assert len(shares) == replicas * len(batches)
    for step, expected in enumerate(batches):
        parts = shares[step * replicas : (step + 1) * replicas]
        assert_same(join(parts), expected)


@pytest.mark.parametrize("augment", [None, VARIED])
def test_two_workers_of_two_replicas(augment):
    columns, batches = make_columns(), of_one(augment)
    workers = [
        train(columns, 1, 6, augment=augment, context=context(4, 2, worker))
        for worker in range(2)
    ]
    for step, expected in enumerate(batches):
        parts = [share for w in workers for share in w[2 * step : 2 * step + 2]]
        assert_same(join(parts), expected)


@pytest.mark.parametrize("augment", [None, VARIED])
def test_under_a_mirrored_strategy(mirrored, augment):
    columns, batches = make_columns(), of_one(augment)
    dataset = mirrored.distribute_datasets_from_function(
        lambda context: batching.train_batches(
            columns,
            TASKS,
            batch_size=4,
            seed=7,
            first_step=1,
            last_step=6,
            augment=augment,
            context=context,
        )
    )
    for batch, expected in zip(dataset, batches, strict=True):
        parts = [
            tf.nest.map_structure(
                lambda value, r=r: mirrored.experimental_local_results(value)[
                    r
                ].numpy(),
                batch,
            )
            for r in range(2)
        ]
        assert_same(join(parts), expected)


def test_evaluation_under_a_mirrored_strategy(mirrored):
    columns = make_columns()
    dataset = mirrored.distribute_datasets_from_function(
        lambda context: batching.eval_batches(
            columns, TASKS, batch_size=4, num_examples=5, context=context
        )
    )
    indices = [mirrored.gather(batch["index"], 0).numpy() for batch in dataset]
    np.testing.assert_array_equal(np.concatenate(indices), [0, 1, 2, 3, 4, -1, -1, -1])


# evaluation


def test_each_example_once_by_brute_force():
    for n, replicas, per_replica in itertools.product(
        range(1, 18), (1, 2, 3, 4), (1, 2, 5)
    ):
        batch_size = replicas * per_replica
        steps = batching.eval_steps(n, batch_size)
        order = []
        for step in range(steps):
            indices = batching.eval_indices(n, batch_size, step)
            for workers in (w for w in range(1, replicas + 1) if replicas % w == 0):
                parts = [
                    indices[part]
                    for w in range(workers)
                    for part in batching.replica_slices(
                        batch_size, context(replicas, workers, w)
                    )
                ]
                assert {len(part) for part in parts} == {per_replica}
                np.testing.assert_array_equal(np.concatenate(parts), indices)
            order += indices.tolist()
        assert len(order) == steps * batch_size < n + batch_size
        assert [i for i in order if i >= 0] == list(range(n))
        assert set(order[n:]) <= {-1}


@pytest.mark.parametrize(
    ("n", "batch_size", "replicas", "workers"),
    [(11, 4, 1, 1), (11, 4, 2, 1), (11, 6, 3, 1), (3, 8, 4, 2), (8, 4, 2, 2)],
)
def test_evaluation_batches(n, batch_size, replicas, workers):
    columns = make_columns()
    streams = [
        list(
            batching.eval_batches(
                columns,
                TASKS,
                batch_size=batch_size,
                num_examples=n,
                context=context(replicas, workers, worker),
            ).as_numpy_iterator()
        )
        for worker in range(workers)
    ]
    local_replicas = replicas // workers
    steps = batching.eval_steps(n, batch_size)
    assert {len(stream) for stream in streams} == {steps * local_replicas}
    order = []
    for step in range(steps):
        parts = [
            p
            for s in streams
            for p in s[step * local_replicas : (step + 1) * local_replicas]
        ]
        batch = join(parts)
        assert batch["image"].shape[0] == batch_size
        np.testing.assert_array_equal(batch["position"], np.arange(batch_size))
        padding = batch["index"] < 0
        for value in tf.nest.flatten([batch["image"], batch["masks"]]):
            assert not value[padding].any()
        order += batch["index"][~padding].tolist()
        expected = batching.gather(columns, TASKS, batch["index"])
        assert_same({name: batch[name] for name in expected}, expected)
    assert order == list(range(n))


def test_examples_are_in_order_with_known_length():
    columns = make_columns()
    dataset = batching.examples(columns, TASKS)
    assert int(dataset.cardinality()) == 11
    assert dataset.element_spec["targets"]["depth"].shape == (HEIGHT, WIDTH, 1)
    for i, example in enumerate(dataset.as_numpy_iterator()):
        assert set(example) == {"image", "targets", "masks"}
        np.testing.assert_array_equal(
            example["targets"]["depth"], columns.targets["depth"][i]
        )


# what users may get wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12}, r"examples, 11; got a batch size of 12"),
        ({"batch_size": 0}, r"at least 1, got 0"),
        ({"batch_size": 5, "context": context(2)}, r"5 for 2 replicas. Give 4 or 6\."),
        ({"batch_size": 1, "context": context(2)}, r"1 for 2 replicas. Give 2\."),
        ({"seed": -1}, r"at least 0, got -1"),
        ({"num_examples": 12}, r"from 1 to 11, .* got 12"),
        ({"num_examples": 0}, r"from 1 to 11, .* got 0"),
        ({"num_examples": 3}, r"examples, 3; got a batch size of 4"),
        ({"augment": Augment(crop=(7, 8))}, r"7x8 for pictures of 6x8"),
        ({"augment": Augment(crop=(0, 8))}, r"0x8 for pictures of 6x8"),
    ],
)
def test_training_input_errors(options, message):
    with pytest.raises(InputError, match=message):
        train(make_columns(), 0, 1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_examples": 12}, r"from 1 to 11, .* got 12"),
        ({"num_examples": -1}, r"from 1 to 11, .* got -1"),
        ({"batch_size": 0}, r"at least 1, got 0"),
        ({"batch_size": 7, "context": context(4)}, r"7 for 4 replicas. Give 4 or 8\."),
        ({"batch_size": 6, "context": context(3, 2)}, r"3 replicas on 2 workers"),
    ],
)
def test_evaluation_input_errors(options, message):
    with pytest.raises(InputError, match=message):
        batching.eval_batches(make_columns(), TASKS, **{"batch_size": 4, **options})


# determinism


def digest() -> str:
    """A hash of the bytes of some augmented batches."""
    sums = hashlib.sha256()
    for batch in train(
        make_columns(), 0, 20, augment=Augment(crop=(4, 5)), context=context(2)
    ):
        for leaf in tf.nest.flatten(batch):
            sums.update(np.ascontiguousarray(leaf).tobytes())
    return sums.hexdigest()


@pytest.mark.slow
def test_the_same_bytes_with_op_determinism_in_another_process():
    code = (
        "import importlib.util, tensorflow as tf;"
        "tf.config.experimental.enable_op_determinism();"
        f"spec = importlib.util.spec_from_file_location('b', {__file__!r});"
        "b = importlib.util.module_from_spec(spec); spec.loader.exec_module(b);"
        "print(b.digest())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[-1] == digest()
