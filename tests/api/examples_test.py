# SPDX-License-Identifier: Apache-2.0
"""Examples in memory: images alone, the first of many, and messages for mistakes."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

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
    result = source.columns("validation").groups
    assert (list(result.of), result.frames) == (["a", "a", "b"], True)
    with pytest.raises(InputError, match=r"each of the 4 examples .* shape \[5\]"):
        opened(list(IMAGES[:4]), 4, groups=groups)
    with pytest.raises(InputError, match=r"each of the 5 examples .* shape \[4\]"):
        opened(list(IMAGES), groups={"validation": list("abcd")})
    with pytest.raises(InputError, match=r"each of the 4 examples .* shape \[3\]"):
        opened(list(IMAGES), 4, groups={"validation": list("abc")})


def test_of_endless_examples_the_first_are_taken():
    assert len(opened(itertools.cycle(IMAGES), 7).columns("validation")) == 7
    endless = tf.data.Dataset.from_tensor_slices(IMAGES).repeat()
    assert len(opened(endless, 7).columns("validation")) == 7
    with pytest.raises(InputError, match=r"repeats forever; leave out \.repeat\(\)"):
        opened(endless)


MAPS = np.arange(5 * 16).reshape(5, 4, 4)
KNOWN = MAPS % 3 > 0


def masks_of(targets, masks, names=(), tasks=()):
    source = examples_lib.open_source(
        (IMAGES, targets, masks), list(tasks), names, {}, "validation", 0
    )
    return source.columns("validation").masks


@pytest.mark.parametrize("name", ["depth", "d", "Depth_ZBuffer"])
@pytest.mark.parametrize("target", ["depth", "d"])
@pytest.mark.parametrize("names", [(), ("depth",), ("d", "s")])
def test_masks_are_found_by_all_names_of_their_task(name, target, names):
    targets = {"seg": MAPS % 2, target: MAPS}
    np.testing.assert_array_equal(
        masks_of(targets, {name: KNOWN}, names)["depth"], KNOWN
    )
    assert "depth" not in masks_of(targets, {name: KNOWN}, ("seg",))  # Nor the target.


def test_masks_of_own_tasks_have_their_other_names_too():
    flow = mtr_tf.Task("flow", aliases=("motion",))
    masks = masks_of({"flow": MAPS}, {"motion": KNOWN}, ("flow",), [flow])
    np.testing.assert_array_equal(masks["flow"], KNOWN)


@pytest.mark.parametrize("names", [(), ("seg", "depth"), ("seg",)])
@pytest.mark.parametrize("name", ["dpth", "normal", 0])
def test_a_mask_needs_a_target(names, name):
    masks = {"seg": KNOWN, name: KNOWN}
    message = rf"named after a target \(seg, depth\), but one is named '{name}'"
    with pytest.raises(InputError, match=message):
        masks_of({"seg": MAPS % 2, "depth": MAPS}, masks, names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {"seg": MAPS[:3]}}, "its target seg has 3 rows for 5 images"),
        ({"targets": {"seg": 1}}, "its target seg has no rows for 5 images"),
        ({"masks": {"s": KNOWN[:4]}}, "its mask seg has 4 rows for 5 images"),
        ({"inputs": {"gain": np.ones(9)}}, "its input gain has 9 rows for 5 images"),
        ({"inputs": np.ones(5)}, "inputs of a batch must be a dict by name"),
        ({"targets": {"seg": [[1], [1, 2]]}}, "target seg of an example must be an ar"),
    ],
)
def test_batches_have_rows_for_all_images(change, message):
    batch = {"image": IMAGES, "targets": {"seg": MAPS % 2}} | change
    with pytest.raises(InputError, match=message):
        opened(batch)


def test_a_tuple_may_have_examples():
    pairs = [(image, {"seg": row % 2}) for image, row in zip(IMAGES, MAPS, strict=True)]
    for form in (tuple, list):
        columns = opened(form(pairs)).columns("validation")
        np.testing.assert_array_equal(columns.targets["seg"], MAPS % 2)
    with pytest.raises(InputError, match="at least one example"):
        opened(())


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


def test_another_name_of_a_task_that_is_there_is_no_second_one():
    image, depth = np.zeros((4, 4, 3), np.float32), np.ones((4, 4, 1), np.float32)
    examples = [(image, {"depth": depth, "d": np.zeros(3)})]
    (example,) = examples_lib.one_by_one(examples, ["depth"])
    assert [*example["targets"]] == ["depth"]
    targets = {"depth": depth, "depth_zbuffer": depth}
    for name, expected in (
        ("depth_zbuffer", []),
        ("d", ["depth"]),
        ("depth", ["depth"]),
    ):
        (example,) = examples_lib.one_by_one(
            [(image, targets, {name: depth})], ["depth"]
        )
        assert [*example["masks"]] == expected
    with pytest.raises(InputError, match="names 'depth' 2 times"):
        [*examples_lib.one_by_one([(image, {"d": depth, "depth_zbuffer": depth})])]
