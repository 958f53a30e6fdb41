# SPDX-License-Identifier: Apache-2.0
"""Studies that go on after a user's data, code or weights have changed."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attack_job
from mtr_tf import data
from mtr_tf.errors import InputError
from mtr_tf.executors.command import Ended
from mtr_tf.runs import building
from mtr_tf.runs import directory
from mtr_tf.runs import initial_weights
from mtr_tf.study import commands
from mtr_tf.study import queue
from mtr_tf.study import study_file
from mtr_tf.study import unchanged
from mtr_tf.study.runner import Runner
from mtr_tf.tasks import Task
from mtr_tf.training import job
from mtr_tf.training import loop

SIZE = (8, 12)
OWN = """
about = "Data, losses, metrics and a model of one's own."
seeds = [0, 1]
[train]
dataset = "own_study:examples"
model = "own_study:net"
init = "{init}"
epochs = 1
batch_size = 2
eval_steps = 1
[attack]
num_examples = 2
checks = false
steps = 1
eps = [4]
[variants."flow"]
tasks = ["flow"]
[attacks."pgd"]
"""
MOVED = """
about = "An attack on data of its own."
seeds = [0, 1]
[variants."s"]
tasks = ["seg"]
[attacks."moved"]
dataset = "camvid"
data_dir = "{folder}"
image_size = "32x40"
num_examples = 5
eps = [4]
"""


def loss(target, output, mask):
    return tf.reduce_mean(tf.square(output - target), [1, 2, 3])


def other_loss(target, output, mask):
    return tf.reduce_mean(tf.abs(output - target), [1, 2, 3])


def error(target, output, mask):
    return tf.reduce_max(tf.abs(output - target), [1, 2, 3])


def other_error(target, output, mask):
    return 2 * tf.reduce_max(tf.abs(output - target), [1, 2, 3])


other_error.__name__ = other_error.__qualname__ = "error"
error.better = other_error.better = "lower"


def net(image_shape, tasks, filters=4):
    image = keras.Input(image_shape)
    hidden = keras.layers.Conv2D(filters, 3, padding="same", name="body")(image)
    return keras.Model(image, {"flow": keras.layers.Conv2D(2, 1, name="head")(hidden)})


class Own(types.ModuleType):
    """A user's module, which can be changed as its file can."""

    def __init__(self):
        super().__init__("own_study")
        self.loss, self.error, self.light, self.net = loss, error, 0.5, net

    def examples(self):
        def example(seed):
            rng = np.random.default_rng(seed)
            image = self.light * rng.uniform(0, 1, (*SIZE, 3))
            return {"image": image, "targets": {"flow": rng.normal(size=(*SIZE, 2))}}

        metrics = [self.error]
        flow = Task("flow", channels=2, loss=self.loss, metrics=metrics)
        splits = {"train": range(4), "validation": range(4, 7), "test": range(7, 10)}
        return {name: [*map(example, seeds)] for name, seeds in splits.items()} | {
            "tasks": [flow]
        }


@pytest.fixture
def module(monkeypatch):
    """The user's module; Keras counts names anew, but without a garbage collection."""
    clear_session = functools.partial(keras.utils.clear_session, free_memory=False)
    monkeypatch.setattr(keras.utils, "clear_session", clear_session)
    module = Own()
    monkeypatch.setitem(sys.modules, "own_study", module)
    return module


def study_of(tmp_path: pathlib.Path, text: str, **fields):
    path = tmp_path / "own.toml"
    path.write_text(text.format(**fields))
    return study_file.load(str(path))


def refused(study, workdir, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unchanged.check(Runner(study, workdir).queue, workdir)


def test_a_study_is_not_continued_with_other_code_or_weights(module, tmp_path):
    init, workdir = tmp_path / "init.keras", tmp_path / "w"
    net((*SIZE, 3), ()).save(init)
    study = study_of(tmp_path, OWN, init=init)
    cell = Runner(study, workdir).queue.cells[0]
    folder = workdir / cell.folder
    folder.mkdir(parents=True)
    facts = job.resolve(cell.config).facts  # As training keeps them.
    content = {"train": cell.config.to_dict(), **facts}
    (folder / "config.json").write_text(json.dumps(content))
    unchanged.check(Runner(study, workdir).queue, workdir)

    module.net = lambda image_shape, tasks: net(image_shape, tasks, filters=5)
    refused(study, workdir, "run of other code or weights: the model is another one")
    module.net = net
    module.loss = other_loss
    refused(study, workdir, "the loss of flow is another one")
    module.loss = loss
    module.light = 0.4
    refused(study, workdir, "other data: the first or last image of train")
    module.light = 0.5
    weights = init.read_bytes()
    net((*SIZE, 3), ()).save(init)  # Drawn anew.
    refused(study, workdir, "--init has other weights")
    init.write_bytes(weights)
    unchanged.check(Runner(study, workdir).queue, workdir)

    # Older runs kept no hashes; what is done needs no code.
    module.net = lambda *args: 1 / 0
    refused(study, workdir, "ZeroDivisionError")
    study_queue = Runner(study, workdir).queue
    for cell in study_queue.cells:
        study_queue.set(cell, queue.DONE)
    unchanged.check(study_queue, workdir)
    module.net, module.loss = net, other_loss
    del content["code"], content["init"]
    (folder / "config.json").write_text(json.dumps(content))
    unchanged.check(Runner(study, workdir).queue, workdir)


def test_a_model_is_known_however_many_were_built_before(module, tmp_path):
    """Keras gives an operation its activation's name, until it has counted one."""

    def relu_net(image_shape, tasks):
        image = keras.Input(image_shape)
        hidden = keras.layers.Conv2D(4, 3, activation="relu", name="body")(image)
        heads = keras.layers.Conv2D(2, 3, name="head")(keras.ops.relu(hidden))
        return keras.Model(image, {"flow": keras.layers.ZeroPadding2D(2)(heads)})

    module.net = relu_net
    study = study_of(tmp_path, OWN, init="")
    config = Runner(study, tmp_path / "w").queue.cells[0].config
    source = building.open_source(config)
    assert job.own_facts(config, source) == job.own_facts(config, source)


def test_hashes_are_read_past_what_is_no_work(tmp_path):
    """Such as the facts that measures depend on, which lie in the same folder."""
    (tmp_path / "settings.json").write_text(
        json.dumps({"versions": directory.versions()})
    )
    flow = Task("flow", channels=2, loss=loss, metrics=[error])
    source = types.SimpleNamespace(info=types.SimpleNamespace(tasks={"flow": flow}))
    (tmp_path / "measures").mkdir()
    (tmp_path / "measures" / "facts.json").write_text("{}")
    key = {"own_tasks": [{"name": "flow", "code": "of another one"}]}
    (tmp_path / "measures" / "later.json").write_text(json.dumps({"key": key}))
    (change,) = unchanged._code_changes(tmp_path, {}, source)
    assert change == "the loss or a metric of flow is another one"


def test_a_study_of_what_is_ours_opens_nothing(tmp_path, monkeypatch):
    study = study_file.load("rooms-quick")
    runner = Runner(study, tmp_path)
    for cell in runner.queue.cells:
        folder = tmp_path / cell.folder
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"data": {"train": {}}}))
        runner.queue.set(cell, queue.DONE)
    monkeypatch.setattr(building, "open_source", None)
    unchanged.check(runner.queue, tmp_path)


def test_an_attack_on_other_data_of_its_own_is_not_taken_for_done(camvid_dir, tmp_path):
    folder = shutil.copytree(camvid_dir, tmp_path / "A")
    study = study_of(tmp_path, MOVED, folder=folder)
    runner = Runner(study, tmp_path)
    attack_cell = next(cell for cell in runner.queue.cells if cell.kind == "attack")
    results = tmp_path / attack_cell.folder / "results.json"
    results.parent.mkdir(parents=True)
    source = data.open_source(
        "camvid", image_size=(32, 40), data_dir=str(folder), tasks=("seg",)
    )
    images = source.columns("validation").images[np.arange(5)] / 255
    means = [float(np.mean(images[i])) for i in range(5)]
    summary = f"32x40x3 {means[0]:.5f} {means[-1]:.5f} {np.mean(means):.5f}"
    results.write_text(json.dumps([{"images": summary}]))

    def check(data_folder):
        runner = Runner(study_of(tmp_path, MOVED, folder=data_folder), tmp_path)
        runner.queue.set(attack_cell, queue.DONE)
        unchanged.check(runner.queue, tmp_path)

    check(folder)
    other_folder = shutil.copytree(folder, tmp_path / "B")
    check(other_folder)  # Moved.
    shutil.copy(other_folder / "val" / "007.png", other_folder / "val" / "000.png")
    with pytest.raises(InputError, match="attack on other data or code: the images"):
        check(other_folder)
    results.write_text(json.dumps([{"images": ""}]))  # Of an older version.
    check(other_folder)


@pytest.mark.slow
def test_attacks_are_known_by_images_and_metrics_of_ones_own(module, tmp_path):
    """The whole way: a run is trained and attacked, and the study goes on."""
    init, workdir = tmp_path / "init.keras", tmp_path / "w"
    net((*SIZE, 3), ()).save(init)
    text = OWN + 'split = "test"\n[attacks."measured"]\nattack = ["none"]\n'
    text += 'measure = ["tasks"]\n'
    study = study_of(tmp_path, text, init=init)
    training, *attacks = [c for c in Runner(study, workdir).queue.cells if not c.seed]
    loop.train(training.config, workdir / training.folder)
    for cell in attacks:
        dataset = training.config.dataset
        attack_job.attack(dataclasses.replace(cell.config, dataset=dataset))
        outcome = Ended(0, 1.0, "", {}, "here")
        commands.write_marker(cell, workdir, outcome, is_new=True)
    runner = Runner(study, workdir)
    assert {cell.seed for cell in runner.queue.waiting()} == {1}
    unchanged.check(runner.queue, workdir)

    folders = [workdir / cell.folder for cell in attacks]
    module.error = other_error
    for folder in folders:
        refused(study, workdir, f"{folder.name} .* a metric of flow is another one")
        settings = json.loads((folder / "settings.json").read_text())
        settings["versions"]["python"] = "3.0"  # Whose hashes differ.
        (folder / "settings.json").write_text(json.dumps(settings))
    unchanged.check(Runner(study, workdir).queue, workdir)
    module.error = error
    (results,) = folders[0].glob("results.json")
    marker = folders[0] / commands.MARKER
    marker.unlink()
    records = json.loads(results.read_text())
    records[0]["images"] = records[0]["images"].replace("8x12", "8x13")
    results.write_text(json.dumps(records))
    commands.write_marker(attacks[0], workdir, outcome, is_new=True)
    refused(study, workdir, "the images had 8x13 pixels and have 8x12")


def test_a_net_whose_first_net_was_trained_again_is_refused(tmp_path):
    """Its settings and so its hash are the same, but its first weights are not."""
    text = 'about = "Tuned."\nseeds = [0, 1]\n[variants."s"]\ntasks = ["seg"]\n'
    text += '[variants."tuned"]\ntasks = ["seg"]\ninit_from = "s"\n'
    study, workdir = study_of(tmp_path, text), tmp_path / "w"
    cells = {(c.variant, c.seed): c for c in Runner(study, workdir).queue.cells}
    for cell in cells.values():
        folder = workdir / cell.folder
        folder.mkdir(parents=True)
        net((*SIZE, 3), ()).save(folder / "model.keras")
    for (variant, seed), cell in cells.items():
        source = workdir / cells["s", seed].folder
        facts = {"init": initial_weights.digest(str(source))}
        facts = facts if variant == "tuned" else {}
        directory.write_config(workdir / cell.folder, cell.config, facts=facts)
    study_queue = Runner(study, workdir).queue
    assert not study_queue.waiting()
    unchanged.check(study_queue, workdir)
    source, tuned = cells["s", 1].folder, cells["tuned", 1].folder
    net((*SIZE, 3), ()).save(workdir / source / "model.keras")  # Drawn anew.
    refused(
        study, workdir, f": {tuned} began with other weights than {source} has. Del"
    )
    (workdir / source / "model.keras").unlink()  # Results outlive models.
    unchanged.check(Runner(study, workdir).queue, workdir)


@pytest.mark.slow
def test_a_net_is_trained_on_wherever_the_study_is(module, tmp_path):
    """The whole way: trained, tuned at a rate of 0, moved, and continued."""
    text = OWN + '[variants."tuned"]\ntasks = ["flow"]\ninit_from = "flow"\n'
    text += "learning_rate = 0\n"
    study = dataclasses.replace(study_of(tmp_path, text, init=""), attacks=())

    def train_all(workdir):
        for cell in Runner(study, workdir).queue.waiting():
            commands.renew_init(cell, workdir)
            loop.train(cell.config, workdir / cell.folder)
        runner = Runner(study, workdir)
        assert not runner.queue.waiting()
        unchanged.check(runner.queue, workdir)
        return {(c.variant, c.seed): workdir / c.folder for c in runner.queue.cells}

    folders = train_all(tmp_path / "w")
    digests = {key: initial_weights.digest(str(path)) for key, path in folders.items()}
    for seed in study.seeds:
        content = json.loads((folders["tuned", seed] / "config.json").read_text())
        assert content["train"]["init"] == str(folders["flow", seed])
        assert content["init"] == digests["flow", seed] == digests["tuned", seed]
    assert digests["flow", 0] != digests["flow", 1]

    (tmp_path / "w").rename(tmp_path / "moved")
    moved_folders = {
        key: tmp_path / "moved" / path.relative_to(tmp_path / "w")
        for key, path in folders.items()
    }
    assert not Runner(study, tmp_path / "moved").queue.waiting()
    (moved_folders["tuned", 1] / "model.keras").unlink()  # Its checkpoints are there.
    assert train_all(tmp_path / "moved") == moved_folders
    assert initial_weights.digest(str(moved_folders["tuned", 1])) == digests["tuned", 1]
    # A lost model may be trained again with other bits: others did not begin with it.
    net((*SIZE, 3), ()).save(moved_folders["flow", 0] / "model.keras")
    message = (
        f"{moved_folders['tuned', 0].name} began with other weights than .*-seed0-"
    )
    with pytest.raises(InputError, match=message):
        train_all(tmp_path / "moved")
