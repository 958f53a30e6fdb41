# SPDX-License-Identifier: Apache-2.0
"""An export gives the outputs of its run where this package cannot be imported."""

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
# Runs without this package, and writes the outputs for bytes and floats to a file.
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


# The second has layers of this package, which an export must not need.
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
    export.main(settings)  # Overwrites the earlier export.
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["drn_d_22"], indirect=True)
def test_outputs_are_equal_where_only_keras_is(folder):
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 32, 40, 3), np.uint8)
    np.save(folder / "pictures.npy", pictures)
    process = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=folder, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    model = loading.load_run(str(folder / "run")).model
    expected = model(pictures.astype("float32") / 255)
    with np.load(folder / "found.npz") as outputs:
        assert len(outputs.files) == 8
        for name in outputs.files:
            task = name.split("/")[1]
            scale = np.abs(expected[task]).max()
            assert scale > 0.01
            np.testing.assert_allclose(
                outputs[name], expected[task], atol=1e-5 * scale, err_msg=name
            )


def test_the_file_says_what_goes_in_and_comes_out(folder):
    facts = json.loads((folder / "out" / "model.json").read_text())
    assert [facts["input"][side] for side in ("height", "width")] == [32, 40]
    assert facts["input"]["ranges"] == {"float32": [0, 1], "uint8": [0, 255]}
    assert facts["input"]["order"] == "RGB"
    seg, depth = facts["outputs"]["seg"], facts["outputs"]["depth"]
    assert (seg["kind"], seg["classes"]) == ("classes", list(CLASSES))
    assert (seg["channels"], seg["logits"]) == (3, True)
    assert (depth["unit"], depth["range"], depth["logits"]) == ("m", [0, 9], False)
    assert depth["shape"] == [None, 32, 40, 1]
    run = loading.load_run(str(folder / "run"))
    assert facts["run"]["fingerprint"] == run.fingerprint


def test_units_are_those_of_the_data(folder, tmp_path):
    """A run without records of its tasks, as after a conversion, has no units."""
    run = loading.load_run(str(folder / "run"))
    content = json.loads((folder / "run" / "config.json").read_text())
    for tasks, unit in (
        ([content["tasks"][1] | {"unit": "px"}], "px"),
        (None, None),
    ):
        (tmp_path / "config.json").write_text(
            json.dumps(content | {"tasks": tasks} if tasks else {"train": {}})
        )
        moved_run = dataclasses.replace(run, directory=tmp_path)
        facts = export.about(moved_run, run.model)
        assert facts["outputs"]["depth"]["unit"] == unit
    model = keras.Model(run.model.input, {"flow": run.model.output["depth"]})
    flow = export.about(moved_run, model)["outputs"]["flow"]
    assert (flow["kind"], flow["unit"], flow["logits"]) == (None, "", False)


def test_what_cannot_be_exported_is_said(folder, tmp_path):
    (tmp_path / "file").touch()
    js_folder = tmp_path / "theirs"  # In the format of Keras and TensorFlow.js.
    js_folder.mkdir()
    (js_folder / "model.json").write_text('{"class_name": "Functional", "format": "x"}')
    run, out = str(folder / "run"), str(tmp_path / "new")
    for settings, message in (
        ({}, "--ckpt must be given"),
        ({"ckpt": run}, "--out must be given"),
        ({"ckpt": run, "out": str(tmp_path)}, "holds something else"),
        ({"ckpt": run, "out": str(js_folder)}, "holds something else"),
        ({"ckpt": run, "out": str(tmp_path / "file")}, "must be a directory"),
        ({"ckpt": str(folder / "out/model.keras"), "out": out}, "is a .keras file"),
        ({"ckpt": str(folder / "none"), "out": out}, "which does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            export.main(export.ExportConfig(**settings))
    assert not (tmp_path / "new").exists()
