# SPDX-License-Identifier: Apache-2.0
"""Writes the flagfiles of the paper's experiments, from the tables below.

    python flags/generate.py                        those kept in this folder
    python flags/generate.py --all --out=FOLDER     also every pair of Taskonomy's tasks

There is one file per trained model: the first task is the main one, the others are
auxiliary. `docs/reproduce.md` says what we know about each experiment; a test checks
that the files kept here match the tables. The follow-up's models (`uniform`,
`optimised`) are those of Ghamizi et al., "Adversarial Robustness in Multi-Task
Learning: Promises and Illusions", AAAI 2022.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import textwrap
from collections.abc import Iterator

# Letters of the paper, in its order.
TASKS = {
    "s": "seg",
    "d": "depth",
    "e": "edge_texture",
    "k": "keypoints2d",
    "n": "normal",
    "r": "reshading",
    "K": "keypoints3d",
    "D": "depth_euclidean",
    "A": "autoencoder",
    "E": "edge_occlusion",
    "p": "curvature",
}

# Tasks, main one first -> lambda, and where the released code has it from.
CITYSCAPES = {
    "s": ("", ""),
    "sd": ("0.001", "test_cityscapes_seg.py and cityscape_example.sh"),
    "sA": (
        "0.1",
        "test_cityscapes_seg.py; cityscape_example.sh has 0.001: --aux_weight=0.001",
    ),
    "sdA": ("0.001", "test_cityscapes_seg.py and cityscape_example.sh"),
    "d": ("", ""),
    "ds": ("0.1", "test_cityscapes_depth.py"),
    "dA": ("0.1", "test_cityscapes_depth.py"),
    "dsA": ("0.01", "test_cityscapes_depth.py, which has it with seed 42"),
}
# The names of released checkpoints, adv_s-*-lam0.01, suggest that these were trained.
CITYSCAPES_ADVERSARIAL = {"s": "", "sd": "0.01", "sA": "0.01", "sdA": "0.01"}

# test_taskonomy_seg.py: main task s, by auxiliary task.
PAPER_LAMBDA = {
    "s": {
        "d": "0.01",
        "e": "0.01",
        "n": "0.1",
        "r": "0.1",
        "k": "0.01",
        "K": "0.01",
        "D": "0.1",
        "A": "0.01",
        "E": "0.1",
        "p": "0.01",
    }
}
EXAMPLE_LAMBDA = "0.01"  # taskonomy_example.sh
# The follow-up's supplement B; by main task: auxiliary task (or else) -> lambda.
OPTIMISED_LAMBDA = {
    "s": {"d": "0.01", "": "0.1"},
    "d": {"n": "0.01", "": "0.1"},
    "n": {"d": "0.01", "": "0.1"},
    "D": {"s": "0.1", "": "0.01"},
    "E": {"": "0.1"},
}

_CITYSCAPES_FLAGS = """\
--dataset=cityscapes
--image_size=336x680
--depth_target=released
--crop=256
--model=drn_d_22
--decoders=shared
--epochs=200
--batch_size=1
--optimizer=sgd
--learning_rate=0.01
--momentum=0.9
--weight_decay=0.0001
--schedule=step
--lr_epochs=180
--lr_factor=0.1
"""
_ADVERSARIAL_FLAGS = """\
--adversarial_tasks=main
--adversarial_eps=8
--adversarial_step_size=2
--adversarial_steps=5
"""
_TASKONOMY_FLAGS = """\
--dataset=taskonomy
--image_size=256
--noflip
--task_losses={losses}
--model=resnet18
--decoders=separate
--epochs=150
--batch_size=32
--optimizer=adam
--learning_rate=0.001
--schedule=step
--lr_epochs=120,140
--lr_factor=0.1
"""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One trained model.

    Attributes:
      name: of the file, without its ending.
      letters: its tasks, the main one first.
      about: what it reproduces, and what is known of the paper's figures.
      cost: of the training.
      flags: all but the tasks and what they weigh.
      weights: the flags of what they weigh, where there are several.
    """

    name: str
    letters: str
    about: str
    cost: str
    flags: str
    weights: str = ""

    def text(self) -> str:
        """The flagfile."""
        names = [TASKS[letter] for letter in self.letters]
        data = "CITYSCAPES" if self.name.startswith("cityscapes") else "TASKONOMY"
        head = [
            f"python -m mtr_tf.train --flagfile=flags/{self.name}.flags "
            f"--data_dir={data} --workdir=runs/{self.name}",
            *textwrap.wrap(self.about, 86),
            *textwrap.wrap(f"Costs {self.cost}", 86),
        ]
        lines = [f"# {line}" for line in head] + [f"--tasks={','.join(names)}"]
        if len(names) > 1:
            lines += self.weights.split()
        return "\n".join(lines) + "\n" + self.flags


def cityscapes() -> Iterator[Experiment]:
    """The paper's models on Cityscapes, and those of adversarial training."""
    for letters, (aux_weight, source) in CITYSCAPES.items():
        main = TASKS[letters[0]]
        where = f"Lambda {aux_weight} is from {source}. " if source else ""
        known = (
            "The paper's clean mIoU is said to be about 48 %; the released models' "
            "logs reach about 44 %. We know none of its figures under attack."
            if main == "seg"
            else "We know none of the paper's figures."
        )
        claim = "E4" if main == "seg" else "E5"
        yield Experiment(
            f"cityscapes_drn_d_22_{_join(letters)}",
            letters,
            f"The paper's model for {main} on Cityscapes (claim {claim} of "
            f"docs/reproduce.md), {_with(letters)}. {_UNITS} {where}{known} The "
            "released code's schedule, which falls to 0, is --schedule=released "
            "--lr_epochs=",
            _CITYSCAPES_COST,
            _CITYSCAPES_FLAGS,
            _main(main, aux_weight),
        )
    for letters, aux_weight in CITYSCAPES_ADVERSARIAL.items():
        yield Experiment(
            f"cityscapes_adversarial_{_join(letters)}",
            letters,
            f"Adversarial training on Cityscapes (claim E7), {_with(letters)}: PGD on "
            "seg as in the released configuration. The released code can train only "
            "one task this way, with batch norms in training mode during the attack "
            "(--adversarial_batch_norm=training); lambda is taken from the names of "
            f"released checkpoints. {_UNITS} We know none of the paper's figures.",
            _ADVERSARIAL_COST,
            _CITYSCAPES_FLAGS + _ADVERSARIAL_FLAGS,
            _main("seg", aux_weight),
        )


def taskonomy(all_pairs: bool) -> Iterator[Experiment]:
    """The paper's models on Taskonomy and the follow-up's: seg and depth, or all."""
    mains = list(TASKS) if all_pairs else ["s"]
    for main in mains:
        auxiliaries = [other for other in TASKS if other != main]
        for aux in ["", *(auxiliaries if all_pairs else ["d"])]:
            yield _taskonomy_pair(main, aux)
            if aux and main in OPTIMISED_LAMBDA and aux in OPTIMISED_LAMBDA:
                yield _follow_up(main, aux, optimised=False)
                yield _follow_up(main, aux, optimised=True)


def _taskonomy_pair(main: str, aux: str) -> Experiment:
    known = PAPER_LAMBDA.get(main, {}).get(aux)
    where = (
        f"Lambda {known} is from test_taskonomy_seg.py."
        if known
        else f"The paper's lambda is not known; {EXAMPLE_LAMBDA} is from "
        "taskonomy_example.sh."
    )
    return Experiment(
        f"taskonomy_resnet18_{_join(main + aux)}",
        main + aux,
        f"One of the paper's models on Taskonomy (claim E6), {_with(main + aux)}. "
        f"{where + ' ' if aux else ''}We know none of its figures. For the released "
        "data and losses, add --as_released --loss_norm=all.",
        _TASKONOMY_COST,
        _taskonomy_flags(main + aux),
        _main(TASKS[main], known or EXAMPLE_LAMBDA),
    )


def _follow_up(main: str, aux: str, optimised: bool) -> Experiment:
    weights = OPTIMISED_LAMBDA[main]
    kind = "optimised" if optimised else "uniform"
    rule = _main(TASKS[main], weights.get(aux, weights[""]))
    return Experiment(
        f"taskonomy_{kind}_{_join(main + aux)}",
        main + aux,
        f"One of the follow-up's models (claims F1 to F3), {_with(main + aux)}, with "
        f"{kind} weights. Its tables 1 and 2 give the relative vulnerability of five "
        "tasks, measured on the released data: --as_released --loss_norm=all.",
        _TASKONOMY_COST,
        _taskonomy_flags(main + aux),
        rule if optimised else "--task_weights=equal",
    )


def _taskonomy_flags(letters: str) -> str:
    losses = "autoencoder:l1" if "A" in letters else ""
    return _TASKONOMY_FLAGS.format(losses=losses)


def _main(name: str, aux_weight: str) -> str:
    return f"--main_tasks={name} --aux_weight={aux_weight}"


def _join(letters: str) -> str:
    return "_".join(TASKS[letter] for letter in letters)


def _with(letters: str) -> str:
    first, *others = (TASKS[letter] for letter in letters)
    return f"{first} with {' and '.join(others)}" if others else f"{first} alone"


_UNITS = (
    "Targets of depth and autoencoder are the released code's, for which lambdas were "
    "chosen (--depth_target=released)."
)
_CITYSCAPES_COST = (
    "595 000 steps of one crop, 0.7 s each on two cores: five days, or use a GPU."
)
_ADVERSARIAL_COST = "six times as much as training without attacks."
_TASKONOMY_COST = (
    "150 epochs, in steps of 32 pictures. A step takes 7 s on two cores, 9 s with two "
    "tasks, so use a GPU."
)


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="every pair of Taskonomy's")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(__file__).parent
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = [*cityscapes(), *taskonomy(args.all)]
    for experiment in made:
        (args.out / f"{experiment.name}.flags").write_text(experiment.text())
    print(f"{len(made)} flagfiles are in {args.out}")


if __name__ == "__main__":
    main()
