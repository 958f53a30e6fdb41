# SPDX-License-Identifier: Apache-2.0
"""The released PyTorch models' own numbers, from weights made by a formula.

The stored arrays (and the formula's description) are outside this repository: in the
folder `released` of $MTR_SHARED, or of `shared` beside the repository.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf import models
from mtr_tf.attacks.released import ReleasedPGD

_BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared"
RELEASED = pathlib.Path(os.environ.get("MTR_SHARED", _BESIDE)) / "released"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (RELEASED / "released_2020.npz").is_file(),
        reason=f"no released_2020.npz in {RELEASED}; set MTR_SHARED to the folder "
        "that holds `released`",
    ),
]

# DRN's own six digits, which the arrays were made with; four digits miss by 2e-4.
CITYSCAPES = {
    "mean": (0.290101, 0.328081, 0.286964),
    "std": (0.182954, 0.186566, 0.184475),
}
PGD = attacks.PGD(8 / 255, 2 / 255, 5, random_start=False, keep="last")
RELEASED_PGD = ReleasedPGD(8 / 255, 2 / 255, 5)
# Ours -> the released code's, in the order of its decoders.
NAMES = {
    "seg": "segmentsemantic",
    "depth": "depth_zbuffer",
    "edge_texture": "edge_texture",
    "keypoints2d": "keypoints2d",
    "normal": "normal",
    "reshading": "reshading",
    "keypoints3d": "keypoints3d",
    "depth_euclidean": "depth_euclidean",
    "autoencoder": "autoencoder",
    "edge_occlusion": "edge_occlusion",
    "curvature": "principal_curvature",
}
VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_BLOCK = [  # Inside a basic block.
    (r"_block(\d)_([12])_conv", r".\1.conv\2"),
    (r"_block(\d)_([12])_norm", r".\1.bn\2"),
    (r"_block(\d)_shortcut_conv", r".\1.downsample.0"),
    (r"_block(\d)_shortcut_norm", r".\1.downsample.1"),
]
RESNET = [
    (r"encoder_stem_conv", "encoder.conv1"),
    (r"encoder_stem_norm", "encoder.bn1"),
    (r"encoder_(layer\d)", r"encoder.\1"),
    *_BLOCK,
    (r"decoder_(\w+)_up(\d)_conv", r"task_to_decoder.\1.upconv\2"),
    (r"decoder_(\w+)_up(\d)_norm", r"task_to_decoder.\1.bn_upconv\2"),
    (r"decoder_(\w+)_stage(\d)_conv", r"task_to_decoder.\1.conv_decode\2"),
    (r"decoder_(\w+)_stage(\d)_norm", r"task_to_decoder.\1.bn_decode\2"),
    (r"head_(\w+)", r"task_to_decoder.\1.conv_decode4"),
]
DRN = [
    (r"encoder_layer(\d)", r"encoder.\1"),
    # Shared tensors hold the value of the group's last name, the autoencoder's.
    (r"decoder_shared_layer6", "task_to_decoder.autoencoder.0"),
    (r"decoder_shared_layer7", "task_to_decoder.autoencoder.1"),
    (r"decoder_shared_layer8", "task_to_decoder.autoencoder.2"),
    *_BLOCK,
    (r"_conv$", ".0"),
    (r"_norm$", ".1"),
    (r"head_(\w+)", r"task_to_decoder.\1.3"),
]


def _formula(name: str, shape: list[int]) -> np.ndarray:
    """The weights' formula, as the README beside the arrays gives it."""
    rng = np.random.default_rng(zlib.crc32(f"2020:{name}".encode()))
    z = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + 0.1 * abs(z)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * z
    if len(shape) == 4:
        return z * np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
    return 1 + 0.1 * z


def _released_name(variable, rules) -> str:
    layer, kind = variable.path.split("/")
    for pattern, replacement in rules:
        layer = re.sub(pattern, replacement, layer)
    parts = [NAMES.get(part, part) for part in layer.split(".")]
    return ".".join([*parts, VARIABLES[kind]])


def _load_formula_weights(model, shapes, rules) -> set[str]:
    used = set()
    for variable in model.variables:
        name = _released_name(variable, rules)
        value = _formula(name, shapes[name])
        if value.ndim == 4:  # [out, in, h, w], or [in, out, h, w] where transposed
            value = value.transpose(2, 3, 1, 0)
        variable.assign(value)
        used.add(name)
    assert len(used) == len(model.variables)
    return used


def _nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


def _assert_close(output, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        output, _nhwc(expected), atol=tolerance * np.abs(expected).max()
    )


@pytest.fixture(scope="module")
def released():
    """(arrays, {model: {name: shape}} and the groups of shared names)."""
    shapes = json.loads((RELEASED / "released_2020.json").read_text())
    return np.load(RELEASED / "released_2020.npz"), shapes


def _build_drn(shapes):
    """DRN-D-22 with one decoder for all, as released, and the formula's weights."""
    tasks = ("seg", "depth", "autoencoder")
    model = models.build(
        "drn_d_22", tasks, (64, 128, 3), 19, decoders="shared", **CITYSCAPES
    )
    names = shapes["drn_d_22_s_d_A"]
    used = _load_formula_weights(model, names, DRN)
    aliases = {n for group in shapes["drn_d_22_shared_groups"] for n in group[:-1]}
    rest = names.keys() - used - aliases
    rest = {name for name in rest if not name.endswith("num_batches_tracked")}
    assert rest == {f"task_to_decoder.{NAMES[task]}.4.weight" for task in tasks}
    return model


@pytest.fixture(scope="module")
def drn(released):
    return _build_drn(released[1])


@pytest.fixture(scope="module")
def exact_drn(released):
    """The same in float64."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        return _build_drn(released[1])
    finally:
        keras.config.set_dtype_policy(policy)


def test_drn_outputs(released, drn):
    arrays, _ = released
    x = _nhwc(arrays["drn/x01"])
    outputs = drn(x, training=False)
    log_probabilities = tf.nn.log_softmax(outputs["seg"])
    _assert_close(log_probabilities, arrays["drn/segmentsemantic"])
    _assert_close(outputs["depth"], arrays["drn/depth_zbuffer"])
    _assert_close(outputs["autoencoder"], arrays["drn/autoencoder"])


def test_drn_features(released, drn):
    arrays, _ = released
    features = drn.get_layer("encoder_layer5_block1_relu").output
    encoder = keras.Model(drn.input, features)
    x = _nhwc(arrays["drn/x01"])
    _assert_close(encoder(x, training=False), arrays["drn/rep"])


def test_drn_losses_and_input_gradients(released, drn):
    """The released losses; gradients are with respect to the standardised image."""
    arrays, _ = released
    std = np.float32(CITYSCAPES["std"])
    x = tf.constant(_nhwc(arrays["drn/x01"]))
    labels = arrays["drn/y_seg"][:, 0].astype(np.int32)
    valid = labels != 255
    targets = {
        "depth": _nhwc(arrays["drn/y_depth"]),
        "autoencoder": (x - np.float32(CITYSCAPES["mean"])) / std,
    }
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = drn(x, training=False)
        per_pixel = tf.nn.sparse_softmax_cross_entropy_with_logits(
            np.where(valid, labels, 0), outputs["seg"]
        )
        square = (
            outputs["autoencoder"] - tf.stop_gradient(targets["autoencoder"])
        ) ** 2
        losses = {
            "seg": tf.reduce_sum(per_pixel * valid) / valid.sum(),
            "depth": tf.reduce_mean(abs(outputs["depth"] - targets["depth"])),
            "autoencoder": tf.reduce_mean(square),
        }
    for task, loss in losses.items():
        expected = float(arrays[f"drn/loss/{NAMES[task]}"])
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        gradient = tape.gradient(loss, x) * std
        norms = tf.sqrt(tf.reduce_sum(gradient**2, axis=(1, 2, 3)))
        expected = arrays[f"drn/grad_l2/{NAMES[task]}"]
        np.testing.assert_allclose(norms, expected, rtol=1e-3)


def _released_sum(model, arrays, tasks):
    """Returns x -> each image's share in the sum of the released losses, [batch].

    They are means over the batch, or its valid pixels, with weights of 1.
    """
    labels = arrays["drn/y_seg"][:, 0].astype(np.int32)
    valid = (labels != 255).astype(np.float32)
    labels = np.where(valid, labels, 0)
    depth = _nhwc(arrays["drn/y_depth"])
    clean = _nhwc(arrays["drn/x01"]) - np.float32(CITYSCAPES["mean"])
    clean /= np.float32(CITYSCAPES["std"])

    def loss(x):
        outputs = model(x, training=False)
        scores = tf.nn.log_softmax(outputs["seg"])
        chosen = tf.gather(scores, labels, batch_dims=3)
        far = abs(outputs["depth"] - depth)
        square = (outputs["autoencoder"] - clean) ** 2
        errors = {
            "seg": tf.reduce_sum(-chosen * valid, (1, 2)) / valid.sum(),
            "depth": tf.reduce_mean(far, (1, 2, 3)) / len(labels),
            "autoencoder": tf.reduce_mean(square, (1, 2, 3)) / len(labels),
        }
        return tf.add_n([errors[task] for task in tasks])

    return loss


@pytest.mark.parametrize(
    ("name", "tasks", "attack", "most"),
    [
        # The measured shares: .0201 and 0, .00004 and .1405, .1339 and .0635.
        ("pgd5_seg", ("seg",), PGD, (0.03, 1e-4)),
        ("pgd5_seg_depth_ae", ("seg", "depth", "autoencoder"), PGD, (1e-4, 0.16)),
        ("pgd5_seg_released_start", ("seg",), RELEASED_PGD, (0.15, 0.08)),
    ],
)
def test_drn_attacked_images(released, exact_drn, name, tasks, attack, most):
    """To 1e-5, but for a share of each image's values, at most `most`.

    The stored images are computed in float32, and there rounding decides: a sign or
    ReLU turned over by it turns others in the steps that follow. So an image either
    agrees or differs in some percent. Ours in float32 do so too: noise of 1e-7 on the
    input sends an image to one of a few ends, up to 18 % of the values apart. Ours are
    in float64 here, so that at least they do not depend on the machine.
    """
    arrays, _ = released
    x = _nhwc(arrays["drn/x01"]).astype(np.float64)
    loss = _released_sum(exact_drn, arrays, tasks)
    got, want = attack(loss, x), _nhwc(arrays[f"drn/{name}"]).astype(np.float64)
    differ = np.mean(np.abs(got - want) > 1e-5, axis=(1, 2, 3))
    assert np.all(differ <= most), differ
    reached = loss(want) - loss(x)
    np.testing.assert_allclose(loss(got) - loss(x), reached, rtol=2e-3)


def test_drn_released_start(released, exact_drn):
    """The stored images did start at the corner, and first stepped as ours do."""
    arrays, _ = released
    x = _nhwc(arrays["drn/x01"]).astype(np.float64)
    want = _nhwc(arrays["drn/pgd5_seg_released_start"])
    inside = np.abs(x - 0.5) < 0.46  # The box does not matter there.
    moved = np.where(inside, (want - x) * 255, 0)
    np.testing.assert_allclose(moved, 2 * np.round(moved / 2), atol=1e-3)
    assert np.min(moved) > -2.01  # Five steps of 2 from 8, not from 0.
    always_down = moved < -1.99
    assert np.mean(always_down[inside]) > 0.05
    loss = _released_sum(exact_drn, arrays, ("seg",))
    for steps, most in ((1, 3e-4), (2, 3e-3)):  # Measured: 2 and 21 of 13476.
        found = ReleasedPGD(8 / 255, 2 / 255, steps)(loss, x)
        down = np.isclose((found - x)[always_down], (8 - 2 * steps) / 255, atol=1e-6)
        assert 1 - np.mean(down) <= most


def test_resnet18_outputs(released):
    arrays, shapes = released
    half = (0.5, 0.5, 0.5)  # The input is 2 x - 1.
    model = models.build("resnet18", NAMES, (64, 64, 3), 18, mean=half, std=half)
    names = shapes["resnet18_taskonomy_11"]
    used = _load_formula_weights(model, names, RESNET)
    assert used == {n for n in names if not n.endswith("num_batches_tracked")}
    x = _nhwc(arrays["resnet18/x01"])
    features = model.get_layer("encoder_layer4_block1_relu").output
    encoder = keras.Model(model.input, features)
    _assert_close(encoder(x, training=False), arrays["resnet18/rep"])
    outputs = model(x, training=False)
    for task, released_name in NAMES.items():
        _assert_close(outputs[task], arrays[f"resnet18/{released_name}"])
