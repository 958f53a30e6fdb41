# SPDX-License-Identifier: Apache-2.0
"""The flagfiles of the paper's experiments run, on tiny data in the official layouts.

Everything is as the files say but the size: two steps on pictures of 32 pixels.
"""

from __future__ import annotations

import json
import pathlib

import cityscapes_fixture
import keras
import pytest
import taskonomy_fixture
from absl import flags

from mtr_tf import attack
from mtr_tf import train
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig

pytestmark = pytest.mark.slow

FLAGS = pathlib.Path(__file__).parent.parent / "flags"
MODELS = sorted(p.stem for p in FLAGS.glob("[ct][ia]*_*.flags"))
ATTACKS = sorted(
    p.stem
    for kind in ("paper", "follow_up", "measure")
    for p in FLAGS.glob(f"attack_{kind}*.flags")
)
SMALL = (
    "--image_size=32",
    "--batch_size=2",
    "--epochs=1",
    "--train_examples=4",
    "--eval_examples=2",
    "--eval_eps=0",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{data set: the folder with its files}; prepared data go beside the folders."""
    root = tmp_path_factory.mktemp("official")
    cityscapes_fixture.write(root / "cityscapes", size=(40, 64))
    taskonomy_fixture.write_building(root / "taskonomy", (0, 1, 2, 3, 1200, 1201), 32)
    patch = pytest.MonkeyPatch()
    patch.setenv("TFDS_DATA_DIR", str(root / "prepared"))
    yield {name: root / name for name in ("cityscapes", "taskonomy")}
    patch.undo()


def read(records, *arguments):
    values = flags.FlagValues()
    for record in records:
        cli_flags.define(record, values)
    values(["binary", *arguments])
    return [cli_flags.read(record, values) for record in records]


def trained(name, folders, workdir, *changes):
    keras.utils.clear_session()
    data = folders[name.partition("_")[0]]
    place = (f"--data_dir={data}", f"--workdir={workdir}")
    file = f"--flagfile={FLAGS / name}.flags"
    train.main(*read((TrainConfig, RunPlace), file, *SMALL, *place, *changes))
    return workdir


# Others differ from one of these only in tasks and weights; the fuzz tier runs them.
EACH_KIND = (
    "cityscapes_adversarial_seg_depth",
    "cityscapes_drn_d_22_depth_seg_autoencoder",
    "taskonomy_optimised_seg_depth",
    "taskonomy_resnet18_seg",
)
MODELS = [
    pytest.param(name, marks=() if name in EACH_KIND else pytest.mark.fuzz)
    for name in MODELS
]
# Files that are run have all their kinds of settings; the fuzz tier runs these, too.
ALIKE = ("attack_follow_up", "attack_paper_mim_depth", "attack_paper_seg")
ATTACKS = [
    pytest.param(name, marks=pytest.mark.fuzz if name in ALIKE else ())
    for name in ATTACKS
]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_the_paper_trains(name, folders, tmp_path):
    crop = ("--crop=16",) if name.startswith("cityscapes") else ()
    width = "--width=2" if name.startswith("cityscapes") else "--width=4"
    trained(name, folders, tmp_path / "run", *crop, width)
    assert (tmp_path / "run" / "model.keras").exists()


@pytest.fixture(scope="module")
def tiny_runs(folders, tmp_path_factory):
    """A tiny model of each data set, with all tasks that the attacks name."""
    root = tmp_path_factory.mktemp("runs")
    model_flags = ("--model=tiny", "--decoders=separate")
    return {
        "cityscapes": trained(
            "cityscapes_drn_d_22_seg_depth",
            folders,
            root / "c",
            "--crop=",
            *model_flags,
        ),
        "taskonomy": trained(
            "taskonomy_resnet18_seg_depth", folders, root / "t", *model_flags
        ),
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_of_the_paper_runs(name, tiny_runs):
    taskonomy = "taskonomy" in name or "follow_up" in name
    run = tiny_runs["taskonomy" if taskonomy else "cityscapes"]
    options = ("--steps=2", "--batch_size=2", "--nochecks", f"--name={name}")
    file = f"--flagfile={FLAGS / name}.flags"
    (config,) = read((AttackConfig,), file, f"--ckpt={run}", *options)
    attack.main(config)
    has_measures = name.startswith("attack_measure")
    file_name = "measures.json" if has_measures else "results.json"
    assert json.loads((run / "attacks" / name / file_name).read_text())
