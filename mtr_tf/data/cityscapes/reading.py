# SPDX-License-Identifier: Apache-2.0
"""Opens Cityscapes: finds its files, prepares them once, then reads on request."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from mtr_tf import tasks as tasks_lib
from mtr_tf.data import picture
from mtr_tf.data import prepared
from mtr_tf.data.cityscapes import files
from mtr_tf.data.cityscapes import layout
from mtr_tf.data.cityscapes.cityscapes_dataset_builder import CityscapesConfig
from mtr_tf.data.cityscapes.cityscapes_dataset_builder import MtrCityscapes
from mtr_tf.data.cityscapes.files import Files
from mtr_tf.data.cityscapes.layout import Kind
from mtr_tf.data.source import Column
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Groups
from mtr_tf.data.source import Source
from mtr_tf.data.source import checked_size
from mtr_tf.errors import InputError

_REGISTER = "free of charge at cityscapes-dataset.com, after registration"

Jobs = dict[str, dict[str, Any]]
"""{CITY_SEQUENCE_FRAME: what `examples.make` is given}."""


def open_source(
    *,
    image_size: tuple[int, int] | None = None,
    data_dir: str | None = None,
    tasks: Sequence[str] | None = None,
    depth_target: str = "disparity",
) -> Source:
    """Opens Cityscapes, and prepares it first if that has not been done.

    Prepared data go to $TFDS_DATA_DIR, else ~/tensorflow_datasets, in a folder for each
    image size, depth target and listing of files. A missing file of labels or depth
    (or of the camera, where it is needed) makes that target unknown for the image; the
    number of missing files is logged. `test` exists if its labels do; those of the
    official archive are all void. Files of tasks that are not asked for may be broken:
    then the data are prepared without them, in a folder of their own.

    Args:
      image_size: (height, width); None for the paper's (336, 680), for which see
        `resizing`.
      data_dir: the folder with the archives or the extracted folders (see `files`).
      tasks: the tasks whose targets are read; None for all that have files.
      depth_target: what `depth` is, one of `layout.DEPTHS`; see `examples`. With
        `layout.RELEASED` the target of `autoencoder` is the `standardised` picture, as
        in the paper's code, instead of the picture in [0, 1].

    Raises:
      InputError: files are missing, damaged or invalid, or a whole split has none for a
        task that is asked for; the image size is not positive; prepared data cannot be
        written.
    """
    size = checked_size(image_size, layout.IMAGE_SIZE)
    if depth_target not in layout.DEPTHS:
        raise InputError(
            f"--depth_target must be one of {', '.join(layout.DEPTHS)}, got "
            f"{depth_target!r}."
        )
    root = _folder(data_dir)
    needs = {"seg": [layout.LABEL], "depth": [layout.DISPARITY]}
    if depth_target in layout.NEED_CAMERA:
        needs["depth"].append(layout.CAMERA)
    file_tasks = [task for task in needs if tasks is None or task in tasks]
    kinds = [layout.IMAGE, *(kind for task in file_tasks for kind in needs[task])]
    files_by_kind = _find_files(root, kinds, needs)
    available_tasks = _available_tasks(files_by_kind, needs, root, depth_target, tasks)
    file_tasks = [task for task in file_tasks if task in available_tasks]
    kinds = [layout.IMAGE, *(kind for task in file_tasks for kind in needs[task])]
    jobs = _jobs(files_by_kind, kinds, root, size, depth_target)
    _check_splits(jobs, {task: needs[task] for task in file_tasks}, root)
    _log_missing(jobs, kinds[1:])
    builder = _prepare(root, size, depth_target, jobs, kinds)
    is_released = depth_target == layout.RELEASED
    unit, depth_range = layout.DEPTHS[depth_target]
    ranges = {**picture.RANGES, "depth": depth_range}
    if is_released:
        ranges["autoencoder"] = layout.STANDARDISED
    info = DatasetInfo(
        name="cityscapes",
        image_shape=(*size, 3),
        classes=layout.CLASSES,
        colors=layout.COLORS,
        tasks=tasks_lib.task_set(available_tasks),
        splits={split: len(split_jobs) for split, split_jobs in jobs.items()},
        mean=layout.MEAN,
        std=layout.STD,
        ranges=ranges,
        units={"depth": unit},
    )
    with_autoencoder = is_released and (tasks is None or "autoencoder" in tasks)
    load = functools.partial(_columns, builder, file_tasks, with_autoencoder)
    return Source(info, functools.cache(load))


def standardised(images: np.ndarray) -> np.ndarray:
    """The released code's target of `autoencoder`: its models' input.

    Args:
      images: [..., 3] uint8, or float in [0, 1].

    Returns:
      float32 of the same shape, of mean 0 and standard deviation 1 over the data set.
    """
    mean, std = (np.array(values, np.float32) for values in (layout.MEAN, layout.STD))
    return (picture.as_floats(images) - mean) / std


def _folder(data_dir: str | None) -> pathlib.Path:
    description = (
        f"the folder with {layout.IMAGE.archive}, {layout.LABEL.archive} and "
        f"{layout.DISPARITY.archive}, or with what is in them"
    )
    if not data_dir:
        raise InputError(
            "Cityscapes is not downloaded automatically (you can get it "
            f"{_REGISTER}); give --data_dir: {description}."
        )
    root = pathlib.Path(data_dir).expanduser().resolve()
    if not root.is_dir():
        raise InputError(f"--data_dir must be {description}, got '{data_dir}'.")
    return root


def _find_files(
    root: pathlib.Path, kinds: Sequence[Kind], needs: Mapping[str, Sequence[Kind]]
) -> dict[Kind, Files | None]:
    """The files of `kinds`, and of other tasks' kinds unless they are damaged."""
    files_by_kind = {kind: files.find(root, kind) for kind in kinds}
    for kind in itertools.chain.from_iterable(needs.values()):
        if kind not in files_by_kind:
            try:
                files_by_kind[kind] = files.find(root, kind)
            except InputError as error:
                logging.warning("Cityscapes: not needed, so left out: %s", error)
                files_by_kind[kind] = None
    return files_by_kind


def _available_tasks(
    files_by_kind: dict[Kind, Files | None],
    needs: Mapping[str, Sequence[Kind]],
    root: pathlib.Path,
    depth_target: str,
    tasks: Sequence[str] | None,
) -> tuple[str, ...]:
    """The tasks that have files; InputError if one of `tasks` has none."""
    reasons = {"seg": "", "depth": f" with --depth_target={depth_target}"}
    missing_kinds = {
        task: [k for k in kinds if files_by_kind[k] is None]
        for task, kinds in needs.items()
    }
    for task, kinds in missing_kinds.items():
        if kinds and task in (tasks or ()):
            _raise_missing(kinds[0], root, f"the task {task}{reasons[task]}")
    if files_by_kind[layout.IMAGE] is None:
        _raise_missing(layout.IMAGE, root, "Cityscapes")
    return (
        *(task for task, kinds in missing_kinds.items() if not kinds),
        *picture.TASKS,
    )


def _raise_missing(kind: Kind, root: pathlib.Path, reason: str) -> None:
    problem = f"'{root}' has neither; you can get them {_REGISTER}"
    existing_places = [
        place for place in (kind.folder, kind.archive) if (root / place).exists()
    ]
    if existing_places:
        problem = (
            f"'{root / existing_places[0]}' has no train/CITY/CITY_SEQUENCE_FRAME"
            f"{kind.suffixes[-1]} in it; extract or download {kind.archive} again"
        )
    raise InputError(
        f"{reason} needs {kind.archive} or the folder {kind.folder} in --data_dir, "
        f"but {problem}."
    )


def _check_splits(
    jobs: Mapping[str, Jobs], needs: Mapping[str, Sequence[Kind]], root: pathlib.Path
) -> None:
    """Raises `InputError` if a task has no files in all of train or validation."""
    for split in ("train", "validation"):
        for task, kinds in needs.items():
            has_files = [
                all(job[kind.folder] for kind in kinds)
                for job in jobs.get(split, {}).values()
            ]
            if has_files and not any(has_files):
                folders = " and ".join(kind.folder for kind in kinds)
                raise InputError(
                    f"the task {task} needs {folders} for pictures of {split}, but "
                    f"'{root}' has these files for none of its {len(has_files)} "
                    f"pictures; extract {kinds[0].archive} again, or remove these "
                    "pictures."
                )


def _jobs(
    files_by_kind: dict[Kind, Files | None],
    kinds: Sequence[Kind],
    root: pathlib.Path,
    size: tuple[int, int],
    depth_target: str,
) -> dict[str, Jobs]:
    """The jobs by split that has pictures, in the order of the pictures' names."""
    jobs = {}
    for split in layout.SPLITS:
        split_files = {
            kind: (files_by_kind.get(kind) or {}).get(split, {})
            for kind in layout.KINDS
        }
        names = _names({kind: split_files[kind] for kind in kinds}, root, split)
        if not names or (split == "test" and not split_files[layout.LABEL]):
            continue
        jobs[split] = {
            name: {
                "size": size,
                "depth_target": depth_target,
                **{k.folder: _fields(k, split_files[k], name) for k in layout.KINDS},
            }
            for name in names
        }
    if not jobs:
        raise InputError(
            f"{layout.IMAGE.folder} of '{root}' must hold pictures of train or val as "
            "train/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png, but has none; extract the "
            "archive again."
        )
    return jobs


def _names(
    split_files: dict[Kind, dict[str, files.File]], root: pathlib.Path, split: str
) -> list[str]:
    """Names of a split's pictures; InputError if labels or depth have no picture."""
    images = {_core(layout.IMAGE, name) for name in split_files[layout.IMAGE]}
    if not images:
        return []
    for kind in (layout.LABEL, layout.DISPARITY):
        for name, file in split_files.get(kind, {}).items():
            if _core(kind, name) not in images:
                raise InputError(
                    f"'{file}' needs a picture, but "
                    f"{_core(kind, name)}{layout.IMAGE.suffixes[0]} is not in "
                    f"{layout.IMAGE.folder}/{layout.SPLITS[split]} of '{root}'; "
                    "extract it again."
                )
    return sorted(images)


def _core(kind: Kind, name: str) -> str:
    """CITY_SEQUENCE_FRAME of a file's name."""
    for suffix in kind.suffixes:
        name = name.removesuffix(suffix)
    return name


def _fields(
    kind: Kind, kind_files: dict[str, files.File], name: str
) -> tuple[str, str, int] | None:
    """A picture's file of a kind, as fields for JSON; None if there is none."""
    for suffix in kind.suffixes:
        if name + suffix in kind_files:
            return dataclasses.astuple(kind_files[name + suffix])
    return None


def _prepare(
    root: pathlib.Path,
    size: tuple[int, int],
    depth_target: str,
    jobs: dict[str, Jobs],
    kinds: Sequence[Kind],
) -> MtrCityscapes:
    """The builder of `jobs`, prepared if it is not yet.

    It has all files, so that runs of other tasks can use it, too; but if a file of
    another kind is broken, it has only the files of `kinds`.
    """
    maker = functools.partial(_maker, root, size, depth_target)
    full_maker, folder = maker(jobs), prepared.root_folder()
    unused_folders = [kind.folder for kind in layout.KINDS if kind not in kinds]
    reduced_jobs = {
        split: {
            name: job | dict.fromkeys(unused_folders)
            for name, job in split_jobs.items()
        }
        for split, split_jobs in jobs.items()
    }
    place = "the variable TFDS_DATA_DIR"
    if reduced_jobs == jobs:
        return prepared.prepare(full_maker, folder, "Cityscapes", place)
    reduced_maker = maker(reduced_jobs)
    if (
        not prepared.opened(full_maker, folder)[1]
        and prepared.opened(reduced_maker, folder)[1]
    ):
        return prepared.prepare(reduced_maker, folder, "Cityscapes", place)
    try:
        return prepared.prepare(full_maker, folder, "Cityscapes", place)
    except InputError as error:
        builder = prepared.prepare(reduced_maker, folder, "Cityscapes", place)
        logging.warning(
            "Cityscapes: prepared only for the tasks that are asked for, because of "
            "the others' files: %s",
            error,
        )
        return builder


def _maker(
    root: pathlib.Path, size: tuple[int, int], depth_target: str, jobs: dict[str, Jobs]
) -> Callable[[pathlib.Path], MtrCityscapes]:
    """Returns a function that gives the builder of `jobs` in a folder."""
    # The first two fields are TFDS's, where no type checker sees them.
    config = CityscapesConfig(
        # pyrefly: ignore
        name=f"{size[0]}x{size[1]}-{depth_target}-{_fingerprint(jobs)}",
        # pyrefly: ignore
        description=f"{size[0]} x {size[1]} pixels, depth: {depth_target}.",
        size=size,
        depth_target=depth_target,
        source=str(root),
        jobs=jobs,
    )
    return lambda folder: MtrCityscapes(data_dir=folder, config=config)


def _log_missing(jobs: dict[str, Jobs], kinds: Sequence[Kind]) -> None:
    """Logs in one line how many files of some kinds are missing, if any."""
    counts = [
        f"{missing_count} of {len(split_jobs)} in {split} have no {kind.folder}"
        for split, split_jobs in jobs.items()
        for kind in kinds
        if (missing_count := sum(not job[kind.folder] for job in split_jobs.values()))
    ]
    if counts:
        logging.warning(
            "Cityscapes: of the pictures, %s file; they are used with everything "
            "masked there.", ", ".join(counts)
        )  # fmt: skip


def _fingerprint(jobs: dict[str, Jobs]) -> str:
    """A hash of the names and sizes of all files, without their folders."""
    listing = []
    for split, split_jobs in jobs.items():
        for name, job in split_jobs.items():
            fields = [job[kind.folder] for kind in layout.KINDS]
            parts = [f and (pathlib.PurePath(f[1]).name, f[2]) for f in fields]
            listing.append((split, name, parts))
    return prepared.fingerprint(listing)


def _columns(
    builder: MtrCityscapes,
    file_tasks: Sequence[str],
    with_autoencoder: bool,
    split: str,
) -> Columns:
    """The arrays of a split, read from the files on access.

    `with_autoencoder` adds the target of `autoencoder` of the released code.
    """

    def column(name: str) -> prepared.Column:
        return prepared.Column(builder, split, name)

    names, images = tuple(builder.builder_config.jobs[split]), column("image")
    targets: dict[str, Column] = {task: column(task) for task in file_tasks}
    if with_autoencoder:
        images = prepared.Remembered(images)
        targets["autoencoder"] = prepared.Derived(
            images, standardised, images.shape[1:], np.float32
        )
    return Columns(
        images=images,
        targets=targets,
        masks={task: column(f"{task}_known") for task in file_tasks},
        names=names,
        groups=Groups([name.split("_")[0] for name in names], "cities"),
        original_sizes=column("original_size"),
    )
