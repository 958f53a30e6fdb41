# SPDX-License-Identifier: Apache-2.0
"""What `import mtr_tf` shows, and that its stub says the same."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re

import pytest

import mtr_tf
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig

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
    given = inspect.signature(mtr_tf.evaluate).parameters
    names = {field.name for field in dataclasses.fields(AttackConfig)}
    left_out = {"ckpt", "attack", "name", "format", "deterministic"}
    assert names - set(given) == left_out | {"export_predictions"}
    assert given["steps"].default == AttackConfig(ckpt="x").steps
    trained = inspect.signature(mtr_tf.train_model).parameters
    assert {field.name for field in dataclasses.fields(TrainConfig)} < set(trained)
    assert "learning_rate: " in mtr_tf.train_model.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = mtr_tf.evalute
