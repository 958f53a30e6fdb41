# SPDX-License-Identifier: Apache-2.0
"""What gradients show: how vulnerable a model is, how tasks share a perturbation.

For an image x and tasks t, r_t is the gradient of the task's own loss with respect to
the image. To first order the worst perturbation in the l_p ball of radius eps raises a
loss by eps times the dual norm of its gradient (l1 for linf, l2 for l2). Joint attacks
raise means of losses, so the norm of the mean gradient over k tasks is what counts:

    E ||(1/k) sum_t r_t||_2^2 = (1/k^2) sum_ij C_ij,   C_ij = E <r_i, r_j>      (exact)
                              = sigma^2 (1 + (k - 1) rho) / k     (on average over sets)

with sigma^2 the mean of C's diagonal and rho sigma^2 the mean off it (Mao et al., ECCV
2020, arXiv 2007.07236, theorem for correlated tasks; rho = 0 gives 1 / sqrt(k)). By
Jensen E||.|| is at most the root of that. The norm of a sum is k times that of the
mean. The same holds for output pixels in place of tasks.

Sets of M tasks are numbered 1 ... 2^M - 1: task t is in set s if bit t of s is one; set
s is at place s - 1 of all arrays. Nothing here mixes images. N is images, S = 2^M - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import base
from mtr_tf.attacks import channels as channels_lib
from mtr_tf.errors import InputError
from mtr_tf.models import folding
from mtr_tf.models import stateless
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import losses as losses_lib
from mtr_tf.tasks import metrics

NORMALISATIONS = ("raw", "unit", "dataset")
MOST_TASKS = 14  # They have 16 383 sets.
_CHUNK = 2**22  # Numbers in memory at a time for the sums of all sets.


def check_count(count: int) -> None:
    """Raises `InputError` for more than `MOST_TASKS` tasks."""
    if count > MOST_TASKS:
        raise InputError(
            f"--measure=tasks is about all sets of at most {MOST_TASKS} tasks, but "
            f"{count} tasks have 2^{count} - 1 sets; choose fewer with --tasks."
        )


# On a batch, in TensorFlow.


def task_gradients(
    model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
    images: tf.Tensor,
    targets: Mapping[str, tf.Tensor],
    masks: Mapping[str, tf.Tensor],
    tasks: Sequence[str] | TaskSet,
    channels: Sequence[int] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Each task's loss and its gradient with respect to each image.

    One forward pass and a backward pass per task. Gradients are per image as long as
    the model does not mix images, as no model does with `training=False`.

    Args:
      model: Images -> {task: output}; a Keras model is called with `training=False`,
        with its batch norms folded where possible.
      images: Float `[batch, H, W, C]` in [0, 1].
      targets: {task: `[batch, *places]` or `[batch, *places, channels]`}.
      masks: {task: `[batch, *places]`}, zero where a place does not count.
      tasks: Names of the eleven or a set of records, M of them.
      channels: Numbers of the image channels whose gradients are returned; empty: all.

    Returns:
      (losses, gradients): float32 `[batch, M]` and `[batch, M, H * W * C]`, with C
      the number of these channels; zeros where no pixel counts, and where a loss does
      not depend on the image.

    Raises:
      InputError: The model lacks a task.
    """
    images = tf.convert_to_tensor(images)
    old_count = len(base.graph_operations())
    tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
    with tape:
        tape.watch(images)
        outputs = _outputs(model, images, tasks)
        by_task = tasks_lib.task_losses(tasks, outputs, targets, masks)
    operations = base.graph_operations()[old_count:]
    # Eager execution leaves no list of operations. Scaling float32, too, changes
    # nothing but the time where gradients are tiny.
    half = base.computes_in_float16(operations)
    if tf.executing_eagerly():
        half = not isinstance(model, keras.Model) or _is_half(model)
    slopes = [base.image_gradient(tape, by_task[t], images, half) for t in tasks]
    stack = channels_lib.chosen(tf.stack(slopes, axis=1), channels)
    size = tf.reduce_prod(tf.shape(stack)[2:])
    shape = (tf.shape(images)[0], len(tasks), size)
    gradients = tf.reshape(tf.cast(stack, tf.float32), shape)
    gradients = tf.ensure_shape(
        gradients, (images.shape[0], len(tasks), stack.shape[2:].num_elements())
    )
    return tf.stack([by_task[task] for task in tasks], axis=1), gradients


def _is_half(model: keras.Model) -> bool:
    """Whether some layer computes in float16."""
    layers = model._flatten_layers()
    return any(getattr(layer, "compute_dtype", "") == "float16" for layer in layers)


def _outputs(model, images, tasks) -> Mapping[str, tf.Tensor]:
    if folding.can_fold(model, tuple(tasks)):
        return folding.fold(model, tuple(tasks))(images)
    outputs = stateless.outputs(model, images)
    by_task = outputs if isinstance(outputs, Mapping) else {}
    missing = [task for task in tasks if task not in by_task]
    if missing:
        raise InputError(
            "The model must return a dict with an output for each measured task, but "
            f"{', '.join(missing)} is not among its outputs, "
            f"{', '.join(by_task) or 'none'}."
        )
    return outputs


def valid(masks: Mapping[str, tf.Tensor], tasks: Iterable[str]) -> tf.Tensor:
    """Whether any pixel of each image and task counts, bool `[batch, M]`."""
    return tf.stack([losses_lib.count_valid(masks[t]) > 0 for t in tasks], axis=1)


def gram(gradients: tf.Tensor) -> tf.Tensor:
    """Inner products <r_i, r_j> of `[batch, M, D]`, float64 `[batch, M, M]`."""
    vectors = tf.cast(gradients, tf.float64)
    return tf.matmul(vectors, vectors, transpose_b=True)


def l1_of_sums(gradients: tf.Tensor) -> tf.Tensor:
    """The l1 norm of the sum of gradients over every set of tasks.

    Sums over all sets are built by adding one task after another to the existing sums,
    which takes one addition per set and entry.

    Args:
      gradients: float32 `[batch, M, D]`, of static shape but for the batch.

    Returns:
      float64 `[batch, 2^M - 1]`, in the order of set numbers.

    Raises:
      InputError: More than `MOST_TASKS` tasks.
    """
    check_count(gradients.shape[1])
    batch, count = tf.shape(gradients)[0], gradients.shape[1]
    size = gradients.shape[2]
    chunk = max(1, min(size, _CHUNK // (2**count * (gradients.shape[0] or 1))))
    parts = -(-size // chunk)
    padded = tf.pad(gradients, ((0, 0), (0, 0), (0, parts * chunk - size)))
    padded = tf.reshape(padded, (batch, count, parts, chunk))

    def norms(part):
        sums = tf.zeros_like(part[:, :1])
        for task in range(count):
            sums = tf.concat([sums, sums + part[:, task : task + 1]], axis=1)
        return tf.cast(tf.reduce_sum(tf.abs(sums), axis=2), tf.float64)

    by_part = tf.map_fn(
        norms,
        tf.transpose(padded, (2, 0, 1, 3)),
        fn_output_signature=tf.TensorSpec((None, 2**count), tf.float64),
    )
    return tf.reduce_sum(by_part, axis=0)[:, 1:]


# Over all images, in NumPy.


def members(count: int) -> np.ndarray:
    """Which tasks are in which set, float64 0/1 `[2^count - 1, count]`.

    Raises:
      InputError: More than `MOST_TASKS` tasks.
    """
    check_count(count)
    numbers = np.arange(1, 2**count)[:, np.newaxis]
    return ((numbers >> np.arange(count)) & 1).astype(np.float64)


def scales(norms: np.ndarray, normalisation: str) -> np.ndarray:
    """The factor that normalises each gradient.

    Args:
      norms: `[N, M]`, each gradient's norm (the one that is measured); NaN where an
        image lacks the task.
      normalisation: "raw": 1. "unit": 1 / norm, so that each gradient has norm 1.
        "dataset": 1 / root mean square of the task's norms over the images.

    Returns:
      `[N, M]`; NaN where an image lacks the task, or the norm to divide by is 0.
    """
    if normalisation == "raw":
        return np.where(np.isnan(norms), np.nan, 1.0)
    if normalisation == "unit":
        return _inverse(norms)
    inverse = _inverse(root_mean_square(norms))
    return np.where(np.isnan(norms), np.nan, inverse)


def root_mean_square(values: np.ndarray) -> np.ndarray:
    """The root mean square over the first axis without NaN; NaN where all are NaN."""
    return np.sqrt(mean(np.square(values)))


def mean(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis without NaN; NaN where all are NaN."""
    has_value = ~np.isnan(values)
    total = np.where(has_value, values, 0.0).sum(axis=0)
    return metrics.divide(total, has_value.sum(axis=0))


def l2_of_sums(products: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The l2 norm of the sum of gradients over every set of tasks: sqrt(1' G 1).

    Args:
      products: Gram matrices `[N, M, M]`.
      scale: As `scales` returns it, `[N, M]`.

    Returns:
      `[N, S]`; NaN for sets with a task whose scale is NaN.
    """
    membership = members(scale.shape[1])
    scale_or_0 = np.nan_to_num(scale)
    scaled = products * scale_or_0[:, :, np.newaxis] * scale_or_0[:, np.newaxis, :]
    squares = np.sum((membership @ scaled) * membership, axis=2)
    return without_missing(np.sqrt(np.maximum(squares, 0)), scale)


def without_missing(norms: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`[N, S]` norms, NaN for sets with a task whose scale `[N, M]` is NaN."""
    missing = np.isnan(scale).astype(np.float64) @ members(scale.shape[1]).T
    return np.where(missing > 0, np.nan, norms)


def covariance(products: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """C_ij = E <s_i r_i, s_j r_j>, `[M, M]`, over the images that have both tasks.

    With unit scales of l2 norms this is the matrix of mean cosines.
    """
    return mean(products * scale[:, :, np.newaxis] * scale[:, np.newaxis, :])


def correlation(matrix: np.ndarray) -> np.ndarray:
    """C_ij / sqrt(C_ii C_jj) of `[M, M]`."""
    inverse = _inverse(np.sqrt(np.diagonal(matrix)))
    return matrix * inverse[:, np.newaxis] * inverse


def predicted(norms: np.ndarray, correlations: np.ndarray) -> np.ndarray:
    """The norm of the mean gradient over every set, from norms and correlations.

    sqrt(sum_ij n_i n_j rho_ij) / k over the set's k tasks. With root mean square l2
    norms that is sqrt(1' C 1) / k, exactly the root mean square of the norm. With l1
    norms it would hold for many independent Gaussian entries.

    Args:
      norms: `[M]`, each task's root mean square norm.
      correlations: `[M, M]`, as `correlation` returns it.

    Returns:
      `[S]`; NaN for sets with a task or a pair whose norm or correlation is NaN.
    """
    membership = members(len(norms))
    products = correlations * norms[:, np.newaxis] * norms
    squares = np.sum((membership @ np.nan_to_num(products)) * membership, axis=1)
    missing = np.sum((membership @ np.isnan(products)) * membership, axis=1)
    squares = np.where(missing > 0, np.nan, squares)
    return np.sqrt(np.maximum(squares, 0)) / membership.sum(axis=1)


def mean_correlation(matrix: np.ndarray) -> float:
    """rho: the mean of C off its diagonal over the mean on it; NaN for one task."""
    count = len(matrix)
    trace = np.trace(matrix)
    remainder = matrix.sum() - trace
    return (
        float(remainder / (count - 1) / trace) if count > 1 and trace else float("nan")
    )


def factor(rho: float, count: np.ndarray | Sequence[int]) -> np.ndarray:
    """sqrt((1 + (k - 1) rho) / k): the norm for k tasks (or pixels) over that for 1."""
    count = np.asarray(count, np.float64)
    return np.sqrt(np.maximum((1 + (count - 1) * rho) / count, 0))


def fit_factor(
    count: np.ndarray | Sequence[int], norms: np.ndarray
) -> tuple[float, float]:
    """(sigma, rho) with norms ~= sigma * factor(rho, count).

    The square is a line in 1 / count, sigma^2 (rho + (1 - rho) / count), fitted by
    relative least squares. NaN for fewer than two counts or norms of zero.

    Args:
      count: `[K]`, numbers of pixels.
      norms: `[K]`, root mean square norms of the mean gradient over that many pixels.
    """
    count, squares = np.asarray(count, np.float64), np.square(norms)
    if len(count) < 2 or not (squares > 0).all():
        return float("nan"), float("nan")
    columns = np.stack([1 / squares, 1 / count / squares], axis=1)
    (a, b), *_ = np.linalg.lstsq(columns, np.ones(len(count)), rcond=None)
    return float(np.sqrt(max(a + b, 0))), float(a / (a + b))


def slope(count: np.ndarray | Sequence[int], values: np.ndarray) -> np.ndarray:
    """The least-squares slope of log values `[..., K]` over log counts `[K]`, `[...]`.

    1 / sqrt(count) has slope -1/2. NaN where a value is not above 0, or for one count.
    """
    x = np.log(np.asarray(count, np.float64))
    x = x - x.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(np.asarray(values, np.float64))
        slopes = (y @ x) / (x @ x) if len(x) > 1 else np.full(y.shape[:-1], np.nan)
    return np.where(np.isfinite(slopes), slopes, np.nan)


def by_size(norms: np.ndarray) -> np.ndarray:
    """Means over the sets of each size 1 ... M: `[..., S]` -> `[..., M]`."""
    count = int(np.log2(norms.shape[-1] + 1))
    sizes = members(count).sum(axis=1)
    return np.stack(
        [norms[..., sizes == size].mean(axis=-1) for size in range(1, count + 1)], -1
    )


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 / values; NaN for 0."""
    return metrics.divide(np.ones_like(values), values)
