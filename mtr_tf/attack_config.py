# SPDX-License-Identifier: Apache-2.0
"""Every setting of `python -m mtr_tf.attack`: its default, its help, its range."""

from __future__ import annotations

import dataclasses
import difflib
import re

from mtr_tf.config import REPLICAS
from mtr_tf.config import STRATEGY
from mtr_tf.config import Settings
from mtr_tf.config import parse_image_size
from mtr_tf.config import setting
from mtr_tf.errors import InputError

ATTACKS = ("pgd", "fgsm")


@dataclasses.dataclass(frozen=True)
class AttackConfig(Settings):
    """What `python -m mtr_tf.attack` takes."""

    ckpt: str = setting(
        "",
        "What to attack: a run directory (runs/NAME), a checkpoint in it, or a .keras "
        "file of your own, whose results go to runs/FILE-HASH. Required.",
    )
    # The attacks: all combinations of --attack, --eps and --attack_tasks are run.
    attack: tuple[str, ...] = setting(
        ("pgd",), f"Attacks, out of {', '.join(ATTACKS)}."
    )
    eps: tuple[float, ...] = setting(
        (1.0, 2.0, 4.0, 8.0),
        "Radii. linf: in levels of 0-255, so 8 is 8/255. l2: the plain l2 norm of the "
        "difference of two images in [0, 1]. 0 leaves the images as they are.",
        low=0,
    )
    attack_tasks: tuple[str, ...] = setting(
        ("each", "all"),
        "Groups of tasks attacked together, by the sum of their losses: seg is one "
        "task, seg+depth two; each: every task by itself; all: all together.",
    )
    norm: str = setting(
        "linf", "Norm that bounds the perturbation.", choices=("linf", "l2")
    )
    steps: int = setting(20, "Steps of pgd.", low=1)
    step_size: float = setting(
        0.0, "Step of pgd, in the unit of --eps; 0: a quarter of each eps.", low=0
    )
    restarts: int = setting(
        1, "Random starts of pgd; the worst per image counts.", low=1
    )
    attack_pixels: int = setting(
        0, "Attack this many output pixels, drawn by --seed; 0: all.", low=0
    )
    # The data.
    split: str = setting("validation", "Split of the data set.")
    num_examples: int = setting(
        128, "Attack the first N examples, or all if there are fewer; 0: all.", low=0
    )
    batch_size: int = setting(
        32, "Examples per step, over all replicas; results do not depend on it.", low=1
    )
    dataset: str = setting(
        "", "Data set; empty: the run's own. A .keras file of your own needs it."
    )
    data_dir: str = setting("", "Folder of the data; empty: as in training.")
    image_size: str = setting(
        "", "Height x width, such as 96x128, or one number; empty: the model's own."
    )
    tasks: tuple[str, ...] = setting(
        (),
        "The task of a .keras model that has one output without a task's name; "
        "otherwise, which of the model's tasks to look at (empty: all).",
    )
    seed: int = setting(
        0, "Seed of random starts, pixels and intervals.", low=0, high=2**32 - 1
    )
    # Where and how it runs.
    strategy: str = STRATEGY
    replicas: int = REPLICAS
    precision: str = setting(
        "own",
        "Keras precision policy; own: the one the model was saved with.",
        choices=("own", "float32", "mixed_float16", "mixed_bfloat16"),
    )
    # What is kept.
    name: str = setting(
        "", "Results go to RUN/attacks/NAME; empty: a name made of the settings."
    )
    save_examples: int = setting(
        0, "Also save the first N images, attacked, and all outputs as .npz.", low=0
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.ckpt:
            raise InputError(
                "--ckpt must name what to attack: a run directory such as runs/NAME, a "
                "checkpoint in it, or a .keras file; it is empty."
            )
        for name in ("attack", "eps", "attack_tasks"):
            if not getattr(self, name):
                raise InputError(f"--{name} must have at least one value; it is empty.")
        for name in self.attack:
            check_known("attack", name, ATTACKS)
        if self.norm == "linf" and max(self.eps) > 255:
            raise InputError(
                "--eps must be from 0 to 255 levels under --norm=linf, got "
                f"{max(self.eps):g}."
            )
        if not re.fullmatch(r"[\w.+-]*", self.name) or self.name in (".", ".."):
            raise InputError(
                "--name must be one folder name of letters, digits, and any of ._+-, "
                f"got {self.name!r}."
            )
        parse_image_size(self.image_size)


def check_known(what: str, given: str, known: tuple[str, ...]) -> None:
    """Raises `InputError`, with the nearest known name, for an unknown one."""
    if given in known:
        return
    near = difflib.get_close_matches(given.lower(), known, 1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"Unknown {what} {given!r}.{hint} Known: {', '.join(known)}.")
