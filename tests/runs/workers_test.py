# SPDX-License-Identifier: Apache-2.0
"""What workers say to each other."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import types

import numpy as np
import pytest
import tensorflow as tf
import workers_fixture

from mtr_tf.cli import stopping
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import workers as workers_lib
from mtr_tf.runs.cluster import Cluster
from mtr_tf.runs.workers import Workers
from mtr_tf.training import loop as training

TWO = Cluster(("a:1", "b:1"), 0, "a test")


def test_arrays_are_joined_in_the_order_of_the_workers():
    def work(workers):
        index = workers.context.input_pipeline_id
        rows = {"a": np.full((2, 3), index, np.float64), "b": np.array([index > 0])}
        return workers.joined((rows, np.zeros((2, 0), np.int32)))

    for rows, nothing in workers_fixture.run(work, 3):
        np.testing.assert_array_equal(rows["a"][:, 0], [0, 0, 1, 1, 2, 2])
        np.testing.assert_array_equal(rows["b"], [False, True, True])
        assert rows["b"].dtype == bool
        assert (nothing.shape, nothing.dtype) == ((6, 0), np.int32)


def test_arrays_of_the_chief_are_those_of_all():
    arrays = {
        "file": np.array([1.5, np.nan]),  # A name that np.savez would take itself.
        "none": np.zeros((0, 2), np.int64),
        "one": np.array(True),
    }
    for result in workers_fixture.run(
        lambda workers: workers.arrays_of_chief(arrays if workers.chief else {})
    ):
        assert list(result) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(result[name], array)
            assert result[name].dtype == array.dtype


def test_each_reads_its_share_of_a_batch():
    contexts = workers_fixture.run(lambda workers: workers.context, 3)
    assert [context.input_pipeline_id for context in contexts] == [0, 1, 2]
    assert {context.num_input_pipelines for context in contexts} == {3}
    assert {context.num_replicas_in_sync for context in contexts} == {3}


def test_a_mistake_of_one_and_what_differs_are_told_to_all():
    def mistaken(workers):
        with workers.agreeing({}):
            if not workers.chief:
                raise InputError("there is no such file.")

    def different(workers):
        with workers.agreeing({"--eps": [workers.context.input_pipeline_id]}):
            pass

    messages = list(map(str, workers_fixture.run(mistaken)))
    assert messages[1] == "there is no such file."
    assert messages[0] == f"worker 1 (host1:1) says: {messages[1]}"
    message = (
        "worker 1 (host1:1) differs from the chief: --eps is [0] there and [1] here"
    )
    for error in workers_fixture.run(different):
        assert message in str(error)


def test_a_signal_that_comes_while_they_speak_stops_all_the_next_time(monkeypatch):
    """Else it would stop one alone, and the others would wait for it."""
    workers = Workers(tf.distribute.get_strategy())

    def gather_json(value):
        values = [value, 0]
        signal.raise_signal(signal.SIGTERM)
        return values

    monkeypatch.setattr(workers, "several", True)
    monkeypatch.setattr(workers, "_gather_json", gather_json)
    with contextlib.suppress(stopping.Stopped), stopping.later():
        answers = [workers.asked_to_stop() for _ in range(2)]
    assert answers == [False, True]


def test_one_alone_says_what_it_has():
    workers, rows = Workers(tf.distribute.get_strategy()), {"a": np.arange(3)}
    assert workers.joined(rows) is rows
    assert workers.arrays_of_chief(rows) == rows
    assert workers.of_chief([1]) == [1]
    assert workers.local is workers.strategy
    with pytest.raises(InputError, match="^as it is$"), workers.agreeing({}):
        raise InputError("as it is")


def test_copies_take_their_mean_by_one_graph_for_the_same_variables():
    workers = Workers(tf.distribute.get_strategy())
    rng = np.random.default_rng(0)
    variable = tf.Variable(2.0)
    copies = tuple(tf.Variable(tf.zeros(1000)) for _ in range(3))
    mirrored_variable = types.SimpleNamespace(values=copies, dtype=tf.float32)
    for _ in range(3):
        values = rng.random((3, 1000), np.float32)
        for copy, value in zip(copies, values, strict=True):
            copy.assign(value)
        workers.take_mean([variable, mirrored_variable])
        want = np.float32(np.float64(values).mean(axis=0))
        for copy in copies:
            np.testing.assert_allclose(copy, want, rtol=1e-7)
    assert variable.numpy() == 2
    (assigner,) = workers._assigners.values()
    assert assigner.experimental_get_tracing_count() == 1


def test_variables_take_the_mean_of_all_or_the_chiefs_value(mirrored):
    """The two replicas stand for those of two workers."""
    workers = Workers(mirrored, TWO)
    with mirrored.scope():
        variables = [
            tf.Variable(
                tf.zeros(2, dtype),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )
            for dtype in (tf.float32, tf.float64, tf.float32)
        ]

    def put():
        for variable in variables:
            for n, copy in enumerate(variable.values):
                copy.assign(tf.constant([n + 1, n - 4], copy.dtype))

    for _ in range(3):
        put()
        workers.take_mean(variables)
        for variable in variables:
            for copy in variable.values:
                np.testing.assert_array_equal(copy, [1.5, -3.5])
    assert len(workers._assigners) == 2  # One for each type.
    for assigner in workers._assigners.values():
        assert assigner.experimental_get_tracing_count() == 1
    put()
    workers.take_chiefs(variables)
    for variable in variables:
        for copy in variable.values:
            np.testing.assert_array_equal(copy, [1, -4])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (tf.errors.UnavailableError, "worker 1 (b:1) has ended or cannot be reached"),
        (tf.errors.InternalError, "NCCL, by which the workers' GPUs speak to each"),
    ],
)
def test_a_failure_of_others_or_of_nccl_is_one_sentence(error, said):
    workers = Workers(tf.distribute.get_strategy(), TWO)
    text = "unhealthy: /task:1" if error is tf.errors.UnavailableError else "NCCL: bad"
    with pytest.raises(InputError) as raised, workers.explaining_loss("Kept."):
        raise error(None, None, text)
    assert str(raised.value).startswith(said)
    assert str(raised.value).endswith(". Kept.")


def test_a_port_that_is_taken_is_told_before_anything_is_written(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        jobs = {"worker": [place, "127.0.0.1:1"]}
        config = {"cluster": jobs, "task": {"type": "worker", "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        message = f"^worker 0 must have the address {place} for itself"
        with pytest.raises(InputError, match=message):
            training.train(TrainConfig(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_code_is_another_fact(tmp_path, monkeypatch):
    monkeypatch.setattr("mtr_tf.__file__", str(tmp_path / "__init__.py"))
    facts = []
    for text in ("a = 1\n", "a = 1\n", "a = 2\n"):
        (tmp_path / "module.py").write_text(text)
        facts.append(workers_lib.facts({"seed": 3}))
    assert facts[0] == facts[1]
    assert facts[0]["--seed"] == 3
    assert "the version of tensorflow" in facts[0]
    changed_names = [
        name for name, value in facts[2].items() if facts[0][name] != value
    ]
    assert changed_names == ["the code of mtr_tf"]
