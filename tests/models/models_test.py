# SPDX-License-Identifier: Apache-2.0
"""What every model promises: sizes, outputs, gradients, saving, initial values."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import models
from mtr_tf.errors import InputError
from mtr_tf.tasks import TASKS

THREE = ("seg", "depth", "autoencoder")
# Narrow enough to be quick; resnet18 at 64 px has a 2x2 bottleneck.
NARROW = {"resnet18": 4, "drn_d_22": 2, "small": 2, "tiny": 8}
KINDS = [
    ("resnet18", "shared"),
    ("drn_d_22", "separate"),
    ("small", "shared"),
    ("tiny", "separate"),
]
# The other kinds of blocks; all sizes of them are compared in torch_test.py.
BLOCKS = {"drn_c_26": 2, "resnet50": 4}
WIDTHS = NARROW | BLOCKS


def _build(name, tasks=THREE, size=(64, 96), **options):
    return models.build(name, tasks, (*size, 3), 5, width=WIDTHS[name], **options)


def _images(batch, size=(64, 96), seed=0):
    return np.random.default_rng(seed).random((batch, *size, 3), np.float32)


def _parameter_count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def _values_by_path(model):
    return {v.path: v.value.numpy() for v in model.variables}


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model(request):
    """Each model, narrow, with running statistics that are not the initial ones."""
    name, decoders = request.param
    model = _build(name, decoders=decoders, sync_batch_norm=False)
    model(_images(4), training=True)
    return model


@pytest.mark.parametrize(
    ("name", "tasks", "num_classes", "decoders", "count"),
    [
        # The released PyTorch model has 27 735 681 parameters.
        ("resnet18", tuple(TASKS), 18, "separate", 27_735_681),
        # Encoder, one decoder less its head, 289 for each of 33 output channels.
        ("resnet18", tuple(TASKS), 18, "shared", 11_176_512 + 1_504_512 + 289 * 33),
        # 15 898 439 in PyTorch, which counts 256 fixed up-sampling weights for each
        # of 23 output channels.
        ("drn_d_22", THREE, 19, "shared", 15_898_439 - 256 * 23),
        # The other DRNs likewise; torch_test.py counts them in PyTorch. As networks
        # for ImageNet (513 000 in place of the heads) their authors count 21.1, 16.4,
        # 26.5, 35.8 and 54.8 million.
        ("drn_c_26", THREE, 19, "shared", 20_631_271 - 256 * 23),
        slow("drn_d_38", THREE, 19, "shared", 26_006_599 - 256 * 23),
        slow("drn_d_54", THREE, 19, "shared", 35_313_863 - 256 * 23),
        slow("drn_d_105", THREE, 19, "shared", 54_305_991 - 256 * 23),
        # 21 797 672 and 25 557 032 in torchvision, of which the last layer has 513 000
        # and 2 049 000; decoders of 1 504 801 and 3 077 665 for one channel.
        slow("resnet34", tuple(TASKS), 18, "separate", 37_843_841),
        slow(
            "resnet34", ("depth",), None, "separate", 21_797_672 - 513_000 + 1_504_801
        ),
        slow("resnet50", tuple(TASKS), 18, "separate", 57_368_705),
        slow(
            "resnet50", ("depth",), None, "separate", 25_557_032 - 2_049_000 + 3_077_665
        ),
        ("drn_d_22", THREE, 19, "separate", 2_766_384 + 3 * 13_114_368 + 513 * 23),
        ("small", THREE, 9, "separate", 165_264 + 3 * 18_496 + 33 * 13),
        ("tiny", THREE, 9, "separate", 11_141),
        ("tiny", THREE, 9, "shared", 6_469),
    ],
)
def test_parameter_counts(name, tasks, num_classes, decoders, count):
    model = models.build(name, tasks, (64, 64, 3), num_classes, decoders=decoders)
    assert _parameter_count(model) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_other_blocks_train_and_save(name, tmp_path):
    """An odd batch of narrow models, as below; and every weight gets a gradient."""
    model = _build(name, ("seg",), decoders="shared")
    x = tf.constant(_images(3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x, training=True)["seg"] ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.max(np.abs(gradient)) > 0 for gradient in gradients)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    expected = model(x, training=False)["seg"]
    np.testing.assert_array_equal(loaded(x, training=False)["seg"], expected)


def test_drn_c_has_no_shortcuts_in_its_last_layers():
    model = _build("drn_c_26", ("depth",))
    adds = [layer.name for layer in model.layers if layer.name.endswith("_add")]
    blocks = {1: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2}
    assert len(adds) == sum(blocks.values())
    assert not [name for name in adds if "layer7" in name or "layer8" in name]
    conv = model.get_layer("decoder_depth_layer7_block0_2_conv")
    assert conv.dilation_rate == (2, 2)
    assert model.get_layer("decoder_depth_layer8_block0_1_conv").dilation_rate == (1, 1)


def test_new_heads_start_as_pytorchs_and_those_of_small_nets_at_zero():
    for name, size in (("drn_d_22", 64), ("resnet18", 9 * 2)):
        head = _build(name, ("seg",)).get_layer("head_seg")
        bias = head.bias.numpy()
        assert np.all(np.abs(bias) <= 1 / np.sqrt(size))
        assert np.std(bias) > 0.1 / np.sqrt(size)
    for name in ("small", "tiny"):
        assert not np.any(_build(name, ("seg",)).get_layer("head_seg").bias)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", (32, 96)),
        ("drn_d_22", (128, 32)),
        ("small", (64, 64)),
        ("tiny", (128, 32)),
    ],
)
def test_outputs_have_the_images_size_and_the_tasks_channels(name, size):
    tasks = ("autoencoder", "seg", "normal", "depth", "curvature")
    model = _build(name, tasks, size, decoders="shared")
    assert tuple(model.output) == tasks
    shapes = {task: y.shape[1:] for task, y in model(_images(1, size)).items()}
    channels = {"autoencoder": 3, "seg": 5, "normal": 3, "depth": 1, "curvature": 2}
    assert shapes == {task: (*size, c) for task, c in channels.items()}


@pytest.mark.parametrize(("name", "size"), [("drn_d_22", (8, 24)), ("tiny", (4, 12))])
def test_the_smallest_sizes_work(name, size):
    outputs = _build(name, size=size)(_images(1, size))
    assert outputs["depth"].shape == (1, *size, 1)


def test_aliases_and_letters_name_tasks():
    assert tuple(_build("tiny", "n,segmentsemantic").output) == ("normal", "seg")


@pytest.mark.parametrize(
    ("name", "stages"), [("resnet18", 5), ("drn_d_22", 6), ("small", 3), ("tiny", 2)]
)
def test_tasks_share_the_first_stages_and_each_has_the_rest_to_itself(name, stages):
    """Whatever it shares, a model starts with the outputs of models of one task."""
    task_models = {task: _build(name, (task,)) for task in ("seg", "depth")}
    prefixes = tuple(f"encoder_{task}_" for task in task_models)
    x = _images(1)
    for number in (0, 1, stages):
        model = _build(name, tuple(task_models), shared_stages=number)
        encoder = [p for p in _values_by_path(model) if p.startswith("encoder_")]
        shared_paths = [path for path in encoder if not path.startswith(prefixes)]
        assert len({path.split("_")[1] for path in shared_paths}) == number
        task_encoder = [
            p for p in _values_by_path(task_models["seg"]) if p.startswith("encoder_")
        ]
        assert len(encoder) == 2 * len(task_encoder) - len(shared_paths)
        for task, task_model in task_models.items():
            np.testing.assert_array_equal(model(x)[task], task_model(x)[task])


def test_tasks_that_share_nothing_train_as_if_alone():
    x = tf.constant(_images(2, (8, 12)))
    gradients = []
    for tasks in (("seg", "depth"), ("seg",)):
        model = _build("tiny", tasks, (8, 12), shared_stages=0)
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            loss = sum(tf.reduce_mean((y - 1) ** 2) for y in outputs.values())
        values = tape.gradient(loss, model.trainable_variables)
        paths = [variable.path for variable in model.trainable_variables]
        gradients.append(dict(zip(paths, values, strict=True)))
    joint, single = gradients
    assert len(joint) == 2 * len(single)
    for path, gradient in single.items():
        np.testing.assert_allclose(joint[path], gradient, rtol=1e-6)


def test_normalisation_is_the_first_layer_and_has_no_weights():
    mean, std = (0.29, 0.33, 0.28), (0.18, 0.19, 0.2)
    model = _build("tiny", mean=mean, std=std)
    assert [layer.name for layer in model.layers[:2]] == ["image", "normalize"]
    assert not model.get_layer("normalize").variables
    x = _images(2)
    expected = (x - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(model.get_layer("normalize")(x), expected, atol=1e-6)
    assert models.normalization(model) == (mean, std)
    image = keras.Input((4, 4, 3))
    layer = keras.layers.Rescaling([2.0, 3.0, 4.0], name="normalize")
    with pytest.raises(InputError, match="only for built-in models"):
        models.normalization(keras.Model(image, layer(image)))


def test_layers_have_readable_names(model):
    starts = ("encoder_", "decoder_", "head_", "output_", "upsample_")
    names = [layer.name for layer in model.layers if layer.name != "image"]
    assert [n for n in names[1:] if not n.startswith(starts)] == []
    assert {f"head_{task}" for task in THREE} <= set(names)


def test_saved_and_loaded_model_is_equal(model, tmp_path):
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    x = _images(2)
    outputs, loaded_outputs = model(x, training=False), loaded(x, training=False)
    assert tuple(loaded_outputs) == tuple(outputs)
    for task in outputs:
        np.testing.assert_array_equal(loaded_outputs[task], outputs[task])
    assert [v.path for v in loaded.variables] == [v.path for v in model.variables]


def test_gradient_reaches_the_image_from_every_task(model):
    x = tf.constant(_images(2))
    for task in THREE:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_mean(model(x, training=False)[task] ** 2)
        gradient = tape.gradient(loss, x).numpy()
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()


def test_one_image_alone_equals_it_in_a_batch(model):
    x = _images(8)
    batch, single = model(x, training=False), model(x[3:4], training=False)
    for task in THREE:
        scale = np.abs(batch[task]).max()
        np.testing.assert_allclose(single[task][0], batch[task][3], atol=1e-5 * scale)


def test_inference_leaves_the_model_alone_and_training_does_not(model):
    values = _values_by_path(model)
    model(_images(2), training=False)
    for path, value in _values_by_path(model).items():
        np.testing.assert_array_equal(value, values[path], err_msg=path)
    try:
        model(_images(2), training=True)
        new_values = _values_by_path(model)
    finally:  # Other tests have the same model.
        for variable in model.variables:
            variable.assign(values[variable.path])
    changed_paths = {p for p, v in new_values.items() if (v != values[p]).any()}
    statistics = {p for p in values if p.endswith(("moving_mean", "moving_variance"))}
    assert changed_paths == statistics


def test_tasks_share_just_what_they_should(model):
    x = _images(1)
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(x, training=False)
        losses = {task: tf.reduce_mean(outputs[task]) for task in THREE}
    paths = {}
    for task in THREE:
        values = tape.gradient(losses[task], model.trainable_variables)
        pairs = zip(model.trainable_variables, values, strict=True)
        paths[task] = {v.path for v, gradient in pairs if gradient is not None}
    common = set.intersection(*paths.values())
    is_shared = any(layer.name.startswith("decoder_shared") for layer in model.layers)
    assert common == {
        v.path
        for v in model.trainable_variables
        if v.path.startswith(
            ("encoder_", "decoder_shared") if is_shared else "encoder_"
        )
    }
    private_paths = [paths[task] - common for task in THREE]
    assert sum(map(len, private_paths)) == len(set.union(*private_paths))
    if is_shared:
        heads = {f"head_{task}/{w}" for task in THREE for w in ("kernel", "bias")}
        assert set.union(*private_paths) == heads


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("resnet18", "mixed_bfloat16"),  # Its heads have the image's size,
        slow("drn_d_22", "mixed_bfloat16"),
        ("small", "mixed_bfloat16"),  # and these have smaller ones.
        ("tiny", "mixed_float16"),
    ],
)
def test_half_precision_ends_in_float32(name, policy):
    options = {"size": (32, 32), "decoders": "shared"}
    exact = _build(name, **options)(_images(2, (32, 32)))
    keras.config.set_dtype_policy(policy)
    try:
        model = _build(name, **options)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("normalize").compute_dtype == "float32"
    assert model.get_layer("head_depth").compute_dtype == policy.removeprefix("mixed_")
    for task, output in model(_images(2, (32, 32))).items():
        assert output.dtype == tf.float32
        scale = np.abs(exact[task]).max()
        np.testing.assert_allclose(output, exact[task], atol=0.1 * scale)


@pytest.mark.parametrize("name", NARROW)
def test_initial_values_depend_on_seed_and_name_alone(name):
    first = _values_by_path(_build(name, ("seg", "depth"), seed=3))
    second = _values_by_path(_build(name, ("normal", "depth"), (32, 32), seed=3))
    common = first.keys() & second.keys()
    assert {"encoder_", "decoder", "head_dep"} == {
        next(s for s in ("encoder_", "decoder", "head_dep") if p.startswith(s))
        for p in common
    }
    for path in common:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)
    third = _values_by_path(_build(name, ("seg", "depth"), seed=4))
    kernels = [p for p in first if p.endswith("kernel")]
    assert all((third[p] != first[p]).any() for p in kernels)
    values = [first[p].ravel()[:8].tobytes() for p in kernels]
    assert len(set(values)) == len(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_training_step_on_an_odd_batch_of_a_narrow_model(name):
    """A strided 1x1 convolution would crash here (platform: oneDNN, few channels)."""
    model = _build(name, ("depth",), (64, 64))
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(model.trainable_variables)
    x = tf.constant(_images(5, (64, 64)))

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True)["depth"] - 0.5) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(5)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_synchronised_statistics_of_two_replicas_are_those_of_the_batch(mirrored):
    x = _images(4)
    single = _build("tiny")
    single(x, training=True)
    with mirrored.scope():
        model = _build("tiny", sync_batch_norm=True)
    halves = iter((x[:2], x[2:]))
    batch = mirrored.experimental_distribute_values_from_function(
        lambda _: tf.constant(next(halves))
    )
    train = tf.function(lambda images: model(images, training=True), autograph=False)
    mirrored.run(train, (batch,))
    expected = _values_by_path(single)
    for path, value in _values_by_path(model).items():
        np.testing.assert_allclose(value, expected[path], atol=1e-5, err_msg=path)


def test_drn_geometry():
    """Table of the paper's Cityscapes model: where it strides and where it dilates."""
    model = models.build("drn_d_22", THREE, (336, 680, 3), 19, decoders="shared")
    convs = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    dilations = {}
    for conv in convs:
        layer = next((p for p in conv.name.split("_") if p.startswith("layer")), "head")
        if "shortcut" not in conv.name:
            dilations.setdefault(layer, []).append(conv.dilation_rate[0])
    assert dilations == {
        "layer0": [1],
        "layer1": [1],
        "layer2": [1],
        "layer3": [1] * 4,
        "layer4": [1] * 4,
        "layer5": [2] * 4,
        "layer6": [4] * 4,
        "layer7": [2],
        "layer8": [1],
        "head": [1] * 3,
    }
    features = model.get_layer("encoder_layer5_block1_relu").output
    assert features.shape == (None, 42, 85, 256)
    assert model.get_layer("decoder_shared_layer8_relu").output.shape[-1] == 512
    assert model.output["seg"].shape == (None, 336, 680, 19)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "resnet81"}, ["resnet81", "Did you mean 'resnet18'?", "drn_d_105"]),
        ({"image_shape": (60, 80, 3)}, ["multiples of 32", "60x80", "64x64"]),
        ({"image_shape": (8, 100, 3)}, ["multiples of 32", "8x100", "32x96"]),
        ({"image_shape": (0, 64, 3)}, ["multiples of 32", "0x64", "32x64"]),
        ({"image_shape": (64, 64)}, ["(height, width, channels)", "(64, 64)"]),
        ({"image_shape": (64, 64, 0)}, ["(height, width, channels)", "(64, 64, 0)"]),
        ({"tasks": ()}, ["task"]),
        ({"tasks": ("seg", "depht")}, ["depht", "depth"]),
        ({"tasks": ("seg", "seg")}, ["seg"]),
        ({"num_classes": 1}, ["at least 2", "seg", "1"]),
        ({"num_classes": None}, ["at least 2", "seg", "None"]),
        ({"width": 0}, ["width", "0"]),
        ({"width": 1.5}, ["width", "1.5"]),
        ({"decoders": "both"}, ["separate or shared", "'both'"]),
        ({"shared_stages": 6}, ["0 to 5", "resnet18", "6"]),
        ({"shared_stages": 1.5}, ["whole number", "1.5"]),
        ({"shared_stages": 1, "decoders": "shared"}, ["1 of 5 stages", "separate"]),
        ({"std": (1, 0, 1)}, ["std", "(1, 0, 1)"]),
        ({"mean": (0.5,)}, ["mean", "(0.5,)"]),
    ],
)
def test_unusable_settings_are_explained(change, words):
    settings = {
        "name": "resnet18",
        "tasks": ("seg",),
        "image_shape": (64, 64, 3),
        "num_classes": 5,
        "width": 2,
    }
    with pytest.raises(InputError) as error:
        models.build(**{**settings, **change})
    assert [word for word in words if word not in str(error.value)] == []


def test_num_classes_may_be_left_out_without_classes():
    assert tuple(models.build("tiny", ("depth",), (8, 8, 3), None).output) == ("depth",)
