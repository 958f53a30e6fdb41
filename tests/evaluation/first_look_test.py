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
    """The model of two functions of an image; classes by colour are `20 * image`."""
    image = keras.Input((SIZE, SIZE, 3), dtype=dtype)
    outputs = {"seg": logits(image)}
    if depth is not None:
        outputs["depth"] = depth(image)
    return keras.Model(image, outputs)


def plain(x):
    return 20.0 * x


def run_flags(path, *given: str) -> tuple[list[dict], str, pathlib.Path]:
    """What `python -m mtr_tf.attack` does with these flags: records, text, folder."""
    values = flags.FlagValues()
    cli_flags.define(AttackConfig, values)
    usual = ("--dataset=colours", "--attack=pgd", "--eps=8", "--steps=2", "--name=test")
    values(["mtr_tf.attack", f"--ckpt={path}", *usual, "--nochecks", *given])
    text = attack_job.attack(cli_flags.read(AttackConfig, values))
    (folder,) = pathlib.Path("runs").glob(f"{pathlib.Path(path).stem}-*/attacks/test")
    return json.loads((folder / "results.json").read_text()), text, folder


def values_of(records, metric="pixel_accuracy", task="seg", group=("seg",)):
    """(clean, attacked) of a metric."""
    (record,) = (
        r
        for r in records
        if (r["task"], r["metric"], tuple(r["attacked"])) == (task, metric, group)
    )
    return record["clean"], record["attacked_value"]


def run_of(model: keras.Model) -> Run:
    return Run(model, tuple(model.output), None, pathlib.Path("runs"), "")


def look(model: keras.Model, affine=None, tasks=("seg",)):
    """The model as it is attacked, and what is said of it."""
    batch = batching.gather(colours("validation"), tasks, np.arange(COUNT))
    run = run_of(model)
    found, said = first_look.look(run, INFO, batch, tasks, affine)
    return found.model, said


# What a device has memory and kernels for.


def at_most(limit: int, seen: list[int]):
    """As `plain`, for so many images."""

    def logits(x):
        if not isinstance(x, keras.KerasTensor) and x.shape[0] is not None:
            seen.append(x.shape[0])
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
    seen: list[int] = []
    look_at(at_most(3, seen), "auto")  # 16, 8, 4 and 2 of the six.
    assert {6, 4, 2} == set(seen)
    seen.clear()
    look_at(at_most(2, seen), 8, replicas=4)
    assert set(seen) == {2}
    with pytest.raises(tf.errors.ResourceExhaustedError):  # With advice, by commands.
        look_at(at_most(3, seen), 4)


def test_the_first_look_names_what_has_no_deterministic_kernel():
    def logits(x):
        if not isinstance(x, keras.KerasTensor) and x.shape[0] is not None:
            text = "Determinism is not yet supported for Dilation2D."
            raise tf.errors.UnimplementedError(None, None, text)
        return plain(x)

    with pytest.raises(InputError, match="Dilation2D.*; give --nodeterministic"):
        look(net(keras.layers.Lambda(logits, output_shape=(SIZE, SIZE, 3))))


def test_nothing_of_a_model_changes():
    """Not even what a layer counts in a variable of TensorFlow's."""
    model = random_models_fixture.model(random_models_fixture.Counting())
    before = random_models_fixture.bits(model)
    columns, strategy = colours("validation"), tf.distribute.get_strategy()
    assert look(model, tasks=("depth",))[0] is model
    assert random_models_fixture.bits(model) == before
    largest_batch.fitting([model], columns, 2, strategy)
    assert random_models_fixture.bits(model) == before
    own_targets.of_model(model, columns, TASKS.select("depth"), COUNT)
    assert random_models_fixture.bits(model) == before


# The range of images.


def in_255(x):
    """Of images of 0-255 `plain`; of those in [0, 1] always green."""
    return 20.0 * (x / 255.0) + keras.ops.array([0.0, 0.3, 0.0])


def turned(x):
    return 20.0 * x[..., ::-1]


@pytest.mark.slow
def test_a_wrong_range_is_named_before_anything_and_the_flag_mends_it(unplotted):
    net(in_255).save("wide.keras")
    net(lambda x: plain(x) + keras.ops.array([0.0, 0.3, 0.0])).save("narrow.keras")
    wrong, text, _ = run_flags("wide.keras")
    assert "times 255" in wrong[0]["warnings"][0]
    assert "give --input_range=0,255" in wrong[0]["warnings"][0]
    assert "no better than a constant guess" in wrong[0]["warnings"][1]
    assert "--input_range=0,255" in text
    given = ("--input_range=0,255", "--save_examples=2")
    right, _, folder = run_flags("wide.keras", *given)
    assert right[0]["warnings"] == []
    assert values_of(right)[0] == 1.0
    # All in pixels of [0, 1]: what the same net that takes them comes to.
    same, _, _ = run_flags("narrow.keras")
    for a, b in zip(right, same, strict=True):
        assert a["attacked_value"] == pytest.approx(b["attacked_value"], rel=1e-5)
    (path,) = folder.glob("examples/pgd*")
    with np.load(path) as arrays:
        assert np.abs(arrays["adversarial"] - arrays["image"]).max() <= 8 / 255 + 1e-6
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["attack"]["input_range"] == [0.0, 255.0]
    assert len(list(folder.glob("cells/*.json"))) == 4  # Two models are not one.


def test_other_orders_and_ranges_are_named():
    assert "reverse the channels" in look(net(turned))[1][0]
    assert look(net(plain))[1] == []
    _, said = look(net(plain), ((255.0, 1e-3, 1e-3), (0.0, 0.0, 0.0)))
    assert "leave out --input_range" in said[0]


def test_a_task_of_which_a_constant_is_perfect_says_nothing_of_the_model():
    """As where images are sorted by class; the other tasks still tell the range."""
    both = ("seg", "depth")
    batch = batching.gather(colours("validation"), both, np.arange(COUNT))
    batch["targets"]["seg"] = np.zeros_like(batch["targets"]["seg"])

    def said(depth, tasks=both):
        run = run_of(net(in_255, depth))
        return first_look.look(run, INFO, batch, tasks)[1]

    (cure, *rest) = said(lambda x: 4 / 255 * x[..., :1])
    assert "times 255" in cure
    assert "(depth mae " in cure
    assert "seg is no better" not in " ".join(rest)
    alone = said(lambda x: 4 * x[..., :1], ("seg",))
    assert not any("constant" in text or "far better" in text for text in alone)


def test_images_are_spread_over_those_that_are_attacked(monkeypatch):
    gathered, real = [], batching.gather

    def gather(columns, tasks, rows, num_classes):
        gathered.append(rows.tolist())
        return real(columns, tasks, rows, num_classes)

    monkeypatch.setattr(first_look.batching, "gather", gather)
    few = colours("validation")
    targets = {
        task: np.tile(t, (7, *[1] * (t.ndim - 1))) for task, t in few.targets.items()
    }
    columns = Columns(np.tile(few.images, (7, 1, 1, 1)), targets, {})
    for num_examples in (32, 0, 5):
        config = AttackConfig(ckpt="x", num_examples=num_examples)
        run = run_of(net(plain))
        first_look.look_at(config, run, None, INFO, columns, ["seg"], ["seg"])
    assert gathered[0] == list(range(0, 32, 2))
    assert (gathered[1][0], gathered[1][-1], len(gathered[1])) == (0, 39, 16)
    assert gathered[2] == [0, 1, 2, 3, 4]


def test_outputs_that_do_not_depend_on_the_image_are_named():
    _, said = look(
        net(
            lambda x: 1e-4 * x + keras.ops.array([0.0, 1.0, 2.0]),
            lambda x: 0 * x[..., :1],
        ),
        tasks=("seg", "depth"),
    )
    hardly = [s for s in said if "hardly changes with the image" in s]
    assert [s.split()[2] for s in hardly] == ["seg", "depth"]
    assert "other data" in hardly[0]


def test_without_labels_what_hardly_changes_is_named_and_the_range_is_asked(caplog):
    nothing = {"image": colours("validation").images / np.float32(255)}
    nothing |= {"targets": {}, "masks": {}}
    still = net(
        lambda x: 1e-4 * x + keras.ops.array([0.0, 1.0, 2.0]),
        lambda x: 3 + 1e-4 * x[..., :1],
    )
    dead = net(lambda x: 0 * x, lambda x: 0 * x[..., :1])  # Of which all are equal.
    for model, by in ((still, ""), (dead, "(by 0 of its scale)")):
        _, said = first_look.look(run_of(model), INFO, nothing, ("seg", "depth"))
        assert [s.split()[2] for s in said] == ["seg", "depth"]
        for sentence in said:
            assert "hardly changes with the image" in sentence
            assert "not far better" not in sentence  # In ranges that were not tried.
            assert by in sentence
    moving = net(plain, lambda x: 300 + 2 * x[..., :1])  # Kelvins, of their size.
    _, said = first_look.look(run_of(moving), INFO, nothing, ("seg", "depth"))
    assert not said
    unlabelled = dataclasses.replace(INFO, tasks=())
    for settings, told in [
        ({}, True),
        ({"input_range": (0.0, 255.0)}, False),
    ]:
        caplog.clear()
        config = AttackConfig(ckpt="x", targets="own", **settings)
        first_look.look_at(
            config,
            run_of(moving),
            None,
            unlabelled,
            colours("validation"),
            ["seg", "depth"],
            ["seg"],
        )
        assert ("without labels nobody can see which range" in caplog.text) == told


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
    """What the model gets, low + (high - low) x, less the mean, over the deviation."""
    affine = AttackConfig(ckpt="x", **settings).input_affine
    np.testing.assert_allclose(affine, (scale, offset))
    model, _ = look(net(lambda x: 1.0 * x), affine)
    x = np.random.default_rng(0).random((2, SIZE, SIZE, 3)).astype(np.float32)
    got = model(x, training=False)["seg"]
    np.testing.assert_allclose(got, x * scale + offset, rtol=1e-5, atol=1e-5)
    assert {layer.name for layer in model.layers} > {"to_input_range"}


def test_a_model_of_any_channels_takes_the_range_of_each_of_the_images():
    image = keras.Input((SIZE, SIZE, None))
    given = keras.Model(image, {"seg": keras.layers.Identity()(image)})
    scale, offset = (4.0, 2.0, 1.0), (0.0, 0.0, -1.0)
    model, _ = look(given, (scale, offset))
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
    fitting = dataclasses.replace(INFO, image_shape=(16, 32, 3))
    model_fit.fitted(run_of(u_net(padding)), fitting, ("seg",))


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
    cut, scaled = (
        look(net(lambda x, layer=layer: layer(plain(x))))[1]
        for layer in (keras.layers.Cropping2D(1), keras.layers.AveragePooling2D(2))
    )
    (sentence,) = (text for text in cut if "seg is 6x6" in text)
    assert not sentence.startswith("note: ")
    assert "covers only the middle" in sentence
    assert "resized bilinearly to 8x8" in sentence
    (sentence,) = (text for text in scaled if "seg is 4x4" in text)
    assert sentence.startswith("note: ")
    assert "middle" not in sentence


def test_sigmoids_of_a_function_are_asked_about():
    given = adapters.as_functional(
        lambda x: {"seg": keras.ops.sigmoid(plain(x) - 5)}, (SIZE, SIZE, 3)
    )
    made, said = look(given)
    assert made is given
    assert sum("seg is in [0, 1], as probabilities are" in text for text in said) == 1


# What is not finite.


def broken(x):
    """`plain`, but NaN for the dark images."""
    light = keras.ops.mean(x, axis=(1, 2, 3), keepdims=True)
    return plain(x) + 0 * keras.ops.log(light - 0.35)


@pytest.mark.slow
def test_what_is_not_finite_is_counted_and_the_sweep_ends():
    net(broken, lambda x: broken(x)[..., :1] / 5).save("broken.keras")
    given = ("--attack=worst,pgd", "--ensemble=pgd,square", "--queries=2")
    records, text, folder = run_flags("broken.keras", *given, "--attack_tasks=all")
    sentences = records[0]["warnings"]
    for task, sentence in zip(("seg", "depth"), sentences, strict=False):
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
    """sqrt has no gradient at 0, to which ReLU gives none: 0 * inf."""
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
    given = ("--save_examples=2", "--attack_tasks=all")
    records, _, folder = run_flags("cast.keras", *given)
    both = ("seg", "depth")
    assert values_of(records, group=both)[0] == 1.0
    assert values_of(records, "mae", "depth", both)[0] < 0.02
    assert (folder / "gallery.png").stat().st_size > 1000
    (path,) = folder.glob("examples/pgd_seg+depth_*")
    with np.load(path) as arrays:
        assert arrays["output/seg"].dtype == np.float32
        adversarial = arrays["adversarial"]
        np.testing.assert_allclose(arrays["output/seg"], 20 * adversarial, rtol=0.01)


# The cases that others gave, on these data: theirs are not known.


def run_case(name: str, *given: str) -> list[dict]:
    path = CASES / f"{name}.keras"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return run_flags(path, "--dataset=wide", *given)[0]


@pytest.fixture
def wide_colours(monkeypatch):
    """The images at the 32 pixels that the cases take, of squares of 8 pixels."""
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
    wrong = run_case("in_0_255")
    assert "give --input_range=0,255" in wrong[0]["warnings"][0]
    right = run_case("in_0_255", "--input_range=0,255")
    assert right[0]["warnings"] == []
    assert values_of(right, "miou")[0] > 0.8 > 0.3 > values_of(wrong, "miou")[0]


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
    """Those of a file were numbered by another process."""
    image = keras.Input((SIZE, SIZE, 3))
    y = keras.layers.Identity(name="depth_with_channels")(image)
    y = keras.layers.Identity(name="expand_dims")(y)
    given = keras.Model(image, {"depth": y[..., 0], "seg": y})
    keras.utils.clear_session(free_memory=False)
    fitted = model_fit.fitted(run_of(given), INFO, ("seg", "depth")).model
    x = np.random.default_rng(0).random((2, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_array_equal(fitted(x)["depth"], x[..., :1])
