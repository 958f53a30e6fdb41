# SPDX-License-Identifier: Apache-2.0
"""Weights to start from, of all kinds of files; and layers that are not trained."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest

from mtr_tf import models
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.runs import building
from mtr_tf.runs import initial_weights
from mtr_tf.tasks import task_set

SHAPE = (8, 8, 3)


def tiny(seed, tasks=("seg", "depth"), classes=3):
    return models.build("tiny", tasks, SHAPE, classes, width=4, seed=seed)


def weights(model):
    return {variable.path: variable.numpy() for variable in model.weights}


@pytest.fixture(params=["net.keras", "net.weights.h5", "net.h5", "run"])
def saved(request, tmp_path):
    """A net of seed 1, and the path at which it is saved."""
    model = tiny(1, classes=5)
    for variable in model.weights:  # So batch norms' statistics differ from new ones.
        variable.assign(variable.numpy() + 0.25)
    path = tmp_path / request.param
    if request.param == "run":
        path.mkdir()
        model.save(path / "model.keras")
    elif request.param == "net.weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    return model, path


def test_what_has_the_same_name_and_shape_is_taken(saved, caplog):
    source, path = saved
    model = tiny(2, ("seg", "normal", "depth"))
    old_values, source_values = weights(model), weights(source)
    with caplog.at_level(logging.INFO, logger="absl"):
        initial_weights.start_from(model, str(path))
    new_values = weights(model)
    assert {p for p in new_values if p.startswith(("encoder", "head_depth"))} <= set(
        source_values
    )
    for name, value in new_values.items():
        is_new = "normal" in name or name.startswith("head_seg")
        expected = old_values[name] if is_new else source_values[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    assert "layers with weights start from" in caplog.text
    assert "head_normal" in caplog.text
    assert "head_seg, which have other shapes" in caplog.text


def test_stages_that_a_task_has_to_itself_start_from_the_shared_ones(tmp_path):
    path = tmp_path / "net.keras"
    (source := tiny(1, classes=5)).save(path)
    source_values = weights(source)
    model = models.build("tiny", ("seg",), SHAPE, 5, width=4, seed=2, shared_stages=1)
    initial_weights.start_from(model, str(path), tasks=("seg",))
    for name, value in weights(model).items():
        shared_name = name.replace("encoder_seg_", "encoder_")
        np.testing.assert_array_equal(value, source_values[shared_name], err_msg=name)


def test_stages_of_a_task_whose_name_begins_with_anothers_start_from_shared_ones(
    tmp_path, caplog
):
    tasks = ("depth", "depth_euclidean")
    path = str(tmp_path / "net.keras")
    (source := tiny(1, tasks)).save(path)
    source_values = weights(source)
    model = models.build("tiny", tasks, SHAPE, 5, width=4, seed=2, shared_stages=0)
    with caplog.at_level(logging.INFO):
        initial_weights.start_from(model, path, ("encoder",), tasks)
    for name, value in weights(model).items():
        shared_name = re.sub("encoder_(depth_euclidean|depth)_", "encoder_", name)
        np.testing.assert_array_equal(value, source_values[shared_name], err_msg=name)
    assert "new weights" not in caplog.text
    with pytest.raises(InputError, match="encoder_depth_.* are not there"):
        initial_weights.start_from(model, path, ("encoder",))  # A model of one's own.


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        ((0.5, 0.5, 0.5), ""),
        ((0.52, 0.5, 0.5), ""),  # Of other training images, say.
        ((0.5, 0.5, 0.4), "mean 0.5, 0.5, 0.4 and std 0.25, 0.25, 0.25, but .*0.5,"),
    ],
)
def test_weights_from_images_that_were_standardised_otherwise_are_told(
    tmp_path, caplog, mean, said
):
    path = str(tmp_path / "net.keras")
    std = (0.25, 0.25, 0.25)
    models.build("tiny", ("seg",), SHAPE, 5, width=4, mean=mean, std=std).save(path)
    model = models.build("tiny", ("seg",), SHAPE, 5, width=4)
    initial_weights.start_from(model, path, tasks=("seg",))
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == bool(said)
    assert re.search(said, "".join(warnings))


def normalize(**settings):
    """A net with a layer of the same name as ours that standardises images."""
    rescaling = keras.layers.Rescaling(**settings, name="normalize")
    head = keras.layers.Dense(2, name="head")
    return keras.Sequential([keras.Input(SHAPE), rescaling, head])


@pytest.mark.parametrize(
    "config", [None, [], {"config": {"layers": 3}}, {"config": {"layers": [(64, 128)]}}]
)
def test_nothing_is_said_of_how_other_nets_standardise(tmp_path, caplog, config):
    path = str(tmp_path / "net.keras")
    per_channel = {"scale": [4.0] * 3, "offset": [-1.0] * 3}
    normalize(**per_channel).save(path)
    initial_weights.start_from(normalize(scale=4.0, offset=-2.0), path)
    normalize(scale=[4.0] * 3).save(path)  # Its offset is one number.
    assert initial_weights._normalization_of(pathlib.Path(path)) is None
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps(config))
    assert initial_weights._normalization_of(pathlib.Path(path)) is None
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("other.json", "")
    assert initial_weights._normalization_of(pathlib.Path(path)) is None
    assert "standardised" not in caplog.text


def test_a_training_starts_own_stages_from_shared_ones(tmp_path):
    mean, std = (0.5,) * 3, (0.25,) * 3
    tasks = task_set(("seg", "depth"))
    info = DatasetInfo("d", SHAPE, ("a", "b"), (), tasks, {}, mean, std, {})
    config = TrainConfig(tasks=("seg", "depth"), model="tiny", width=4)
    building.new_model(config, info).save(path := tmp_path / "net.keras")
    source_values = weights(keras.models.load_model(path))
    config = dataclasses.replace(config, init=str(path), shared_stages=0, seed=1)
    for name, value in weights(building.new_model(config, info)).items():
        shared_name = re.sub("encoder_(seg|depth)_", "encoder_", name)
        np.testing.assert_array_equal(value, source_values[shared_name], err_msg=name)


def test_a_digest_is_of_the_weights_not_of_the_file(tmp_path):
    model, path = tiny(1), tmp_path / "net.keras"
    model.save(path)
    digest = initial_weights.digest(str(path))
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"saved again"
    assert initial_weights.digest(str(path)) == digest
    model.weights[1].assign(model.weights[1] + 0.5)
    model.save(path)
    assert initial_weights.digest(str(path)) != digest


def test_weights_as_keras_2_wrote_them(tmp_path):
    """As in files of Keras Applications: groups by layer, names with `:0`."""
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(2, 3, name="c1")])
    kernel, bias = np.full((3, 3, 3, 2), 0.5, np.float32), np.array([1, 2], np.float32)
    for names in (["c1/kernel:0", "c1/bias:0"], ["c1_W_1:0", "c1_b_1:0"]):
        path = tmp_path / f"{names[0][:3].strip('/')}.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [b"c1", b"pool"]
            file.create_group("pool").attrs["weight_names"] = []
            group = file.create_group("c1")
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, (kernel, bias), strict=True):
                group[name] = value
        model.layers[0].bias.assign([0, 0])
        initial_weights.start_from(model, str(path))
        np.testing.assert_array_equal(model.layers[0].kernel, kernel)
        np.testing.assert_array_equal(model.layers[0].bias, bias)


def test_an_encoder_inside_another_model(tmp_path):
    def encoder():
        inner = keras.Sequential(
            [
                keras.layers.Conv2D(2, 3, name="c1"),
                keras.layers.Conv2D(2, 3, name="c2"),
            ],
            name="backbone",
        )
        inner.build((None, *SHAPE))
        return inner

    source = encoder()
    source.save(tmp_path / "encoder.keras")
    image = keras.Input(SHAPE)
    model = keras.Model(image, keras.layers.Dense(2, name="head")(encoder()(image)))
    initial_weights.start_from(model, str(tmp_path / "encoder.keras"))
    for value, source_value in zip(model.weights[:4], source.weights, strict=True):
        np.testing.assert_array_equal(value, source_value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.keras", None, "there is no .*none.keras"),
        ("text.keras", b"hello", "must be a .keras or .h5 file of Keras"),
        ("text.h5", b"hello", "must be a .keras or .h5 file of Keras"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        initial_weights.start_from(tiny(0), str(path))
    assert "\n" not in str(raised.value)


def dense(dtype="float32"):
    return keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(64, name="d", dtype=dtype)]
    )


def as_group(file):
    file.create_group(KERNEL)


def as_text(file):
    file[KERNEL] = np.full((8, 64), b"text")


def as_zeros_that_fill_the_memory(file):
    file.create_dataset(KERNEL, (10**7, 10**4), "f4", chunks=True, compression="gzip")


KERNEL = "layers/dense/vars/0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_group, r"cannot be read \(TypeError"),
        (as_text, r"cannot be read \(ValueError: /layers/dense/vars/0 holds no numb"),
        (as_zeros_that_fill_the_memory, "would take 400,000,000,256 bytes of memory"),
    ],
)
def test_weights_that_are_none_are_one_sentence(tmp_path, change, message):
    path = tmp_path / "net.weights.h5"
    dense().save_weights(path)
    with h5py.File(path, "r+") as file:
        del file[KERNEL]
        change(file)
    with pytest.raises(InputError, match=message):
        initial_weights.start_from(dense(), str(path))


def test_a_damaged_archive_is_one_sentence(tmp_path):
    path, packed_path = tmp_path / "net.keras", tmp_path / "packed.keras"
    dense().save(path)
    with (
        zipfile.ZipFile(path) as file,
        zipfile.ZipFile(packed_path, "w", zipfile.ZIP_DEFLATED) as output,
    ):
        output.writestr("model.weights.h5", file.read("model.weights.h5"))
    content = bytearray(packed_path.read_bytes())
    content[60:80] = bytes(20)
    packed_path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read \(error: Error -3 while dec"):
        initial_weights.start_from(dense(), str(packed_path))


def test_weights_in_bfloat16_are_numbers(tmp_path):
    """HDF5 knows no such type."""
    model, target = dense("bfloat16"), dense()
    model.save(tmp_path / "net.keras")
    initial_weights.start_from(target, str(tmp_path / "net.keras"))
    np.testing.assert_array_equal(target.get_weights()[0], model.get_weights()[0])


def test_nothing_that_matches_is_refused(tmp_path):
    source = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="theirs")])
    source.save(tmp_path / "other.keras")
    with pytest.raises(
        InputError, match="encoder.* are not there: the file has theirs"
    ):
        initial_weights.start_from(tiny(0), str(tmp_path / "other.keras"))
    with pytest.raises(InputError, match="there is no .*model.keras"):
        initial_weights.start_from(tiny(0), str(tmp_path))


@pytest.mark.parametrize(
    ("frozen", "lacking"),
    [
        (("encoder",), ""),
        (("encoder", "head_depth"), ""),
        (("head",), "head_seg, head_normal"),  # Other classes; no such task.
        (("encoder", "decoder_normal"), "decoder_normal"),
    ],
)
def test_layers_are_frozen_only_with_the_weights_of_the_file(tmp_path, frozen, lacking):
    tiny(1, classes=5).save(tmp_path / "net.keras")
    model = tiny(2, ("seg", "normal", "depth"))
    path = str(tmp_path / "net.keras")
    if not lacking:
        initial_weights.start_from(model, path, frozen)
        return
    with pytest.raises(InputError) as raised:
        initial_weights.start_from(model, path, frozen)
    message = str(raised.value)
    assert message.startswith(
        f"--frozen={','.join(frozen)} keeps layers as --init={path}"
    )
    assert all(name in message for name in lacking.split(", "))
    assert "head_depth" not in message


def test_frozen_layers_are_not_trained():
    model = tiny(0)
    initial_weights.freeze(model, ())
    count = len(model.trainable_variables)
    initial_weights.freeze(model, ("encoder", "head_seg"))
    paths = [v.path for v in model.trainable_variables]
    assert paths
    assert len(paths) < count
    assert not any(path.startswith(("encoder", "head_seg")) for path in paths)
    images = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    old_values = weights(model)
    model(images, training=True)  # Frozen batch norms keep their statistics.
    new_values = weights(model)
    changed_paths = {p for p in new_values if (old_values[p] != new_values[p]).any()}
    assert not any(path.startswith("encoder") for path in changed_paths)
    with pytest.raises(
        InputError, match="begins with 'decodr'; its layers are encoder"
    ):
        initial_weights.freeze(tiny(0), ("decodr",))
    with pytest.raises(InputError, match="leaves nothing to train"):
        initial_weights.freeze(tiny(0), ("encoder", "decoder", "head"))
