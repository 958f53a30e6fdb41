# SPDX-License-Identifier: Apache-2.0
"""The workers that the environment names."""

import json

import pytest

import mtr_tf
from mtr_tf import attack_job
from mtr_tf import export
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import cluster

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[9-10],big",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2),2",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "2",
    "SLURM_LOCALID": "1",
}


def tf_config(jobs, kind, index):
    config = {"cluster": jobs, "task": {"type": kind, "index": index}}
    return {"TF_CONFIG": json.dumps(config)}


def test_tf_config_with_and_without_a_chief():
    environment = tf_config({"worker": ["a:1", "b:2"]}, "worker", 1)
    result = cluster.from_environment(environment)
    assert (result.addresses, result.index, result.several) == (("a:1", "b:2"), 1, True)
    jobs = {"chief": ["c:1"], "worker": ["a:1", "b:2"]}
    result = cluster.from_environment(tf_config(jobs, "worker", 0))
    assert (result.addresses, result.index) == (("c:1", "a:1", "b:2"), 1)
    assert cluster.from_environment(tf_config(jobs, "chief", 0)).index == 0


@pytest.mark.parametrize("text", ["", " ", "{}", '{"cluster": {}}'])
def test_none_is_named(text):
    assert cluster.from_environment({"TF_CONFIG": text}) is None
    assert cluster.from_environment({}) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        tf_config({"worker": ["a:1", "b:2"]}, "worker", 2)["TF_CONFIG"],
        tf_config({"worker": ["a:1"]}, "evaluator", 0)["TF_CONFIG"],
        tf_config({"worker": ["a:1"], "ps": ["b:1"]}, "worker", 0)["TF_CONFIG"],
        tf_config({"worker": [1, 2]}, "worker", 0)["TF_CONFIG"],
        tf_config({"worker": ["a:1", "b:1"]}, "worker", 1.0)["TF_CONFIG"],
        tf_config({"worker": ["a:1", "a:1"]}, "worker", 1)["TF_CONFIG"],
    ],
)
def test_a_tf_config_that_is_none_is_one_sentence(text):
    with pytest.raises(InputError, match="^the variable TF_CONFIG must be such as"):
        cluster.from_environment({"TF_CONFIG": text})


def test_slurm_numbers_nodes_as_it_lists_them():
    result = cluster.from_environment(SLURM)
    assert result.addresses == ("gpu9:15112", "gpu10:15112", "big:15112", "big:15113")
    assert result.index == 3
    assert cluster.from_environment(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}).index == 0
    assert not cluster.from_environment({"SLURM_STEP_NUM_TASKS": "1"}).several


def test_slurm_with_tasks_that_go_round_the_nodes_is_refused():
    with pytest.raises(InputError, match="add --distribution=block"):
        cluster.from_environment(SLURM | {"SLURM_NODEID": "0", "SLURM_LOCALID": "1"})
    with pytest.raises(InputError, match="give the workers in the variable TF_CONFIG"):
        cluster.from_environment({"SLURM_STEP_NUM_TASKS": "2"})


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a,b-1", ["a", "b-1"]),
        ("n[08-10,2]", ["n08", "n09", "n10", "n2"]),
        ("r[1-2]n[0,3].x,y", ["r1n0.x", "r1n3.x", "r2n0.x", "r2n3.x", "y"]),
    ],
)
def test_lists_of_nodes(text, hosts):
    assert cluster.hosts_of(text) == hosts


def test_what_runs_in_one_process_is_refused_where_there_are_several():
    environment = tf_config({"worker": ["a:1", "b:2"]}, "worker", 1)
    with pytest.raises(InputError, match=r"^mtr_tf.export runs in one process, and TF"):
        cluster.refuse("mtr_tf.export", environment)
    cluster.refuse("mtr_tf.export", tf_config({"worker": ["a:1"]}, "worker", 0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: mtr_tf.reproduce_study(study="rooms-quick"),
        lambda: mtr_tf.convert_weights(torch="weights.pth"),
        lambda: export.main(export.ExportConfig(ckpt="run", out="out")),
        lambda: attack_job.resolve(AttackConfig(ckpt="run")),  # As in Python.
    ],
)
def test_commands_of_one_process_start_nothing(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in tf_config({"worker": ["a:1", "b:2"]}, "worker", 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="runs in one process, and TF_CONFIG names 2"):
        call()
    assert not list(tmp_path.iterdir())
