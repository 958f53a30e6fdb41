# SPDX-License-Identifier: Apache-2.0
"""Every setting of `python -m mtr_tf.attack`: its default, its help, its range."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Literal

from mtr_tf import files
from mtr_tf.attacks import kinds
from mtr_tf.attacks.checks import MOST_QUERIES
from mtr_tf.attacks.checks import MOST_STEPS
from mtr_tf.attacks.checks import WEIGHTS
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.config.settings import DETERMINISTIC
from mtr_tf.config.settings import EXECUTOR_OPTIONS
from mtr_tf.config.settings import EXECUTORS
from mtr_tf.config.settings import EXTRAS
from mtr_tf.config.settings import FORMAT
from mtr_tf.config.settings import JIT
from mtr_tf.config.settings import LONGEST_SIDE
from mtr_tf.config.settings import MOST_EXAMPLES
from mtr_tf.config.settings import NOTHING
from mtr_tf.config.settings import REPLICAS
from mtr_tf.config.settings import STRATEGY
from mtr_tf.config.settings import WORKERS
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.settings import setting
from mtr_tf.errors import InputError
from mtr_tf.tasks import metric_names
from mtr_tf.tasks.metric_names import MORE

OWN_LOSS = "own"
OWN_TARGETS = "own"
NO_ATTACK = ("none",)
NO_EXECUTOR = "none"
MEASURES = ("tasks", "pixels", "blocks", "first_order", "corruptions")
DEFAULT_BATCH = 32  # Examples per step.


@dataclasses.dataclass(frozen=True)
class AttackConfig(Settings):
    """What `python -m mtr_tf.attack` takes."""

    ckpt: str = setting(
        "",
        "What to attack: a run directory (runs/NAME), a checkpoint in it, or a model "
        "of your own: a .keras or .h5 file, the folder of a SavedModel, or "
        "module:function, a function of yours that returns a Keras model or any "
        "function of images. Results for your own model go to runs/FILE-HASH. Files "
        "may be at an address, such as gs://bucket/run (docs/cluster.md). Required.",
        changes=NOTHING,
        path=True,
        address=True,
    )
    # The attacks: all combinations of the first five settings are run.
    attack: tuple[str, ...] = setting(
        ("pgd",),
        f"One or more attacks: {', '.join(KINDS)}. worst: for each image, the worst "
        "of those in --ensemble. none: only --measure. pgd_released, "
        "pgd_released_start and pgd_released_scale have the errors of the paper's "
        "code, for comparison only.",
    )
    eps: tuple[float, ...] = setting(
        (1.0, 2.0, 4.0, 8.0),
        "Radii. linf: in levels of 0-255, so 8 means 8/255. l2: the l2 norm of the "
        "difference between two images in [0, 1]. 0 leaves the images unchanged.",
        within=(0, 1e6),
    )
    attack_tasks: tuple[str, ...] = setting(
        ("each", "all"),
        "Groups of tasks to attack together: seg is one task, seg+depth two; each: "
        "every task by itself; all: all together.",
    )
    attack_loss: tuple[str, ...] = setting(
        (OWN_LOSS,),
        "Losses to raise. own: each task's own loss, whatever the model was trained "
        "with. docs/attacks.md lists the others and the tasks that they fit; join them "
        "with + for several tasks (js+angular).",
    )
    balance: tuple[str, ...] = setting(
        ("sum",),
        "How the losses of tasks attacked together are combined; see docs/attacks.md.",
    )
    attack_weights: tuple[str, ...] = setting(
        (),
        "Weights of the losses of tasks that are attacked together, such as "
        "seg:1,depth:0.5; the others have weight 1. A task that is attacked by itself "
        "(each) has its loss raised, whatever its weight.",
    )
    spare: tuple[str, ...] = setting(
        (),
        "Tasks to keep at or below their clean loss in every image while others are "
        "attacked, such as depth,normal. In --attack_tasks, each and all then mean "
        "the other tasks. See docs/attacks.md.",
    )
    judge: str = setting(
        "auto",
        "The score that decides between points of an attack, restarts and members of "
        "ensembles. harm: the share of wrong pixels or labels, or the task's error; "
        "for several tasks the geometric mean. loss: the tasks' own losses. auto: "
        "loss with --attack_loss=own; harm with any other loss, and for sea and "
        "worst.",
        choices=("auto", "harm", "loss"),
    )
    norm: str = setting(
        "linf", "The norm in which the perturbation is bounded.", choices=("linf", "l2")
    )
    steps: int = setting(
        20,
        "Steps of pgd, mim, apgd and the released attacks, and of each run of sea and "
        "each member of worst.",
        within=(1, MOST_STEPS),
    )
    step_size: float = setting(
        0.0,
        "Step size of pgd and mim (and the released ones), in the unit of --eps; 0: a "
        "quarter of each eps.",
        within=(0, 1e6),
    )
    restarts: int = setting(
        1,
        "Random starts of pgd, mim, mim_released, apgd, sea and the members of worst, "
        "or draws of noise and corner; the worst per image counts.",
        within=(1, MOST_STEPS),
    )
    random_start: bool | None = setting(
        None,
        "Where pgd, mim, mim_released, apgd, sea and the members of worst start: at a "
        "random point of the ball, or (--norandom_start) at the image. By default at "
        "random, but mim with a single start at the image, as in its authors' code. "
        "fgsm and the other released attacks have a start of their own.",
    )
    queries: int = setting(
        500, "Number of forward passes of square.", within=(1, MOST_QUERIES)
    )
    ensemble: tuple[str, ...] = setting(
        ("apgd", "pgd", "square"),
        f"The attacks that worst combines: {', '.join(kinds.member_names())}.",
    )
    targeted: bool = setting(
        False,
        "Pull the outputs towards the target of another image of the split (half the "
        "split further on), rather than away from their own target.",
    )
    eot: int = setting(
        1,
        "For a model that is random at inference: follow the mean gradient over this "
        "many draws of its noise. The cost grows by the same factor.",
        within=(1, MOST_STEPS),
    )
    attack_pixels: int = setting(
        0,
        "Attack this many output pixels, drawn by --seed; 0: all.",
        within=(0, LONGEST_SIDE**2),
    )
    attack_block: str = setting(
        "",
        "Attack a block of output pixels: ROWSxCOLUMNS in the middle, or "
        "ROWSxCOLUMNS+TOP+LEFT with the first row and column.",
    )
    attack_classes: tuple[str, ...] = setting(
        (),
        "Attack only the pixels of these classes (names), of the attacked tasks that "
        "have classes; others that are attacked with them are attacked everywhere.",
    )
    attack_channels: tuple[int, ...] = setting(
        (),
        "Change only these channels of the images, numbered from 0: 0,1,2 are the "
        "colours if a fourth channel holds distances. Empty: all.",
        within=(0, 9999),
    )
    source_ckpt: str = setting(
        "",
        "Transfer: make the adversarial images on this other run or model of your "
        "own, and measure what they do to --ckpt.",
        changes=NOTHING,
        path=True,
        address=True,
    )
    fast: bool = setting(
        False,
        "Take gradients in half precision (bfloat16, or float16 on GPUs that have only "
        "that) from a copy of the model; results are still those of the model itself. "
        "docs/gpu.md says what this saves and costs.",
    )
    checks: bool = setting(
        True,
        "Check afterwards whether the attack can be trusted, and warn if not.",
        changes=EXTRAS,
    )
    check_examples: int = setting(
        16,
        "Number of images for these checks.",
        within=(1, MOST_EXAMPLES),
        changes=EXTRAS,
    )
    metrics: tuple[str, ...] = setting(
        (),
        "More metrics for the tasks that they fit, besides each task's own: "
        f"{', '.join(MORE)} (any topK); all: all that fit. Attacks finished without "
        "them are run again.",
        changes=EXTRAS,
    )
    measure: tuple[str, ...] = setting(
        (),
        f"Also measure, out of {', '.join(MEASURES)}: quantities of the theory, and "
        "robustness to common corruptions; see docs/measures.md. Results go to "
        "measures.json.",
        changes=EXTRAS,
    )
    measure_draws: int = setting(
        4,
        "Number of random sets of output pixels of each size, for the measures "
        "pixels and blocks.",
        within=(1, 1000),
        changes=EXTRAS,
    )
    # The data.
    split: str = setting("validation", "Split of the data set.")
    num_examples: int = setting(
        128,
        "Attack the first N examples (all of them if there are fewer); 0: all.",
        within=(0, MOST_EXAMPLES),
    )
    batch_size: int | Literal["auto"] = setting(
        DEFAULT_BATCH,
        "Examples per step, over all replicas; results do not depend on it, unless the "
        "model is random. auto: on a GPU as many as fit in its memory, up to 256 per "
        "replica (docs/gpu.md); 32 on CPUs and for random models.",
        words=("auto",),
        within=(1, MOST_EXAMPLES),
        changes=NOTHING,
    )
    dataset: str = setting(
        "",
        "Data set; empty: the run's own. You must give it for a model of your own, "
        "and for a run on module:function, because code named in a file is never run "
        "unasked.",
    )
    data_dir: str = setting(
        "",
        "Folder of the data; empty: as in training.",
        changes=NOTHING,
        path=True,
    )
    depth_target: str = setting(
        "own",
        "For cityscapes and taskonomy: as in training (own: that of the run, or "
        "disparity).",
        choices=("own", "disparity", "inverse_depth", "metres", "released"),
    )
    validation_share: float = setting(
        0.0, "For taskonomy: as in training (0: that of the run).", within=(0, 1)
    )
    image_size: str = setting(
        "", "Height x width, such as 96x128, or one number; empty: the model's own."
    )
    input_range: tuple[float, ...] = setting(
        (),
        "The range that a model of your own takes instead of [0, 1]: LOW,HIGH, such "
        "as 0,255 or -1,1. Radii are still those of images in [0, 1]. Applies to "
        "--ckpt and --source_ckpt, and to both if both are models of your own.",
        within=(-1e6, 1e6),
    )
    input_mean: tuple[float, ...] = setting(
        (),
        "What to subtract from images in the range of --input_range before your own "
        "model gets them: one number, or one per channel.",
        within=(-1e6, 1e6),
    )
    input_std: tuple[float, ...] = setting(
        (),
        "What to divide them by after that: one number, or one per channel.",
        within=(-1e6, 1e6),
    )
    channels_first: bool = setting(
        False,
        "Your own model takes images [batch, channels, height, width]. Only needed if "
        "its input shape does not show this.",
        changes=NOTHING,  # But the fingerprint of the model.
    )
    targets: str = setting(
        "data",
        "data: the data set's targets. own: the model's own clean outputs, so no "
        "labels are needed; tables then show agreement with them.",
        choices=("data", OWN_TARGETS),
    )
    heads: tuple[str, ...] = setting(
        (),
        "Which output of your own model is which task: OUTPUT:TASK,... OUTPUT is a "
        "name, a path (decoder/mask) or a number from 0. TASK is a task of the data, "
        "or a kind (classes, labels, numbers, directions, image) for a task named "
        "after the output. Empty: outputs that are named after tasks. Other outputs "
        "are left alone.",
        changes=NOTHING,  # But the fingerprint of the model.
    )
    source_heads: tuple[str, ...] = setting(
        (),
        "As --heads, for the model of --source_ckpt. Empty: the same as --heads.",
        changes=NOTHING,  # But the fingerprint of that model.
    )
    tasks: tuple[str, ...] = setting(
        (),
        "If your own model has a single output without a task's name: its task. "
        "Otherwise: which of the model's tasks to use (empty: all).",
    )
    seed: int = setting(
        0, "Seed for random starts, pixels and intervals.", within=(0, 2**32 - 1)
    )
    # Where and how it runs.
    strategy: str = STRATEGY
    replicas: int = REPLICAS
    executor: str = setting(
        NO_EXECUTOR,
        "Spread the attacks over processes, one GPU or thread each: local (on this "
        "machine), ray (a Ray cluster) or slurm (jobs of SLURM, by submitit); see "
        "docs/cluster.md. none: this process does all of them.",
        choices=(NO_EXECUTOR, *EXECUTORS),
        changes=NOTHING,
    )
    executor_options: tuple[str, ...] = EXECUTOR_OPTIONS
    workers: int = WORKERS
    part: str = setting(
        "",
        "I/N, such as 2/8: only do part I of N of the attacks, and keep what is "
        "finished. For schedulers of your own: run all parts, then the command "
        "without --part, which writes the results.",
        changes=NOTHING,
    )
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
        "Results go to RUN/attacks/NAME; empty: a name made from the settings.",
        changes=NOTHING,
    )
    out: str = setting(
        "",
        "Folder of the results in place of RUN/attacks/NAME, as of a run that you may "
        "only read; may be at an address, such as gs://bucket/results.",
        changes=NOTHING,
        path=True,
        address=True,
    )
    save_examples: int = setting(
        0,
        "Also save the first N attacked images and all outputs as .npz; of worst and "
        "sea, for each image those of the attack that did most harm.",
        within=(0, MOST_EXAMPLES),
        changes=EXTRAS,
    )
    export_predictions: bool = setting(
        False,
        "For cityscapes: also write the predicted classes, clean and attacked, to "
        "RUN/attacks/NAME/predictions, as files for its own evaluator.",
        changes=EXTRAS,
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.ckpt:
            raise InputError(
                "--ckpt must name what to attack, but it is empty; give a run "
                "directory such as runs/NAME, a checkpoint in it, or a model of your "
                "own."
            )
        for name in ("attack", "eps", "attack_tasks", "attack_loss", "balance"):
            if not getattr(self, name):
                raise InputError(
                    f"--{name} must have at least one value, but it is empty."
                )
        if self.attack != NO_ATTACK:
            kinds.check_names("attack", self.attack, KINDS)
        kinds.check_names("measure", self.measure, MEASURES)
        metric_names.check(self.metrics)
        if self.attack == NO_ATTACK and not self.measure:
            raise InputError(
                "--attack=none only measures, but --measure is empty; name one or "
                f"more of {', '.join(MEASURES)}."
            )
        if "first_order" in self.measure and not any(self.eps):
            raise InputError(
                "--measure=first_order needs a radius above 0 in --eps, but there "
                "is only 0."
            )
        kinds.check_names("attack in --ensemble", self.ensemble, kinds.member_names())
        names = [name for name in self.attack if name in KINDS]
        if not self.ensemble and any("ensemble" in KINDS[name].uses for name in names):
            raise InputError(
                "--ensemble must name the attacks that worst combines, but it is empty."
            )
        if self.attack_pixels and self.attack_block:
            raise InputError(
                "--attack_pixels and --attack_block both choose the pixels to attack; "
                "give only one of them."
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
        if self.name and self.out:
            raise InputError(
                "--name and --out both say where results go; give only one of them."
            )
        self._check_spare()
        self._check_spread()
        _ = self.parsed_image_size  # Raises now, not later.
        parse_block(self.attack_block)
        parse_weights(self.attack_weights)
        parse_heads(self.heads)
        parse_heads(self.source_heads, "--source_heads")
        self._check_input()

    def _check_spare(self):
        """Raises InputError if the settings do not allow --spare."""
        if not self.spare:
            return
        for name in self.attack:
            if name in KINDS and not KINDS[name].can_spare(self.restarts):
                raise InputError(
                    f"--spare does not work with {name}, which repeats other code or "
                    "is a single draw of noise; leave out one of the two, or give "
                    "noise and corner --restarts=2 or more."
                )
        if self.eot > 1:
            raise InputError(
                f"--spare does not work with --eot={self.eot}, several draws of a "
                "random model's noise; leave out one of the two."
            )
        if self.targets == OWN_TARGETS:
            raise InputError(
                "--spare needs the targets of the data, because with --targets=own "
                "every clean output is already at its target; leave out one of the "
                "two."
            )

    def _check_spread(self):
        """Raises InputError if the attacks cannot be spread over processes."""
        parse_part(self.part)
        flag = "--part" if self.part else "--executor"
        if self.executor == NO_EXECUTOR and not self.part:
            return
        if self.executor != NO_EXECUTOR and self.part:
            raise InputError(
                f"--part={self.part} is one part of the attacks, which "
                f"--executor={self.executor} would spread; leave out one of the two."
            )
        for name in ("ckpt", "out"):
            if files.is_remote(path := getattr(self, name)):
                raise InputError(
                    f"{flag} needs --{name} in a folder that all processes see, got "
                    f"{path}; mount it as a folder, or leave out {flag}."
                )

    def _check_input(self):
        if self.input_range and not (
            len(self.input_range) == 2 and self.input_range[0] < self.input_range[1]
        ):
            raise InputError(
                "--input_range must be two numbers, LOW,HIGH, the lower first, such as "
                f"0,255; got {','.join(f'{n:g}' for n in self.input_range)}."
            )
        if self.input_std and min(self.input_std) < 1e-6:
            raise InputError(
                "--input_std must be one number from 1e-06, or one per channel; got "
                f"{','.join(f'{n:g}' for n in self.input_std)}."
            )
        counts = {len(self.input_mean), len(self.input_std)} - {0, 1}
        if len(counts) > 1:
            raise InputError(
                "--input_mean and --input_std must have one number, or one per "
                f"channel of the images; got {len(self.input_mean)} and "
                f"{len(self.input_std)}."
            )

    @functools.cached_property
    def parsed_image_size(self) -> tuple[int, int] | None:
        """(height, width) of `image_size`; None if it is not given."""
        return parse_image_size(self.image_size)

    @property
    def input_affine(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(scale, offset) per channel from images in [0, 1] to what the model takes.

        If all channels have the same values, there are three of each, whatever the
        number of channels. None if the model takes images in [0, 1].
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
    match = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+)\+(\d+))?", text)
    numbers = tuple(int(part) for part in match.groups() if part) if match else ()
    if not numbers or 0 in numbers[:2]:
        raise InputError(
            "--attack_block must be ROWSxCOLUMNS or ROWSxCOLUMNS+TOP+LEFT, such as "
            f"16x32+8+0, got {text!r}."
        )
    return numbers


def parse_part(text: str) -> tuple[int, int] | None:
    """`2/8` as (2, 8); empty gives None."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(
            "--part must be I/N, part I of N parts, such as 2/8, with I from 1 to N; "
            f"got {text!r}."
        )
    return number, count


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
                "--attack_weights must be pairs of a task and a number such as "
                "seg:1,depth:0.5, where each number is 0 or has a size from "
                f"{least:g} to {most:g}; got {text!r}."
            )
        pairs.append((name, weight))
    return tuple(pairs)
