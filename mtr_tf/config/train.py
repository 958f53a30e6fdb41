# SPDX-License-Identifier: Apache-2.0
"""Every setting of `python -m mtr_tf.train`: its default, its help, its range."""

from __future__ import annotations

import dataclasses
import functools

from mtr_tf.attacks.checks import MOST_STEPS
from mtr_tf.config.settings import DETERMINISTIC
from mtr_tf.config.settings import JIT
from mtr_tf.config.settings import MOST_EXAMPLES
from mtr_tf.config.settings import NOTHING
from mtr_tf.config.settings import REPLICAS
from mtr_tf.config.settings import STRATEGY
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import check_levels
from mtr_tf.config.settings import is_step_of_one
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.settings import setting
from mtr_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """What `python -m mtr_tf.train` takes."""

    tasks: tuple[str, ...] = setting(
        ("seg", "depth"),
        "Tasks to train, with one head each: names, Taskonomy's names or the paper's "
        "letters (seg,depth or s,d).",
    )
    main_tasks: tuple[str, ...] = setting(
        (),
        "The main tasks among --tasks; each has weight 1/number of main tasks. The "
        "others are auxiliary and share --aux_weight. Empty: all are main.",
    )
    aux_weight: float = setting(
        1.0,
        "Weight that the auxiliary tasks share (the paper's lambda).",
        within=(0, 1e6),
    )
    task_weights: str = setting(
        "main_aux",
        "Weights of the tasks' losses. main_aux: as set by --main_tasks and "
        "--aux_weight. equal: 1/number of tasks. uncertainty: learned (Kendall et al. "
        "2018).",
        choices=("main_aux", "equal", "uncertainty"),
    )
    task_losses: tuple[str, ...] = setting(
        (),
        "Training losses to use instead of the tasks' own, such as autoencoder:l1; "
        "each is cross_entropy, binary_cross_entropy (for labels), l1 or l2.",
    )
    loss_norm: str = setting(
        "valid",
        "Divide a masked loss by the number of valid pixels, or of all pixels (as the "
        "paper's code does on Taskonomy).",
        choices=("valid", "all"),
    )
    class_weights: bool = setting(
        True,
        "Use the data set's class weights in training, if it has any (taskonomy does).",
    )
    random_targets: tuple[str, ...] = setting(
        (),
        "Control experiment: train these of --tasks on noise, fixed for each example, "
        "instead of their targets. Validation uses the real targets.",
    )
    # Data.
    dataset: str = setting(
        "rooms",
        "Data set: rooms (made on your machine), camvid, cityscapes, taskonomy, or "
        "your own as module:function (docs/own_data.md).",
    )
    data_dir: str = setting(
        "",
        "Folder of the data. For rooms, the folder to store it in; empty: "
        "TFDS_DATA_DIR or ~/tensorflow_datasets.",
        changes=NOTHING,
        path=True,
    )
    image_size: str = setting(
        "", "Height x width, such as 96x128, or one number; empty: the data set's own."
    )
    train_examples: int = setting(
        0, "Train on the first N examples only; 0: all.", within=(0, MOST_EXAMPLES)
    )
    flip: bool = setting(True, "Randomly mirror training examples left-right.")
    crop: str = setting(
        "", "Train on random crops of this height x width; empty: whole pictures."
    )
    depth_target: str = setting(
        "disparity",
        "Unit of cityscapes' depth: disparity (pixels), inverse_depth (1/m) or metres "
        "(both need camera/), or released (targets as in the paper's code: depth is "
        "the file's values / 1000, nothing masked, and autoencoder makes the "
        "standardised picture). For taskonomy's two depths: metres, or the files' "
        "logarithms in [0, 1] (disparity or released).",
        choices=("disparity", "inverse_depth", "metres", "released"),
    )
    validation_share: float = setting(
        0.0,
        "For taskonomy: use this share of the buildings (the last ones; with one "
        "building, of its points) for validation; 0: follow its lists; without "
        "these, the last fifth of several buildings, or the released split of one.",
        within=(0, 1),
    )
    as_released: bool = setting(
        False,
        "Read taskonomy as the paper's released code does, with its errors "
        "(docs/reproduce.md lists them).",
    )
    rooms_scenes: int = setting(
        0,
        "For rooms: make this many scenes to train on, which takes about 1 GB for each "
        "6 000 of 64 x 64 pixels; 0: 2 000. The first ones are the same, whatever the "
        "number, and so are validation and test.",
        within=(0, MOST_EXAMPLES),
    )
    # Model.
    model: str = setting(
        "small",
        "Architecture: small, tiny; resnet18, resnet34, resnet50; drn_c_26, drn_d_22, "
        "drn_d_38, drn_d_54, drn_d_105; or your own as module:function "
        "(docs/training.md).",
    )
    width: int = setting(
        0,
        "Channels of the first layer; 0: the model's own (ResNets 64, DRNs 16).",
        within=(0, 1024),
    )
    decoders: str = setting(
        "separate",
        "separate: one decoder per task. shared: one decoder for all, with a last "
        "layer per task.",
        choices=("separate", "shared"),
    )
    shared_stages: int = setting(
        -1,
        "How many stages of the encoder the tasks share, from the image on; each task "
        "has the others to itself. 0: tasks share no weights; -1: all stages. ResNets "
        "have 5 (the stem and layers 1 to 4), DRNs 6 (layers 0 to 5), small 3, tiny 2.",
        within=(-1, 6),
    )
    sync_batch_norm: bool = setting(
        False, "Share batch-norm statistics between replicas."
    )
    init: str = setting(
        "",
        "Weights to start from: a .keras or .h5 file, or the directory of a finished "
        "run (or an address). Layers with the same names and shapes take them; a "
        "task's own stages (--shared_stages) may take those that tasks share there.",
        path=True,
        address=True,
    )
    frozen: tuple[str, ...] = setting(
        (),
        "Layers not to train, by the beginnings of their names, such as encoder; "
        "--init, if given, must have weights for them.",
    )
    # Optimisation.
    epochs: int = setting(20, "Passes over the training split.", within=(1, MOST_STEPS))
    batch_size: int = setting(
        32, "Examples per step, over all replicas.", within=(1, MOST_EXAMPLES)
    )
    learning_rate: float = setting(2e-3, "Learning rate at the start.", within=(0, 1e6))
    optimizer: str = setting("adam", "Optimizer.", choices=("adam", "sgd"))
    momentum: float = setting(0.9, "Momentum of sgd.", within=(0, 1))
    weight_decay: float = setting(
        0.0,
        "L2 weight decay, added to the gradient as PyTorch's SGD does (coupled).",
        within=(0, 1e6),
    )
    schedule: str = setting(
        "cosine",
        "Learning rate over time: cosine to zero, step (times --lr_factor at each of "
        "--lr_epochs), constant, or released (as in the paper's code for Cityscapes: "
        "constant for 180 epochs, then 0).",
        choices=("cosine", "step", "constant", "released"),
    )
    lr_epochs: tuple[int, ...] = setting(
        (),
        "Epochs after which the step schedule multiplies the rate.",
        within=(1, MOST_STEPS),
    )
    lr_factor: float = setting(0.1, "Factor of the step schedule.", within=(0, 1))
    # Adversarial training.
    adversarial_tasks: str = setting(
        "",
        "Adversarial training: train on images attacked by PGD (linf). The attack "
        "raises the losses of these tasks: main, all, or names joined by +. Empty: no "
        "adversarial training.",
    )
    adversarial_eps: float = setting(
        8.0, "Radius of that attack, in 0-255 levels.", within=(0, 255)
    )
    adversarial_step_size: float = setting(
        0.0, "Its step, in 0-255 levels; 0: a quarter of the radius.", within=(0, 255)
    )
    adversarial_steps: int = setting(5, "Number of its steps.", within=(1, MOST_STEPS))
    adversarial_share: float = setting(
        1.0,
        "Weight of the loss on attacked images; the loss on clean images has the rest.",
        within=(0, 1),
    )
    adversarial_batch_norm: str = setting(
        "inference",
        "Batch norms during that attack: with their running statistics, or in "
        "training mode with each batch's own, as in the paper's code (not with "
        "--sync_batch_norm on several replicas).",
        choices=("inference", "training"),
    )
    seed: int = setting(
        0,
        "Seed for weights, order of examples, augmentation and attacks.",
        within=(0, 2**32 - 1),
    )
    # Where and how it runs.
    strategy: str = STRATEGY
    replicas: int = REPLICAS
    jit: str = JIT
    precision: str = setting(
        "float32",
        "Keras precision policy.",
        choices=("float32", "mixed_float16", "mixed_bfloat16"),
    )
    deterministic: bool = DETERMINISTIC
    # Watching and keeping.
    summary_every: int = setting(
        20,
        "Steps between training summaries; also the most steps in one compiled call.",
        within=(1, MOST_EXAMPLES),
    )
    eval_every: int = setting(
        0,
        "Steps between evaluations on validation; 0: ten times a run.",
        within=(0, MOST_EXAMPLES),
    )
    eval_examples: int = setting(
        64,
        "Number of validation examples to evaluate and attack during training (all of "
        "them if there are fewer).",
        within=(1, MOST_EXAMPLES),
    )
    eval_eps: float = setting(
        4.0, "Radius of that attack (linf, in 0-255 levels).", within=(0, 255)
    )
    eval_steps: int = setting(5, "PGD steps of that attack.", within=(1, MOST_STEPS))
    checkpoint_every: int = setting(
        0, "Steps between checkpoints; 0: five times a run.", within=(0, MOST_EXAMPLES)
    )
    checkpoint_minutes: float = setting(
        10.0,
        "Also keep a checkpoint after this many minutes, at the next training "
        "summary; 0: never.",
        within=(0, 1e6),
        changes=NOTHING,
    )
    keep_checkpoints: int = setting(
        2,
        "Number of newest checkpoints to keep.",
        within=(1, MOST_STEPS),
        changes=NOTHING,
    )
    best_metric: str = setting(
        "",
        "Validation metric that decides which checkpoint is the best: TASK/METRIC, "
        "optionally after clean/ or adversarial/; empty: the first main task's "
        "headline metric, clean.",
    )

    def __post_init__(self):
        super().__post_init__()
        # Keras computes in the type of a rate. (Ints of attack settings stay, because
        # they identify finished attacks.)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and type(value) is int:
                object.__setattr__(self, field.name, float(value))
        has_branches = self.decoders != "separate" or self.shared_stages != -1
        builtin_options = self.width or has_branches or self.sync_batch_norm
        if ":" in self.model and builtin_options:
            raise InputError(
                "--width, --decoders, --shared_stages and --sync_batch_norm are only "
                f"for built-in models, but {self.model} is a function of yours; leave "
                "them out."
            )
        if self.lr_epochs and self.schedule != "step":
            raise InputError(
                "--lr_epochs needs --schedule=step, but the schedule is "
                f"{self.schedule}; leave out one of the two."
            )
        uses_main_aux = self.main_tasks or self.aux_weight != 1
        if uses_main_aux and self.task_weights != "main_aux":
            raise InputError(
                "--main_tasks and --aux_weight need --task_weights=main_aux, got "
                f"{self.task_weights}; leave out one or the other."
            )
        if list(self.lr_epochs) != sorted(set(self.lr_epochs)):
            raise InputError(
                "--lr_epochs must be in rising order, such as 120,140; got "
                f"{','.join(map(str, self.lr_epochs))}."
            )
        if self.schedule == "step" and not self.lr_epochs:
            raise InputError(
                "--schedule=step needs --lr_epochs, the epochs after which the rate "
                "falls, but it is empty; give for example --lr_epochs=120,140."
            )
        _ = self.parsed_image_size, self.parsed_crop  # Raise now, not later.

    @property
    def unused(self) -> list[str]:
        """Names of the settings that are given but not used."""
        names = []
        if self.aux_weight != 1 and not set(self.tasks) - set(self.main_or_all_tasks):
            names.append("aux_weight")
        if not self.adversarial_tasks:
            names += [name for name in self.not_default() if name in _ADVERSARIAL]
        return names

    @property
    def without_effect(self) -> list[str]:
        """Sentences about settings that are given but, with the others, do nothing.

        They are no reason to refuse a run, because they may come from a flagfile.
        """
        values = self.not_default()
        sentences = [
            f"--{name} has no effect without --{choice}={value}, as here"
            for name, (choice, value) in _NEEDED_CHOICES.items()
            if name in values and getattr(self, choice) != value
        ]
        if "eval_steps" in values and not self.eval_eps:
            sentences.append("--eval_steps has no effect with --eval_eps=0, as here")
        return sentences

    def check_used(self) -> None:
        """Raises `InputError` for settings that have no use without another one.

        Also for radii, and for steps too short to reach the radius, that seem to be
        in units of images in [0, 1], and for adversarial training that attacks nothing.
        Older runs may have such settings, and are not checked.
        """
        names = self.unused
        if "aux_weight" in names:
            raise InputError(
                "--aux_weight needs auxiliary tasks, those of --tasks that are not in "
                f"--main_tasks, but all of {', '.join(self.tasks)} are main; name the "
                "main ones in --main_tasks, or leave out --aux_weight."
            )
        if names:
            raise InputError(
                f"--{' and --'.join(names)} {'need' if len(names) > 1 else 'needs'} "
                "--adversarial_tasks, the tasks to attack in training, but it is "
                "empty; give for example --adversarial_tasks=main, or leave the "
                "rest out too."
            )
        for name in ("adversarial_share", "adversarial_eps"):
            if self.adversarial_tasks and not getattr(self, name):
                raise InputError(
                    f"--adversarial_tasks needs an --{name} above 0, but it is 0, so "
                    "that no attacked image would be trained on; leave out one of the "
                    "two."
                )
        for name in ("adversarial_eps", "eval_eps"):
            check_levels(f"--{name}", getattr(self, name))
        step = self.adversarial_step_size
        if is_step_of_one(step, self.adversarial_steps, self.adversarial_eps):
            check_levels("--adversarial_step_size", step)

    @functools.cached_property
    def parsed_image_size(self) -> tuple[int, int] | None:
        """(height, width) of `image_size`; None for the data set's own."""
        return parse_image_size(self.image_size)

    @functools.cached_property
    def parsed_crop(self) -> tuple[int, int] | None:
        """(height, width) of `crop`; None for whole pictures."""
        return parse_image_size(self.crop, "--crop")

    @property
    def main_or_all_tasks(self) -> tuple[str, ...]:
        """The main tasks; all tasks if none is named."""
        return self.main_tasks or self.tasks


# Settings that are only used with one choice of another setting.
_NEEDED_CHOICES = {"momentum": ("optimizer", "sgd"), "lr_factor": ("schedule", "step")}

# Settings of adversarial training, without the one that turns it on.
_ADVERSARIAL = {
    field.name
    for field in dataclasses.fields(TrainConfig)
    if field.name.startswith("adversarial_") and field.name != "adversarial_tasks"
}


@dataclasses.dataclass(frozen=True)
class RunPlace(Settings):
    """Where a training run is kept, which does not affect what it computes."""

    workdir: str = setting(
        "",
        "Run directory, or its address, such as gs://bucket/run (docs/cluster.md); "
        "empty: runs/ and a name made from the main settings.",
        path=True,
        address=True,
    )
    resume: bool = setting(
        True,
        "Continue from the newest checkpoint of the run directory, if it has one; "
        "--noresume refuses a directory that holds a run.",
    )
