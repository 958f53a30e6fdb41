# SPDX-License-Identifier: Apache-2.0
"""Losses that give one number per image: the mean over the places with a target.

Every loss is called `(target, output, mask)` and returns float32 `[batch]`. `mask` is
`[batch, *places]`: `[batch, height, width]` for maps, whose places are pixels,
`[batch]` for one value per image, or any other shape; zero means "no target here".
Values under a zero (labels of 255 or -1, NaN, infinity) affect neither the loss nor a
gradient, and an image without any valid place has loss 0. Outputs may be of any float
type; all arithmetic is float32.

The mean is per image, so no image's loss scales another's and the division by the batch
or by replicas is left to the caller.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from mtr_tf.errors import InputError


def cross_entropy(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns the softmax cross-entropy in nats, float32 `[batch]`.

    Args:
      target: Classes, integer `[batch, *places]`, in [0, classes) where valid.
      output: Logits, float `[batch, *places, classes]`.
      mask: `[batch, *places]`, zero where there is no target.
    """
    return mean_over_valid(pixel_cross_entropy(target, output, mask), mask)


def pixel_cross_entropy(
    target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    """Returns the cross-entropy of each place, float32 `[batch, *places]`.

    The arguments are those of `cross_entropy`. Masked places have some finite value.
    """
    labels = where_valid(mask, tf.cast(target, tf.int32))
    logits = where_valid(mask, tf.cast(output, tf.float32))
    one_hot = tf.one_hot(labels, logits.shape[-1] or tf.shape(logits)[-1])
    return _negative_log_softmax(one_hot, logits)


@tf.custom_gradient
def _negative_log_softmax(one_hot: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the negative log-softmax of the chosen class, `[batch, *places]`.

    Like tf.nn's cross-entropies, but takes 0.7 of their time on CPUs, and has no second
    derivatives. The log of the softmax's largest value is never far below zero, so it
    loses no precision, unlike the log of the chosen class's value.

    Args:
      one_hot: One at the chosen class, else zero, `[batch, *places, classes]`.
      logits: `[batch, *places, classes]`.
    """
    softmax = tf.nn.softmax(logits)
    class_logit = tf.reduce_sum(tf.math.multiply_no_nan(logits, one_hot), axis=-1)
    largest = tf.reduce_max(logits, axis=-1)
    loss = largest - class_logit - tf.math.log(tf.reduce_max(softmax, axis=-1))

    def gradient(upstream):
        slope = tf.math.multiply_no_nan(softmax - one_hot, upstream[..., tf.newaxis])
        return tf.zeros_like(one_hot), slope

    return loss, gradient


def l1(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns the mean absolute error over places and channels, float32 `[batch]`.

    Args:
      target: Float `[batch, *places, channels]`.
      output: Float, of the target's shape.
      mask: `[batch, *places]`, zero where there is no target.
    """
    return mean_over_valid(tf.abs(difference(target, output, mask)), mask)


def l2(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared error over places and channels, float32 `[batch]`.

    The arguments are those of `l1`.
    """
    return mean_over_valid(tf.square(difference(target, output, mask)), mask)


def binary_cross_entropy(
    target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    """Returns the sigmoid cross-entropy in nats, float32 `[batch]`.

    The mean over places and labels; each label is present or absent independently.

    Args:
      target: 0 or 1 (or a probability), `[batch, *places, labels]`.
      output: Logits, float, of the target's shape.
      mask: `[batch, *places]`, zero where there is no target.
    """
    labels = where_valid(mask, tf.cast(target, tf.float32))
    logits = where_valid(mask, tf.cast(output, tf.float32))
    values = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    return mean_over_valid(values, mask)


def of_keras(
    loss: keras.losses.Loss, probabilities: Callable | None = None
) -> Callable[..., tf.Tensor]:
    """Returns a Keras loss as a function `(target, output, mask)`.

    Most Keras losses are means over the last axis, so they give one number for each
    place; this takes the mean over the valid places. A loss may also give one number
    per image, which is used as it is, with 0 for an image without valid places: targets
    and outputs are 0 where masked, which adds nothing to Keras's own losses of this
    sort (Dice, Tversky, CosineSimilarity). Places of the loss's `ignore_class` are not
    valid. Its `reduction` does not matter.

    Args:
      loss: The loss.
      probabilities: Logits -> probabilities, for classes and labels. Keras's own losses
        that were made without `from_logits` are switched to it if they have it, and
        else get the probabilities.
    """
    is_custom = not is_kerass(loss)
    config = {} if is_custom else loss.get_config()
    changes: dict[str, Any] = {}
    if probabilities and config.get("from_logits") is False:
        # The same loss, but of probabilities it is flat where a model is certain.
        changes["from_logits"] = True
    if type(loss).__name__ in _MEANS and config.get("axis", -1) != -1:
        changes["axis"] = -1  # The mean over places is taken here, of the valid ones.
    if changes:
        loss = type(loss).from_config(config | changes)
    takes_logits = is_custom or "from_logits" in config

    def of_images(target, output, mask):
        target = where_valid(mask, target)
        output = where_valid(mask, not_half(output))
        if probabilities and not takes_logits:
            output = where_valid(mask, probabilities(output))
        values = tf.cast(loss.call(target, output), tf.float32)
        mask = tf.convert_to_tensor(mask)
        if values.shape.rank == 1 and mask.shape.rank > 1:
            return tf.where(count_valid(mask) > 0, values, 0.0)
        if values.shape.rank not in (mask.shape.rank, mask.shape.rank + 1):
            raise InputError(
                "A loss must give one number for each image or each place, but "
                f"{type(loss).__name__} gives one for the whole batch; give its axis, "
                "as in keras.losses.Dice(axis=(1, 2, 3)) for maps of labels, or a "
                "function (target, output, mask) -> [batch]."
            )
        return mean_over_valid(values, mask)

    of_images.__name__ = name_of(loss)
    is_sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    ignored = loss.ignore_class if is_sparse else None
    return of_images if ignored is None else _without(ignored, of_images)


# Keras's own losses that are plain means over their axis.
_MEANS = ("BinaryCrossentropy", "BinaryFocalCrossentropy")


def _without(ignored: int, loss: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Returns the loss of classes without the places whose target is `ignored`."""

    def of_images(target, output, mask):
        mask = tf.convert_to_tensor(mask)
        valid = tf.not_equal(tf.cast(target, tf.int64), ignored)
        return loss(target, output, tf.where(valid, mask, tf.zeros_like(mask)))

    of_images.__name__ = loss.__name__
    return of_images


def is_kerass(loss_or_metric: keras.losses.Loss | keras.metrics.Metric) -> bool:
    """Whether it is Keras's own, so takes probabilities or was made `from_logits`.

    False for a wrapper of a user's function, and for a hinge, which takes scores.
    """
    name = type(loss_or_metric).__name__
    in_keras = type(loss_or_metric).__module__.split(".")[0] == "keras"
    return in_keras and "Hinge" not in name and not name.endswith("Wrapper")


def check_of_classes(loss_or_metric: Any, task: str) -> None:
    """Raises InputError for a Keras loss or metric that cannot take class numbers.

    Those that are not Keras's own are not checked. Of Keras's own, those named Sparse
    can, and IoU and MeanIoU if they take the largest output as the prediction.
    """
    kind = type(loss_or_metric)
    if (
        not isinstance(loss_or_metric, keras.losses.Loss | keras.metrics.Metric)
        or kind.__module__.split(".")[0] != "keras"
        or kind.__name__.startswith("Sparse")
        or kind.__name__.endswith("Wrapper")
    ):
        return
    name = kind.__name__
    if kind in (keras.metrics.IoU, keras.metrics.MeanIoU):
        if loss_or_metric.sparse_y_true and not loss_or_metric.sparse_y_pred:
            return
        use = f"{name} with sparse_y_pred=False and sparse_y_true=True, or "
    else:
        is_loss = isinstance(loss_or_metric, keras.losses.Loss)
        package, twin = "losses" if is_loss else "metrics", f"Sparse{name}"
        exists = hasattr(getattr(keras, package), twin)
        use = f"keras.{package}.{twin}, or " if exists else ""
    raise InputError(
        f"Keras's own losses and metrics for the classes of the task {task} must take "
        f"whole numbers as targets, as those named Sparse do; got {name}. Use {use}a "
        "function (target, output, mask) -> [batch]."
    )


def takes_mask(function: Any) -> bool:
    """Whether it can be called (target, output, mask), as a user's function.

    False for classes, and for Keras's own functions, whose third argument is different.
    """
    if not callable(function) or isinstance(function, type):
        return False
    if str(getattr(function, "__module__", "")).split(".")[0] == "keras":
        return False
    try:
        inspect.signature(function).bind(None, None, None)
    except ValueError:  # Its signature is not known.
        return True
    except TypeError:
        return False
    return True


def of_function(loss: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Returns a user's loss as one that is 0 for an image without valid places.

    Its gradient is 0 there too, whatever the function divides by.
    """

    def of_images(target, output, mask):
        has_valid, output = count_valid(mask) > 0, not_half(output)
        broadcast = tf.reshape(has_valid, (-1, *(1,) * (output.shape.rank - 1)))
        output = tf.where(broadcast, output, tf.stop_gradient(output))
        values = tf.cast(loss(target, output, mask), tf.float32)
        check_per_image("loss", loss, values, has_valid)
        return tf.where(has_valid, values, 0.0)

    of_images.__name__ = name_of(loss)  # TensorBoard shows it.
    return of_images


def not_half(output: tf.Tensor) -> tf.Tensor:
    """Returns an output in half precision as float32, and others unchanged.

    For a user's own losses and metrics, whose sums would overflow; ours cast by
    themselves.
    """
    output = tf.convert_to_tensor(output)
    is_half = output.dtype in (tf.float16, tf.bfloat16)
    return tf.cast(output, tf.float32) if is_half else output


def check_per_image(
    kind: str, function: Any, values: tf.Tensor, reference: tf.Tensor
) -> None:
    """Raises InputError unless a user's function gave `[batch]`, like `reference`.

    Values broadcast to that shape would depend on the batch and its padding.
    """
    if not values.shape.is_compatible_with(reference.shape):
        raise InputError(
            f"A {kind} function must give one number for each image, [batch], but "
            f"{name_of(function)} gives numbers of shape {list(values.shape)}; take "
            "its mean over all axes but the first."
        )


def name_of(loss: Any) -> str:
    """The name of a loss, which is a function or a Keras loss."""
    return str(getattr(loss, "__name__", getattr(loss, "name", type(loss).__name__)))


def difference(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns output - target, 0 where masked: float32 `[batch, *places, channels]`."""
    target = where_valid(mask, tf.cast(target, tf.float32))
    return where_valid(mask, tf.cast(output, tf.float32)) - target


def where_valid(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Returns `values` (`[batch, *places]`, or with channels), with 0 where masked.

    Values are chosen, not multiplied: 0 * NaN would be NaN, in the gradient too.
    """
    valid = tf.cast(mask, tf.bool)
    if has_channels(values, mask):
        valid = valid[..., tf.newaxis]
    return tf.where(valid, values, tf.zeros_like(values))


def mean_over_valid(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns the mean per image over valid places (and channels, if there are any).

    Args:
      values: Float32 `[batch, *places]`, or with channels; anything where masked.
      mask: `[batch, *places]`, zero where there is no target.

    Returns:
      Float32 `[batch]`; 0, with gradient 0, for an image without valid places.
    """
    if has_channels(values, mask):
        values = tf.reduce_mean(values, axis=-1)
    total = tf.reduce_sum(where_valid(mask, values), axis=places(mask))
    return tf.math.divide_no_nan(total, count_valid(mask))


def count_valid(mask: tf.Tensor) -> tf.Tensor:
    """Returns the number of valid places per image, float32 `[batch]`."""
    valid = tf.cast(tf.cast(mask, tf.bool), tf.float32)
    return tf.reduce_sum(valid, axis=places(mask))


def places(mask: tf.Tensor) -> list[int]:
    """Returns the axes of a mask's places: all but the first; none for `[batch]`."""
    return list(range(1, len(mask.shape)))


def has_channels(values: tf.Tensor, mask: tf.Tensor) -> bool:
    """Whether values have an axis of channels beside those of their mask."""
    return len(values.shape) == len(mask.shape) + 1
