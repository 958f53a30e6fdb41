# SPDX-License-Identifier: Apache-2.0
"""What a task is, the kinds of tasks, and sets of tasks.

A task says what one output of a model means and how it is scored. Targets are int32
`[batch, *places]` for classes, float32 `[batch, *places, channels]` otherwise; outputs
always have channels; masks are float32 `[batch, *places]`, zero where there is no
target. Places are `(height, width)` for maps, `()` for one value per image, and may be
anything else.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.errors import is_real
from mtr_tf.errors import is_whole
from mtr_tf.tasks import cards
from mtr_tf.tasks import losses as losses_lib
from mtr_tf.tasks import metrics as metrics_lib
from mtr_tf.tasks import palettes
from mtr_tf.tasks.metrics import Metric
from mtr_tf.tasks.names import RESERVED
from mtr_tf.tasks.names import resolve

Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# (task, target or output, DatasetInfo, mask or None) -> uint8 RGB
Paint = Callable[["Task", np.ndarray, Any, np.ndarray | None], np.ndarray]

_KIND_DEFAULT: Any = None  # Filled in when a task is made.
MAP = 2  # Axes of the places of a map: height and width.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]+")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What tasks of a kind have by default.

    Attributes:
      what: A few words that say what an output is.
      loss: `(target, output, mask)` -> float32 `[batch]`.
      metrics: (unit, axes of places) -> the metrics without the loss, headline first.
      paint: What `Task.to_rgb` calls for maps.
      channels: Of the output; None where a task must say, or its classes do.
      discrete: Whether targets are classes, without an axis of channels.
      probabilities: What makes probabilities of outputs that are logits.
      mirror: See `Task`; for outputs with `channels`.
    """

    what: str
    loss: Loss
    metrics: Callable[[str, int], tuple[Metric, ...]]
    paint: Paint
    channels: int | None = None
    discrete: bool = False
    probabilities: Callable[[tf.Tensor], tf.Tensor] | None = None
    mirror: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """What the model, the loss, metrics and pictures need to know about a task.

        Task("flow", kind="numbers", channels=2, unit="px", mirror=(-1, 1))
        Task("scene", kind="classes", classes=("indoor", "outdoor"), places=0)

    Attributes:
      name: The name used in code, files and tables: at least two characters out of
        letters, digits, `_`, `-` and `.`.
      kind: A key of KINDS: "classes", "labels", "numbers", "directions" or "image".
        By default it is "classes" if classes are named, otherwise "numbers".
      channels: The channels of the output. For classes and labels, how many there are:
        as many as `classes` has names; for classes, None means as many as the data set
        has.
      places: How many axes the places have: 2 for maps, 0 for one value per image; None
        until the data are known.
      loss: `(target, output, mask)` -> float32 `[batch]`, or a Keras loss; None for the
        kind's loss. With classes and labels, functions, hinges and a loss whose class
        is yours get logits; Keras's other losses get what they were made for, by their
        `from_logits`. Of Keras's own losses and metrics, classes take those named
        Sparse.
      metrics: The metrics, with the headline first and the loss last. When you make a
        task, give them without the loss, or one alone: each is a `Metric`, a Keras
        metric, or a function `(target, output, mask)` -> `[batch]`, see
        `metrics.as_metric`; empty for the kind's metrics.
      unit: The unit of the target; "" for a plain number.
      classes: The names of classes or labels, in order; empty: those of the data set.
      colors: One RGB triple of 0-255 per class; empty: those of the data set.
      paint: The function that `to_rgb` calls; None for the kind's.
      mirror: What each channel's values are multiplied by when an image is mirrored
        left to right; None if they do not change. Not for classes.
      letter: The paper's letter for it, case-sensitive; "" for your own task.
      aliases: Other names that attacks and examples take, in any case; training takes
        only those of the eleven.
      more: Metrics that are also computed, on request (`more_metrics`); nothing is
        judged by them.
      ignored: Classes that no target has, because a data set says that their labels
        mean "no label" (its "ignore_label", which masks them); mean IoUs leave them
        out.
    """

    name: str
    kind: str = ""
    channels: int | None = None
    places: int | None = None
    loss: Loss = _KIND_DEFAULT
    metrics: tuple[Metric, ...] = ()
    unit: str = ""
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    paint: Paint = _KIND_DEFAULT
    mirror: tuple[float, ...] | None = None
    letter: str = ""
    aliases: tuple[str, ...] = ()
    more: tuple[Metric, ...] = ()
    ignored: tuple[int, ...] = ()
    # Whether the metrics are the kind's, and follow from the places.
    kinds_metrics: bool = dataclasses.field(init=False, repr=False, default=True)

    def __post_init__(self):
        """Fills in the kind's defaults.

        Raises:
          InputError: the fields are not as described, or do not fit together.
        """
        fill = functools.partial(object.__setattr__, self)  # It is frozen.
        for name, (what, fits) in _LISTS.items():
            fill(name, _field_tuple(self, name, what, fits))
        if self.mirror is not None:
            factors = _field_tuple(self, "mirror", "numbers", is_real)
            fill("mirror", tuple(map(float, factors)))
        for name in ("channels", "places"):  # NumPy's whole numbers, too.
            if is_whole(getattr(self, name)):
                fill(name, int(getattr(self, name)))
        fill("kind", self.kind or ("classes" if self.classes else "numbers"))
        _check(self)
        kind = KINDS[self.kind]
        fill("colors", tuple(tuple(map(int, color)) for color in self.colors))
        fill("ignored", tuple(map(int, self.ignored)))
        if self.channels is None:
            fill("channels", len(self.classes) or kind.channels)
        if self.mirror is None and self.channels == kind.channels:
            fill("mirror", kind.mirror)
        for loss_or_metric in (self.loss, *self.metrics) if kind.discrete else ():
            losses_lib.check_of_classes(loss_or_metric, self.name)
        loss = kind.loss if self.loss is None else self.loss
        if isinstance(loss, keras.losses.Loss):
            loss = losses_lib.of_keras(loss, kind.probabilities)
        elif not str(loss.__module__).startswith("mtr_tf."):
            loss = losses_lib.of_function(loss)
        fill("loss", loss)
        fill("paint", self.paint or kind.paint)
        fill("kinds_metrics", not self.metrics)
        scores = self.metrics or kind.metrics(self.unit, self.axes)
        if isinstance(scores[-1], Metric) and scores[-1].name == "loss":
            scores = scores[:-1]  # From `dataclasses.replace` of a finished task.
        scores = [
            metrics_lib.without_classes(score, self.ignored)
            for score in metrics_lib.as_metrics(scores, kind.probabilities)
        ]
        fill("metrics", (*scores, metrics_lib.mean_loss(loss)))
        more = (
            metrics_lib.without_classes(metric, self.ignored) for metric in self.more
        )
        fill("more", tuple(more))
        _check_names(self)

    def bound(self, **changes: Any) -> Task:
        """Returns the task with other fields; the kind's metrics follow from them."""
        metrics = () if self.kinds_metrics else self.metrics[:-1]
        return dataclasses.replace(self, **{"metrics": metrics, **changes})

    @property
    def all_metrics(self) -> tuple[Metric, ...]:
        """Its metrics and those that are computed on request, the loss last."""
        return (*self.metrics[:-1], *self.more, self.metrics[-1])

    @property
    def discrete(self) -> bool:
        """Whether targets are classes and outputs their logits."""
        return KINDS[self.kind].discrete

    @property
    def axes(self) -> int:
        """How many axes its places have; by default those of a map."""
        return MAP if self.places is None else self.places

    @property
    def is_map(self) -> bool:
        """Whether places are pixels."""
        return self.axes == MAP

    @property
    def harm(self) -> Metric:
        """The metric that measures harm: the first mean of errors, or of a share.

        Mean IoU is not such a mean, so for classes it is the accuracy. A function of
        your own where higher is better does not count, because its value without harm
        is not known. If no metric will do, it is the loss.
        """
        return next(metric for metric in self.metrics if metric.measures_harm)

    def unit_of(self, metric: Metric, units: Mapping[str, str]) -> str:
        """Returns a metric's unit on a data set with the `units` of its DatasetInfo.

        A share of a target that is not in the task's own unit says so: "share of log"
        is not a share of a distance.
        """
        unit = units.get(self.name, self.unit)
        if metric.relative and unit != self.unit:
            return f"share of {unit}"
        of_target = self.unit and metric.unit == self.unit
        return units.get(self.name, metric.unit) if of_target else metric.unit

    def output_channels(self, num_classes: int | None) -> int:
        """Returns the channels of its head on a data set with `num_classes` classes."""
        return self.channels if self.channels is not None else num_classes or 0

    def to_rgb(
        self,
        value: np.ndarray,
        info: Any,
        mask: np.ndarray | None = None,
        output: bool = False,
    ) -> np.ndarray:
        """Paints targets or outputs: maps as maps, values of the whole image as bars.

        Args:
          value: `[..., H, W]` for targets that are classes, else `[..., H, W, C]`; for
            other places than a map's `[examples, *places]`, or with channels.
          info: The data set's `DatasetInfo`, for its `colors`, `ranges` and size.
          mask: `[..., H, W]` or `[examples, *places]`, zero where nothing is shown.
          output: Whether they are a model's outputs, not targets.

        Returns:
          uint8 `[..., H, W, 3]`; if it is no map, cards whose size is a multiple of the
          images'.
        """
        value = np.asarray(value)
        if self.is_map:
            return _paint_map(self, value, info, mask, output)
        size = tuple(info.image_shape[:2])
        masks = [None] * len(value) if mask is None else np.asarray(mask)
        draw = _field if self.axes else _card
        pairs = zip(value, masks, strict=True)
        return np.stack([draw(self, v, m, info, size, output) for v, m in pairs])

    def to_dict(self) -> dict[str, Any]:
        """Returns the facts that are saved in files."""
        return {
            "name": self.name,
            "kind": self.kind,
            "channels": self.channels,
            "places": self.places,
            "unit": self.unit,
            "classes": list(self.classes),
            "metrics": [metric.name for metric in self.metrics],
            **({"ignored": list(self.ignored)} if self.ignored else {}),
        }


def _check_names(task: Task) -> None:
    """Raises InputError where two metrics have one name."""
    names = [metric.name for metric in task.all_metrics]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"The metrics of the task {task.name} must have different names (its "
                f"loss is named loss), but {names.count(name)} are named {name}; give "
                "a function another __name__, or a Keras metric another name."
            )


def _field_tuple(
    task: Task, field: str, what: str, fits: Callable[[Any], bool]
) -> tuple[Any, ...]:
    """A field that is a list, as a tuple; a single metric becomes a tuple of one."""
    value = getattr(task, field)
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    items = tuple(value) if is_list else () if value is None else (value,)
    if (is_list or value is None or field == "metrics") and all(map(fits, items)):
        return items
    raise InputError(
        f"The {field} of the task {task.name} must be a list of {what}; got {value!r}."
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_color(value: Any) -> bool:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return False
    rgb = tuple(value)
    return len(rgb) == 3 and all(number in range(256) for number in rgb)


# Fields that are lists -> (what they hold, in words; a check of an element).
_LISTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "classes": ("names", _is_name),
    "aliases": ("names", _is_name),
    "colors": ("triples (red, green, blue) of 0-255", _is_color),
    "ignored": ("whole numbers", is_whole),
    "metrics": ("metrics", lambda value: True),  # See `metrics.as_metric`.
}


def _check(task: Task) -> None:
    """Raises InputError unless the fields of a new task go together."""
    if not isinstance(task.name, str) or not _NAME.fullmatch(task.name):
        raise InputError(
            "A task's name must have at least two characters (letters, digits, '_', "
            f"'-' or '.') and begin with a letter; got {task.name!r}."
        )
    for name in (task.name, *task.aliases):
        if name.lower() in RESERVED:
            suffix = "" if name == task.name else f" as another name of {task.name}"
            raise InputError(
                f"A task must not be named {', '.join(RESERVED[:-1])} or "
                f"{RESERVED[-1]}, because these words mean something else in settings "
                f"and in TensorBoard; got {name!r}{suffix}. Choose another name."
            )
    if task.kind not in KINDS:
        raise InputError(
            f"A task's kind must be one of {', '.join(KINDS)}; got {task.kind!r} for "
            f"{task.name}.{did_you_mean(task.kind, KINDS)}"
        )
    kind, count = KINDS[task.kind], len(task.classes)
    if task.places is not None and not (is_whole(task.places) and task.places >= 0):
        raise InputError(
            f"The places of the task {task.name} must be how many axes they have, 2 "
            f"for maps and 0 for one value per image; got {task.places!r}."
        )
    if task.channels is not None and not (
        is_whole(task.channels) and task.channels >= 1
    ):
        raise InputError(
            f"The channels of the task {task.name} must be a whole number, 1 or more; "
            f"got {task.channels!r}."
        )
    if count and task.channels not in (None, count):
        raise InputError(
            f"The task {task.name} must have as many channels as classes; got "
            f"{task.channels} channels and {count} classes. Leave out channels."
        )
    channel_count = count or task.channels
    if channel_count and task.colors and len(task.colors) != channel_count:
        raise InputError(
            f"The task {task.name} must have as many colors as classes; got "
            f"{len(task.colors)} colors and {channel_count} classes."
        )
    if not (channel_count or kind.channels or kind.discrete):
        raise InputError(
            f"The task {task.name} must say how many {task.kind} it has: give "
            "channels, or give their names as classes."
        )
    is_loss = isinstance(task.loss, keras.losses.Loss)
    if not (task.loss is None or is_loss or losses_lib.takes_mask(task.loss)):
        raise InputError(
            f"The loss of the task {task.name} must be a function (target, output, "
            "mask) -> [batch] or a Keras loss, such as "
            f"keras.losses.MeanSquaredError(); got {task.loss!r}."
        )
    if task.mirror is not None and kind.discrete:
        raise InputError(
            f"The task {task.name} must not have mirror, which multiplies numbers, "
            f"because its targets are {task.kind}; got {task.mirror!r}. Leave it out."
        )
    channels = channel_count or kind.channels or 0
    if task.mirror is not None and len(task.mirror) != channels:
        raise InputError(
            f"The task {task.name} must have one number in mirror for each of its "
            f"{channels} channels; got {task.mirror!r}."
        )


class TaskSet(Mapping[str, Task]):
    """Tasks by name, in order; immutable and hashable.

    As in any mapping, the elements are names: `"seg" in tasks`, `tuple(tasks)`.
    """

    def __init__(self, tasks: Iterable[Task] = ()):
        """Raises `InputError` where two tasks have one name."""
        self._by_name: dict[str, Task] = {}
        for task in tasks:
            if task.name in self._by_name:
                raise InputError(
                    f"Tasks must have different names, but two are named {task.name}; "
                    "rename one."
                )
            self._by_name[task.name] = task

    def __getitem__(self, name: str) -> Task:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __hash__(self) -> int:
        return hash(tuple(self._by_name.values()))

    def __repr__(self) -> str:
        return f"TaskSet({', '.join(self)})"

    def select(self, names: str | Iterable[str]) -> TaskSet:
        """Returns the tasks with these names, aliases or letters, in the order given.

        Raises:
          InputError: an unknown name, or the same one twice.
        """
        return TaskSet(self[name] for name in resolve(names, self.values()))

    def find(self, name: str) -> Task:
        """Returns the task of a name, alias or letter; `InputError` if none has it."""
        return self[resolve([name], self.values())[0]]

    def replaced(self, *tasks: Task) -> TaskSet:
        """Returns the set with these tasks under their names, new ones at the end."""
        return TaskSet((self._by_name | {task.name: task for task in tasks}).values())


# Pictures of one value per image, and of places that are no map.


def _card(task: Task, value, mask, info: Any, size, output: bool) -> np.ndarray:
    """Draws names and bars for one image's value, `[]` or `[channels]`."""
    if mask is not None and not mask:
        return cards.blank(size, "no target")
    if task.kind == "classes":
        count = int(value.shape[-1]) if output else int(value) + 1
        names = task.classes or tuple(map(str, range(count)))
        if not output:
            return cards.card([names[int(value)]], [1.0], [""], size)
        shares = _softmax(value)
        order = np.argsort(-shares, kind="stable")[:3]
    elif task.kind == "labels":
        shares = np.asarray(value, np.float64)
        shares = 1 / (1 + np.exp(-shares)) if output else shares
        names = task.classes or tuple(map(str, range(len(shares))))
        order = np.argsort(-shares, kind="stable")[: cards.LINES]
        if len(shares) <= cards.LINES:
            order = np.arange(len(shares))
    else:
        return _number_card(task, value, info, size)
    texts = [f"{shares[place]:.2f}" for place in order]
    return cards.card([names[p] for p in order], shares[order], texts, size)


def _number_card(task: Task, value, info: Any, size) -> np.ndarray:
    values = np.asarray(value, np.float64)
    unit = info.units.get(task.name, task.unit)
    names = [unit or task.name] if len(values) == 1 else map(str, range(len(values)))
    finite = values[np.isfinite(values)]
    span = (min(0.0, *finite, 0.0), max(0.0, *finite, 0.0))
    span = info.ranges.get(task.name, span)
    texts = [f"{number:.3g}" for number in values]
    return cards.card(list(task.classes or names), values, texts, size, span)


def _field(task: Task, value, mask, info: Any, size, output: bool) -> np.ndarray:
    """Paints places that are no map as a stretched map of rows and columns."""
    shape = (value.shape[0] if task.axes > 1 else 1, -1)
    channels = value.shape[task.axes :]
    flat_mask = None if mask is None else np.reshape(mask, shape)
    value = np.reshape(value, (*shape, *channels))
    picture = _paint_map(task, value, info, flat_mask, output)
    return cards.field(picture, size)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return powers / powers.sum()


# Painting of maps.


def _paint_map(task: Task, value, info: Any, mask, output: bool) -> np.ndarray:
    """Calls a task's paint; that of labels must know whether `value` is an output."""
    if task.paint is _paint_labels:
        return _paint_labels(task, value, info, mask, output)
    return task.paint(task, value, info, mask)


def _paint_classes(task: Task, value: np.ndarray, info: Any, mask: np.ndarray | None):
    is_logits = np.issubdtype(value.dtype, np.floating)
    classes = value.argmax(axis=-1) if is_logits else value
    colors = task.colors or info.colors
    if not colors:
        colors = palettes.distinct_colors(task.channels or int(classes.max()) + 1)
    return palettes.classes_to_rgb(classes, colors, mask)


def paint_numbers(default: tuple[float, float] | None = None) -> Paint:
    """Returns a function that paints one number, or two, or three and more.

    Args:
      default: The range that maps are painted in on data sets that do not say.
    """

    def paint(task: Task, value: np.ndarray, info: Any, mask: np.ndarray | None):
        value_range = info.ranges.get(task.name, default)
        if value.shape[-1] == 1:
            return palettes.scalar_to_rgb(value, value_range, mask)
        if value.shape[-1] == 2:
            return palettes.pair_to_rgb(value, value_range, mask)
        return _paint_in_range(value[..., :3], value_range, mask)

    return paint


def _paint_labels(
    task: Task,
    value: np.ndarray,
    info: Any,
    mask: np.ndarray | None,
    output: bool = False,
):
    """Paints each place as its likeliest label, from logits or targets."""
    colors = task.colors or palettes.distinct_colors(value.shape[-1])
    has_label = value.max(axis=-1) > (0 if output else 0.5)
    classes = np.where(has_label, value.argmax(axis=-1), len(colors))
    return palettes.classes_to_rgb(classes, colors, mask)


def _paint_directions(
    task: Task, value: np.ndarray, info: Any, mask: np.ndarray | None
):
    if value.shape[-1] == 2:
        return palettes.pair_to_rgb(value, (-1.0, 1.0), mask)
    return palettes.vectors_to_rgb(value[..., :3], mask)


def _paint_in_range(value: np.ndarray, value_range: Sequence[float] | None, mask):
    if value_range is None:
        is_shown = np.isfinite(value)
        if mask is not None:
            is_shown &= np.asarray(mask)[..., np.newaxis] != 0
        shown_values = value[is_shown]
        value_range = (
            (float(shown_values.min()), float(shown_values.max()))
            if shown_values.size
            else (0.0, 1.0)
        )
    low, high = value_range
    scale = high - low if high > low else 1
    return palettes.image_to_rgb((value - low) / scale, mask)


# The kinds.


def _class_metrics(unit: str, axes: int) -> tuple[Metric, ...]:
    if axes == MAP:
        return (metrics_lib.miou(), metrics_lib.pixel_accuracy())
    scores = (metrics_lib.accuracy(), metrics_lib.miou())
    return scores if axes else scores[:1]  # Of one value per image.


KINDS: dict[str, Kind] = {
    "classes": Kind(
        "one class of several, as logits",
        losses_lib.cross_entropy,
        _class_metrics,
        _paint_classes,
        discrete=True,
        probabilities=tf.nn.softmax,
    ),
    "labels": Kind(
        "any of several labels, each a logit",
        losses_lib.binary_cross_entropy,
        lambda unit, axes: (metrics_lib.f1(), metrics_lib.label_accuracy()),
        _paint_labels,
        probabilities=tf.nn.sigmoid,
    ),
    "numbers": Kind(
        "numbers",
        losses_lib.l1,
        lambda unit, axes: (metrics_lib.mae(unit), metrics_lib.rmse(unit)),
        paint_numbers(),
        channels=1,
    ),
    "directions": Kind(
        "directions, as vectors",
        losses_lib.l1,
        lambda unit, axes: (metrics_lib.angular_error(), metrics_lib.mae()),
        _paint_directions,
        channels=3,
        mirror=(-1.0, 1.0, 1.0),
    ),
    "image": Kind(
        "a picture",
        losses_lib.l2,
        lambda unit, axes: (metrics_lib.mse(), metrics_lib.mae()),
        paint_numbers((0, 1)),
        channels=3,
    ),
}
