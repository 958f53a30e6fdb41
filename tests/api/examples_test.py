# SPDX-License-Identifier: Apache-2.0
"""Examples in memory: images alone, the first of many, and what is said of mistakes."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

import mtr_tf
from mtr_tf import files
from mtr_tf.api import examples as examples_lib
from mtr_tf.api import settings
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.errors import nearest

IMAGES = np.zeros((5, 4, 4, 3), np.uint8)


def opened(examples, count=0, **facts):
    return examples_lib.open_source(examples, [], [], facts, "validation", count)


@pytest.mark.parametrize(
    "examples",
    [IMAGES, list(IMAGES), [{"image": image} for image in IMAGES], {"image": IMAGES}],
    ids=["batch", "images", "dicts", "dict of a batch"],
)
def test_images_need_no_targets(examples):
    source = opened(examples)
    assert source.columns("validation").images.shape == IMAGES.shape


@pytest.mark.parametrize(("count", "is_cut"), [(0, False), (5, False), (4, True)])
def test_it_is_known_whether_there_are_more(count, is_cut):
    source = opened(list(IMAGES), count)
    assert len(source.columns("validation")) == (count or 5)
    assert source.is_cut == is_cut


def test_groups_are_cut_with_the_examples():
    groups = {"validation": ["a", "a", "b", "b", "c"]}
    source = opened(list(IMAGES), 3, groups=groups, frames=True)
    found = source.columns("validation").groups
    assert (list(found.of), found.frames) == (["a", "a", "b"], True)
    with pytest.raises(InputError, match=r"each of the 4 examples .* shape \[5\]"):
        opened(list(IMAGES[:4]), 4, groups=groups)
    with pytest.raises(InputError, match=r"each of the 5 examples .* shape \[4\]"):
        opened(list(IMAGES), groups={"validation": list("abcd")})
    with pytest.raises(InputError, match=r"each of the 4 examples .* shape \[3\]"):
        opened(list(IMAGES), 4, groups={"validation": list("abc")})


def test_of_endless_examples_the_first_are_taken():
    assert len(opened(itertools.cycle(IMAGES), 7).columns("validation")) == 7


def test_radii_of_images_in_0_1_are_asked_about():
    for eps in (8 / 255, [2 / 255, 4 / 255]):
        with pytest.raises(InputError, match="in levels of 0-255.*give eps=[48]"):
            settings.check_levels(eps)
        with pytest.raises(InputError, match="in levels of 0-255"):
            mtr_tf.RobustnessCallback(IMAGES, eps=eps)
    settings.check_levels([0, 0.5])
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 1)])
    with pytest.raises(InputError, match="in levels of 0-255"):
        mtr_tf.AdversarialModel(model, "seg", eps=4 / 255)
    with pytest.raises(InputError, match="eps must be above 0; got 0"):
        mtr_tf.AdversarialModel(model, "seg", eps=0)


def test_a_setting_that_was_meant_is_named():
    with pytest.raises(InputError) as error:
        settings.record(AttackConfig, {"epsilon": 8})
    assert str(error.value) == "There is no setting 'epsilon'. Did you mean 'eps'?"
    assert nearest("room", ["rooms-epochs", "rooms"]) == "rooms"


def test_plots_have_endings_that_can_be_drawn():
    with pytest.raises(InputError, match="must end with .png, .pdf or .svg; got 'c.x'"):
        files.check_picture("path", "c.x")
    files.check_picture("path", "c.SVG")
