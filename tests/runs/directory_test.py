# SPDX-License-Identifier: Apache-2.0
"""Run directories: files are whole or absent, settings are compared, locks hold."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
from absl import flags

from mtr_tf import files
from mtr_tf import tasks
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import directory


def write_half(path, error):
    with files.whole_file(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError):
        write_half(path, ZeroDivisionError())
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="/file/a cannot be written: "):
        files.write_text(tmp_path / "file" / "a", "text")
    with (
        pytest.raises(InputError, match="cannot be written"),
        files.locked(tmp_path / "file" / "run"),
    ):
        pass


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", float("nan"))


def test_a_full_disk_is_explained(tmp_path):
    with pytest.raises(InputError, match="no space is left"):
        write_half(tmp_path / "a", OSError(28, "No space left on device"))
    assert os.listdir(tmp_path) == []


def test_settings_go_round_and_differences_are_named(tmp_path):
    config = TrainConfig(epochs=3, tasks=("seg",))
    directory.write_config(tmp_path, config)
    assert directory.read_config(tmp_path) == config
    directory.check_same(
        tmp_path, config, TrainConfig(epochs=3, tasks=("seg",), replicas=2)
    )
    with pytest.raises(InputError, match="--epochs was 3 and is 4; --seed was 0"):
        directory.check_same(
            tmp_path, config, TrainConfig(epochs=4, tasks=("seg",), seed=1)
        )


def test_a_run_keeps_each_task_by_its_one_name(tmp_path):
    config = TrainConfig(
        tasks=("s", "D", "reconstruct"),
        main_tasks=("s",),
        random_targets=("A",),
        task_losses=("A:l1", "no pair"),
        adversarial_tasks="s+D",
    )
    canonical = directory.canonical(config)
    assert canonical.tasks == ("seg", "depth_euclidean", "autoencoder")
    assert canonical.main_tasks == ("seg",)
    assert canonical.random_targets == ("autoencoder",)
    assert canonical.task_losses == ("autoencoder:l1", "no pair")
    assert canonical.adversarial_tasks == "seg+depth_euclidean"
    assert directory.canonical(canonical) == canonical
    directory.write_config(tmp_path, config)  # As older versions wrote it.
    assert directory.read_config(tmp_path) == canonical


def test_the_flagfile_repeats_the_settings(tmp_path):
    config = TrainConfig(
        tasks=("seg", "depth"), flip=False, lr_epochs=(1, 2), schedule="step"
    )
    directory.write_config(tmp_path, config)
    values = flags.FlagValues()
    cli_flags.define(TrainConfig, values)
    values(["train", f"--flagfile={tmp_path / 'train.flags'}"])
    assert cli_flags.read(TrainConfig, values) == config


def test_what_a_result_is_traced_by(tmp_path):
    directory.write_config(tmp_path, TrainConfig())
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["train"]["seed"] == 0
    assert {"python", "tensorflow", "keras", "numpy"} <= set(content["versions"])
    assert {"command", "commit", "time", "platform"} <= set(content)


def test_a_damaged_config_is_explained(tmp_path):
    (tmp_path / "config.json").write_text('{"train": {')
    with pytest.raises(InputError, match="damaged"):
        directory.read_config(tmp_path)


def test_one_process_holds_a_directory_and_the_lock_ends_with_it(tmp_path):
    code = (
        "import sys, pathlib, time; from mtr_tf import files\n"
        "with files.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); "
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"another process .pid {holder.pid}"),
            files.locked(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with files.locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("changes", "now", "message"),
    [
        ({"schedule": "constant"}, {"epochs": 9}, ""),
        ({"schedule": "step", "lr_epochs": (3,)}, {"epochs": 9}, ""),
        ({"schedule": "constant"}, {"epochs": 2}, "--epochs was 4 and is 2"),
        ({"schedule": "constant"}, {"epochs": 9, "seed": 1}, "--seed was 0 and is 1"),
        ({}, {"epochs": 9}, "with --schedule=cosine the rate of every step depends"),
        ({}, {"epochs": 9, "seed": 1}, "--seed was 0 and is 1"),
    ],
)
def test_a_run_is_made_longer_where_its_first_steps_stay_what_they_were(
    tmp_path, changes, now, message
):
    config = TrainConfig(epochs=4, **changes)
    directory.begin(tmp_path, config, resume=True)
    (tmp_path / "model.keras").touch()
    longer_config = dataclasses.replace(config, **now)
    if message:
        with pytest.raises(InputError, match=message):
            directory.begin(tmp_path, longer_config, resume=True)
    else:
        directory.begin(tmp_path, longer_config, resume=True)
    assert directory.read_config(tmp_path) == (config if message else longer_config)
    assert (tmp_path / "model.keras").exists() == bool(message)


def test_the_model_stays_if_the_settings_of_a_longer_run_cannot_be_written(tmp_path):
    config = TrainConfig(epochs=4, schedule="constant")
    directory.begin(tmp_path, config, resume=True)
    (tmp_path / "model.keras").touch()
    longer_config = dataclasses.replace(config, epochs=9)
    with pytest.raises(ValueError, match="not JSON compliant"):
        directory.begin(
            tmp_path, longer_config, True, facts={"normalization": math.nan}
        )
    assert (tmp_path / "model.keras").exists()
    assert directory.read_config(tmp_path) == config


def test_runs_whose_autoencoder_had_other_targets_are_not_continued(tmp_path):
    """With `released`, which once meant depth alone; see `directory.older_targets`."""
    config = TrainConfig(
        dataset="cityscapes",
        depth_target="released",
        tasks=("seg", "autoencoder"),
        data_dir="x",
    )

    def begin_run(config, *facts):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        directory.write_config(folder, config, *facts)
        return folder

    task_set = tasks.TASKS.select(["seg", "autoencoder"])
    old_run = begin_run(config, task_set, {"depth": (0.0, 25.0)})
    assert "pictures in [0, 1]" in directory.older_targets(old_run)
    with pytest.raises(InputError, match="cannot be continued: its autoencoder was"):
        directory.begin(old_run, config, resume=True)
    assert not directory.older_targets(
        begin_run(config, task_set, {"autoencoder": (-2, 4)})
    )
    for changes in ({"depth_target": "disparity"}, {"tasks": ("seg", "depth")}):
        assert not directory.older_targets(
            begin_run(dataclasses.replace(config, **changes))
        )
    (old_run / "conversion.json").write_text("{}")
    assert not directory.older_targets(old_run)
