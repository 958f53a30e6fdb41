# SPDX-License-Identifier: Apache-2.0
"""Which examples are in which batch, and on which replica.

Training batches are pure functions of (seed, step), so a run that was stopped continues
exactly where it was. A global batch is split contiguously over the replicas, so any
number of replicas sees the same global batches. The functions `train_batches` and
`eval_batches` make the input of one worker, to be used as

    strategy.distribute_datasets_from_function(
        lambda context: train_batches(..., context=context)
    )

A batch is {"image": float32 [b, H, W, C] in [0, 1], "targets": {task: int32 [b,
*places] for classes, else float32 [b, *places, channels]}, "masks": {task: float32 [b,
*places]}, "index": int64 [b] (the example's number in its split, -1 for padding),
"position": int64 [b] (the example's place in the global batch), "step": int64 [] (the
number of the global batch)}. Places are those of `tasks.Task`: [H, W] for maps. What a
model takes beside the image is packed into further channels behind it (`data.layout`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf import tasks as tasks_lib
from mtr_tf.data import picture
from mtr_tf.data.augment import Augment
from mtr_tf.data.augment import Tasks
from mtr_tf.errors import InputError
from mtr_tf.tasks import Task

if TYPE_CHECKING:
    from mtr_tf.data.source import Columns

# Without this, AutoGraph spends seconds looking for control flow that is not there.
_without_autograph = tf.autograph.experimental.do_not_convert


def gather(
    columns: Columns,
    tasks: Tasks,
    indices: np.ndarray,
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Reads examples by number as one NumPy batch.

    Only the rows of these examples are touched, so the columns may be memory maps.

    Args:
        columns: the split to read from.
        tasks: records, such as `DatasetInfo.tasks`, or names of the eleven built-in
            tasks. Targets that the picture defines are computed here.
        indices: int [b]; -1 gives padding: zero image, zero targets, zero masks.
        num_classes: for tasks that do not say how many classes they have: labels must
            be below this number; None: their labels are not checked.

    Returns:
        The batch described in the module's docstring without "position" and "step".

    Raises:
        InputError: a known label is not a valid class.
    """
    indices = np.asarray(indices, np.int64)
    valid = indices >= 0
    rows = indices[valid]

    def pad(values: np.ndarray, dtype: type) -> np.ndarray:
        if len(values) == len(indices):
            return values.astype(dtype, copy=False)
        padded = np.zeros((len(indices), *values.shape[1:]), dtype)
        padded[valid] = values
        return padded

    images = columns.images[rows]
    targets, masks = {}, {}
    for name, task in tasks_lib.task_set(tasks).items():
        target, mask = _read_task(columns, task, images, rows)
        count = task.output_channels(num_classes)
        if task.discrete and count:
            _check_labels(name, target, mask, rows, count)
        targets[name] = pad(target, np.int32 if task.discrete else np.float32)
        masks[name] = pad(mask, np.float32)
    image = pad(_pack_inputs(columns, images, rows), np.float32)
    if columns.layout and not valid.all():
        # A model may not be able to take zeros as inputs: padding has an example's.
        example = image[valid][:1] if len(rows) else images_of(columns, np.array([0]))
        channels = columns.layout.image[2]
        image[~valid, ..., channels:] = example[..., channels:]
    return {"image": image, "targets": targets, "masks": masks, "index": indices}


def steps_per_epoch(n: int, batch_size: int) -> int:
    """The number of full batches in `n` examples; InputError if there is none."""
    _check_batch_size(batch_size)
    if n < batch_size:
        raise InputError(
            f"A batch must not be larger than the number of examples, {n}; got a "
            f"batch size of {batch_size}. Give a smaller one."
        )
    return n // batch_size


def train_indices(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The examples of training step `step`: int64 [batch_size], values in [0, n).

    Each epoch has its own permutation; a last batch that is not full is dropped in that
    epoch.

    Raises:
        InputError: n < batch_size, or seed < 0.
    """
    epoch, batch = divmod(int(step), steps_per_epoch(n, batch_size))
    start = batch * batch_size
    return _permutation(n, seed, epoch)[start : start + batch_size]


def eval_indices(n: int, batch_size: int, step: int) -> np.ndarray:
    """The examples of evaluation batch `step`: int64 [batch_size], -1 past the end."""
    indices = np.arange(batch_size, dtype=np.int64) + int(step) * batch_size
    return np.where(indices < n, indices, -1)


def eval_steps(n: int, batch_size: int) -> int:
    """How many batches, the last one padded, hold `n` examples."""
    _check_batch_size(batch_size)
    return -(-n // batch_size)


def train_batches(
    columns: Columns,
    tasks: Tasks,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    num_examples: int | None = None,
    augment: Augment | None = None,
    context: tf.distribute.InputContext | None = None,
    num_classes: int | None = None,
) -> tf.data.Dataset:
    """The training input of one worker: its replicas' shares, step after step.

    Args:
        columns: the split to read from.
        tasks: the tasks to read, as for `gather`.
        batch_size: the size of the global batch.
        seed: at least 0; the order and the augmentation follow from it and the step.
        first_step: the first step to yield.
        last_step: the first step that is no longer yielded.
        num_examples: train on this many examples from the start; None for all.
        augment: flips and crops; None for none.
        context: the number of workers, which of them this is, and the number of
            replicas of all workers; None: one worker with one replica.
        num_classes: as for `gather`.

    Returns:
        A dataset of per-replica batches. Inside a step the worker's replicas follow
        one another.

    Raises:
        InputError: fewer examples than `batch_size` or `num_examples`; `batch_size` not
            divisible by the number of replicas; a negative seed; a crop larger than the
            pictures; a task that cannot be mirrored.
    """
    n = _example_count(columns, num_examples)
    tasks = tasks_lib.task_set(tasks)
    train_indices(n, batch_size, seed, first_step)  # complains now, not in a thread
    if augment is not None:
        height, width = columns.images.shape[1:3]
        augment.check(height, width, tasks)
    batches = _read_shares(
        columns,
        tasks,
        lambda step: train_indices(n, batch_size, seed, step),
        range(first_step, max(first_step, last_step)),
        batch_size,
        context,
        num_classes,
    )
    if augment is not None:
        batches = batches.map(
            _without_autograph(lambda batch: augment(batch, seed, tasks)),
            tf.data.AUTOTUNE,
            deterministic=True,
        )
    return batches.prefetch(tf.data.AUTOTUNE)


def eval_batches(
    columns: Columns,
    tasks: Tasks,
    *,
    batch_size: int,
    num_examples: int | None = None,
    context: tf.distribute.InputContext | None = None,
    wanted: bool = False,
    num_classes: int | None = None,
) -> tf.data.Dataset:
    """The evaluation input of one worker: each example once, in order, padded.

    Args:
        columns: the split to read from.
        tasks: the tasks to read, as for `gather`.
        batch_size: the size of the global batch. All batches are full: the last one is
            padded with zero images of index -1 whose masks are zero.
        num_examples: how many examples from the start; None for all.
        context: as for `train_batches`.
        wanted: whether each example also has `wanted`, the targets and masks of the
            example half the split further on, which a targeted attack aims at.
        num_classes: as for `gather`.

    Returns:
        A dataset of per-replica batches, `eval_steps(num_examples, batch_size)` for
        each of the worker's replicas.

    Raises:
        InputError: `num_examples` below 1 or above what the split has; `batch_size`
            not divisible by the number of replicas.
    """
    n = _example_count(columns, num_examples)
    return _read_shares(
        columns,
        tasks,
        lambda step: eval_indices(n, batch_size, step),
        range(eval_steps(n, batch_size)),
        batch_size,
        context,
        num_classes,
        wanted,
    ).prefetch(tf.data.AUTOTUNE)


def examples(columns: Columns, tasks: Tasks) -> tf.data.Dataset:
    """All examples {"image", "targets", "masks"}, unbatched, in index order.

    They also have "inputs" by name if models take something beside the image.
    """
    layout = columns.layout

    def unbatch(batch: dict[str, Any]) -> dict[str, Any]:
        parts = {name: batch[name] for name in ("image", "targets", "masks")}
        if layout:
            parts["inputs"] = layout.unpack(parts["image"], tf.reshape)
            parts["image"] = parts["image"][..., : layout.image[2]]
        return tf.nest.map_structure(lambda value: value[0], parts)

    return eval_batches(columns, tasks, batch_size=1).map(unbatch)


def check_divisible(batch_size: int, replicas: int) -> None:
    """Raises InputError unless every replica gets an equal part of the batch."""
    if batch_size % replicas:
        lower = batch_size - batch_size % replicas
        choices = f"{lower} or {lower + replicas}" if lower else f"{replicas}"
        raise InputError(
            "The batch size must be divisible by the number of replicas; got "
            f"{batch_size} for {replicas} replicas. Give {choices}."
        )


def replica_slices(batch_size: int, context: tf.distribute.InputContext) -> list[slice]:
    """The parts of the global batch that the replicas of one worker get, in order."""
    replicas = context.num_replicas_in_sync
    check_divisible(batch_size, replicas)
    if replicas % context.num_input_pipelines:
        raise InputError(
            f"Each worker must have the same number of replicas; got {replicas} "
            f"replicas on {context.num_input_pipelines} workers."
        )
    size = batch_size // replicas
    local_replicas = replicas // context.num_input_pipelines
    first = context.input_pipeline_id * local_replicas
    return [
        slice(r * size, (r + 1) * size) for r in range(first, first + local_replicas)
    ]


def _example_count(columns: Columns, num_examples: int | None) -> int:
    """`num_examples`, all if None; InputError unless from 1 to the split's size."""
    n = len(columns)
    if num_examples is None:
        return n
    if not 1 <= num_examples <= n:
        raise InputError(
            f"The number of examples must be from 1 to {n}, the size of the split, "
            f"got {num_examples}."
        )
    return num_examples


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"The batch size must be at least 1, got {batch_size}.")


def _read_shares(
    columns: Columns,
    tasks: Tasks,
    indices_of: Callable[[int], np.ndarray],
    steps: range,
    batch_size: int,
    context: tf.distribute.InputContext | None,
    num_classes: int | None,
    wanted: bool = False,
) -> tf.data.Dataset:
    """Reads the shares of the replicas of one worker, for each of `steps`."""
    slices = replica_slices(batch_size, context or tf.distribute.InputContext())
    tasks = tasks_lib.task_set(tasks)

    def read(number: int) -> dict[str, Any]:
        step, replica = divmod(int(number), len(slices))
        part = slices[replica]
        indices = indices_of(step)[part]
        batch = gather(columns, tasks, indices, num_classes)
        if wanted:
            partner_indices = partners(indices, len(columns))
            partner_batch = gather(columns, tasks, partner_indices, num_classes)
            batch["wanted"] = {key: partner_batch[key] for key in ("targets", "masks")}
        position = np.arange(part.start, part.stop, dtype=np.int64)
        return {**batch, "position": position, "step": np.int64(step)}

    spec = tf.nest.map_structure(
        lambda value: tf.TensorSpec(value.shape, value.dtype),
        read(steps.start * len(slices)),
    )
    numbers = tf.data.Dataset.range(steps.start * len(slices), steps.stop * len(slices))
    return numbers.map(_tensor_function(read, spec), tf.data.AUTOTUNE, True)


def partners(indices: np.ndarray, n: int) -> np.ndarray:
    """The index half the split further on for each example; padding stays padding."""
    return np.where(indices < 0, -1, (indices + n // 2) % n)


def _tensor_function(
    function: Callable[[int], Any], spec: Any
) -> Callable[[tf.Tensor], Any]:
    """Wraps a pure NumPy function, whose result is laid out as `spec`, for tf.data."""
    leaves = tf.nest.flatten(spec)

    def call(number: tf.Tensor) -> Any:
        values = tf.numpy_function(
            lambda n: tf.nest.flatten(function(n)),
            [number],
            [leaf.dtype for leaf in leaves],
            stateful=False,
        )
        for value, leaf in zip(values, leaves, strict=True):
            value.set_shape(leaf.shape)
        return tf.nest.pack_sequence_as(spec, values)

    return _without_autograph(call)


def first_images(columns: Columns, count: int) -> np.ndarray:
    """Returns the first images, or all if there are fewer, float32 in [0, 1]."""
    return images_of(columns, np.arange(min(count, len(columns))))


def first_and_last(columns: Columns, count: int) -> list[float] | None:
    """The means of the first and last of `count` images, to recognise the data by.

    None if the images change from one reading to the next. Not a hash, because the last
    bit of a float may depend on the machine.
    """

    def read() -> list[float]:
        # One by one, because columns keep a copy of the last batch.
        images = [images_of(columns, np.array([row])) for row in (0, count - 1)]
        return [round(float(np.mean(image, dtype=float)), 5) for image in images]

    means = read()
    return means if read() == means else None


def images_of(columns: Columns, rows: np.ndarray) -> np.ndarray:
    """Returns images by number, float32 in [0, 1], with their inputs behind."""
    return _pack_inputs(columns, columns.images[rows], rows)


def _pack_inputs(columns: Columns, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    floats, layout = picture.as_floats(images), columns.layout
    if layout is None:
        return floats
    return layout.pack(
        floats, {name: column[rows] for name, column in columns.inputs.items()}
    )


def _read_task(
    columns: Columns, task: Task, images: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The target and the mask of one task for `rows`, whose `images` are read."""
    stored = columns.targets.get(task.name)
    target = picture.compute(task.name, images) if stored is None else stored[rows]
    mask = columns.masks.get(task.name)
    places = target.shape if task.discrete else target.shape[:-1]
    return target, np.ones(places, bool) if mask is None else mask[rows]


def _check_labels(
    task: str, target: np.ndarray, mask: np.ndarray, rows: np.ndarray, num_classes: int
) -> None:
    """Raises `InputError` for a known label that is not a valid class.

    Args:
      task: The name of the task.
      target: Integer [n, *places].
      mask: [n, *places], zero where the label is not known.
      rows: The numbers of the n examples.
      num_classes: How many classes there are.
    """
    invalid = ((target < 0) | (target >= num_classes)) & np.asarray(mask, bool)
    if invalid.any():
        place = np.argwhere(invalid)[0]
        raise InputError(
            f"Labels of {task} must be from 0 to {num_classes - 1} where they are "
            f"known, but example {rows[place[0]]} has {target[tuple(place)]}; mask "
            "it, or add classes to the data set."
        )


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    if seed < 0:
        raise InputError(f"The seed must be at least 0, got {seed}.")
    order = np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)
    order.flags.writeable = False  # shared by all callers
    return order
