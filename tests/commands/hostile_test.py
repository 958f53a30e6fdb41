# SPDX-License-Identifier: Apache-2.0
"""The hostile list: commands and files that must end with one clear sentence.

A row is a command line, a part of its sentence, and its exit code if that is not 1. The
command runs in this process, in the folder that `place` makes, with `FILES`. To add a
row, write it into the table of its kind, and its files into `FILES`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pathlib
import shlex
import signal
import sys

import pytest

from mtr_tf import attack_job
from mtr_tf import models
from mtr_tf.cli import startup
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.runs import directory
from mtr_tf.training import job

RECORD = {
    "attack": "pgd",
    "norm": "linf",
    "eps": 1.0,
    "attacked": ["seg"],
    "task": "seg",
    "metric": "miou",
    "clean": 0.5,
    "attacked_value": 0.25,
    "clean_interval": [0.4, 0.6],
    "attacked_interval": [0.2, 0.3],
    "n": 7,
    "dataset": "rooms",
    "split": "validation",
}
_RECORD_WITHOUT_EPS = {name: value for name, value in RECORD.items() if name != "eps"}
_DEEP_LIST = "[" * 100_000 + "]" * 100_000
STUDY = """
about = "x"
seeds = [0]
[variants."s"]
tasks = ["seg"]
[attacks."own"]
attack_tasks = ["each"]
"""


def _results(name: str, content: object) -> tuple[str, str]:
    """The path and the text of the results of an attack on the run `name`."""
    text = content if isinstance(content, str) else json.dumps(content)
    return f"{name}/attacks/a/results.json", text


# Files in the folder where the commands run, by name.
FILES = dict(
    [
        _results("good", [RECORD]),
        _results("cut", "[{"),
        _results("deep", _DEEP_LIST),
        _results("table", RECORD),
        _results("number", 3),
        _results("strings", ["pgd"]),
        _results("incomplete", [RECORD, _RECORD_WITHOUT_EPS]),
        _results("words", [RECORD | {"clean": "half"}]),
        _results("lists", [RECORD | {"attacked_value": [0.5]}]),
        _results("ends", [RECORD | {"clean_interval": [0.4]}]),
        _results("no_interval", [RECORD | {"attacked_interval": None}]),
        _results("empty", []),
        ("two/attacks/a/results.json", json.dumps([RECORD])),
        ("two/attacks/b/results.json", json.dumps([RECORD])),
        ("begun/attacks/half/settings.json", "{}"),
        ("plain/config.json", "{}"),
        ("file", "x"),
        ("unknown.flags", "--epohcs=3\n"),
        ("wrong.flags", "--epochs=many\n"),
        ("circle.flags", "--flagfile=circle.flags\n--epochs=many\n"),
        ("no.toml", "about = \n"),
        ("empty.toml", ""),
        ("key.toml", "abuot = 'x'\n"),
        ("steps.toml", STUDY + "steps = 2147483648\n"),
        ("eps.toml", STUDY + "eps = [1" + "0" * 400 + "]\n"),
        ("deep.toml", "about = " + _DEEP_LIST + "\n"),
        ("seeds.toml", STUDY.replace("[0]", "[-1]")),
        ("epochs.toml", STUDY + "[train]\nepochs = 99999999999999999999\n"),
        ("choice.toml", STUDY + '[train]\nschedule = "cosin"\n'),
        ("weights.toml", STUDY + 'attack_weights = ["seg:1e308"]\n'),
    ]
)

TRAIN = [
    (
        "train --workdir=gc://bucket/run",
        "--workdir must be a path, or an address that TensorFlow or fsspec can reach "
        "(gs://, s3://, abfs:// and others); got 'gc://bucket/run'. Mount it as a "
        "folder, and give its path.",
    ),
    (
        "train --data_dir=gs://bucket/data",
        "--data_dir must be a path in this machine's file system; got "
        "'gs://bucket/data'. Mount it as a folder or copy it, and give the local path.",
    ),
    ("train --lr=0.1", "there is no flag --lr. Did you mean --learning_rate?"),
    ("attack --epsilon=2", "there is no flag --epsilon. Did you mean --eps?"),
    ("attack --checkpoint=a", "there is no flag --checkpoint. Did you mean --ckpt?"),
    ("attack --zzz=1", "there is no flag --zzz. --help lists the flags."),
    ("train --bs=4", "there is no flag --bs. Did you mean --batch_size?"),
    ("train --zzz=3", "there is no flag --zzz. --help lists the flags."),
    ("train --epoch=3", "there is no flag --epoch. Did you mean --epochs?"),
    ("train ---epochs=3", "Did you mean --epochs?"),
    ("train --nodeterminstic", "Did you mean --deterministic?"),
    ("train --epochs=abc", "--epochs must be a whole number, got 'abc'."),
    ("train --epochs=1e3", "--epochs must be a whole number, got '1e3'."),
    ("train --epochs=3.5", "--epochs must be a whole number, got '3.5'."),
    ("train --epochs=", "--epochs must be a whole number, got ''."),
    ("train --epochs", "--epochs needs a value: --epochs=VALUE."),
    ("train -epochs=abc", "--epochs must be a whole number"),
    ("train --epochs=99999999999999999999", "--epochs must be from 1 to 1000000, got"),
    ("train --epochs=0", "--epochs must be from 1 to 1000000, got 0."),
    ("train --epochs=" + "9" * 5000, "--epochs must be a whole number, got '9999"),
    ("train --learning_rate=fast", "--learning_rate must be a number, got 'fast'."),
    ("train --learning_rate=nan", "--learning_rate must be a finite number"),
    ("train --learning_rate=inf", "--learning_rate must be a finite number"),
    ("train --learning_rate=1e400", "--learning_rate must be a finite number"),
    ("train --learning_rate=1e30", "--learning_rate must be from 0 to 1000000"),
    ("train --learning_rate=-1", "--learning_rate must be from 0 to 1000000, got -1"),
    ("train --flip=maybe", "--flip must be true or false, got 'maybe'."),
    ("train --noflip=true", "--noflip=true does not take an argument."),
    ("train --decoders=both", "--decoders must be one of separate, shared"),
    ("train --optimizer=ADAM", "got 'ADAM'. Did you mean 'adam'?"),
    ("train --schedule=cosin", "got 'cosin'. Did you mean 'cosine'?"),
    ("train --lr_epochs=1,2,a", "--lr_epochs must be a comma-separated list of whole"),
    ("train --schedule=step --lr_epochs=2,1", "--lr_epochs must be in rising order"),
    ("train --schedule=step --lr_epochs=0", "--lr_epochs must be from 1 to"),
    ("train --schedule=step", "--schedule=step needs --lr_epochs"),
    ("train --lr_epochs=3", "--lr_epochs needs --schedule=step"),
    ("train --seed=-1", "--seed must be from 0 to 4294967295, got -1."),
    ("train --seed=4294967296", "--seed must be from 0 to 4294967295"),
    ("train --width=100000", "--width must be from 0 to 1024, got 100000."),
    ("train --replicas=100000", "--replicas must be from 0 to 128, got 100000."),
    ("train --batch_size=0", "--batch_size must be from 1 to 1000000000, got 0."),
    ("train --weight_decay=1e300", "--weight_decay must be from 0 to 1000000"),
    ("train --aux_weight=1e300", "--aux_weight must be from 0 to 1000000"),
    ("train --momentum=2", "--momentum must be from 0 to 1, got 2"),
    ("train --eval_eps=256", "--eval_eps must be from 0 to 255, got 256"),
    ("train --eval_steps=2147483648", "--eval_steps must be from 1 to 1000000"),
    ("train --adversarial_steps=1e9", "--adversarial_steps must be a whole number"),
    ("train --adversarial_steps=4294967296", "--adversarial_steps must be from 1 to"),
    ("train --summary_every=0", "--summary_every must be from 1 to 1000000000"),
    ("train --eval_every=99999999999", "--eval_every must be from 0 to 1000000000"),
    ("train --checkpoint_every=-5", "--checkpoint_every must be from 0 to"),
    ("train --keep_checkpoints=0", "--keep_checkpoints must be from 1 to"),
    ("train --train_examples=-1", "--train_examples must be from 0 to"),
    ("train --validation_share=1.5", "--validation_share must be from 0 to 1"),
    ("train --crop=abc", "--crop must be one number (64) or height x width"),
    ("train --crop=0", "--crop must be one number"),
    ("train --crop=100000", "--crop must be at most 16384 on each side, got '100000'."),
    ("train --image_size=12x13x14", "--image_size must be one number (64)"),
    (
        "train --image_size=99999x99999",
        "--image_size must be at most 16384 on each side",
    ),
    ("train --image_size=²", "--image_size must be one number (64)"),
    ("train extra words", "every argument must be a flag, --name=value; got"),
    ("train --=3", "every argument must be a flag"),
    ("train --flagfile=missing.flags", "--flagfile=missing.flags must name a flagfile"),
    ("train --flagfile=good", "--flagfile=good must name a flagfile"),
    ("train --flagfile", "--flagfile with no argument"),
    ("train --flagfile=unknown.flags", "no flag --epohcs. Did you mean --epochs?"),
    ("train --flagfile=wrong.flags", "--epochs must be a whole number, got 'many'."),
    ("train --flagfile=circle.flags", "--epochs must be a whole number, got 'many'."),
    ("train --v=abc", "the flags cannot be read: "),
    ("train --model=tinny", "Unknown model 'tinny'. Did you mean 'tiny'?"),
    ("train --model=transformer", "Unknown model 'transformer'. The models are"),
    ("train --model=tiny --image_size=33", "multiples of 4, got 33x33"),
    ("train --model=resnet18 --crop=40", "multiples of 32, got 40x40"),
    ("train --tasks=seg,dpeth", "Unknown task 'dpeth'. Did you mean 'depth'?"),
    ("train --tasks=", "At least one task must be named"),
    ("train --tasks=seg,s", "Each task may be named only once"),
    ("train --main_tasks=normal", "--main_tasks must be among --tasks"),
    ("train --adversarial_tasks=normal", "--adversarial_tasks must be main, all"),
    ("train --best_metric=seg/mean", "--best_metric must be"),
    ("train --dataset=camvit", "Unknown data set 'camvit'. Did you mean 'camvid'?"),
    ("train --workdir=file --model=tiny", "--workdir must be a directory, but file is"),
]

ATTACK = [
    ("attack", "--ckpt must name what to attack"),
    ("attack --ckpt=missing", "--ckpt must be a run directory"),
    ("attack --ckpt=plain", "--ckpt must be a run directory"),
    ("attack --ckpt=file", "which is another kind of file"),
    ("attack --ckpt=missing.keras", "there is no file missing.keras; check --ckpt."),
    ("attack --chkpt=x", "there is no flag --chkpt. Did you mean --ckpt?"),
    ("attack --epsilon=8", "there is no flag --epsilon."),
    ("attack --ckpt=x --restarts=4294967296", "--restarts must be from 1 to 1000000"),
    ("attack --ckpt=x --steps=2147483648", "--steps must be from 1 to 1000000"),
    ("attack --ckpt=x --steps=0", "--steps must be from 1 to 1000000, got 0."),
    ("attack --ckpt=x --queries=2147483648", "--queries must be from 1 to 100000"),
    ("attack --ckpt=x --attack=noise --restarts=9999999999", "--restarts must be"),
    ("attack --ckpt=x --eot=0", "--eot must be from 1 to 1000000, got 0."),
    ("attack --ckpt=x --eot=4294967296", "--eot must be from 1 to 1000000"),
    ("attack --ckpt=x --attack_weights=seg:1e308,depth:1e308", "--attack_weights must"),
    ("attack --ckpt=x --attack_weights=seg", "--attack_weights must be pairs"),
    ("attack --ckpt=x --attack_weights=seg:less", "--attack_weights must be pairs"),
    ("attack --ckpt=x --attack_weights=seg:nan", "--attack_weights must be pairs"),
    ("attack --ckpt=x --attack_weights=seg:1e-40", "--attack_weights must be pairs"),
    ("attack --ckpt=x --step_size=300", "--step_size must be from 0 to 255 levels"),
    ("attack --ckpt=x --step_size=-1", "--step_size must be from 0 to 1000000"),
    ("attack --ckpt=x --step_size=1e9 --norm=l2", "--step_size must be from 0 to"),
    ("attack --ckpt=x --eps=300", "--eps must be from 0 to 255 levels"),
    ("attack --ckpt=x --eps=1e9 --norm=l2", "--eps must be from 0 to 1000000"),
    ("attack --ckpt=x --eps=-1", "--eps must be from 0 to 1000000, got -1"),
    ("attack --ckpt=x --eps=", "--eps must have at least one value, but it is empty."),
    ("attack --ckpt=x --eps=1,,2", "--eps must be a comma-separated list of numbers"),
    ("attack --ckpt=x --eps=8/255", "--eps must be a comma-separated list of numbers"),
    ("attack --ckpt=x --eps=nan", "--eps must be a finite number"),
    ("attack --ckpt=x --attack=pdg", "Unknown attack 'pdg'. Did you mean 'pgd'?"),
    ("attack --ckpt=x --attack=", "--attack must have at least one value"),
    ("attack --ckpt=x --attack=none", "--measure is empty"),
    ("attack --ckpt=x --attack=worst --ensemble=", "--ensemble must name"),
    ("attack --ckpt=x --ensemble=sea", "Unknown attack in --ensemble 'sea'"),
    ("attack --ckpt=x --measure=speed", "Unknown measure 'speed'."),
    ("attack --ckpt=x --measure=first_order --eps=0", "needs a radius above 0"),
    ("attack --ckpt=x --measure_draws=1000000", "--measure_draws must be from 1 to"),
    ("attack --ckpt=x --norm=l1", "--norm must be one of linf, l2, got 'l1'."),
    ("attack --ckpt=x --judge=ham", "got 'ham'. Did you mean 'harm'?"),
    ("attack --ckpt=x --num_examples=-1", "--num_examples must be from 0 to"),
    ("attack --ckpt=x --batch_size=0", "--batch_size must be from 1 to"),
    ("attack --ckpt=x --batch_size=99999999999", "--batch_size must be from 1 to"),
    ("attack --ckpt=x --save_examples=-1", "--save_examples must be from 0 to"),
    ("attack --ckpt=x --check_examples=0", "--check_examples must be from 1 to"),
    ("attack --ckpt=x --seed=99999999999", "--seed must be from 0 to 4294967295"),
    ("attack --ckpt=x --replicas=100000", "--replicas must be from 0 to 128"),
    ("attack --ckpt=x --attack_pixels=-1", "--attack_pixels must be from 0 to"),
    ("attack --ckpt=x --attack_pixels=1e3", "--attack_pixels must be a whole number"),
    ("attack --ckpt=x --attack_block=8", "--attack_block must be ROWSxCOLUMNS"),
    ("attack --ckpt=x --attack_block=0x8", "--attack_block must be ROWSxCOLUMNS"),
    ("attack --ckpt=x --attack_block=1x1 --attack_pixels=1", "give only one of them"),
    ("attack --ckpt=x --input_range=1,0", "--input_range must be two numbers"),
    ("attack --ckpt=x --input_range=0,1e300", "--input_range must be from -1000000"),
    (
        "attack --ckpt=x --input_mean=1,2 --input_std=1,2,3",
        "must have one number, or one per channel",
    ),
    ("attack --ckpt=x --input_std=0", "--input_std must be one number from 1e-06"),
    ("attack --ckpt=x --input_std=1e-320", "--input_std must be one number from"),
    ("attack --ckpt=x --name=../x", "--name must be one folder name"),
    ("attack --ckpt=x --name=a/b", "--name must be one folder name"),
    ("attack --ckpt=x --random_start=perhaps", "--random_start must be true or false"),
    ("attack --ckpt=x --image_size=big", "--image_size must be one number"),
    ("attack --ckpt=x --precision=int8", "--precision must be one of own, float32"),
    ("attack --ckpt=x --part=9/8", "--part must be I/N"),
    ("attack --ckpt=x --part=1/2 --executor=ray", "leave out one of the two"),
    ("attack --ckpt=gs://b/x --executor=local", "--executor needs --ckpt in a folder"),
    ("attack --ckpt=x --executor=slrm", "Did you mean 'slurm'?"),
    ("attack --ckpt=x words", "every argument must be a flag"),
]

# With a sound run: models and data are read.
ON_A_RUN = [
    ("attack --ckpt=run --source_ckpt=missing", "--source_ckpt must be a run"),
    (
        "attack --ckpt=run --source_ckpt=missing.keras",
        "there is no file missing.keras; check --source_ckpt.",
    ),
    ("attack --ckpt=run --source_ckpt=file", "--source_ckpt must be a run"),
    (
        "attack --ckpt=run --attack_pixels=1281",
        "--attack_pixels must be from 1 to 1280",
    ),
    ("attack --ckpt=run --attack_block=99x1", "--attack_block must lie inside 32x40"),
    ("attack --ckpt=run --attack_block=8x8+99999999999999999999+0", "must lie inside"),
    ("attack --ckpt=run --attack_loss=cospgd+angular", "names angular, which fits"),
    ("attack --ckpt=run --attack_loss=own,angular", "names angular, which fits"),
    ("attack --ckpt=run --attack_loss=ce+js", "At most one loss may fit a task"),
    ("attack --ckpt=run --attack_loss=cosPGD", "Did you mean 'cospgd'?"),
    ("attack --ckpt=run --balance=wdg", "Did you mean 'wgd'?"),
    (
        "attack --ckpt=run --attack_weights=seg:0,A:0 --attack_tasks=all",
        "must be above 0",
    ),
    ("attack --ckpt=run --attack_weights=sag:1", "Unknown task 'sag'."),
    (
        "attack --ckpt=run --attack_tasks=depth",
        "--attack_tasks names depth, but the checkpoint has only the tasks seg, auto",
    ),
    ("attack --ckpt=run --tasks=depth", "--tasks names depth"),
    ("attack --ckpt=run --split=validaton", "Did you mean 'validation'?"),
    ("attack --ckpt=run --attack_classes=door", "--attack_classes names 'door'"),
    (
        "attack --ckpt=run --image_size=33x40",
        "the model takes images of 32x40, but those of camvid are 33x40; give",
    ),
    ("attack --ckpt=run --restarts=2 --norandom_start", "Several restarts need"),
    ("attack --ckpt=run --strategy=one_device --replicas=2", "--replicas=2 needs"),
    (
        "attack --ckpt=run --data_dir=missing",
        "--data_dir must be an existing folder, got 'missing'.",
    ),
    ("attack --ckpt=run/checkpoints/ckpt-7", "there is no checkpoint"),
    ("train --workdir=run --model=tiny", "holds a run with other settings"),
]

OTHERS = [
    ("compare", "--runs must name one or more attacked runs, but it is empty."),
    ("compare --runs=good,gc://b/run", "got 'gc://b/run'. Mount it as a folder"),
    ("compare --runs=missing", "but 'missing' does not exist."),
    ("compare --runs=file", "but 'file' is a file."),
    ("compare --runs=plain", "plain has no finished attack; run python -m mtr_tf.att"),
    ("compare --runs=begun", "no finished attack (only unfinished: half)"),
    (
        "compare --runs=two,two",
        "--runs must all be different, but one of two, two is given twice.",
    ),
    (
        "compare --runs=two --name=c",
        "--name must be a finished attack of two (a, b); got",
    ),
    (
        "compare --runs=two --name=*",
        "--name must be a finished attack of two (a, b); got",
    ),
    ("compare --runs=good --name=**", "--name must be a finished attack of good"),
    (
        "compare --runs=good --plot=x.txt",
        "--plot must end with .png, .pdf or .svg; got",
    ),
    ("compare --runs=good --plot=x", "--plot must end with .png, .pdf or .svg; got"),
    (
        "compare --runs=good --attack=pgdd",
        "only pgd; choose among these with --attack.",
    ),
    (
        "compare --runs=good --task=depth",
        "depth must have been attacked alone in all",
    ),
    (
        "compare --runs=good --metric=iou",
        "--metric must be one of miou, got 'iou'",
    ),
    ("compare --runs=cut", "cut/attacks/a/results.json is damaged"),
    ("compare --runs=deep", "deep/attacks/a/results.json is damaged"),
    ("compare --runs=table", "table/attacks/a/results.json is damaged"),
    ("compare --runs=number", "number/attacks/a/results.json is damaged"),
    ("compare --runs=strings", "strings/attacks/a/results.json is damaged"),
    ("compare --runs=incomplete", "is damaged (KeyError: 'eps')"),
    ("compare --runs=words", "is damaged (ValueError"),
    ("compare --runs=lists", "is damaged (ValueError"),
    ("compare --runs=ends", "is damaged (ValueError"),
    ("compare --runs=no_interval", "is damaged (ValueError"),
    ("compare --runs=empty", "has no attack with a radius above 0"),
    ("compare --run=good", "there is no flag --run. Did you mean --runs?"),
    ("convert", "--torch must name a file of PyTorch weights, but it is empty."),
    ("convert --torch=missing.pth", "--torch must be a file written by torch.save"),
    ("convert --torch=plain", "--torch must be a file written by torch.save"),
    ("convert --torch=x.pth --model=tiny", "--model must be one of resnet18"),
    ("convert --torch=x.pth --num_classes=-1", "--num_classes must be from 0 to 10000"),
    ("convert --torch=x.pth --num_classes=99999", "--num_classes must be from 0 to"),
    ("convert --torch=x.pth --image_size=a", "--image_size must be one number"),
    ("convert --torch=x.pth --normalize=auto2", "--normalize must be one of auto"),
    ("convert --torch=x.pth --image_size=12", "multiples of 8, got 12x12"),
    ("reproduce --study=nope", "--study must be one of adversarial, artefact, camvid"),
    ("reproduce --study=rooms-quik", "Did you mean 'rooms-quick'?"),
    ("reproduce --study=nope.toml", "the study file nope.toml cannot be read"),
    ("reproduce --study=no.toml", "no.toml is not valid TOML"),
    ("reproduce --study=empty.toml", "empty.toml: there must be at least one variant"),
    ("reproduce --study=key.toml", "did you mean 'about'"),
    ("reproduce --study=steps.toml", "steps: --steps must be from 1 to 1000000"),
    ("reproduce --study=eps.toml", "each item of eps must be a number"),
    ("reproduce --study=deep.toml", "deep.toml is not valid TOML: maximum recursion"),
    ("reproduce --study=seeds.toml", "seeds must be one or more different whole"),
    ("reproduce --study=epochs.toml", "epochs: --epochs must be from 1 to 1000000"),
    ("reproduce --study=choice.toml", "Did you mean 'cosine'?"),
    ("reproduce --study=weights.toml", "--attack_weights must be pairs"),
    ("reproduce --study=rooms-quick --only=x", "there is no variant 'x'"),
    ("reproduce --study=rooms-quick --seeds=-1", "--seeds must be from 0 to"),
    ("reproduce --study=rooms-quick --seeds=0,0", "seeds must be one or more"),
    ("reproduce --workers=-1", "--workers must be from 0 to 1024, got -1."),
    ("reproduce --workers=99999", "--workers must be from 0 to 1024, got 99999."),
    ("reproduce --executor=dask", "--executor must be one of local, ray, slurm"),
    ("reproduce --wokrers=2", "there is no flag --wokrers. Did you mean --workers?"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, camvid_dir) -> pathlib.Path:
    """The folder that commands run in: FILES, and a run on a data set like CamVid."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    config = TrainConfig(
        tasks=("seg", "autoencoder"),
        dataset="camvid",
        data_dir=str(camvid_dir),
        model="tiny",
        image_size="32x40",
    )
    directory.write_config(folder / "run", config)
    model = models.build("tiny", config.tasks, (32, 40, 3), 11)
    model.save(folder / "run" / "model.keras")
    return folder


@pytest.fixture
def ask(place, monkeypatch, capsys):
    """A function: command line -> (exit code, text that it wrote to stderr)."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(startup, "import_tensorflow", lambda deterministic=False: None)
    loggers = [logging.getLogger(name) for name in (None, "absl")]
    states = [
        (logger, list(logger.handlers), logger.level, logger.propagate)
        for logger in loggers
    ]
    terminate = signal.getsignal(signal.SIGTERM)

    def call(line: str) -> tuple[int, str]:
        name, *arguments = shlex.split(line)
        command = importlib.import_module(f"mtr_tf.{name}")
        monkeypatch.setattr(sys, "argv", [f"mtr_tf/{name}.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            command.run()
        return error.value.code, capsys.readouterr().err

    yield call
    signal.signal(signal.SIGTERM, terminate)
    for logger, handlers, level, propagate in states:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def listing(folder: pathlib.Path) -> set[str]:
    return {
        os.path.join(parent, name)
        for parent, folders, files in os.walk(folder)
        for name in folders + files
    }


@pytest.mark.parametrize(
    "row",
    [*TRAIN, *ATTACK, *ON_A_RUN, *OTHERS],
    ids=lambda row: row[0][:60],
)
def test_one_sentence_and_nothing_left(row, ask, place):
    line, words, *codes = row
    paths = listing(place)
    code, output = ask(line)
    *lines, last_line = output.splitlines()
    assert last_line.startswith("error: "), output
    assert words in last_line
    assert code == (codes or [1])[0]
    assert last_line.endswith((".", "?"))
    assert not any(text.startswith("Traceback") for text in lines), output
    assert listing(place) == paths


def test_epochs_that_make_too_many_steps(ask, place, monkeypatch, camvid_dir):
    monkeypatch.setattr(job, "MOST_STEPS", 100)
    flags = f"--dataset=camvid --data_dir={camvid_dir} --tasks=seg --image_size=32x40"
    code, output = ask(f"train {flags} --model=tiny --batch_size=4 --workdir=new")
    line = output.splitlines()[-1]
    assert line.startswith(
        "error: --epochs must give at most 100 steps in all, but got 20"
    )
    assert code == 1
    assert not (place / "new").exists()


@pytest.mark.slow
def test_a_batch_is_not_larger_than_the_images(place):
    config = AttackConfig(
        ckpt=str(place / "run"), batch_size=10**9, num_examples=3, deterministic=False
    )
    assert attack_job.resolve(config).subject.batch_size == 3
