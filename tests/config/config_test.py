# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults pass, ranges and choices are checked, dicts go round."""

import dataclasses
import re
from contextlib import nullcontext

import pytest
from absl import flags

from mtr_tf import attack_job
from mtr_tf.cli import flags as cli_flags
from mtr_tf.compare import CompareConfig
from mtr_tf.config import settings
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.convert import ConvertConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import plan
from mtr_tf.export import ExportConfig
from mtr_tf.reproduce import ReproduceConfig


def test_defaults_are_valid_and_go_round():
    config = TrainConfig()
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "--batch_size must be from 1 to 1000000000, got 0"),
        ({"eval_eps": 256.0}, "--eval_eps must be from 0 to 255, got 256"),
        ({"eval_eps": float("nan")}, "finite"),
        ({"decoders": "both"}, "separate, shared"),
        ({"schedule": "step"}, "--lr_epochs"),
        ({"lr_epochs": (2,)}, "--lr_epochs needs --schedule=step"),
        (
            {"schedule": "step", "lr_epochs": (2, 1)},
            "--lr_epochs must be in rising order",
        ),
        ({"seed": 2**32}, "--seed must be from 0 to"),
        ({"lr_epochs": (3, 0)}, "--lr_epochs must be from 1 to 1000000, got 0"),
        ({"image_size": "64,64"}, "height x width"),
        ({"crop": "0"}, "height x width"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(change, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**change)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"aux_weight": 0.1}, "those of --tasks that are not in --main_tasks, but all"),
        ({"aux_weight": 0.1, "main_tasks": ("depth", "seg")}, "all of seg, depth are"),
        ({"aux_weight": 0.1, "main_tasks": ("seg",)}, ""),
        ({"adversarial_eps": 4.0}, "--adversarial_eps needs --adversarial_tasks"),
        (
            {"adversarial_steps": 2, "adversarial_batch_norm": "training"},
            "--adversarial_steps and --adversarial_batch_norm need --adversarial_tasks",
        ),
        ({"adversarial_share": 0.0}, "--adversarial_share needs --adversarial_tasks"),
        (
            {"adversarial_share": 0.0, "adversarial_tasks": "main"},
            "--adversarial_tasks needs an --adversarial_share above 0",
        ),
        (
            {"adversarial_eps": 0.0, "adversarial_tasks": "main"},
            "--adversarial_tasks needs an --adversarial_eps above 0, but it is 0",
        ),
        (
            {"adversarial_eps": 8 / 255, "adversarial_tasks": "main"},
            "--adversarial_eps must be in levels .* give --adversarial_eps=8.",
        ),
        (
            {"adversarial_step_size": 2 / 255, "adversarial_tasks": "main"},
            "--adversarial_step_size must be in levels .* --adversarial_step_size=2.",
        ),
        (
            {
                "adversarial_step_size": 0.05,
                "adversarial_eps": 0.2,
                "adversarial_tasks": "main",
            },
            "",  # Five of them reach the radius.
        ),
        (
            {
                "adversarial_step_size": 0.05,
                "adversarial_eps": 1.0,
                "adversarial_tasks": "main",
            },
            "",  # 12.75 is never meant.
        ),
        ({"eval_eps": 4 / 255}, "--eval_eps must be in levels .* give --eval_eps=4."),
        ({"eval_eps": 0.1}, ""),
        ({"adversarial_eps": 4.0, "adversarial_tasks": "main"}, ""),
        ({}, ""),
    ],
)
def test_what_nothing_makes_use_of_is_refused_in_new_runs(given, message):
    config = TrainConfig(**given)
    assert TrainConfig.from_dict(config.to_dict()) == config  # Old runs are read.
    with pytest.raises(InputError, match=message) if message else nullcontext():
        config.check_used()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"momentum": 0.5}, ["--momentum has no effect without --optimizer=sgd"]),
        ({"momentum": 0.5, "optimizer": "sgd"}, []),
        ({"lr_factor": 0.5}, ["--lr_factor has no effect without --schedule=step"]),
        ({"lr_factor": 0.5, "schedule": "step", "lr_epochs": (2,)}, []),
        ({"eval_eps": 0.0, "eval_steps": 9}, ["--eval_steps has no effect with"]),
        ({"eval_steps": 9}, []),
    ],
)
def test_what_others_ignore_is_said_but_not_refused(given, names):
    """It may come from a flagfile, or from a study whose runs it identifies."""
    config = TrainConfig(**given)
    config.check_used()
    assert not config.unused
    sentences = config.without_effect
    assert len(sentences) == len(names)
    assert all(map(str.startswith, sentences, names))


def test_whole_numbers_of_training_are_floats_where_others_may_be():
    config = TrainConfig.from_dict({"learning_rate": 1, "momentum": 0, "epochs": 3})
    kinds = {name: type(value) for name, value in config.to_dict().items()}
    defaults = TrainConfig().to_dict()
    assert kinds == {name: type(value) for name, value in defaults.items()}
    assert config == TrainConfig(learning_rate=1.0, momentum=0.0, epochs=3)
    with pytest.raises(InputError, match="--learning_rate must be from 0 to"):
        TrainConfig(learning_rate=10**400)


def test_finished_attacks_are_known_by_the_numbers_that_were_given():
    """Python's 1 and the flag's 1.0 give different hashes in names of folders."""
    for step_size in (1, 1.0):
        value = AttackConfig(ckpt="run", step_size=step_size).to_dict()["step_size"]
        assert type(value) is type(step_size)


def test_an_unknown_setting_suggests_a_known_one():
    with pytest.raises(InputError, match="Did you mean 'batch_size'"):
        TrainConfig.from_dict({"batchsize": 3})


@pytest.mark.parametrize("values", [{"dataset": 5}, {"epochs": "two"}, {"flip": 1}])
def test_a_setting_of_another_type_is_refused(values):
    with pytest.raises(InputError, match=f"{next(iter(values))} must be of type"):
        TrainConfig.from_dict(values)


def test_image_size():
    assert parse_image_size("64") == (64, 64)
    assert parse_image_size("96x128") == (96, 128)
    assert parse_image_size("") is None


def parsed(*arguments, record=TrainConfig):
    values = flags.FlagValues()
    cli_flags.define(record, values)
    values(["train", *arguments])
    return cli_flags.read(record, values)


def test_flags_without_arguments_give_the_defaults():
    assert parsed() == TrainConfig()


def test_flags_of_every_kind():
    config = parsed(
        "--tasks=s, d",
        "--schedule=step",
        "--lr_epochs=2,5",
        "--noflip",
        "--learning_rate=1",
        "--seed=4",
    )
    assert config.tasks == ("s", "d")
    assert config.lr_epochs == (2, 5)
    assert config.flip is False
    assert config.learning_rate == 1.0
    assert config.seed == 4


def test_a_flag_that_a_later_flagfile_changes_is_named(tmp_path):
    file = tmp_path / "a.flags"
    file.write_text(
        "--steps=20\n--eps=4\n--nochecks\n--attack_tasks=seg\n--batch_size=8\n"
    )
    args = ["--steps=100", "--eps=1,2", "--checks", "--attack_tasks=seg", "--seed=3"]
    args.append("--batch_size=auto")

    def parse(*argv):
        argv = ["attack", "--ckpt=x", *argv]
        (config,) = cli_flags.parse(argv, (AttackConfig,))
        return config, list(cli_flags.overridden(argv, (AttackConfig,)))

    for directive in ([f"--flagfile={file}"], ["-flagfile", str(file)]):
        config, sentences = parse(*args, *directive, "--verbosity=0")
        assert (config.steps, config.eps, config.seed) == (20, (4.0,), 3)
        assert sorted(sentences) == [
            f"{flag} is overridden by a flagfile, which has {file_flag}; give it after "
            "--flagfile"
            for flag, file_flag in (
                ("--batch_size=auto", "--batch_size=8"),
                ("--checks", "--nochecks"),
                ("--eps=1,2", "--eps=4"),
                ("--steps=100", "--steps=20"),
            )
        ]
        config, sentences = parse(*directive, *args)
        assert (config.steps, sentences) == (100, [])
        assert parse("--steps=5", *directive, "--steps=6")[1] == []
    assert parse(*args)[1] == []


def test_a_list_of_the_wrong_kind():
    with pytest.raises(InputError, match="whole numbers, but contains 'x'"):
        parsed("--lr_epochs=2,x")


def test_help_shows_every_flag_with_its_default():
    text = cli_flags.help_text("mtr_tf.train", "Doc.", (TrainConfig, RunPlace))
    for record in (TrainConfig, RunPlace):
        for field in dataclasses.fields(record):
            assert f"--{field.name}=" in text
    assert "--tasks=seg,depth" in text
    assert "--flip=true" in text


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ((), {"pgd": True, "mim": False, "mim_released": True, "apgd": True}),
        (("--norandom_start",), dict.fromkeys(("pgd", "mim", "mim_released"), False)),
        (("--random_start",), dict.fromkeys(("pgd", "mim", "mim_released"), True)),
        (("--random_start=false",), {"mim": False, "apgd": False}),
        (("--restarts=2",), {"pgd": True, "mim": True}),  # Else all runs are equal.
        (("--random_start", "--attack=fgsm"), {"fgsm": False}),
    ],
)
def test_each_attack_starts_where_its_authors_does_unless_told(flag, wanted):
    attack_flag = f"--attack={','.join(wanted)}"
    config = parsed("--ckpt=x", "--eps=8", attack_flag, *flag, record=AttackConfig)
    cells = plan.make_cells(config, ("seg",))
    starts = {cell.attack.name: cell.attack.random_start for cell in cells}
    assert starts == wanted
    assert AttackConfig.from_dict(config.to_dict()) == config


def test_members_of_worst_start_as_they_do_alone():
    config = AttackConfig(ckpt="x", attack=("worst",), ensemble=("mim", "pgd"))
    cell = plan.make_cells(config, ("seg",))[0]
    assert [member.attack.random_start for member in cell.members] == [False, True]


def test_which_settings_change_no_result():
    """Folders of results, resumed runs and studies all go by this one list."""
    place = {"data_dir", "strategy", "replicas", "jit"}
    train = TrainConfig().that_change(settings.NOTHING)
    assert set(train) == place | {"checkpoint_minutes", "keep_checkpoints"}
    assert not TrainConfig().that_change(settings.EXTRAS)
    attack = AttackConfig(ckpt="x")
    paths = {"ckpt", "source_ckpt", "name", "out"}
    models = {"heads", "source_heads", "channels_first"}  # In their fingerprints.
    processes = {"executor", "executor_options", "workers", "part"}
    expected = place | paths | models | processes
    expected |= {"batch_size", "deterministic", "format"}
    assert set(attack.that_change(settings.NOTHING)) == expected
    assert set(attack.that_change(settings.EXTRAS)) == {
        *("save_examples", "export_predictions"),
        *("checks", "check_examples", "measure", "measure_draws", "metrics"),
    }


def test_flags_say_what_the_settings_say():
    """As absl reads them, also with commas and quotes in an item."""
    config = AttackConfig(
        ckpt="a b",
        heads=("x,y:seg", 'a"b:depth'),
        eps=(0.5, 8.0),
        random_start=False,
        input_mean=(-1.5, 1e-7, 0.0),
        targeted=True,
    )
    values = flags.FlagValues()
    cli_flags.define(AttackConfig, values)
    values(["attack", *config.flags()])
    assert cli_flags.read(AttackConfig, values) == config
    assert AttackConfig(ckpt="x").flags() == ["--ckpt=x"]


@pytest.mark.parametrize("size", ["auto", 8])
def test_a_number_or_a_word(size):
    config = parsed("--ckpt=x", f"--batch_size={size}", record=AttackConfig)
    assert config.batch_size == size
    assert config.flags() == ["--ckpt=x", f"--batch_size={size}"]
    assert AttackConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("given", ["automatic", "4.5", ""])
def test_neither_a_number_nor_the_word(given):
    sentence = f"--batch_size must be a whole number or auto, got {given!r}"
    arguments = ["attack", "--ckpt=x", f"--batch_size={given}"]
    for make_config in (
        lambda: cli_flags.parse(arguments, [AttackConfig]),
        lambda: AttackConfig(ckpt="x", batch_size=given),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            make_config()


def test_moved_data_is_the_same_data():
    names = {
        attack_job.default_name(AttackConfig(ckpt="x", data_dir=folder), "f")
        for folder in ("", "/a", "/b")
    }
    assert names == {"pgd_linf_1-2-4-8_validation_0ff959"}  # As it has always been.
    transfer = AttackConfig(ckpt="x", source_ckpt="runs/y", eps=(4.0,))
    name = attack_job.default_name(transfer, "f")
    assert name == "pgd_linf_4_validation_f17923"
    other_transfer = dataclasses.replace(transfer, source_ckpt="runs/z")
    assert attack_job.default_name(other_transfer, "f") != name


def test_the_name_of_a_folder_is_one_that_file_systems_take(tmp_path):
    radii = tuple(round(0.01 * number, 2) for number in range(1, 200))
    names = [
        attack_job.default_name(AttackConfig(ckpt="x", eps=radii, seed=seed), "f")
        for seed in (0, 1)
    ]
    assert names[0] != names[1]
    for name in names:
        (tmp_path / name).mkdir()


RECORDS = (
    TrainConfig,
    RunPlace,
    AttackConfig,
    ConvertConfig,
    CompareConfig,
    ExportConfig,
    ReproduceConfig,
)
# Fields whose help mentions files or folders, but whose values are no paths.
NO_PATHS = {
    "dataset",
    "decoders",
    "depth_target",
    "input_mean",
    "input_range",
    "name",
    "normalize",
    "tasks",
}
# Fields that name runs, models and their results.
AT_ADDRESSES = {
    *("TrainConfig.init", "RunPlace.workdir", "CompareConfig.runs"),
    *("AttackConfig.ckpt", "AttackConfig.source_ckpt", "AttackConfig.out"),
    *("ExportConfig.ckpt", "ExportConfig.out"),
}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        pytest.param(record, field, id=f"{record.__name__}-{field.name}")
        for record in RECORDS
        for field in dataclasses.fields(record)
        if re.search(r"[Ff]older|[Ff]ile|[Rr]un director", field.metadata["help"])
        and field.name not in NO_PATHS
        and isinstance(field.default, str | tuple)
    ],
)
def test_an_address_is_no_path(record, field):
    """Except in fields that may name a run directory at an address."""
    address = "gs://bucket/run"
    value = (address,) if isinstance(field.default, tuple) else address
    if f"{record.__name__}.{field.name}" in AT_ADDRESSES:
        base = {"ckpt": "run"} if record is AttackConfig else {}
        config = record(**base | {field.name: value})
        assert getattr(config, field.name) == value
        return
    with pytest.raises(
        InputError, match=rf"^--{field.name} must be a path in this machine's file"
    ):
        record(**{field.name: value})


def test_home_is_where_paths_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert TrainConfig(data_dir="~/data").data_dir == "/home/ann/data"
    assert TrainConfig(data_dir="a/~/b").data_dir == "a/~/b"
    assert CompareConfig(runs=("~/a", "b")).runs == ("/home/ann/a", "b")
    assert CompareConfig(runs=("gs://x/~",)).runs == ("gs://x/~",)
    values = TrainConfig(data_dir="~/data").to_dict()
    assert TrainConfig.from_dict(values | {"data_dir": "~/data"}).to_dict() == values
