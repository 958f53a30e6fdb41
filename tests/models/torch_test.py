# SPDX-License-Identifier: Apache-2.0
"""All published sizes against PyTorch: outputs, gradients, counts, kinds of files."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

torch = pytest.importorskip("torch", reason="needs torch: pip install .[torch]")

import torch_fixture  # noqa: E402

from mtr_tf import models  # noqa: E402
from mtr_tf.models.torch_weights import transfer as torch_weights  # noqa: E402

CHANNELS = {"segmentsemantic": 5, "depth_zbuffer": 1, "autoencoder": 3}
TASKS = ("seg", "depth", "autoencoder")
WIDTHS = {name: 4 if "resnet" in name else 2 for name in torch_fixture.SIZES}


def arrays_of(net) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def ours(name, arrays, tasks=TASKS, decoders="shared"):
    """Our model with the arrays, and the messages of `assign`."""
    model = models.build(
        name, tasks, (32, 64, 3), 5, width=WIDTHS[name], decoders=decoders
    )
    return model, torch_weights.assign(model, torch_weights.contents(arrays, name))


def pictures():
    x = np.random.default_rng(0).random((2, 32, 64, 3), np.float32)
    return x, torch.tensor(np.moveaxis((x - 0.5) / 0.25, -1, 1).copy())


def assert_close(output, expected, tolerance=1e-4):
    expected = np.moveaxis(expected.detach().numpy(), 1, -1)
    error = np.abs(np.asarray(output) - expected).max() / np.abs(expected).max()
    assert error <= tolerance


QUICK = ("drn_c_26", "resnet18")
SLOW = [name for name in torch_fixture.SIZES if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *(slow(name) for name in SLOW)])
def test_outputs_and_image_gradients_are_pytorchs(name):
    net = torch_fixture.fill(torch_fixture.Released(name, CHANNELS, WIDTHS[name]))
    decoders = "separate" if "resnet" in name else "shared"
    model, messages = ours(name, arrays_of(net), decoders=decoders)
    assert messages == []
    x, image = pictures()
    image.requires_grad_()
    outputs, expected = model(x, training=False), net(image)
    for task, theirs in zip(TASKS, CHANNELS, strict=True):
        assert_close(outputs[task], expected[theirs])
    sum(y.square().mean() for y in expected.values()).backward()
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = model(x, training=False)
        loss = sum(tf.reduce_mean(outputs[task] ** 2) for task in TASKS)
    gradient = tape.gradient(loss, x).numpy() * 0.25
    theirs = np.moveaxis(image.grad.numpy(), 1, -1)
    assert np.linalg.norm(gradient - theirs) <= 1e-3 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("drn_c_26", 20_631_271),
        ("drn_d_22", 15_898_439),
        ("drn_d_38", 26_006_599),
        ("drn_d_54", 35_313_863),
        ("drn_d_105", 54_305_991),
    ],
)
def test_parameters_of_drn_in_pytorch(name, count):
    """Our models have as many, less the fixed up-sampling: see models_test.py."""
    channels = CHANNELS | {"segmentsemantic": 19}
    assert torch_fixture.count(torch_fixture.Released(name, channels, 16)) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 27_735_681), ("resnet34", 37_843_841), ("resnet50", 57_368_705)],
)
def test_parameters_of_resnet_in_pytorch(name, count):
    channels = {f"task{i}": n for i, n in enumerate((18, 3, 3, 2, *[1] * 7))}
    assert torch_fixture.count(torch_fixture.Released(name, channels, 64)) == count


@pytest.mark.parametrize("name", ["drn_c_26", "drn_d_22"])
@pytest.mark.parametrize("decoders", ["separate", "shared"])
def test_official_segmentation_files(name, decoders):
    net = torch_fixture.fill(torch_fixture.Segmentation(name, 5, WIDTHS[name]))
    model, messages = ours(name, arrays_of(net), ("seg",), decoders)
    assert messages == []
    x, image = pictures()
    assert_close(model(x, training=False)["seg"], net(image))


@pytest.mark.parametrize("name", ["drn_c_26", "drn_d_22", "resnet18"])
def test_files_of_classification_networks_fill_what_they_can(name):
    net = torch_fixture.fill(torch_fixture.classification(name, WIDTHS[name]))
    model, messages = ours(name, arrays_of(net), ("seg", "depth"), "separate")
    initial_model = models.build(
        name, ("seg", "depth"), (32, 64, 3), 5, width=WIDTHS[name]
    )
    messages = " ".join(messages)
    assert "fc.weight, fc.bias: left out" in messages
    assert "head_depth, head_seg: not in the file" in messages or "resnet" in name
    for variable, initial in zip(model.variables, initial_model.variables, strict=True):
        is_initial = np.array_equal(variable.numpy(), initial.numpy())
        is_new = variable.path.startswith("decoder" if "resnet" in name else "head")
        assert is_initial == (is_new or variable.path.startswith("head")), variable.path


def test_an_official_file_has_features_of_the_whole_trunk():
    """Layers 6 to 8 of a classification network go into every task's decoder."""
    net = torch_fixture.fill(torch_fixture.classification("drn_d_22", 2))
    model, _ = ours("drn_d_22", arrays_of(net), ("seg", "depth"), "separate")
    convs = [model.get_layer(f"decoder_{t}_layer8_conv") for t in ("seg", "depth")]
    expected = arrays_of(net)["layer8.0.weight"].transpose(2, 3, 1, 0)
    for layer in convs:
        np.testing.assert_array_equal(layer.kernel, expected)
