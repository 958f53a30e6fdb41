# SPDX-License-Identifier: Apache-2.0
"""Writes a tiny Cityscapes in the official layout, as folders or as archives."""

from __future__ import annotations

import json
import pathlib
import shutil
import zipfile

import numpy as np
from PIL import Image

TRAIN = (
    "aachen_000000_000019",
    "aachen_000001_000019",
    "bochum_000000_000313",
    "bochum_000000_000600",
)
VAL = ("frankfurt_000000_000294", "lindau_000000_000019", "munster_000173_000019")
BASELINE, FOCAL_LENGTH = 0.25, 2000.0
KINDS = ("leftImg8bit", "gtFine", "disparity", "camera")


def write(
    root: pathlib.Path,
    *,
    size: tuple[int, int] = (24, 32),
    train: tuple[str, ...] = TRAIN,
    val: tuple[str, ...] = VAL,
    test: tuple[str, ...] = (),
    block: int = 4,
    seed: int = 0,
) -> pathlib.Path:
    """Writes pictures whose colour tells the label, with holes in the disparity.

    Labels are ids of 0-33 in squares of `block` pixels; disparities are random 16-bit
    numbers, 0 (unknown) in about a third of the pixels.
    """
    rng = np.random.default_rng(seed)
    folders = (("train", train), ("val", val), ("test", test))
    for split, names in folders:
        for name in names:
            example(root, split, name, size, block, rng)
    return root


def example(root, split, name, size, block, rng) -> None:
    """Writes the four files of one picture."""
    block_labels = rng.integers(0, 34, (-(-size[0] // block), -(-size[1] // block)))
    labels = block_labels.repeat(block, 0).repeat(block, 1)[: size[0], : size[1]]
    noise = rng.integers(0, 8, (*size, 3))
    image = np.stack([labels * 7, 240 - labels * 7, labels % 3 * 100], -1) + noise
    disparity = rng.integers(1, 2**16, size)
    disparity[rng.random(size) < 0.35] = 0
    save(path(root, "leftImg8bit", split, name), image.astype(np.uint8))
    save(path(root, "gtFine", split, name), labels.astype(np.uint8))
    save(path(root, "disparity", split, name), disparity.astype(np.uint16))
    camera = {
        "extrinsic": {"baseline": BASELINE, "pitch": 0.03},
        "intrinsic": {"fx": FOCAL_LENGTH, "fy": 2100.0, "u0": 1000.0, "v0": 500.0},
    }
    file = path(root, "camera", split, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(camera))


def path(root: pathlib.Path, kind: str, split: str, name: str) -> pathlib.Path:
    """The path of a picture's file in the official layout."""
    ends = {
        "leftImg8bit": "leftImg8bit.png",
        "gtFine": "gtFine_labelIds.png",
        "trainIds": "gtFine_labelTrainIds.png",
        "disparity": "disparity.png",
        "camera": "camera.json",
    }
    folder = "gtFine" if kind == "trainIds" else kind
    return root / folder / split / name.split("_")[0] / f"{name}_{ends[kind]}"


def save(file: pathlib.Path, array: np.ndarray) -> None:
    """Writes a PNG file of 8 or 16 bits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def load(file: pathlib.Path) -> np.ndarray:
    """Reads a PNG file."""
    return np.asarray(Image.open(file))


def zip_up(root: pathlib.Path, kinds: tuple[str, ...] = KINDS) -> pathlib.Path:
    """Replaces folders by archives, named and laid out as the official ones."""
    for kind in kinds:
        archive = zipfile.ZipFile(root / f"{kind}_trainvaltest.zip", "w")
        with archive as file:
            file.writestr("README", "hello")
            file.writestr("license.txt", "hello")
            for entry in sorted((root / kind).rglob("*")):
                file.write(entry, entry.relative_to(root))
        shutil.rmtree(root / kind)
    return root
