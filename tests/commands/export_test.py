# SPDX-License-Identifier: Apache-2.0
"""What is exported gives the run's outputs where this package cannot be imported."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from tiers_fixture import slow

from mtr_tf import export
from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import directory
from mtr_tf.runs import loading

CLASSES = ("road", "sky", "car")
# Prints nothing of this package; its outputs, for bytes and floats, go to a file.
ELSEWHERE = """
import sys
sys.modules["mtr_tf"] = None
import keras, numpy as np, tensorflow as tf
pictures = np.load("pictures.npy")
floats = pictures.astype("float32") / 255
loaded = keras.saving.load_model("out/model.keras")
served = tf.saved_model.load("out/saved_model")
found = {
    "keras": loaded(floats),
    "called": served(tf.constant(pictures)),
    "float": served.signatures["serving_default"](image=tf.constant(floats)),
    "uint8": served.signatures["uint8"](image=tf.constant(pictures)),
}
arrays = {f"{n}/{t}": np.asarray(v) for n, of in found.items() for t, v in of.items()}
np.savez("found.npz", **arrays)
"""


# The second has layers of our own, which an export must not need.
@pytest.fixture(scope="module", params=["tiny", slow("drn_d_22")])
def folder(request, tmp_path_factory):
    """A run, not trained, and its export."""
    folder = tmp_path_factory.mktemp("export")
    config = TrainConfig(tasks=("seg", "depth"), model=request.param, width=2)
    tasks = tasks_lib.task_set(config.tasks)
    seg = tasks["seg"].bound(classes=CLASSES, colors=((0, 0, 0),) * 3)
    tasks = tasks.replaced(seg)
    model = models.build(config.model, config.tasks, (32, 40, 3), 3, width=2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            mean, variance = layer.moving_mean, layer.moving_variance
            mean.assign(np.linspace(-0.1, 0.1, mean.shape[0]))
            variance.assign(np.linspace(0.5, 2, mean.shape[0]))
    directory.begin(folder / "run", config, True, tasks, {"depth": (0.0, 9.0)})
    model.save(folder / "run" / "model.keras")
    settings = export.ExportConfig(ckpt=str(folder / "run"), out=str(folder / "out"))
    export.main(settings)
    export.main(settings)  # An earlier export is written anew.
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["drn_d_22"], indirect=True)
def test_outputs_are_equal_where_only_keras_is(folder):
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 32, 40, 3), np.uint8)
    np.save(folder / "pictures.npy", pictures)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    model = loading.load_run(str(folder / "run")).model
    expected = model(pictures.astype("float32") / 255)
    with np.load(folder / "found.npz") as found:
        assert len(found.files) == 8
        for name in found.files:
            task = name.split("/")[1]
            scale = np.abs(expected[task]).max()
            assert scale > 0.01
            np.testing.assert_allclose(
                found[name], expected[task], atol=1e-5 * scale, err_msg=name
            )


def test_the_file_says_what_goes_in_and_comes_out(folder):
    said = json.loads((folder / "out" / "model.json").read_text())
    assert [said["input"][side] for side in ("height", "width")] == [32, 40]
    assert said["input"]["ranges"] == {"float32": [0, 1], "uint8": [0, 255]}
    assert said["input"]["order"] == "RGB"
    seg, depth = said["outputs"]["seg"], said["outputs"]["depth"]
    assert (seg["kind"], seg["classes"]) == ("classes", list(CLASSES))
    assert (seg["channels"], seg["logits"]) == (3, True)
    assert (depth["unit"], depth["range"], depth["logits"]) == ("m", [0, 9], False)
    assert depth["shape"] == [None, 32, 40, 1]
    run = loading.load_run(str(folder / "run"))
    assert said["run"]["fingerprint"] == run.fingerprint


def test_units_are_those_of_the_data(folder, tmp_path):
    """Of a run that does not say its tasks, as after a conversion, none is known."""
    run = loading.load_run(str(folder / "run"))
    content = json.loads((folder / "run" / "config.json").read_text())
    for tasks, unit in (
        ([content["tasks"][1] | {"unit": "px"}], "px"),
        (None, None),
    ):
        (tmp_path / "config.json").write_text(
            json.dumps(content | {"tasks": tasks} if tasks else {"train": {}})
        )
        moved = dataclasses.replace(run, directory=tmp_path)
        said = export.about(moved, run.model)
        assert said["outputs"]["depth"]["unit"] == unit
    own = keras.Model(run.model.input, {"flow": run.model.output["depth"]})
    flow = export.about(moved, own)["outputs"]["flow"]
    assert (flow["kind"], flow["unit"], flow["logits"]) == (None, "", False)


def test_what_cannot_be_exported_is_said(folder, tmp_path):
    (tmp_path / "file").touch()
    theirs = tmp_path / "theirs"  # As Keras and TensorFlow.js call it.
    theirs.mkdir()
    (theirs / "model.json").write_text('{"class_name": "Functional", "format": "x"}')
    run, out = str(folder / "run"), str(tmp_path / "new")
    for settings, message in (
        ({}, "--ckpt must be given"),
        ({"ckpt": run}, "--out must be given"),
        ({"ckpt": run, "out": str(tmp_path)}, "holds something else"),
        ({"ckpt": run, "out": str(theirs)}, "holds something else"),
        ({"ckpt": run, "out": str(tmp_path / "file")}, "must be a directory"),
        ({"ckpt": str(folder / "out/model.keras"), "out": out}, "is a .keras file"),
        ({"ckpt": str(folder / "none"), "out": out}, "which does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            export.main(export.ExportConfig(**settings))
    assert not (tmp_path / "new").exists()
