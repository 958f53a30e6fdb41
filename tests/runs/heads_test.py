# SPDX-License-Identifier: Apache-2.0
"""Which output is which task; models of all forms are in model_forms_test."""

from __future__ import annotations

import keras
import pytest

from mtr_tf.errors import InputError
from mtr_tf.runs import heads
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task


@pytest.fixture(scope="module")
def model():
    """Images to three numbers per pixel, named main."""
    image = keras.Input((8, 8, 3))
    return keras.Model(image, {"main": keras.layers.Conv2D(3, 1)(image)})


def found(model, task, *own_tasks):
    task_set = TASKS.replaced(*own_tasks)
    (task,) = heads.find("it", model, [("main", task)], task_set).tasks.values()
    return task.name, task.kind


def test_a_task_after_an_output_has_no_word_for_a_name(model):
    assert found(model, "numbers") == ("output_main", "numbers")


def test_a_task_that_is_called_as_a_kind_is_meant_before_the_kind(model):
    assert found(model, "labels") == ("output_main", "labels")
    own_task = Task("labels", kind="classes", classes=("a", "b", "c"))
    assert found(model, "labels", own_task) == ("labels", "classes")
    with pytest.raises(InputError, match="'labells' is neither"):
        found(model, "labells", own_task)
