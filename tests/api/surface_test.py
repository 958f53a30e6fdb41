# SPDX-License-Identifier: Apache-2.0
"""What `import mtr_tf` shows, and that its stub says the same."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re

import numpy as np
import pytest

import mtr_tf
from mtr_tf.api import settings
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.reproduce import ReproduceConfig

STUB = pathlib.Path(mtr_tf.__file__).with_suffix(".pyi")


def test_the_stub_has_the_public_names():
    names = re.findall(r" as (\w+)$", STUB.read_text(), re.MULTILINE)
    assert sorted(names) == mtr_tf.__all__
    assert set(mtr_tf.__all__) <= set(dir(mtr_tf))


@pytest.mark.parametrize("name", mtr_tf.__all__)
def test_names_are_there_and_documented(name):
    assert inspect.getdoc(getattr(mtr_tf, name))
    assert f"`{name}`" in mtr_tf.__doc__ or name in ("Task", "TaskSet")


def test_calls_show_all_settings_of_their_commands():
    parameters = inspect.signature(mtr_tf.evaluate).parameters
    names = {field.name for field in dataclasses.fields(AttackConfig)}
    left_out = {"ckpt", "attack", "name", "format", "deterministic"}
    execution = {"executor", "executor_options", "workers", "part"}
    assert names - set(parameters) == left_out | execution | {"export_predictions"}
    config = AttackConfig(ckpt="x")
    for name in ("steps", "eps", "attack_tasks"):
        assert parameters[name].default == getattr(config, name)
    assert parameters["attacks"].default == config.attack
    train_parameters = inspect.signature(mtr_tf.train_model).parameters
    assert {field.name for field in dataclasses.fields(TrainConfig)} < set(
        train_parameters
    )
    assert "learning_rate: " in mtr_tf.train_model.__doc__


@pytest.mark.parametrize("name", ["evaluate", "RobustnessCallback"])
def test_calls_show_the_defaults_that_they_have(name):
    function = getattr(mtr_tf, name)
    function = function.__init__ if inspect.isclass(function) else function
    default = inspect.signature(function).parameters["strategy"].default
    assert default == "one_device" != AttackConfig(ckpt="x").strategy
    docstring = " ".join(function.__doc__.split())
    assert "The default here is 'one_device'." in docstring


@pytest.mark.parametrize("indent", ["  ", " " * 6, " " * 10])
def test_settings_are_told_in_docstrings_of_any_indentation(indent):
    """Python 3.13 strips the indentation that all lines of a docstring share."""

    def function(**settings):
        pass

    function.__doc__ = f"Does.\n\n{indent[2:]}Args:\n{indent}**settings: the flags.\n"
    settings.shown(ReproduceConfig)(function)
    lines = function.__doc__.splitlines()
    assert f"{indent}study: Name of a study" in function.__doc__
    assert all(line.startswith(indent) for line in lines[3:])
    assert "**settings" not in function.__doc__


def test_settings_take_what_python_has_for_them():
    paths = {"init": pathlib.Path("a") / "b.keras", "data_dir": pathlib.Path("c")}
    config = settings.record(TrainConfig, {**paths, "crop": (16, 32), "image_size": 64})
    assert (config.init, config.data_dir) == (str(paths["init"]), "c")
    assert (config.parsed_crop, config.parsed_image_size) == ((16, 32), (64, 64))
    step_config = settings.record(
        TrainConfig, {"schedule": "step", "lr_epochs": [2.0, np.int64(5), "7"]}
    )
    assert step_config.lr_epochs == (2, 5, 7)
    assert all(type(epoch) is int for epoch in step_config.lr_epochs)


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        (ReproduceConfig, "seeds", [0.9, 1.7], r"a whole .* got \[0.9, 1.7\]"),
        (TrainConfig, "lr_epochs", [2.5], "a list of whole numbers; got"),
        (TrainConfig, "lr_epochs", [float("inf")], "a list of whole numbers; got"),
        (TrainConfig, "lr_epochs", ["x"], "a list of whole numbers; got"),
        (AttackConfig, "eps", None, "a number or a list of numbers; got None"),
        (AttackConfig, "eps", [[1.0]], "a number or a list of numbers; got"),
        (AttackConfig, "ckpt", 3, "of type str, got 3"),
    ],
)
def test_settings_of_another_kind_are_refused_by_their_name(kind, name, value, said):
    with pytest.raises(mtr_tf.InputError, match=f"^{name} must be .*{said}"):
        settings.record(kind, {name: value})


@pytest.mark.parametrize("name", ["executor", "workers", "part", "name"])
def test_what_only_commands_do_is_refused(name):
    with pytest.raises(mtr_tf.InputError, match="a flag of the command only"):
        mtr_tf.evaluate(None, [], **{name: "1/2"})


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = mtr_tf.evalute


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda address: mtr_tf.RobustnessCallback([], log_dir=address), "log_dir"),
        (lambda address: mtr_tf.Results("", [{}]).plot(address), "path"),
        (
            lambda address: mtr_tf.data.load("rooms", "train", data_dir=address),
            "data_dir",
        ),
        (lambda address: mtr_tf.reproduce_study(workdir=address), "--workdir"),
    ],
)
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_an_address_makes_no_folder(call, name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        mtr_tf.InputError, match=rf"^{name} must be a path in this machine's file"
    ):
        call(kind("gs://bucket/run"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda address: mtr_tf.evaluate(len, [], out=address), "out"),
        (lambda address: mtr_tf.evaluate(address, "rooms"), "--ckpt"),
        (lambda address: mtr_tf.train_model(workdir=address), "--workdir"),
        (lambda address: mtr_tf.train_model(workdir="runs/x", init=address), "--init"),
    ],
)
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_an_address_that_nothing_reaches(call, name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = rf"^{name} must be a path, or an address .* got 'nosuch://bucket/run'"
    with pytest.raises(mtr_tf.InputError, match=message):
        call(kind("nosuch://bucket/run"))
    assert not list(tmp_path.iterdir())
