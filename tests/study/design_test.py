# SPDX-License-Identifier: Apache-2.0
"""Study files: what they say, and that every mistake in one is named with its place."""

from __future__ import annotations

import json

import pytest

from mtr_tf import data
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.study import study_file
from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study
from mtr_tf.study.design import Variant

GOOD = """
about = '''What is asked.
On what.'''
seeds = [3, 1]
[train]
dataset = "camvid"
data_dir = "here"
learning_rate = 1
[attack]
eps = [1, 2.5]
steps = 3
[variants."s"]
tasks = ["segmentsemantic"]
[variants."s+A"]
tasks = ["seg", "A"]
main_tasks = ["s"]
dataset = "rooms"
note = "a note"
[attacks."own"]
attack_tasks = ["s", "EACH"]
[attacks."from A"]
attack_tasks = ["seg"]
variants = ["s"]
source = "s+A"
data_dir = "there"
steps = 5
[[claims]]
id = "E1"
better = ["s+A"]
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text, **overrides):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return study_file.load(str(path), **overrides)

    return load_text


def test_a_file_is_read_as_it_says(load, tmp_path):
    study = load(GOOD)
    assert study == Study(
        name="mine",
        about="What is asked. On what.",
        seeds=(3, 1),
        train={"dataset": "camvid", "data_dir": "here", "learning_rate": 1.0},
        attack={"eps": (1.0, 2.5), "steps": 3},
        variants=(
            Variant("s", {"tasks": ("seg",)}),
            Variant(
                "s+A",
                {
                    "tasks": ("seg", "autoencoder"),
                    "main_tasks": ("seg",),
                    "dataset": "rooms",
                },
                "a note",
            ),
        ),
        attacks=(
            AttackSpec("own", {"attack_tasks": ("seg", "each")}, ("s", "s+A")),
            AttackSpec(
                "from A",
                {"attack_tasks": ("seg",), "data_dir": "there", "steps": 5},
                ("s",),
                "s+A",
            ),
        ),
        claims=({"id": "E1", "better": ["s+A"]},),
        file=str(tmp_path / "mine.toml"),
    )
    assert isinstance(study.train["learning_rate"], float)  # 1 and 1.0 are one cell.


def test_what_is_said_last_holds(load):
    study = load(GOOD)
    assert study.train_config("s+A", 3) == TrainConfig(
        tasks=("seg", "autoencoder"),
        main_tasks=("seg",),
        dataset="rooms",
        data_dir="here",
        learning_rate=1.0,
        seed=3,
    )
    expected = {
        "eps": (1.0, 2.5),
        "steps": 3,
        "attack_tasks": ("seg", "each"),
        "seed": 1,
    }
    assert study.attack_fields("own", "s", 1) == expected | {"data_dir": "here"}
    fields = study.attack_fields("from A", "s", 1)
    assert (fields["steps"], fields["data_dir"]) == (5, "there")


def test_seeds_and_settings_of_the_command_line_go_before_the_files(load):
    study = load(GOOD, seeds=(7,), train={"dataset": "rooms", "image_size": "32"})
    assert study.seeds == (7,)
    assert study.train_config("s", 7).dataset == "rooms"
    assert study.train_config("s", 7).image_size == "32"
    with pytest.raises(InputError, match=r"\[train\]: image_size|--image_size"):
        load(GOOD, train={"image_size": "x"})


@pytest.mark.parametrize("size", [16, "auto"])
def test_a_number_or_a_word_of_a_setting(load, size):
    study = load(GOOD.replace("steps = 3", f"batch_size = {json.dumps(size)}"))
    assert study.attack["batch_size"] == size
    with pytest.raises(InputError, match=r"\[attack\]: .*number or auto, got 'x'"):
        load(GOOD.replace("steps = 3", 'batch_size = "x"'))


def test_it_survives_json(load):
    study = load(GOOD)
    content = json.loads(json.dumps(study.to_dict() | {"provenance": {}}))
    assert Study.from_dict(content) == study
    del content["variants"][0]["train"]
    with pytest.raises(InputError, match="study.json"):
        Study.from_dict(content)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds =", "seed =", ["mine.toml: there is no key 'seed'", "'seeds'"]),
        ("[3, 1]", "[3, 3]", ["mine.toml: seeds must be", "[3, 3]"]),
        ("[3, 1]", "[]", ["mine.toml: seeds must be"]),
        ("[3, 1]", "[-1]", ["mine.toml: seeds must be", "[-1]"]),
        ("[3, 1]", "3", ["mine.toml: seeds must be a list", "got 3"]),
        ("about =", "claims = 3\n#", ["mine.toml", "not valid TOML"]),
        ("learning_rate", "learn_rate", ["[train]", "'learning_rate'"]),
        (
            "learning_rate = 1",
            "epochs = 0",
            ["[train]: epochs", "to 1000000, got 0"],
        ),
        ("learning_rate = 1", "epochs = 1.5", ["[train]: epochs", "whole number"]),
        ("learning_rate = 1", "flip = 1", ["[train]: flip", "true or false, got 1"]),
        ("learning_rate = 1", "momentum = nan", ["[train]: momentum", "a number"]),
        (
            "learning_rate = 1",
            "seed = 1",
            ["[train]: seed must not", "set by the study's seeds"],
        ),
        ("learning_rate = 1", 'workdir = "w"', ["[train]: workdir must not be given"]),
        ("learning_rate = 1", 'schedule = "step"', ['[variants."s"]: ', "--lr_epochs"]),
        ("eps = [1, 2.5]", "eps = [1, '2']", ["[attack]: ", "eps", "got '2'"]),
        ("eps = [1, 2.5]", "eps = []", ['[attacks."own"]: ', "--eps must have"]),
        ("steps = 3", "stepps = 3", ["[attack]", "did you mean 'steps'?"]),
        ("steps = 3", "ckpt = 'x'", ["[attack]: ckpt must not be given"]),
        ("steps = 3", "source_ckpt = 'x'", ["[attack]: source_ckpt", "source ="]),
        ("steps = 3", "name = 'x'", ["[attack]: name must not be given"]),
        ('tasks = ["seg", "A"]', 'tasks = "seg"', ['[variants."s+A"]: tasks', "list"]),
        ('"A"]', '"autoencodr"]', ['[variants."s+A"]: tasks', "'autoencoder'"]),
        ('main_tasks = ["s"]', 'main_tasks = ["d"]', ['"s+A"]: ', "among --tasks"]),
        ('"s+A"]\nt', '"s A"]\n[variants."s@A"]\nt', ["names of variants", "'s A'"]),
        ('variants = ["s"]', 'variants = ["S+a"]', ["'S+a'", "did you mean 's+A'?"]),
        ('variants = ["s"]', "variants = []", ['[attacks."from A"]: variants must']),
        ('source = "s+A"', 'source = "t"', ['[attacks."from A"]', "no variant 't'"]),
        ('note = "', 'init_from = "t" #', ['[variants."s+A"]', "no variant 't'"]),
        ('note = "', 'init_from = "S" #', ["'S'; there are s, s+A; did you mean 's'?"]),
        ('note = "', "init_from = 3 #", ['[variants."s+A"]: init_from must be a text']),
        ('note = "', 'init_from = "s+A" #', ['"s+A"]: init_from must name another']),
        ('note = "', 'init = "x"\ninit_from = "s" #', ["init_from and init say"]),
        ('note = "', 'width = 8\ninit_from = "s" #', ["the same width, but 's' has 0"]),
        ('["s", "EACH"]', '["A"]', ["\"own\"]: on the variant 's'", "--attack_tasks"]),
        ('["s", "EACH"]', '["x"]', ['"own"]: attack_tasks: Unknown task']),
        ("steps = 5", 'attack = ["pdg"]', ['"from A"]: ', "Did you mean 'pgd'?"]),
        ("steps = 5", 'tasks = ["d"]', ["on the variant 's': --tasks names depth"]),
        ("[[claims]]", "[claims]", ["mine.toml: claims must be a list"]),
        ('[variants."s"]', "[variants]\nt = 1\n#", ["variants must hold named tables"]),
    ],
)
def test_mistakes_are_named_with_file_table_and_key(load, old, new, said):
    assert old in GOOD
    with pytest.raises(InputError) as mistake:
        load(GOOD.replace(old, new, 1))
    for words in ("mine.toml", *said):
        assert words in str(mistake.value)


FROM = """
about = "x"
seeds = [0]
[train]
init = "pretrained.keras"
[variants."last"]
tasks = ["seg"]
init_from = "tuned"
[variants."tuned"]
tasks = ["seg"]
init_from = "s"
[variants."s"]
tasks = ["seg"]
"""


def test_a_variant_comes_after_the_one_that_it_begins_with(load):
    study = load(FROM)
    assert [v.name for v in study.variants] == ["last", "tuned", "s"]
    assert [v.name for v in study.in_training_order] == ["s", "tuned", "last"]
    assert study.variant("tuned") == Variant("tuned", {"tasks": ("seg",)}, "", "s")
    assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study
    inits = {name: study.train_config(name, 0).init for name in ("s", "tuned")}
    assert inits == {"s": "pretrained.keras", "tuned": ""}


def test_variants_that_begin_with_each_other_are_refused(load):
    circle = "'tuned' begins with 's' begins with 'tuned'; leave out one"
    with pytest.raises(InputError, match=rf'variants."tuned"\]: .* {circle}'):
        load(FROM + 'init_from = "tuned"')


@pytest.mark.parametrize("given", ["no/such.toml", "such.toml", "room-quick"])
def test_what_is_not_there_is_said(given):
    with pytest.raises(InputError) as mistake:
        study_file.load(given)
    assert given in str(mistake.value)


def test_unknown_names_are_named(load):
    study = load(GOOD)
    with pytest.raises(InputError, match=r"no variant 's\+a'.*did you mean 's\+A'"):
        study.train_config("s+a", 0)
    with pytest.raises(InputError, match="no attack 'owm'.*did you mean 'own'"):
        study.attack_fields("owm", "s", 0)


@pytest.mark.parametrize("name", study_file.shipped())
def test_the_studies_that_come_with_the_package_can_be_read(name):
    study = study_file.load(name)
    for variant in study.variants:
        study.train_config(variant.name, 0).check_used()
    assert (study.name, study.file) == (name, name)
    for spec in study.attacks:
        for variant in spec.variants:
            fields = study.attack_fields(spec.name, variant, study.seeds[0])
            AttackConfig(ckpt="run", **fields)


@pytest.mark.parametrize("dataset", [*data.DATASETS, "mine:examples"])
@pytest.mark.parametrize("name", study_file.shipped())
def test_a_study_on_other_data_has_no_settings_that_these_do_not_take(name, dataset):
    original = study_file.load(name)
    study = study_file.load(name, train={"dataset": dataset})
    if dataset == original.train["dataset"]:
        assert study == original
    for variant in study.variants:
        config = study.train_config(variant.name, 0)
        assert config.dataset == dataset
        for option, (default, takers) in data.OPTIONS.items():
            assert dataset in takers or getattr(config, option) == default


def test_settings_of_data_stay_with_the_data_that_take_them(load):
    text = """
        about = "x"
        seeds = [0]
        [train]
        dataset = "cityscapes"
        depth_target = "metres"
        [variants."s"]
        tasks = ["seg"]
        depth_target = "released"
        [variants."of rooms"]
        tasks = ["seg"]
        dataset = "rooms"
        depth_target = "disparity"
        rooms_scenes = 10
        [attacks."own"]
        depth_target = "metres"
        variants = ["s"]
        [attacks."moved"]
        dataset = "cityscapes"
        depth_target = "metres"
        variants = ["s"]
        """
    cityscapes = load(text, train={"dataset": "cityscapes", "data_dir": "here"})
    assert cityscapes.train["depth_target"] == "metres"  # To report its mistakes.
    camvid = load(text, train={"dataset": "camvid"})
    assert camvid.train == {"dataset": "camvid"}
    assert camvid.variant("s").train == {"tasks": ("seg",)}
    assert camvid.variant("of rooms") == cityscapes.variant("of rooms")
    assert camvid.spec("own").attack == {}
    assert camvid.spec("moved") == cityscapes.spec("moved")
    taskonomy = load(text, train={"dataset": "taskonomy"})
    assert taskonomy.variant("s") == cityscapes.variant("s")


def test_settings_of_all_variants_count_where_they_are_made_use_of(load):
    study = load(
        """
        about = "x"
        seeds = [0]
        [train]
        aux_weight = 0.1
        adversarial_eps = 4
        [variants."s"]
        tasks = ["seg"]
        [variants."s+A"]
        tasks = ["seg", "autoencoder"]
        main_tasks = ["seg"]
        adversarial_tasks = "main"
        [variants."own"]
        tasks = ["seg"]
        aux_weight = 0.2
        """
    )
    main_config, aux_config = (study.train_config(name, 0) for name in ("s", "s+A"))
    assert (main_config.aux_weight, main_config.adversarial_eps) == (1, 8)
    assert (aux_config.aux_weight, aux_config.adversarial_eps) == (0.1, 4)
    with pytest.raises(InputError, match="--aux_weight needs auxiliary tasks"):
        study.train_config("own", 0).check_used()
