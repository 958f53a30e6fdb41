# SPDX-License-Identifier: Apache-2.0
"""Code that somebody else's file names is run only if the user names it, too."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import keras
import pytest

from mtr_tf import attack_job
from mtr_tf import models
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.study import commands
from mtr_tf.study import study_file

CODE = """
import pathlib
import numpy as np

pathlib.Path("imported").touch()

def examples():
    pathlib.Path("called").touch()
    image = np.zeros((16, 16, 3), np.uint8)
    one = {"image": image, "targets": {"seg": np.zeros((16, 16), int)}}
    return {"validation": [one], "classes": ["a", "b"]}
"""
DATASET = "theirs_test:examples"


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A run directory of somebody else, whose settings name a module beside us."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs_test", raising=False)
    (tmp_path / "theirs_test.py").write_text(CODE)
    config = TrainConfig(tasks=("seg",), dataset=DATASET, model="tiny")
    directory.write_config(tmp_path / "run", config)
    yield tmp_path / "run"
    sys.modules.pop("theirs_test", None)


def finish(run):
    models.build("tiny", ("seg",), (16, 16, 3), 2).save(run / "model.keras")


def ran(run) -> list[str]:
    return [n for n in ("imported", "called") if (run.parent / n).exists()]


@pytest.mark.parametrize(
    ("finished", "given"),
    [(True, ""), (False, ""), (False, "camvid"), (False, "theirs_test:other")],
)
def test_a_run_directory_runs_no_code(theirs, finished, given):
    if finished:
        finish(theirs)
    with pytest.raises(InputError, match=f"give --dataset={DATASET} if you trust"):
        attack_job.attack(AttackConfig(ckpt=str(theirs), dataset=given))
    assert not ran(theirs)
    assert "theirs_test" not in sys.modules


def test_nor_does_the_run_that_images_are_made_on(theirs, tmp_path):
    finish(theirs)
    own_run = tmp_path / "own"
    directory.write_config(own_run, TrainConfig(tasks=("seg",), model="tiny"))
    finish(own_run)
    (theirs / "model.keras").unlink()
    config = AttackConfig(ckpt=str(own_run), source_ckpt=str(theirs))
    with pytest.raises(InputError, match=f"give --dataset={DATASET} if you trust"):
        attack_job.attack(config)
    assert not ran(theirs)


def test_with_the_flag_it_is_opened_as_in_training(theirs):
    finish(theirs)
    config = AttackConfig(ckpt=str(theirs), dataset=DATASET, attack_tasks=("seg",))
    run = loading.load_run(str(theirs), (), "", DATASET)
    assert ran(theirs) == ["imported"]  # For its layers; the model needs no data.
    loading.open_data(config, run)
    assert ran(theirs) == ["imported", "called"]
    # Results go to the same folder as without --dataset.
    default_config = dataclasses.replace(config, dataset="")
    job = attack_job.resolve(config)
    assert job.folder.name == attack_job.default_name(default_config, run.fingerprint)


OWN_LAYER = """
import keras

@keras.saving.register_keras_serializable("theirs")
class Scale(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x
"""


def test_a_run_may_have_layers_of_the_module_that_the_user_names(theirs):
    module = theirs.parent / "theirs_test.py"

    def registered_names():
        return [n for n in keras.saving.get_custom_objects() if n.startswith("theirs>")]

    def forget():
        sys.modules.pop("theirs_test", None)
        for name in registered_names():
            del keras.saving.get_custom_objects()[name]
        for name in ("imported", "called"):
            (theirs.parent / name).unlink(missing_ok=True)

    module.write_text(CODE + OWN_LAYER)
    own_module = importlib.import_module("theirs_test")
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(2, 1)(own_module.Scale()(image))
    keras.Model(image, {"seg": x}).save(theirs / "model.keras")

    forget()
    try:
        with pytest.raises(InputError, match="has a layer .* not Keras's own"):
            loading.load_run(str(theirs))  # Only its config.json names the module.
        assert not ran(theirs)
        run = loading.load_run(str(theirs), dataset=DATASET)
        second_run = loading.load_run(str(theirs), dataset=DATASET)
        assert (
            run.fingerprint == second_run.fingerprint != loading.fingerprint(run.model)
        )

        # Its results are known by what the layer does.
        forget()
        module.write_text((CODE + OWN_LAYER).replace("2.0 * x", "2.125 * x"))
        changed_run = loading.load_run(str(theirs), dataset=DATASET)
        assert changed_run.fingerprint != run.fingerprint
        assert loading.fingerprint(changed_run.model) == loading.fingerprint(run.model)
    finally:
        forget()


def test_runs_of_built_in_models_are_known_by_config_and_weights(tmp_path):
    directory.write_config(tmp_path, TrainConfig(tasks=("seg",), model="tiny"))
    finish(tmp_path)
    run = loading.load_run(str(tmp_path))
    assert run.fingerprint == loading.fingerprint(run.model)


def test_no_function_of_pythons_own_is_called(theirs):
    config = TrainConfig(tasks=("seg",), dataset="os:abort", model="tiny")
    directory.write_config(theirs, config)
    finish(theirs)
    with pytest.raises(InputError, match="--dataset=os:abort"):
        attack_job.attack(AttackConfig(ckpt=str(theirs)))


def test_studies_are_trusted_and_name_their_data_to_each_attack(tmp_path):
    (tmp_path / "own.toml").write_text(
        f'about = "x"\nseeds = [0]\n[train]\ndataset = "{DATASET}"\n'
        '[variants.s]\ntasks = ["seg"]\n[variants.r]\ntasks = ["seg"]\n'
        'dataset = "rooms"\n[attacks.a]\neps = [1]\n'
    )
    study = study_file.load(str(tmp_path / "own.toml"))
    cells = commands.make_cells(study, tmp_path)
    attacks = {c.variant: c.command for c in cells if c.kind == "attack"}
    assert f"--dataset={DATASET}" in attacks["s"]
    assert not [flag for flag in attacks["r"] if flag.startswith("--dataset")]
