# SPDX-License-Identifier: Apache-2.0
"""Exported predictions, and Cityscapes' own evaluator on them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import cells_fixture
import cityscapes_fixture as fixture
import keras
import numpy as np
import pytest
from PIL import Image

from mtr_tf import attack_job
from mtr_tf import models
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.cityscapes import layout
from mtr_tf.data.source import Columns
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cityscapes_export
from mtr_tf.evaluation import sweep
from mtr_tf.runs import directory
from mtr_tf.tasks import metrics

SIZE = (24, 32)


@pytest.fixture(autouse=True)
def prepared_here(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture
def evaluator():
    """Cityscapes' own evaluator; without it, a test is skipped before its attack."""
    return pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="needs the extra [cityscapes]",
    )


def official_score(
    evaluator: types.ModuleType, root: pathlib.Path, predictions: pathlib.Path
) -> dict:
    """The evaluator's scores of the predictions, over all labels of val."""
    arguments = evaluator.args
    arguments.evalInstLevelScore = arguments.JSONOutput = False
    arguments.quiet = True
    arguments.predictionPath, arguments.predictionWalk = str(predictions), None
    labels = sorted(map(str, (root / "gtFine" / "val").glob("*/*_gtFine_labelIds.png")))
    paths = [evaluator.getPrediction(arguments, label) for label in labels]
    return evaluator.evaluateImgLists(paths, labels, arguments)


# What the evaluator does with classes that do not occur.

CASES = {
    # Label ids of the truth, and of the prediction, in four pixels.
    "all right": ([7, 8, 11, 11], [7, 8, 11, 11]),
    "absent from truth and prediction": ([7, 7, 8, 8], [7, 8, 8, 8]),
    "predicted, and not in the truth": ([7, 7, 8, 8], [7, 26, 8, 8]),
    "predicted under void only": ([7, 0, 3, 8], [7, 26, 33, 7]),
    "in the truth, and never predicted": ([7, 33, 33, 24], [7, 7, 7, 7]),
    "nothing known": ([0, 1, 2, 29], [7, 8, 11, 26]),
}


@pytest.mark.parametrize("case", CASES)
def test_mean_iou_is_the_evaluators(evaluator, case, tmp_path):
    truth, prediction = (np.array([ids], np.uint8) for ids in CASES[case])
    name = fixture.VAL[0]
    fixture.save(fixture.path(tmp_path, "gtFine", "val", name), truth)
    fixture.save(tmp_path / "predictions" / f"{name}_pred.png", prediction)
    scores = official_score(evaluator, tmp_path, tmp_path / "predictions")

    target = layout.OF_LABEL_IDS[truth][np.newaxis]
    valid = target != layout.VOID
    logits = np.eye(19, dtype=np.float32)[layout.OF_LABEL_IDS[prediction]]
    metric = metrics.miou()
    rows = metric.statistics(
        np.where(valid, target, 0).astype(np.int32),
        logits[np.newaxis],
        valid.astype(np.float32),
        19,
    )
    value = metric.value(np.sum(rows, axis=0))
    np.testing.assert_allclose(value, scores["averageScoreClasses"], atol=1e-12)


# Files.


def predictions_in(folder, sizes=((4, 6), (4, 6))) -> cityscapes_export.Predictions:
    return cityscapes_export.Predictions(folder, fixture.VAL[:2], np.array(sizes))


def logits_of(train_ids) -> np.ndarray:
    return np.eye(19, dtype=np.float32)[np.asarray(train_ids)]


def test_files_have_label_ids_at_the_size_of_the_labels(tmp_path):
    predictions = predictions_in(tmp_path, ((4, 6), (2, 2)))
    train_ids = np.array([[0, 1, 2], [18, 13, 16]])
    batch = logits_of(np.stack([train_ids, train_ids, train_ids]))
    predictions.write("clean_1", np.array([-1, 1, 0]), batch)
    assert predictions.complete("clean_1")
    path = tmp_path / "clean_1" / f"{fixture.VAL[0]}_predLabelIds.png"
    with Image.open(path) as picture:
        assert picture.mode == "L"
    ids = np.array([[7, 8, 11], [33, 26, 31]], np.uint8)
    np.testing.assert_array_equal(fixture.load(path), ids.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(
        fixture.load(predictions.path("clean_1", 1)), [[7, 11], [33, 31]]
    )
    assert len(list((tmp_path / "clean_1").iterdir())) == 2


def test_logits_that_are_not_finite_are_wrong(tmp_path):
    logits = logits_of(np.full((1, 4, 6), 3))
    logits[0, 0, 0, 5], logits[0, 0, 1, 3] = np.nan, np.inf
    predictions = predictions_in(tmp_path)
    predictions.write("x", np.array([0]), logits)
    ids = fixture.load(predictions.path("x", 0))
    assert ids[0, :3].tolist() == [0, 0, 12]
    assert not predictions.complete("x")


def test_a_worst_of_several_takes_the_chosen_files(tmp_path):
    predictions = predictions_in(tmp_path)
    for number, label in enumerate("ab"):
        batch = logits_of(np.full((2, 4, 6), number))
        predictions.write(label, np.arange(2), batch)
    predictions.choose("worst", ["a", "b"], np.array([1, 0]))
    assert (fixture.load(predictions.path("worst", 0)) == 8).all()
    assert (fixture.load(predictions.path("worst", 1)) == 7).all()


# Through an attack.


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    return fixture.write(tmp_path / "raw", size=SIZE)


@pytest.fixture
def run_directory(root, tmp_path) -> pathlib.Path:
    """A run with an untrained model, for pictures as large as the files."""
    folder = tmp_path / "run"
    config = TrainConfig(
        tasks=("seg", "autoencoder"),
        dataset="cityscapes",
        data_dir=str(root),
        image_size=f"{SIZE[0]}x{SIZE[1]}",
        model="tiny",
    )
    directory.write_config(folder, config)
    keras.utils.set_random_seed(0)
    model = models.build("tiny", config.tasks, (*SIZE, 3), 19)
    model.save(folder / "model.keras")
    return folder


def attack(folder, **changes) -> list[dict]:
    settings = {
        "attack": ("corner", "worst"),  # No gradients: quick to compile.
        "ensemble": ("corner", "noise"),
        "eps": (4.0,),
        "attack_tasks": ("seg",),
        "steps": 1,
        "batch_size": 2,
        "num_examples": 0,
        "checks": False,
        "name": "it",
        "export_predictions": True,
        **changes,
    }
    attack_job.attack(AttackConfig(ckpt=str(folder), **settings))
    results = folder / "attacks" / settings["name"] / "results.json"
    return json.loads(results.read_text())


def by_cell(records) -> dict[str, float]:
    """The clean and the attacked mean IoU of each attack."""
    values = {}
    for record in records:
        if (record["task"], record["metric"]) == ("seg", "miou"):
            values["clean"] = record["clean"]
            values[record["attack"]] = record["attacked_value"]
    return values


@pytest.mark.slow
def test_the_evaluator_gives_our_mean_iou(
    evaluator, root, run_directory, monkeypatch, unplotted
):
    records = attack(run_directory)
    folder = run_directory / "attacks" / "it" / "predictions"
    values = by_cell(records)
    assert set(values) == {"clean", "corner", "worst"}
    sets = {path.name.split("_")[0]: path for path in folder.iterdir()}
    assert set(sets) == {*values, "corner-harm", "noise-harm"}  # The members of worst.
    for name, value in values.items():
        names = sorted(path.name for path in sets[name].iterdir())
        assert names == [f"{name}_predLabelIds.png" for name in fixture.VAL]
        score = official_score(evaluator, root, sets[name])["averageScoreClasses"]
        assert abs(score - value) < 1e-4
    members = [
        official_score(evaluator, root, sets[f"{name}-harm"])["averageScoreClasses"]
        for name in ("corner", "noise")
    ]
    assert values["worst"] <= min(members) + 1e-4
    assert values["corner"] != values["clean"]

    # Nothing is run again; where a file is missing, only its own attack is.
    runs = []
    original = sweep._result
    monkeypatch.setattr(
        sweep,
        "_result",
        lambda *a: (runs.append(a[1] and a[1].attack.name), original(*a))[1],
    )
    attack(run_directory)
    assert runs == []
    next(sets["corner"].iterdir()).unlink()
    assert by_cell(attack(run_directory)) == values
    assert runs == ["corner"]
    assert len(list(sets["corner"].iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        ("cityscapes", "autoencoder", "writes predictions of the task seg, but the"),
        ("camvid", "seg", "needs the data set cityscapes, not camvid; leave it"),
    ],
)
def test_what_cannot_be_exported(name, task, said, tmp_path):
    info = dataclasses.replace(cells_fixture.depth_info(1, 4), name=name)
    images, sizes = np.zeros((1, 4, 4, 3), np.uint8), np.array([[4, 4]])
    columns = Columns(images, {}, {}, fixture.VAL[:1], original_sizes=sizes)
    with pytest.raises(InputError, match=said):
        cityscapes_export.open_predictions(tmp_path, info, columns, (task,), 1)


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_before_anything_is_written(run_directory):
    with pytest.raises(InputError, match="writes predictions of the task seg, but the"):
        attack(run_directory, tasks=("autoencoder",), attack_tasks=("all",))
    assert not (run_directory / "attacks").exists()


# Real pictures, from files to the evaluator.


def from_camvid(camvid: pathlib.Path, root: pathlib.Path) -> None:
    """Some of CamVid, laid out as Cityscapes, with made-up disparities."""
    # The label ids of CamVid's classes in the SegNet tutorial; the last is for none.
    ids = np.array([23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33, 0], np.uint8)
    for split, folder, count in (("train", "train", 12), ("val", "val", 5)):
        for number, image in enumerate(sorted((camvid / folder).glob("*.png"))[:count]):
            name = f"cambridge_000000_{number:06}"
            label = fixture.load(camvid / f"{folder}annot" / image.name)
            ramp = np.linspace(0, 20000, label.shape[0]).astype(np.uint16)
            disparity = np.broadcast_to(ramp[:, np.newaxis], label.shape)
            fixture.save(fixture.path(root, "gtFine", split, name), ids[label])
            fixture.save(fixture.path(root, "disparity", split, name), disparity)
            picture = fixture.path(root, "leftImg8bit", split, name)
            picture.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, picture)


@pytest.mark.slow
def test_camvid_as_cityscapes_from_files_to_the_evaluator(evaluator, tmp_path):
    default_path = pathlib.Path(__file__).parents[3] / "shared" / "camvid"
    camvid = pathlib.Path(os.environ.get("MTR_CAMVID", default_path))
    if not camvid.is_dir():
        pytest.skip(f"no CamVid in {camvid}; set MTR_CAMVID to its folder")
    root, run = tmp_path / "raw", tmp_path / "run"
    from_camvid(camvid, root)
    fixture.zip_up(root, ("leftImg8bit", "disparity"))
    arguments = (
        "--dataset=cityscapes",
        f"--data_dir={root}",
        "--tasks=s,d",
        "--model=tiny",
        "--image_size=60x80",
        "--batch_size=4",
        "--epochs=2",
        "--eval_every=1000",
        "--eval_examples=2",
        "--eval_steps=1",
        f"--workdir={run}",
    )
    process = subprocess.run(
        [sys.executable, "-m", "mtr_tf.train", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    values = by_cell(attack(run, attack=("pgd",), eps=(2.0,), steps=2))
    size = fixture.load(next((camvid / "valannot").glob("*.png"))).shape
    for path in (run / "attacks" / "it" / "predictions").iterdir():
        files = sorted(path.iterdir())
        assert len(files) == 5
        assert {fixture.load(file).shape for file in files} == {size}
        assert set(np.unique(fixture.load(files[0]))) <= set(layout.LABEL_IDS)
        score = official_score(evaluator, root, path)["averageScoreClasses"]
        # Our value is that of smaller pictures.
        assert abs(score - values[path.name.split("_")[0]]) < 0.03
