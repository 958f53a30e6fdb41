# SPDX-License-Identifier: Apache-2.0
"""Every setting of `python -m mtr_tf.attack`: its default, its help, its range."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from mtr_tf.attacks import kinds
from mtr_tf.attacks.checks import MOST_QUERIES
from mtr_tf.attacks.checks import MOST_STEPS
from mtr_tf.attacks.checks import WEIGHTS
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.config.settings import DETERMINISTIC
from mtr_tf.config.settings import EXTRAS
from mtr_tf.config.settings import FORMAT
from mtr_tf.config.settings import JIT
from mtr_tf.config.settings import LONGEST_SIDE
from mtr_tf.config.settings import MOST_EXAMPLES
from mtr_tf.config.settings import NOTHING
from mtr_tf.config.settings import REPLICAS
from mtr_tf.config.settings import STRATEGY
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.settings import setting
from mtr_tf.errors import InputError
from mtr_tf.tasks import metric_names
from mtr_tf.tasks.metric_names import MORE

OWN_LOSS = "own"
OWN_TARGETS = "own"
NO_ATTACK = ("none",)
MEASURES = ("tasks", "pixels", "blocks", "first_order")


@dataclasses.dataclass(frozen=True)
class AttackConfig(Settings):
    """What `python -m mtr_tf.attack` takes."""

    ckpt: str = setting(
        "",
        "What to attack: a run directory (runs/NAME), a checkpoint in it, or a model "
        "of your own, whose results go to runs/FILE-HASH: a .keras or .h5 file, the "
        "folder of a SavedModel, or module:function, a function of yours that returns "
        "a Keras model or any function of images. Required.",
        changes=NOTHING,
    )
    # The attacks: all combinations of the first five are run.
    attack: tuple[str, ...] = setting(
        ("pgd",),
        f"Attacks, out of {', '.join(KINDS)}. worst: the worst per image of those in "
        "--ensemble. none: only --measure. pgd_released and its kin: with the errors "
        "of the paper's code, for comparison only.",
    )
    eps: tuple[float, ...] = setting(
        (1.0, 2.0, 4.0, 8.0),
        "Radii. linf: in levels of 0-255, so 8 is 8/255. l2: the plain l2 norm of the "
        "difference of two images in [0, 1]. 0 leaves the images as they are.",
        low=0,
        high=1e6,
    )
    attack_tasks: tuple[str, ...] = setting(
        ("each", "all"),
        "Groups of tasks attacked together: seg is one task, seg+depth two; each: "
        "every task by itself; all: all together.",
    )
    attack_loss: tuple[str, ...] = setting(
        (OWN_LOSS,),
        "Losses that are raised. own: each task's training loss; other names, for the "
        "tasks that they fit, joined by + for several tasks (js+angular), are in "
        "docs/attacks.md.",
    )
    balance: tuple[str, ...] = setting(
        ("sum",),
        "How the losses of tasks attacked together become one; see docs/attacks.md.",
    )
    attack_weights: tuple[str, ...] = setting(
        (), "Weights of the attacked tasks' losses, as seg:1,depth:0.5; others: 1."
    )
    judge: str = setting(
        "auto",
        "What points of an attack, its restarts and members of ensembles are compared "
        "by. harm: what the table shows (wrong pixels, or the task's error; of several "
        "tasks the geometric mean); loss: the tasks' own losses. auto: loss with "
        "--attack_loss=own, harm with any other and for sea and worst.",
        choices=("auto", "harm", "loss"),
    )
    norm: str = setting(
        "linf", "Norm that bounds the perturbation.", choices=("linf", "l2")
    )
    steps: int = setting(
        20, "Steps of pgd, mim and apgd; of sea, in each run.", low=1, high=MOST_STEPS
    )
    step_size: float = setting(
        0.0,
        "Step of pgd and mim (and the released ones), in the unit of --eps; 0: a "
        "quarter of each eps.",
        low=0,
        high=1e6,
    )
    restarts: int = setting(
        1,
        "Random starts, or draws of noise; the worst per image counts.",
        low=1,
        high=MOST_STEPS,
    )
    random_start: bool | None = setting(
        None,
        "Start at a random point of the ball (--norandom_start: at the image). Not "
        "given: all do but mim, which with one start begins at the image, as in "
        "its authors' code.",
    )
    queries: int = setting(500, "Forward passes of square.", low=1, high=MOST_QUERIES)
    ensemble: tuple[str, ...] = setting(
        ("apgd", "pgd", "square"),
        f"What worst consists of: {', '.join(kinds.member_names())}.",
    )
    targeted: bool = setting(
        False,
        "Bring the outputs near to what another image of the split (half the split "
        "further on) has as its target, rather than away from their own.",
    )
    eot: int = setting(
        1,
        "For a model that is random at inference: follow the mean gradient over this "
        "many draws of its noise, at as many times the cost.",
        low=1,
        high=MOST_STEPS,
    )
    attack_pixels: int = setting(
        0,
        "Attack this many output pixels, drawn by --seed; 0: all.",
        low=0,
        high=LONGEST_SIDE**2,
    )
    attack_block: str = setting(
        "",
        "Attack a block of output pixels: ROWSxCOLUMNS, in the middle, or with its "
        "first row and column, ROWSxCOLUMNS+TOP+LEFT.",
    )
    attack_classes: tuple[str, ...] = setting(
        (),
        "Attack only the pixels of these classes, by name, of a task with classes.",
    )
    attack_channels: tuple[int, ...] = setting(
        (),
        "Change only these channels of the images, by number from 0: 0,1,2 are the "
        "colours of images that have a distance beside them. Empty: all.",
        low=0,
    )
    source_ckpt: str = setting(
        "",
        "Transfer: make the adversarial images on this other run or model of your own, "
        "and look at what they do to --ckpt.",
        changes=NOTHING,
    )
    fast: bool = setting(
        False,
        "Take gradients in bfloat16, of a copy of the model; results are still those "
        "of the model itself. See README for what that gains and costs.",
    )
    checks: bool = setting(
        True,
        "Afterwards check whether the attack can be trusted, and warn.",
        changes=EXTRAS,
    )
    check_examples: int = setting(
        16, "Images for these checks.", low=1, high=MOST_EXAMPLES, changes=EXTRAS
    )
    metrics: tuple[str, ...] = setting(
        (),
        f"Further metrics beside each task's own, out of {', '.join(MORE)} (any topK), "
        "for the tasks that they fit; all: all that fit. What is finished without "
        "them is attacked again.",
        changes=EXTRAS,
    )
    measure: tuple[str, ...] = setting(
        (),
        f"Also measure the theory's quantities, out of {', '.join(MEASURES)}: see "
        "docs/measures.md. Results go to measures.json.",
        changes=EXTRAS,
    )
    measure_draws: int = setting(
        4,
        "Draws of output pixels of each number, for these measures.",
        low=1,
        high=1000,
        changes=EXTRAS,
    )
    # The data.
    split: str = setting("validation", "Split of the data set.")
    num_examples: int = setting(
        128,
        "Attack the first N examples, or all if there are fewer; 0: all.",
        low=0,
        high=MOST_EXAMPLES,
    )
    batch_size: int = setting(
        32,
        "Examples per step, over all replicas; results do not depend on it, unless the "
        "model is random.",
        low=1,
        high=MOST_EXAMPLES,
        changes=NOTHING,
    )
    dataset: str = setting(
        "",
        "Data set; empty: the run's own. A .keras file of your own needs it, and so "
        "does a run on module:function, for code that a file names is not run unasked.",
    )
    data_dir: str = setting(
        "", "Folder of the data; empty: as in training.", changes=NOTHING
    )
    depth_target: str = setting(
        "own",
        "As in training (own: that of the run, or disparity), for cityscapes and "
        "taskonomy.",
        choices=("own", "disparity", "inverse_depth", "metres", "released"),
    )
    validation_share: float = setting(
        0.0, "As in training (0: that of the run), for taskonomy.", low=0, high=1
    )
    image_size: str = setting(
        "", "Height x width, such as 96x128, or one number; empty: the model's own."
    )
    input_range: tuple[float, ...] = setting(
        (),
        "What a .keras file of your own takes in place of images in [0, 1]: LOW,HIGH, "
        "such as 0,255 or -1,1. Radii stay those of images in [0, 1]. Holds for --ckpt "
        "and --source_ckpt, for both where both are .keras files.",
        low=-1e6,
        high=1e6,
    )
    input_mean: tuple[float, ...] = setting(
        (),
        "What is subtracted from images in the range that --input_range says, before "
        "the .keras file gets them: a number, or one per channel.",
        low=-1e6,
        high=1e6,
    )
    input_std: tuple[float, ...] = setting(
        (),
        "What they are then divided by: a number, or one per channel.",
        low=-1e6,
        high=1e6,
    )
    channels_first: bool = setting(
        False,
        "The model of your own takes images [batch, channels, height, width], though "
        "its shape does not tell. Where that is plain it is seen by itself.",
        changes=NOTHING,  # But the fingerprint of the model.
    )
    targets: str = setting(
        "data",
        "data: the data set's targets. own: the model's own clean outputs, so that no "
        "labels are needed; tables then show agreement with them.",
        choices=("data", OWN_TARGETS),
    )
    heads: tuple[str, ...] = setting(
        (),
        "Which output of a model of your own is which task: OUTPUT:TASK,... with an "
        "output's name, path (decoder/mask) or number from 0, and a task of the data, "
        "or a kind (classes, labels, numbers, directions, image) for a task named "
        "after the output. Empty: outputs that have names of tasks. Others are left "
        "alone.",
        changes=NOTHING,  # But the fingerprint of the model.
    )
    source_heads: tuple[str, ...] = setting(
        (),
        "The same for the model of --source_ckpt. Empty: as --heads.",
        changes=NOTHING,  # But the fingerprint of that model.
    )
    tasks: tuple[str, ...] = setting(
        (),
        "The task of a model of your own that has one output without a task's name; "
        "otherwise, which of the model's tasks to look at (empty: all).",
    )
    seed: int = setting(
        0, "Seed of random starts, pixels and intervals.", low=0, high=2**32 - 1
    )
    # Where and how it runs.
    strategy: str = STRATEGY
    replicas: int = REPLICAS
    jit: str = JIT
    deterministic: bool = setting(
        DETERMINISTIC.default, DETERMINISTIC.metadata["help"], changes=NOTHING
    )
    precision: str = setting(
        "own",
        "Keras precision policy; own: the one the model was saved with.",
        choices=("own", "float32", "mixed_float16", "mixed_bfloat16"),
    )
    # What is kept, and printed.
    format: str = FORMAT
    name: str = setting(
        "",
        "Results go to RUN/attacks/NAME; empty: a name made of the settings.",
        changes=NOTHING,
    )
    save_examples: int = setting(
        0,
        "Also save the first N images, attacked, and all outputs as .npz.",
        low=0,
        high=MOST_EXAMPLES,
        changes=EXTRAS,
    )
    export_predictions: bool = setting(
        False,
        "Also write the predicted classes of cityscapes, clean and attacked, as files "
        "for its own evaluator, to RUN/attacks/NAME/predictions.",
        changes=EXTRAS,
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.ckpt:
            raise InputError(
                "--ckpt must name what to attack: a run directory such as runs/NAME, a "
                "checkpoint in it, or a model of your own; it is empty."
            )
        for name in ("attack", "eps", "attack_tasks", "attack_loss", "balance"):
            if not getattr(self, name):
                raise InputError(f"--{name} must have at least one value; it is empty.")
        if self.attack != NO_ATTACK:
            kinds.check_names("attack", self.attack, KINDS)
        kinds.check_names("measure", self.measure, MEASURES)
        metric_names.check(self.metrics)
        if self.attack == NO_ATTACK and not self.measure:
            raise InputError(
                "--attack=none is for measuring only, and --measure is empty; name one "
                f"or more of {', '.join(MEASURES)}."
            )
        if "first_order" in self.measure and not any(self.eps):
            raise InputError(
                "--measure=first_order needs a radius above 0 in --eps, got only 0."
            )
        kinds.check_names("attack in --ensemble", self.ensemble, kinds.member_names())
        named = [name for name in self.attack if name in KINDS]
        if not self.ensemble and any("ensemble" in KINDS[name].uses for name in named):
            raise InputError(
                "--ensemble must name what worst consists of; it is empty."
            )
        if self.attack_pixels and self.attack_block:
            raise InputError(
                "--attack_pixels and --attack_block both say which pixels to attack; "
                "give one of them."
            )
        for name, lengths in (("eps", self.eps), ("step_size", (self.step_size,))):
            if self.norm == "linf" and max(lengths) > 255:
                raise InputError(
                    f"--{name} must be from 0 to 255 levels under --norm=linf, got "
                    f"{max(lengths):g}."
                )
        if not re.fullmatch(r"[\w.+-]*", self.name) or self.name in (".", ".."):
            raise InputError(
                "--name must be one folder name of letters, digits, and any of ._+-, "
                f"got {self.name!r}."
            )
        _ = self.parsed_image_size  # Complains now.
        parse_block(self.attack_block)
        parse_weights(self.attack_weights)
        parse_heads(self.heads)
        parse_heads(self.source_heads, "--source_heads")
        self._check_input()

    def _check_input(self):
        if self.input_range and not (
            len(self.input_range) == 2 and self.input_range[0] < self.input_range[1]
        ):
            raise InputError(
                "--input_range must be two numbers, LOW,HIGH, the lower first, such as "
                f"0,255; got {','.join(f'{n:g}' for n in self.input_range)}."
            )
        for name in ("input_mean", "input_std"):
            numbers = getattr(self, name)
            if name == "input_std" and numbers and min(numbers) < 1e-6:
                raise InputError(
                    f"--{name} must be one number from 1e-06, or one per channel; "
                    f"got {','.join(f'{n:g}' for n in numbers)}."
                )
        per_channel = {len(self.input_mean), len(self.input_std)} - {0, 1}
        if len(per_channel) > 1:
            raise InputError(
                "--input_mean and --input_std must have as many numbers as images have "
                f"channels, or one; got {len(self.input_mean)} and "
                f"{len(self.input_std)}."
            )

    @functools.cached_property
    def parsed_image_size(self) -> tuple[int, int] | None:
        """(height, width) of `image_size`; None where it is not given."""
        return parse_image_size(self.image_size)

    @property
    def input_affine(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(scale, offset) per channel of what the model takes for images in [0, 1].

        Equal ones where one holds for any number of channels. None where it takes just
        these.
        """
        if not (self.input_range or self.input_mean or self.input_std):
            return None
        low, high = self.input_range or (0.0, 1.0)
        mean = self.input_mean or (0.0,)
        std = self.input_std or (1.0,)
        count = max(len(mean), len(std))
        count = 3 if count == 1 else count
        mean, std = (n if len(n) == count else n * count for n in (mean, std))
        return (
            tuple((high - low) / s for s in std),
            tuple((low - m) / s for m, s in zip(mean, std, strict=True)),
        )


def parse_block(text: str) -> tuple[int, ...]:
    """`16x32` or `16x32+8+0` as (rows, columns[, top, left]); empty gives ()."""
    if not text:
        return ()
    found = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+)\+(\d+))?", text)
    numbers = tuple(int(part) for part in found.groups() if part) if found else ()
    if not numbers or 0 in numbers[:2]:
        raise InputError(
            "--attack_block must be ROWSxCOLUMNS or ROWSxCOLUMNS+TOP+LEFT, such as "
            f"16x32+8+0, got {text!r}."
        )
    return numbers


def parse_heads(
    texts: tuple[str, ...], flag: str = "--heads"
) -> tuple[tuple[str, str], ...]:
    """`mask:seg`, `1:depth` as pairs of an output and a task."""
    pairs = []
    for text in texts:
        output, colon, task = text.rpartition(":")
        if not (output and colon and task):
            raise InputError(
                f"{flag} must be pairs of an output and a task, such as "
                f"mask:seg,1:depth; got {text!r}."
            )
        pairs.append((output.strip(), task.strip()))
    return tuple(pairs)


def parse_weights(texts: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """`seg:1`, `depth:0.5` as pairs of a name and a number."""
    pairs = []
    for text in texts:
        name, _, number = text.partition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        least, most = WEIGHTS
        if weight != 0 and not least <= abs(weight) <= most:
            raise InputError(
                "--attack_weights must be pairs of a task and a number, 0 or of size "
                f"{least:g} to {most:g}, such as seg:1,depth:0.5; got {text!r}."
            )
        pairs.append((name, weight))
    return tuple(pairs)
