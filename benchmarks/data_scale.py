# SPDX-License-Identifier: Apache-2.0
"""Time, space and memory of data sets of more and more pictures: linear, and flat.

    python benchmarks/data_scale.py

Folders in Taskonomy's layout are prepared, reopened, trained on for an epoch and
attacked, each in a process of its own. The files of a few views are linked under many
names, in buildings of 100, so that a folder takes little space; every file is read. The
same number of custom examples is read lazily. Pictures are small; seconds and bytes per
picture grow with the number of pixels. On a busy machine, the CPU time of all processes
is the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import timing
from PIL import Image

from mtr_tf import data
from mtr_tf.data.taskonomy import finding

_DOMAINS = {
    "rgb": "colours",
    "segment_semantic": "labels",
    "depth_zbuffer": "depths",
    "depth_euclidean": "depths",
    "normal": "colours",
    "edge_texture": "numbers",
    "edge_occlusion": "numbers",
    "keypoints2d": "numbers",
    "keypoints3d": "numbers",
    "reshading": "colours",
    "principal_curvature": "colours",
}
_DISTINCT_VIEWS = 16  # Views that are not links to others.
_BUILDING = 100  # Views.
_MILLION = 1_000_000
_UNIT = 1 if sys.platform == "darwin" else 1024  # Linux counts memory in KiB.
_COLUMNS = {
    "pictures": "d",
    "find s": ".1f",
    "prepare s": ".1f",
    "CPU s": ".1f",
    "CPU ms a picture": ".1f",
    "disk KB a picture": ".1f",
    "at most KB a picture": ".1f",
    "prepare MB": ".0f",
    "open s": ".1f",
    "open MB": ".0f",
    "train MB": ".0f",
    "attack MB": ".0f",
    "own: train MB": ".0f",
    "own: attack MB": ".0f",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON; or is one of the processes."""
    args = _arguments(argv)
    if args.child:
        print(json.dumps(_CHILDREN[args.child](args)))
        return
    records = []
    for count in map(int, args.pictures.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            records.append(_measure(args, pathlib.Path(folder), count))
            print(records[-1], flush=True)
    smallest, largest = records[0], records[-1]
    growth = largest["CPU ms a picture"] / smallest["CPU ms a picture"]
    goals = [
        (f"{largest['pictures']} pictures, each in at most 1.2 times the CPU time of "
         f"{smallest['pictures']}: {growth:.2f}", growth <= 1.2),
    ]  # fmt: skip
    for column in [name for name in smallest if name.endswith("MB") and smallest[name]]:
        ratio = largest[column] / smallest[column]
        goals.append((f"{column}: at most 1.1 times: {ratio:.2f}", ratio <= 1.1))
    timing.finish(args, records, _COLUMNS, goals)
    hours = largest["CPU ms a picture"] * _MILLION / 1000 / 3600
    kilobytes = largest["disk KB a picture"]
    space = kilobytes * _MILLION / 1e6
    print(f"A million such pictures: {hours:.1f} CPU hours, {space:.0f} GB")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "data_scale", rounds=1)
    parser.add_argument("--pictures", default="1000,3000,10000", help="comma-separated")
    parser.add_argument("--file_size", type=int, default=64, help="of files, in pixels")
    parser.add_argument("--image_size", type=int, default=32, help="of what is stored")
    parser.add_argument("--folder", help="for data; else the system's temporary one")
    parser.add_argument("--train", type=int, default=1, help="0: only prepare")
    parser.add_argument(
        "--child", choices=("prepare", "open"), help="a process of its own"
    )
    parser.add_argument("--root", help="of the child")
    return parser.parse_args(argv)


def _measure(args: argparse.Namespace, folder: pathlib.Path, count: int) -> dict:
    """Returns a row."""
    source, store = folder / "taskonomy", folder / "store"
    write(source, count, args.file_size)
    with _Space(store) as space:
        preparation = _run_child(args, "prepare", folder)
    final_bytes = _Space.of(store)
    opening = _run_child(args, "open", folder)
    train, attack = _peak_memory(args, folder) if args.train else (0.0, 0.0)
    lazy_memory = _lazy_peak_memory(folder, count) if args.train else (0.0, 0.0)
    return {
        "pictures": count,
        "find s": preparation["find s"],
        "prepare s": preparation["s"],
        "CPU s": preparation["cpu s"],
        "CPU ms a picture": preparation["cpu s"] / count * 1000,
        "disk KB a picture": final_bytes / count / 1000,
        "at most KB a picture": max(space.most, final_bytes) / count / 1000,
        "prepare MB": preparation["MB"],
        "open s": opening["s"],
        "open MB": opening["MB"],
        "train MB": train,
        "attack MB": attack,
        "own: train MB": lazy_memory[0],
        "own: attack MB": lazy_memory[1],
    }


def write(root: pathlib.Path, count: int, size: int) -> None:
    """Writes a folder of `count` views with sides of `size` pixels."""
    rng = np.random.default_rng(0)
    for domain, kind in _DOMAINS.items():
        ending = domain.replace("segment_semantic", "segmentsemantic")
        paths = []
        for number in range(count):
            folder = root / f"building{number // _BUILDING:04}" / domain
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"point_{number}_view_0_domain_{ending}.png"
            if number < _DISTINCT_VIEWS:
                Image.fromarray(_draw(rng, kind, size)).save(path)
                paths.append(path)
            else:
                os.link(paths[number % _DISTINCT_VIEWS], path)


def _draw(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """Waves with a little noise, which PNG compresses about as well as a room."""
    y, x = np.mgrid[:size, :size] / size
    a, b, c, d = rng.uniform(1, 6, 4)
    wave = 0.5 + 0.25 * np.sin(a * x + 3 * b * y) + 0.25 * np.cos(9 * c * x * y + d)
    if kind == "labels":
        return (wave * 16.9).astype(np.uint8)
    noise = rng.normal(0, 0.004, (size, size, 3))
    if kind == "colours":
        return ((wave[..., None] + noise) * 255).clip(0, 255).astype(np.uint8)
    low = 900 if kind == "depths" else 0
    return (low + (wave + noise[..., 0]) * 5000).clip(0, 60000).astype(np.uint16)


class _Space:
    """Watches a folder every second; `most` is the most bytes that it takes."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._end, self.most = folder, threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Space:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(1):
            self.most = max(self.most, self.of(self._folder))

    @staticmethod
    def of(folder: pathlib.Path) -> int:
        """Bytes that the files in a folder take now."""
        process = subprocess.run(
            ["du", "-sk", folder], capture_output=True, text=True, check=False
        )
        return int((process.stdout.split() or ["0"])[0]) * 1024


def _run_child(args: argparse.Namespace, child: str, folder: pathlib.Path) -> dict:
    """Returns the measurements of a child, which runs in a process of its own."""
    command = [sys.executable, str(pathlib.Path(__file__)), f"--child={child}"]
    command += [f"--image_size={args.image_size}", f"--root={folder}"]
    environment = {**os.environ, "TFDS_DATA_DIR": str(folder / "store")}
    process = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return json.loads(process.stdout.splitlines()[-1])


def _open(args: argparse.Namespace) -> dict:
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    size = (args.image_size, args.image_size)
    source = str(pathlib.Path(args.root, "taskonomy"))
    data.open_source("taskonomy", data_dir=source, image_size=size)
    usage = {"s": time.perf_counter() - start, "cpu s": sum(os.times()[:4]) - cpu}
    return usage | _memory()


def _prepare(args: argparse.Namespace) -> dict:
    start = time.perf_counter()
    finding.scan(str(pathlib.Path(args.root, "taskonomy")))
    return {"find s": time.perf_counter() - start, **_open(args)}


_CHILDREN = {"prepare": _prepare, "open": _open}


def _peak_memory(args: argparse.Namespace, folder: pathlib.Path) -> tuple[float, float]:
    """The peak memory, in MB, of an epoch of training and of an attack."""
    run = folder / "run"
    train = ["--dataset=taskonomy", f"--data_dir={folder / 'taskonomy'}"]
    train += ["--tasks=seg,depth", "--model=tiny", f"--image_size={args.image_size}"]
    train += ["--epochs=1", "--eval_examples=64", "--eval_steps=1", f"--workdir={run}"]
    attack = [f"--ckpt={run}", "--steps=1", "--eps=8", "--nochecks"]
    attack += ["--attack_tasks=seg"]
    return _command(folder, "train", train), _command(folder, "attack", attack)


def own() -> dict:
    """Examples that are made when they are read; DATA_SCALE_COUNT is their number."""
    count = int(os.environ["DATA_SCALE_COUNT"])
    datasets = {
        "train": _LazyExamples(count),
        "validation": _LazyExamples(max(1, count // 5)),
    }
    return datasets | {"classes": ["low", "high"], "readers": 2}


class _LazyExamples:
    """Custom examples that are made on access and not kept."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = np.random.default_rng(row).integers(0, 256, (32, 32, 3), np.uint8)
        grey = image.mean(axis=-1)
        targets = {"seg": (grey > 128).astype(int), "depth": 1 + grey}
        return {"image": image, "targets": targets}


def _lazy_peak_memory(folder: pathlib.Path, count: int) -> tuple[float, float]:
    """Like `_peak_memory`, for custom data that is read lazily."""
    os.environ["DATA_SCALE_COUNT"] = str(count)
    dataset_flag, run = f"--dataset={pathlib.Path(__file__).stem}:own", folder / "own"
    train = [dataset_flag, "--tasks=seg,depth", "--model=tiny", f"--workdir={run}"]
    train += ["--epochs=1", "--eval_examples=64", "--eval_steps=1"]
    attack = [dataset_flag, f"--ckpt={run}", "--steps=1", "--eps=8", "--nochecks"]
    attack += ["--attack_tasks=seg"]
    return _command(folder, "train", train), _command(folder, "attack", attack)


def _command(folder: pathlib.Path, name: str, flags: Sequence[str]) -> float:
    """The peak memory of a command, in MB."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"mtr_tf.{name}", *flags],
        env={**os.environ, "TFDS_DATA_DIR": str(folder / "store")},
        stdout=subprocess.DEVNULL,
        cwd=pathlib.Path(__file__).parent,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"mtr_tf.{name} failed")
    return usage.ru_maxrss * _UNIT / 1e6


def _memory() -> dict:
    """The peak memory of this process, in MB.

    On Linux, `getrusage` includes that of the process that started this one.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return {"MB": int(peak[1]) * 1024 / 1e6}
    return {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 1e6}


if __name__ == "__main__":
    main()
