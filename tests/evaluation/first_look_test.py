# SPDX-License-Identifier: Apache-2.0
"""Models as people give them: other ranges, probabilities, NaN, dtypes, sizes."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import random_models_fixture
import tensorflow as tf
from absl import flags

from mtr_tf import attack_job
from mtr_tf import data
from mtr_tf import models
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation import first_look
from mtr_tf.evaluation import largest_batch
from mtr_tf.evaluation import model_fit
from mtr_tf.evaluation import own_targets
from mtr_tf.models import adapters
from mtr_tf.runs import directory
from mtr_tf.runs.loading import Run
from mtr_tf.tasks import TASKS

SIZE, COUNT, DARK = 8, 6, 2
CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"
INFO = DatasetInfo(
    name="colours",
    image_shape=(SIZE, SIZE, 3),
    classes=("red", "green", "blue"),
    colors=((255, 0, 0), (0, 255, 0), (0, 0, 255)),
    tasks=("seg", "depth"),
    splits={"validation": COUNT},
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    ranges={"depth": (0.0, 4.0)},
)


def colours(split: str) -> Columns:
    """Pixels of one colour each, which is the class; depth is 4 times the red.

    The first DARK images are darker than the others.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (COUNT, SIZE, SIZE))
    light = np.where(np.arange(COUNT) < DARK, 80, 200)[:, None, None, None]
    images = (np.eye(3)[labels] * light + 40).astype(np.uint8)
    depth = images[..., :1].astype(np.float32) * np.float32(4 / 255)
    return Columns(images, {"seg": labels.astype(np.uint8), "depth": depth}, {})


def open_colours(*, image_size=None, data_dir=None, tasks=None) -> Source:
    return Source(INFO, colours)


@pytest.fixture(autouse=True)
def known(monkeypatch, tmp_path):
    monkeypatch.setitem(data.DATASETS, "colours", open_colours)
    monkeypatch.chdir(tmp_path)


def net(logits, depth=None, dtype="float32") -> keras.Model:
    """A model of two functions of the image; `20 * image` gives classes by colour."""
    image = keras.Input((SIZE, SIZE, 3), dtype=dtype)
    outputs = {"seg": logits(image)}
    if depth is not None:
        outputs["depth"] = depth(image)
    return keras.Model(image, outputs)


def plain(x):
    return 20.0 * x


def run_flags(path, *arguments: str) -> tuple[list[dict], str, pathlib.Path]:
    """What `python -m mtr_tf.attack` does with these flags: records, text, folder."""
    values = flags.FlagValues()
    cli_flags.define(AttackConfig, values)
    base = ("--dataset=colours", "--attack=pgd", "--eps=8", "--steps=2", "--name=test")
    values(["mtr_tf.attack", f"--ckpt={path}", *base, "--nochecks", *arguments])
    text = attack_job.attack(cli_flags.read(AttackConfig, values))
    (folder,) = pathlib.Path("runs").glob(f"{pathlib.Path(path).stem}-*/attacks/test")
    return json.loads((folder / "results.json").read_text()), text, folder


def values_of(records, metric="pixel_accuracy", task="seg", group=("seg",)):
    """The clean and the attacked value of a metric."""
    (record,) = (
        r
        for r in records
        if (r["task"], r["metric"], tuple(r["attacked"])) == (task, metric, group)
    )
    return record["clean"], record["attacked_value"]


def run_of(model: keras.Model) -> Run:
    return Run(model, tuple(model.output), None, pathlib.Path("runs"), "")


def look(model: keras.Model, affine=None, tasks=("seg",)):
    """The model as it is attacked, and the sentences of warning about it."""
    batch = batching.gather(colours("validation"), tasks, np.arange(COUNT))
    run = run_of(model)
    fitted_run, sentences = first_look.look(run, INFO, batch, tasks, affine)
    return fitted_run.model, sentences


# What a device has memory and kernels for.


def at_most(limit: int, sizes: list[int]):
    """A model like `plain`, with memory for at most `limit` images."""

    def logits(x):
        if not isinstance(x, keras.KerasTensor) and x.shape[0] is not None:
            sizes.append(x.shape[0])
            if x.shape[0] > limit:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when")
        return plain(x)

    return net(keras.layers.Lambda(logits, output_shape=(SIZE, SIZE, 3)))


def look_at(model: keras.Model, batch_size, replicas: int = 1):
    config = AttackConfig(ckpt="x", batch_size=batch_size)
    columns = colours("validation")
    return first_look.look_at(
        config, run_of(model), None, INFO, columns, ["seg"], ["seg"], replicas
    )


def test_the_first_look_takes_as_many_images_as_fit():
    sizes: list[int] = []
    look_at(at_most(3, sizes), "auto")  # Tries 16, 8, 4 and 2; there are 6.
    assert {6, 4, 2} == set(sizes)
    sizes.clear()
    look_at(at_most(2, sizes), 8, replicas=4)
    assert set(sizes) == {2}
    with pytest.raises(tf.errors.ResourceExhaustedError):  # Commands add advice.
        look_at(at_most(3, sizes), 4)


def test_the_first_look_names_what_has_no_deterministic_kernel():
    def logits(x):
        if not isinstance(x, keras.KerasTensor) and x.shape[0] is not None:
            text = "Determinism is not yet supported for Dilation2D."
            raise tf.errors.UnimplementedError(None, None, text)
        return plain(x)

    with pytest.raises(InputError, match="Dilation2D.*; give --nodeterministic"):
        look(net(keras.layers.Lambda(logits, output_shape=(SIZE, SIZE, 3))))


def test_nothing_of_a_model_changes():
    """Not even the TensorFlow variable in which a layer counts its calls."""
    model = random_models_fixture.model(random_models_fixture.Counting())
    bits = random_models_fixture.bits(model)
    columns, strategy = colours("validation"), tf.distribute.get_strategy()
    assert look(model, tasks=("depth",))[0] is model
    assert random_models_fixture.bits(model) == bits
    largest_batch.fitting([model], columns, 2, strategy)
    assert random_models_fixture.bits(model) == bits
    own_targets.of_model(model, columns, TASKS.select("depth"), COUNT)
    assert random_models_fixture.bits(model) == bits


# The range of images.


def in_255(x):
    """Like `plain` for images of 0-255; for images in [0, 1] always green."""
    return 20.0 * (x / 255.0) + keras.ops.array([0.0, 0.3, 0.0])


def turned(x):
    return 20.0 * x[..., ::-1]


@pytest.mark.slow
def test_a_wrong_range_is_named_before_anything_and_the_flag_mends_it(unplotted):
    net(in_255).save("wide.keras")
    net(lambda x: plain(x) + keras.ops.array([0.0, 0.3, 0.0])).save("narrow.keras")
    wrong_records, text, _ = run_flags("wide.keras")
    assert "times 255" in wrong_records[0]["warnings"][0]
    assert "give --input_range=0,255" in wrong_records[0]["warnings"][0]
    assert "no better than a constant guess" in wrong_records[0]["warnings"][1]
    assert "--input_range=0,255" in text
    arguments = ("--input_range=0,255", "--save_examples=2")
    right_records, _, folder = run_flags("wide.keras", *arguments)
    assert right_records[0]["warnings"] == []
    assert values_of(right_records)[0] == 1.0
    # All values are those of the same net for [0, 1], with pixels of that range.
    narrow_records, _, _ = run_flags("narrow.keras")
    for a, b in zip(right_records, narrow_records, strict=True):
        assert a["attacked_value"] == pytest.approx(b["attacked_value"], rel=1e-5)
    (path,) = folder.glob("examples/pgd*")
    with np.load(path) as arrays:
        assert np.abs(arrays["adversarial"] - arrays["image"]).max() <= 8 / 255 + 1e-6
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["attack"]["input_range"] == [0.0, 255.0]
    assert len(list(folder.glob("cells/*.json"))) == 4  # Of two models.


def test_other_orders_and_ranges_are_named():
    assert "reverse the channels" in look(net(turned))[1][0]
    assert look(net(plain))[1] == []
    _, sentences = look(net(plain), ((255.0, 1e-3, 1e-3), (0.0, 0.0, 0.0)))
    assert "leave out --input_range" in sentences[0]


def test_a_task_of_which_a_constant_is_perfect_says_nothing_of_the_model():
    """As where images are sorted by class; the other tasks still reveal the range."""
    all_tasks = ("seg", "depth")
    batch = batching.gather(colours("validation"), all_tasks, np.arange(COUNT))
    batch["targets"]["seg"] = np.zeros_like(batch["targets"]["seg"])

    def sentences_of(depth, tasks=all_tasks):
        run = run_of(net(in_255, depth))
        return first_look.look(run, INFO, batch, tasks)[1]

    (cure, *sentences) = sentences_of(lambda x: 4 / 255 * x[..., :1])
    assert "times 255" in cure
    assert "(depth mae " in cure
    assert "seg is no better" not in " ".join(sentences)
    seg_sentences = sentences_of(lambda x: 4 * x[..., :1], ("seg",))
    assert not any("constant" in text or "far better" in text for text in seg_sentences)


def test_images_are_spread_over_those_that_are_attacked(monkeypatch):
    all_rows, original = [], batching.gather

    def gather(columns, tasks, rows, num_classes):
        all_rows.append(rows.tolist())
        return original(columns, tasks, rows, num_classes)

    monkeypatch.setattr(first_look.batching, "gather", gather)
    source = colours("validation")
    targets = {
        task: np.tile(t, (7, *[1] * (t.ndim - 1))) for task, t in source.targets.items()
    }
    columns = Columns(np.tile(source.images, (7, 1, 1, 1)), targets, {})
    for num_examples in (32, 0, 5):
        config = AttackConfig(ckpt="x", num_examples=num_examples)
        run = run_of(net(plain))
        first_look.look_at(config, run, None, INFO, columns, ["seg"], ["seg"])
    assert all_rows[0] == list(range(0, 32, 2))
    assert (all_rows[1][0], all_rows[1][-1], len(all_rows[1])) == (0, 39, 16)
    assert all_rows[2] == [0, 1, 2, 3, 4]


def test_outputs_that_do_not_depend_on_the_image_are_named():
    _, sentences = look(
        net(
            lambda x: 1e-4 * x + keras.ops.array([0.0, 1.0, 2.0]),
            lambda x: 0 * x[..., :1],
        ),
        tasks=("seg", "depth"),
    )
    warnings = [s for s in sentences if "hardly changes with the image" in s]
    assert [s.split()[2] for s in warnings] == ["seg", "depth"]
    assert "other data" in warnings[0]


def test_without_labels_what_hardly_changes_is_named_and_the_range_is_asked(caplog):
    batch = {"image": colours("validation").images / np.float32(255)}
    batch |= {"targets": {}, "masks": {}}
    constant_net = net(
        lambda x: 1e-4 * x + keras.ops.array([0.0, 1.0, 2.0]),
        lambda x: 3 + 1e-4 * x[..., :1],
    )
    dead_net = net(lambda x: 0 * x, lambda x: 0 * x[..., :1])  # All outputs are equal.
    for model, note in ((constant_net, ""), (dead_net, "(by 0 of its scale)")):
        _, sentences = first_look.look(run_of(model), INFO, batch, ("seg", "depth"))
        assert [s.split()[2] for s in sentences] == ["seg", "depth"]
        for sentence in sentences:
            assert "hardly changes with the image" in sentence
            assert "not far better" not in sentence  # In ranges that were not tried.
            assert note in sentence
    moving_net = net(plain, lambda x: 300 + 2 * x[..., :1])  # Large, as kelvins are.
    _, sentences = first_look.look(run_of(moving_net), INFO, batch, ("seg", "depth"))
    assert not sentences
    unlabelled_info = dataclasses.replace(INFO, tasks=())
    for settings, warns in [
        ({}, True),
        ({"input_range": (0.0, 255.0)}, False),
    ]:
        caplog.clear()
        config = AttackConfig(ckpt="x", targets="own", **settings)
        first_look.look_at(
            config,
            run_of(moving_net),
            None,
            unlabelled_info,
            colours("validation"),
            ["seg", "depth"],
            ["seg"],
        )
        assert ("without labels nobody can see which range" in caplog.text) == warns


@pytest.mark.parametrize(
    ("settings", "scale", "offset"),
    [
        ({"input_range": (0.0, 255.0)}, [255] * 3, [0] * 3),
        ({"input_range": (-1.0, 1.0)}, [2] * 3, [-1] * 3),
        ({"input_mean": (0.5,), "input_std": (0.25,)}, [4] * 3, [-2] * 3),
        (
            {"input_range": (0.0, 255.0), "input_mean": (100.0, 110.0, 120.0)},
            [255] * 3,
            [-100, -110, -120],
        ),
        ({"input_std": (1.0, 2.0, 4.0)}, [1, 0.5, 0.25], [0] * 3),
    ],
)
def test_ranges_means_and_deviations(settings, scale, offset):
    """The model gets (low + (high - low) x - mean) / deviation."""
    affine = AttackConfig(ckpt="x", **settings).input_affine
    np.testing.assert_allclose(affine, (scale, offset))
    model, _ = look(net(lambda x: 1.0 * x), affine)
    x = np.random.default_rng(0).random((2, SIZE, SIZE, 3)).astype(np.float32)
    got = model(x, training=False)["seg"]
    np.testing.assert_allclose(got, x * scale + offset, rtol=1e-5, atol=1e-5)
    assert {layer.name for layer in model.layers} > {"to_input_range"}


def test_a_model_of_any_channels_takes_the_range_of_each_of_the_images():
    image = keras.Input((SIZE, SIZE, None))
    original = keras.Model(image, {"seg": keras.layers.Identity()(image)})
    scale, offset = (4.0, 2.0, 1.0), (0.0, 0.0, -1.0)
    model, _ = look(original, (scale, offset))
    x = np.random.default_rng(0).random((2, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(model(x)["seg"], x * scale + offset, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_range": (255.0,)}, "two numbers.*got 255"),
        ({"input_range": (1.0, 0.0)}, "the lower first.*got 1,0"),
        (
            {"input_mean": (1.0, 2.0), "input_std": (1.0, 2.0, 3.0)},
            "one number, or one per channel of the images; got 2 and 3",
        ),
        ({"input_std": (0.0,)}, "--input_std must be one number from 1e-06"),
    ],
)
def test_ranges_that_are_none(settings, message):
    with pytest.raises(InputError, match=message):
        AttackConfig(ckpt="x", **settings)


def test_a_run_of_ours_takes_no_other_range():
    model = models.build("tiny", ("seg",), INFO.image_shape, 3)
    folder = pathlib.Path("run")
    config = TrainConfig(tasks=("seg",), dataset="colours", model="tiny")
    directory.write_config(folder, config)
    model.save(folder / "model.keras")
    with pytest.raises(InputError, match="normalises images in .0, 1. itself"):
        attack_job.attack(AttackConfig(ckpt="run", input_range=(0.0, 255.0)))


def test_whole_numbers_have_no_gradient():
    net(lambda x: keras.ops.cast(x, "float32"), dtype="uint8").save("bytes.keras")
    with pytest.raises(InputError, match="uint8.*float32.*--input_range=0,255"):
        run_flags("bytes.keras")


@pytest.mark.slow
def test_a_radius_that_may_be_meant_of_one_is_asked_about(caplog, unplotted):
    net(plain).save("plain.keras")
    records, *_ = run_flags("plain.keras", "--eps=0.03")
    assert "levels of 0-255" in caplog.text
    assert any("levels of 0-255" in text for text in records[0]["warnings"])
    caplog.clear()
    records, *_ = run_flags("plain.keras", "--eps=0.5")
    assert "levels of 0-255" in caplog.text
    assert records[0]["warnings"] == []
    caplog.clear()
    run_flags("plain.keras", "--eps=1,2")
    assert "levels of 0-255" not in caplog.text


# Sizes.


def u_net(pool_padding: str) -> keras.Model:
    image = keras.Input((None, None, 3))
    small = keras.layers.MaxPooling2D(4, padding=pool_padding)(image)
    up = keras.layers.UpSampling2D(4)(small)
    if pool_padding == "valid":
        up = keras.layers.Concatenate()([image, up])
    return keras.Model(image, {"seg": keras.layers.Conv2D(3, 1)(up)})


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (
            "camvid",
            "the nearest sizes that work are --image_size=16x28 and --image_size=16x32",
        ),
        (
            "mine:examples",  # For which --image_size is refused.
            "resize your examples to 16x28 or 16x32: images, targets and masks",
        ),
    ],
)
def test_sizes_that_a_net_cannot_take(padding, name, advice):
    info = dataclasses.replace(INFO, name=name, image_shape=(18, 30, 3))
    with pytest.raises(InputError) as error:
        model_fit.fitted(run_of(u_net(padding)), info, ("seg",))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(f"; {advice}.")
    fitting_info = dataclasses.replace(INFO, image_shape=(16, 32, 3))
    model_fit.fitted(run_of(u_net(padding)), fitting_info, ("seg",))


@pytest.mark.parametrize(
    ("size", "image", "cut"),
    [
        ((8, 16), (16, 32), False),
        ((41, 61), (321, 481), False),  # A stride of 8 of padded convolutions,
        ((40, 60), (321, 481), False),  # or of pooling that drops the rest,
        ((320, 480), (321, 481), False),  # from which a decoder comes.
        ((88, 128), (321, 481), False),  # A stride of 32, and a decoder of 8.
        ((88, 88), (321, 321), False),
        ((128, 160), (228, 304), False),  # As of FCRN.
        ((128, 128), (228, 228), False),
        ((168, 168), (336, 224), False),  # Of nets that resize the image,
        ((256, 256), (224, 224), False),
        ((512, 512), (600, 600), False),
        ((512, 512), (600, 800), False),
        ((8, 8), (16, 32), False),
        ((384, 512), (480, 640), False),  # with its proportions.
        ((32, 64), (16, 32), False),
        ((2, 34), (5, 100), False),
        ((388, 388), (572, 572), True),  # As of the first U-Net.
        ((388, 516), (572, 700), True),
        ((12, 12), (16, 16), True),  # One convolution of 5x5,
        ((12, 28), (16, 32), True),
        ((24, 24), (28, 28), True),
        ((236, 316), (240, 320), True),
        ((59, 59), (128, 128), True),  # or of 3x3 with strides of 2 between them.
        ((59, 75), (128, 160), True),
    ],
)
def test_maps_of_the_middle_lack_as_much_in_height_as_in_width(size, image, cut):
    assert first_look._may_be_cut(size, image) == cut


def test_maps_of_the_middle_are_doubted_and_scaled_ones_noted():
    crop_texts, scale_texts = (
        look(net(lambda x, layer=layer: layer(plain(x))))[1]
        for layer in (keras.layers.Cropping2D(1), keras.layers.AveragePooling2D(2))
    )
    (sentence,) = (text for text in crop_texts if "seg is 6x6" in text)
    assert not sentence.startswith("note: ")
    assert "covers only the middle" in sentence
    assert "resized bilinearly to 8x8" in sentence
    (sentence,) = (text for text in scale_texts if "seg is 4x4" in text)
    assert sentence.startswith("note: ")
    assert "middle" not in sentence


def test_sigmoids_of_a_function_are_asked_about():
    original = adapters.as_functional(
        lambda x: {"seg": keras.ops.sigmoid(plain(x) - 5)}, (SIZE, SIZE, 3)
    )
    model, sentences = look(original)
    assert model is original
    assert (
        sum("seg is in [0, 1], as probabilities are" in text for text in sentences) == 1
    )


# What is not finite.


def broken(x):
    """`plain`, but NaN for the dark images."""
    light = keras.ops.mean(x, axis=(1, 2, 3), keepdims=True)
    return plain(x) + 0 * keras.ops.log(light - 0.35)


@pytest.mark.slow
def test_what_is_not_finite_is_counted_and_the_sweep_ends():
    net(broken, lambda x: broken(x)[..., :1] / 5).save("broken.keras")
    arguments = ("--attack=worst,pgd", "--ensemble=pgd,square", "--queries=2")
    records, text, folder = run_flags("broken.keras", *arguments, "--attack_tasks=all")
    *sentences, unchanged = records[0]["warnings"]
    assert unchanged.startswith(
        f"worst on seg+depth at eps 8 left {DARK} of {COUNT} im"
    )
    for task, sentence in zip(("seg", "depth"), sentences, strict=True):
        assert sentence.startswith(f"{task} has outputs that are not finite")
        assert f"(in {DARK} of {COUNT} clean images, and in up to" in sentence
        assert sentence in text
    # The dark images' pixels are wrong, all others right; means do not exist.
    assert {record["attack"] for record in records} == {"worst", "pgd"}
    for record in records:
        exists = record["metric"] in ("miou", "pixel_accuracy")
        assert (record["attacked_value"] is not None) == exists
        assert (record["relative_vulnerability"] is not None) == exists
        if record["metric"] == "pixel_accuracy":
            assert record["clean"] == pytest.approx(1 - DARK / COUNT)
    for name in ("curves.png", "gallery.png", "results.csv"):
        assert (folder / name).stat().st_size > 100
    assert list(folder.glob("events*"))


def steep(x):
    """The slope of sqrt at 0 is infinite and that of ReLU is 0: 0 * inf is NaN."""
    return plain(x) + keras.ops.sqrt(keras.ops.relu(x - 2.0))


def test_gradients_that_are_not_finite_are_counted():
    _, (sentence,) = look(net(steep))
    assert "gradient of the model's losses is not finite" in sentence
    assert f"({COUNT} of {COUNT} images)" in sentence


@pytest.mark.slow
def test_results_tell_of_gradients_that_are_not_finite(unplotted):
    net(steep).save("steep.keras")
    records, *_ = run_flags("steep.keras")
    (sentence,) = records[0]["warnings"]
    assert "gradient of the model's losses is not finite" in sentence
    assert values_of(records)[0] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_outputs_of_any_float_type(dtype):
    def cast(x):
        return keras.ops.cast(plain(x), dtype)

    net(cast, lambda x: cast(x)[..., :1] / 5).save("cast.keras")
    arguments = ("--save_examples=2", "--attack_tasks=all")
    records, _, folder = run_flags("cast.keras", *arguments)
    group = ("seg", "depth")
    assert values_of(records, group=group)[0] == 1.0
    assert values_of(records, "mae", "depth", group)[0] < 0.02
    assert (folder / "gallery.png").stat().st_size > 1000
    (path,) = folder.glob("examples/pgd_seg+depth_*")
    with np.load(path) as arrays:
        assert arrays["output/seg"].dtype == np.float32
        adversarial = arrays["adversarial"]
        np.testing.assert_allclose(arrays["output/seg"], 20 * adversarial, rtol=0.01)


# Models that others supplied, on data of ours; their own data are not known.


def run_case(name: str, *arguments: str) -> list[dict]:
    path = CASES / f"{name}.keras"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return run_flags(path, "--dataset=wide", *arguments)[0]


@pytest.fixture
def wide_colours(monkeypatch):
    """Images of 32 x 32 pixels, which the cases take, made of squares of 8 x 8."""
    info = dataclasses.replace(INFO, name="wide", image_shape=(32, 32, 3))

    def columns(split):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, (16, 4, 4)).repeat(8, 1).repeat(8, 2)
        noise = rng.normal(0.2, 0.1, (16, 32, 32, 3))
        images = 255 * (np.eye(3)[labels] * 0.5 + noise).clip(0, 1)
        depth = np.float32(1 + 0.5 * labels[..., None])
        targets = {"seg": labels.astype(np.uint8), "depth": depth}
        return Columns(images.astype(np.uint8), targets, {})

    monkeypatch.setitem(data.DATASETS, "wide", lambda **_: Source(info, columns))


@pytest.mark.slow
def test_the_case_of_0_255(wide_colours, unplotted):
    wrong_records = run_case("in_0_255")
    assert "give --input_range=0,255" in wrong_records[0]["warnings"][0]
    right_records = run_case("in_0_255", "--input_range=0,255")
    assert right_records[0]["warnings"] == []
    assert (
        values_of(right_records, "miou")[0]
        > 0.8
        > 0.3
        > values_of(wrong_records, "miou")[0]
    )


@pytest.mark.slow
def test_the_case_of_nan(wide_colours):
    records = run_case("nan_some")
    assert any("not finite" in sentence for sentence in records[0]["warnings"])
    assert values_of(records, "loss") == (None, None)


@pytest.mark.slow
def test_the_case_of_bfloat16(wide_colours):
    records = run_case("mixed_bfloat16")
    assert all(record["attacked_value"] is not None for record in records)


def test_an_axis_of_channels_beside_layers_of_the_same_names():
    """Layers of a loaded file were numbered by another process."""
    image = keras.Input((SIZE, SIZE, 3))
    y = keras.layers.Identity(name="depth_with_channels")(image)
    y = keras.layers.Identity(name="expand_dims")(y)
    original = keras.Model(image, {"depth": y[..., 0], "seg": y})
    keras.utils.clear_session(free_memory=False)
    model = model_fit.fitted(run_of(original), INFO, ("seg", "depth")).model
    x = np.random.default_rng(0).random((2, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(x)["depth"], x[..., :1])
