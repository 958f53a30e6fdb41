# SPDX-License-Identifier: Apache-2.0
"""Turns a PyTorch file of DRN or ResNet weights into a run that can be attacked.

Example:
  python -m mtr_tf.convert --torch=drn_d_22_sdA.pth.tar --model=drn_d_22 --tasks=s,d,A
  python -m mtr_tf.attack --ckpt=runs/drn_d_22_sdA --data_dir=DIR

It reads the paper's released checkpoints, the official DRN weights for segmentation and
classification, and torchvision's ResNets. Needs torch: pip install torch.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import TYPE_CHECKING

from absl import logging

from mtr_tf import data
from mtr_tf import files
from mtr_tf.cli import flags as cli_flags
from mtr_tf.cli import startup
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.settings import setting
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import cluster
from mtr_tf.runs import directory
from mtr_tf.tasks.names import resolve

if TYPE_CHECKING:
    import keras

    from mtr_tf.models.torch_weights.transfer import Contents

# Mean and standard deviation of red, green and blue in [0, 1].
NORMALIZATIONS = {
    "cityscapes": ((0.290101, 0.328081, 0.286964), (0.182954, 0.186566, 0.184475)),
    "minus_one_to_one": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True)
class ConvertConfig(Settings):
    """What `python -m mtr_tf.convert` takes."""

    torch: str = setting(
        "", "File with the weights, written by torch.save. Required.", path=True
    )
    model: str = setting(
        "drn_d_22", "Architecture of the weights: a DRN or ResNet of mtr_tf.models."
    )
    tasks: tuple[str, ...] = setting(
        (), "Tasks to convert, as in mtr_tf.train; empty: all that the file has."
    )
    workdir: str = setting(
        "", "Run directory to create; empty: runs/ and FILE's name.", path=True
    )
    decoders: str = setting(
        "auto",
        "separate: one decoder per task. shared: one for all, with a last layer per "
        "task. auto: shared for DRNs if the decoders in the file are equal, otherwise "
        "separate.",
        choices=("auto", "separate", "shared"),
    )
    num_classes: int = setting(
        0,
        "Number of classes of seg; 0: as in the file. A ResNet's file may have one "
        "more, which is dropped: the released Taskonomy models have 18 outputs for 17 "
        "classes (use 18 with --as_released, 17 with --noas_released).",
        within=(0, 10_000),
    )
    normalize: str = setting(
        "auto",
        "How the model standardises images in [0, 1]; auto: cityscapes for DRNs, "
        "minus_one_to_one for ResNets, imagenet for files of classification networks.",
        choices=("auto", *NORMALIZATIONS),
    )
    dataset: str = setting(
        "",
        "Data set to attack the run on; empty: cityscapes for DRNs, taskonomy for "
        "ResNets.",
    )
    data_dir: str = setting("", "Folder of the data, for mtr_tf.attack.", path=True)
    image_size: str = setting(
        "",
        "Height x width to attack at, in multiples of 8 (DRNs) or 32 (ResNets); empty: "
        "the data set's own.",
    )
    depth_target: str = setting(
        "released",
        "Targets of cityscapes' depth and autoencoder, as in mtr_tf.train; released "
        "models predict `released`.",
        choices=("disparity", "inverse_depth", "metres", "released"),
    )
    as_released: bool = setting(
        True, "Read taskonomy as the released code does, as in mtr_tf.train."
    )
    seed: int = setting(
        0, "Seed for layers that the file has no weights for.", within=(0, 2**32 - 1)
    )

    def __post_init__(self):
        super().__post_init__()
        _ = self.parsed_image_size  # Raises now if it is wrong.

    @functools.cached_property
    def parsed_image_size(self) -> tuple[int, int] | None:
        """(height, width) of `image_size`; None for the data set's own."""
        return parse_image_size(self.image_size)


def main(config: ConvertConfig) -> None:
    """Converts; raises `InputError` for mistakes that the user can fix."""
    if not config.torch:
        raise InputError(
            "--torch must name a file of PyTorch weights, but it is empty."
        )
    cluster.refuse("mtr_tf.convert")
    startup.import_tensorflow()
    workdir = convert(config)
    logging.info("attack it:  python -m mtr_tf.attack --ckpt=%s", workdir)


def convert(config: ConvertConfig) -> pathlib.Path:
    """Reads the file and writes the run directory; returns its path.

    The directory gets conversion.json (what was converted and what was left out),
    model.keras and, last, the settings that make it a run. Repeating the command does
    nothing once it has finished.

    Raises:
      InputError: The file cannot be read, does not fit the model, or the directory
        holds something else.
    """
    from mtr_tf import models
    from mtr_tf.models.torch_weights import reading as torch_files
    from mtr_tf.models.torch_weights import transfer as torch_weights
    from mtr_tf.runs import store

    model_names = [name for name, model in models.MODELS.items() if model.family]
    if config.model not in model_names:
        raise InputError(
            f"--model must be one of {', '.join(model_names)}, got {config.model!r}."
        )
    if config.parsed_image_size:
        models.check_image_size(config.model, config.parsed_image_size)
    contents = torch_weights.contents(torch_files.read(config.torch), config.model)
    run_config = _run_config(config, contents)
    settings = config.to_dict() | {"torch": os.path.basename(config.torch)}
    del settings["workdir"]  # The directory may be moved.
    about = {"convert": settings, "sha256": store.file_digest(config.torch)}
    stem = pathlib.Path(config.torch).name.split(".")[0]
    workdir = pathlib.Path(config.workdir or pathlib.Path("runs", stem))
    directory.check_path(workdir)
    with files.locked(workdir):
        if _is_done(workdir, about, run_config):
            logging.info("%s has been converted already", workdir)
            return workdir
        model, notes = _build_model(config, run_config, contents)
        for sentence in notes:
            logging.info("%s", sentence)
        store.write_file(workdir / "conversion.json", about | {"said": notes})
        with files.whole_file(workdir / "model.keras") as temp_path:
            model.save(temp_path)
        directory.write_config(workdir, run_config)
    logging.info("%d weights are in %s", len(model.variables), workdir)
    return workdir


def _run_config(config: ConvertConfig, contents: Contents) -> TrainConfig:
    """The settings under which the weights count as a run of mtr_tf.train."""
    from mtr_tf import models

    width, default_width = contents.width(), models.MODELS[config.model].width
    drn = models.MODELS[config.model].family != "resnet"
    decoders = config.decoders
    if decoders == "auto":
        decoders = "shared" if drn and contents.one_decoder else "separate"
    dataset = config.dataset or ("cityscapes" if drn else "taskonomy")
    if dataset not in data.DATASETS and ":" not in dataset:
        raise InputError(
            f"--dataset must be one of {', '.join(data.DATASETS)}, or "
            f"package.module:function; got {dataset!r}."
        )
    if not config.tasks and not contents.tasks:
        raise InputError(
            "--tasks must say which heads the model gets, because the file has none, "
            "but it is empty."
        )
    return TrainConfig(
        tasks=resolve(config.tasks or contents.tasks),
        dataset=dataset,
        data_dir=os.path.abspath(config.data_dir) if config.data_dir else "",
        image_size=config.image_size,
        model=config.model,
        width=width if width and width != default_width else 0,
        decoders=decoders,
        seed=config.seed,
        **{
            option: getattr(config, option, default) if dataset in takers else default
            for option, (default, takers) in data.OPTIONS.items()
        },
    )


def _build_model(
    config: ConvertConfig, run_config: TrainConfig, contents: Contents
) -> tuple[keras.Model, list[str]]:
    """Builds the model with the file's weights; returns it and notes about it."""
    from mtr_tf import models
    from mtr_tf.models.torch_weights import transfer as torch_weights

    stored_classes = contents.num_classes()
    classes = config.num_classes or stored_classes
    if classes is None and "seg" in run_config.tasks:
        raise InputError(
            "--num_classes must say how many classes seg has, because the file has no "
            "head for it, but it is 0."
        )
    drn = models.MODELS[config.model].family != "resnet"
    unused_class = not drn and stored_classes == (classes or 0) + 1
    normalization = config.normalize
    if normalization == "auto":
        default = "cityscapes" if drn else "minus_one_to_one"
        normalization = default if contents.tasks else "imagenet"
    mean, std = NORMALIZATIONS[normalization]
    model = models.build(
        config.model,
        run_config.tasks,
        (None, None, 3),
        classes,
        width=run_config.width or None,
        decoders=run_config.decoders,
        mean=mean,
        std=std,
        seed=config.seed,
    )
    notes = torch_weights.assign(model, contents, unused_class)
    if unused_class:
        notes.append(f"the last of the {stored_classes} outputs of seg is dropped.")
    if "seg" in run_config.tasks and drn:
        notes.append(
            "seg gives logits: the log-softmax that follows them is part of the loss."
        )
    if "autoencoder" in contents.tasks and "autoencoder" in run_config.tasks and drn:
        notes.append(
            "autoencoder gives standardised pictures, which are its targets on "
            "cityscapes with --depth_target=released alone."
        )
    notes.append(f"images are standardised as for {normalization}.")
    return model, notes


def _is_done(workdir: pathlib.Path, about: dict, run_config: TrainConfig) -> bool:
    """Whether the directory holds this conversion; raises if it holds another run."""
    from mtr_tf.runs import store

    path = workdir / "conversion.json"
    record = store.read_kept(path)
    if not record and path.exists() and run_config == directory.read_config(workdir):
        return False  # This conversion, as far as is known.
    if {key: record.get(key) for key in about} == about:
        return all((workdir / n).exists() for n in ("config.json", "train.flags"))
    names = ("config.json", "model.keras", "checkpoints")
    other_names = [name for name in names if (workdir / name).exists()]
    if other_names:
        raise InputError(
            f"{workdir} already holds something else ({', '.join(other_names)}); give "
            "another --workdir."
        )
    return False


def run() -> None:
    """The console entry point `mtr-convert`."""
    cli_flags.run(
        "mtr_tf.convert",
        __doc__,
        (ConvertConfig,),
        main,
        "A run whose conversion has not finished cannot be used; the same command "
        "starts it again.",
    )


if __name__ == "__main__":
    run()
