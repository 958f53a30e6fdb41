# SPDX-License-Identifier: Apache-2.0
"""Keeping checkpoints, and every way that `--ckpt` can be given, right or wrong."""

import json
import shutil

import keras
import pytest
import tensorflow as tf

from mtr_tf import models
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import camvid
from mtr_tf.errors import InputError
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.training.keeper import Keeper


def tiny(seed=0, tasks=("seg", "autoencoder")):
    return models.build(
        "tiny", tasks, (32, 48, 3), 11, seed=seed, mean=camvid.MEAN, std=camvid.STD
    )


def keeper(workdir, model, keep=2):
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    return Keeper(workdir, model, optimizer, keep)


@pytest.fixture(scope="module")
def made_run(tmp_path_factory, camvid_dir):
    """A run directory as training leaves it, with checkpoints of other weights."""
    config = TrainConfig(
        model="tiny",
        tasks=("seg", "A"),
        dataset="camvid",
        data_dir=str(camvid_dir),
        image_size="32x48",
    )
    workdir = tmp_path_factory.mktemp("made") / "one"
    directory.write_config(workdir, config)
    tiny(seed=1).save(workdir / "model.keras")
    keeper(workdir, tiny(seed=2)).save(10)
    keeper(workdir, tiny(seed=3)).save_if_best(5, 0.5, "higher")
    return workdir


@pytest.fixture
def run(made_run, tmp_path):
    """A copy of `made_run` that a test may change."""
    return shutil.copytree(made_run, tmp_path / "runs" / "one")


def test_the_newest_are_kept_and_the_best(tmp_path):
    model = tiny()
    run_keeper = keeper(tmp_path, model)
    for step, score in ((1, 0.1), (2, 0.7), (3, 0.5), (4, float("nan"))):
        model.trainable_variables[0].assign_add(
            tf.ones_like(model.trainable_variables[0])
        )
        run_keeper.save_if_best(step, score, "higher")
        run_keeper.save(step)
    names = {path.stem for path in (tmp_path / "checkpoints").glob("*.index")}
    best = {path.stem for path in (tmp_path / "checkpoints/best").glob("*.index")}
    assert names == {"ckpt-3", "ckpt-4"}
    assert best == {"ckpt-2"}
    new_model = tiny(seed=5)
    new_keeper = keeper(tmp_path, new_model)
    assert new_keeper.restore() == 4
    assert loading.fingerprint(new_model) == loading.fingerprint(model)
    new_keeper.save_if_best(5, 0.6, "higher")  # The best score so far came back, too.
    assert {p.stem for p in (tmp_path / "checkpoints/best").glob("*.index")} == best


def test_lower_can_be_better_and_the_first_number_beats_nan(tmp_path):
    run_keeper = keeper(tmp_path, tiny())
    for step, score in ((1, float("nan")), (2, 0.7), (3, 0.5), (4, 0.6)):
        run_keeper.save_if_best(step, score, "lower")
    best = [path.stem for path in (tmp_path / "checkpoints/best").glob("*.index")]
    assert best == ["ckpt-3"]


def test_a_killed_save_leaves_nothing_that_matters(tmp_path):
    model = tiny()
    keeper(tmp_path, model).save(1)
    leftover = tmp_path / "checkpoints" / "ckpt-2_temp"
    leftover.mkdir()
    (leftover / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    assert keeper(tmp_path, tiny(seed=1)).restore() == 1
    assert not leftover.exists()


def test_from_a_damaged_checkpoint_to_the_one_before(tmp_path):
    run_keeper = keeper(tmp_path, tiny())
    for step in (1, 2):
        run_keeper.save(step)
    for damaged_step, expected in ((2, 1), (1, None)):
        path = next((tmp_path / "checkpoints").glob(f"ckpt-{damaged_step}.data*"))
        path.write_bytes(path.read_bytes()[:100])
        new_keeper = keeper(tmp_path, tiny())
        if expected:
            assert new_keeper.restore() == expected
        else:
            with pytest.raises(InputError, match="all checkpoints .* are damaged"):
                new_keeper.restore()


@pytest.mark.parametrize(
    ("ckpt", "seed"),
    [
        ("", 1),
        ("model.keras", 1),
        ("checkpoints", 2),
        ("checkpoints/ckpt-10", 2),
        ("checkpoints/ckpt-10.index", 2),
        ("checkpoints/best", 3),
        ("checkpoints/best/ckpt-5", 3),
    ],
)
def test_every_way_to_name_a_run(run, ckpt, seed):
    loaded = loading.load_run(str(run / ckpt))
    assert loaded.tasks == ("seg", "autoencoder")
    assert loaded.directory == run
    assert loaded.config == directory.read_config(run)
    assert loaded.fingerprint == loading.fingerprint(tiny(seed))


def test_an_unfinished_run_is_its_newest_checkpoint(run):
    (run / "model.keras").unlink()
    loaded = loading.load_run(str(run))
    assert loaded.fingerprint == loading.fingerprint(tiny(2))
    assert loaded.unfinished == 10


def test_a_checkpoint_keeps_the_runs_precision(run):
    content = json.loads((run / "config.json").read_text())
    content["train"]["precision"] = "mixed_bfloat16"
    (run / "config.json").write_text(json.dumps(content))
    model = loading.load_run(str(run / "checkpoints")).model
    assert model.get_layer("encoder_stem_conv").compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_fingerprints_tell_weights_apart():
    assert loading.fingerprint(tiny(1)) != loading.fingerprint(tiny(2))


def test_fingerprints_tell_architectures_apart():
    def scaled(factor):
        image = keras.Input((8, 8, 3), name="image")
        return keras.Model(
            image, {"autoencoder": keras.layers.Rescaling(factor, name="scale")(image)}
        )

    prints = {loading.fingerprint(scaled(factor)) for factor in (1.0, 10.0)}
    assert len(prints) == 2


def own_model(path, outputs=None):
    image = keras.Input((32, 48, 3))
    tensors = {
        name: keras.layers.Conv2D(1, 1)(image) for name in outputs or ("depth_zbuffer",)
    }
    if outputs is None:
        (tensors,) = tensors.values()
    keras.Model(image, tensors).save(path)
    return str(path)


def test_a_model_of_ones_own_with_a_dict_of_outputs(tmp_path):
    path = own_model(tmp_path / "m.keras", ("depth_zbuffer", "r"))
    loaded = loading.load_run(path)
    assert loaded.tasks == ("depth", "reshading")
    assert set(loaded.model.output) == {"depth", "reshading"}
    assert loaded.config is None
    assert loaded.directory.parts == ("runs", f"m-{loaded.fingerprint[:8]}")


def test_two_outputs_for_one_task_are_refused(tmp_path):
    with pytest.raises(InputError, match="each output .* a different task"):
        loading.load_run(own_model(tmp_path / "m.keras", ("depth", "d")))


def test_a_model_of_ones_own_with_one_output(tmp_path):
    path = own_model(tmp_path / "m.keras")
    assert set(loading.load_run(path, ("d",)).model.output) == {"depth"}
    with pytest.raises(InputError, match="--tasks=NAME"):
        loading.load_run(path)
    with pytest.raises(InputError, match="names of tasks.*boxes .*--heads=boxes:TASK"):
        loading.load_run(own_model(tmp_path / "n.keras", ("boxes",)))


def test_a_file_that_wants_to_run_code_is_refused(tmp_path):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, {"autoencoder": keras.layers.Lambda(lambda x: x)(image)})
    path = tmp_path / "m.keras"
    model.save(path)
    with pytest.raises(InputError, match="Python code"):
        loading.load_run(str(path))


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_a_damaged_file_is_explained(tmp_path, damage):
    path = tmp_path / "m.keras"
    own_model(path)
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[:1000], "foreign": b"PNG", "empty": b""}[damage]
    )
    with pytest.raises(InputError, match=r"cannot be loaded as a .keras file"):
        loading.load_run(str(path))


@pytest.mark.parametrize("name", ["nothing", "nothing.keras", "runs", "a.txt"])
def test_nothing_to_load_is_explained(run, name):
    (run.parent.parent / "a.txt").write_text("")
    with pytest.raises(InputError, match="--ckpt"):
        loading.load_run(str(run.parent.parent / name))


def test_runs_beside_a_wrong_name_are_listed(run):
    with pytest.raises(InputError, match="Runs nearby: one"):
        loading.load_run(str(run.parent / "oen"))


def test_a_checkpoint_that_is_not_there_lists_those_that_are(run):
    with pytest.raises(InputError, match="ckpt-10"):
        loading.load_run(str(run / "checkpoints/ckpt-11"))


def test_a_checkpoint_of_another_model_is_explained(run):
    content = json.loads((run / "config.json").read_text())
    content["train"]["tasks"] = ["seg", "edge_texture"]
    (run / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="damaged or belongs to another model"):
        loading.load_run(str(run / "checkpoints"))


def test_a_run_without_checkpoints_is_explained(run):
    shutil.rmtree(run / "checkpoints")
    (run / "model.keras").unlink()
    with pytest.raises(InputError, match="no checkpoint"):
        loading.load_run(str(run))
