# SPDX-License-Identifier: Apache-2.0
"""What all attacks share: how they are called, and how they call their objective.

`Attack` checks the images, makes each image's seed and runs the search as one graph.
`score` and `gradient` evaluate an objective at images and check that it returns one
number for each; they take means over the draws of a random one, and scale gradients
that are computed in float16. `require` and `input_errors` report values that are wrong
in sentences of ours, in graphs too.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import copy
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Self
from typing import final

import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf.attacks import threat
from mtr_tf.errors import MARK
from mtr_tf.errors import InputError
from mtr_tf.errors import input_error_within
from mtr_tf.models import compiling

# f(x, progress) -> what to raise [batch], or (what to raise, score) [batch].
Objective = Callable[[tf.Tensor, tf.Tensor], Any]
_TOLERANCE = 1e-6  # Rounding may carry an image this far out of [0, 1].


@dataclasses.dataclass(frozen=True, eq=False)
class Simple:
    """An objective that is the same at any progress of an attack; see `simple`."""

    function: Callable[[tf.Tensor], Any]

    def __call__(self, x: tf.Tensor, progress: tf.Tensor | float = 0.0) -> Any:
        """Returns what the function returns."""
        del progress
        return self.function(x)


def simple(function: Callable[[tf.Tensor], Any]) -> Simple:
    """Returns a plain function of images as an objective.

    Args:
      function: f(x) -> what to raise, [batch], or (what to raise, score), [batch] each.
    """
    return Simple(function)


class Attack(abc.ABC):
    """A frozen record of numbers, equal and of equal hash for equal attacks.

    Your own attack defines `search` and `passes`, and is called in the same way. Its
    lengths are its fields `epsilon` and `step_size`, if it has them. They are checked
    when the attack is made, unless they are tensors, which `search` also takes.
    """

    @final
    def __call__(
        self,
        objective: Objective,
        x: Any,
        seed: int | tf.Tensor = 0,
        *,
        jit: str = "auto",
    ) -> tf.Tensor:
        """Returns adversarial images, [batch, ...] like `x`, under stop_gradient.

        Within a tf.function it becomes part of that graph. Called eagerly it is
        compiled here: once for objectives that keep their batch apart from their
        computation (`attacks.objective` on a Keras model), but again in each call for
        any other callable, because a graph does not see later changes to the values in
        its closure.

        Args:
          objective: What to raise; see `attacks.PGD`.
          x: Float images in [0, 1], [batch, ...], of any float type; half precision is
            attacked in float32 and the result is inside the ball as it is stored. An
            empty batch comes back as it is.
          seed: An int: image i (of the global batch, under a strategy) gets a seed made
            from it and i. Or one seed per image: int [batch], or what `fold_in`
            returns.
          jit: Whether XLA compiles it: "on", "off", or "auto" (if this one call is long
            enough to gain from it). Inside a tf.function, that function decides.

        Raises:
          InputError: `x`, `seed`, `jit` or what the objective returns cannot be used.
            Values that are wrong in a graph of the caller's own end it with
            TensorFlow's error, which has our sentence in it (`input_errors` turns it
            into `InputError`). XLA does not check them.
        """
        x = _images(x)
        keys = threat.image_keys(seed, _indices(x))
        if x.shape[0] == 0:
            return x
        if not tf.executing_eagerly():
            return tf.stop_gradient(_search(self, objective, x, keys))
        passes = float(self.passes) * getattr(objective, "draws", 1)
        use_xla = compiling.worthwhile(jit, passes, tf.size(x[..., 0]).numpy())
        unchanged = getattr(objective, "unchanged", contextlib.nullcontext)
        with input_errors(), unchanged():
            if hasattr(objective, "checked"):
                objective = objective.checked(x, self.raises_own_losses)
            method = getattr(objective, "look_at_losses", None)
            check_losses = method if use_xla and self.raises_own_losses else None
            if check_losses:  # XLA drops the check that is in the graph.
                check_losses(x)
            x_adv = tf.stop_gradient(_run(self, objective, x, keys, use_xla))
            if check_losses:
                check_losses(x_adv)
        _warn_unmoved(self, x_adv, x)
        return x_adv

    @final
    def with_lengths(
        self, epsilon: float | tf.Tensor, step_size: float | tf.Tensor
    ) -> Self:
        """Returns the attack with other lengths, which are not checked again.

        With tensors one graph of an attack serves all radii. All else stays as it is,
        including what was computed from the lengths when the attack was made. A length
        that the attack does not have is ignored.
        """
        attack = copy.copy(self)
        for name, length in (("epsilon", epsilon), ("step_size", step_size)):
            if hasattr(self, name):  # Frozen: set as dataclasses do.
                object.__setattr__(attack, name, length)
        return attack

    @final
    def at_lengths(
        self,
        objective: Objective,
        x: Any,
        seed: int | tf.Tensor,
        epsilon: float | tf.Tensor,
        step_size: float | tf.Tensor,
    ) -> tf.Tensor:
        """Returns the images of the attack with these lengths; see `with_lengths`."""
        return self.with_lengths(epsilon, step_size)(objective, x, seed)

    @property
    def raises_own_losses(self) -> bool:
        """Whether it raises the tasks' own losses, if the objective names no others."""
        return True

    @property
    @abc.abstractmethod
    def passes(self) -> int:
        """Evaluations of the objective per image, with or without a gradient."""

    @abc.abstractmethod
    def search(self, objective: Objective, x: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """Returns images of x's shape and dtype; traced, on checked arguments.

        Args:
          objective: What to raise; `score` and `gradient` evaluate it.
          x: Float images in [0, 1], [batch, ...].
          keys: int64 [batch, 2], a seed for each image.
        """


def _warn_unmoved(attack: Attack, x_adv: tf.Tensor, x: tf.Tensor) -> None:
    """Warns of images that come back unchanged, which may look like robustness."""
    if getattr(attack, "epsilon", 0.0) == 0 or x.shape.rank < 2:
        return
    unmoved = tf.reduce_all(tf.equal(x_adv, x), threat.image_axes(x))
    count = int(tf.reduce_sum(tf.cast(unmoved, tf.int32)))
    if count:
        logging.warning(
            "%d of %d images are unchanged, because the attack found no point with a "
            "higher score. This does not mean that they are robust: the gradient may "
            "be zero, or the model's outputs or the targets NaN. Look at "
            "objective(images).",
            count,
            len(unmoved),
        )


def _run(
    attack: Attack, objective: Any, x: tf.Tensor, keys: tf.Tensor, jit: bool
) -> tf.Tensor:
    """Compiles the attack, unless that was done before, and returns its images."""
    if getattr(objective, "reusable", False) and _is_hashable(attack):
        return _compiled(attack, objective.recipe, jit)(objective.batch, x, keys)
    search = functools.partial(_search, attack, objective)
    return _Graph(search, jit)(x, keys)


def _search(attack, objective, x: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Returns the attack's images in the graph that is being built.

    The objective's random numbers, if it has any, are made from the attack's keys. A
    batch that turns out to be empty is returned as it is: convolutions fail on it.
    """
    objective = objective.seeded(keys) if hasattr(objective, "seeded") else objective
    if x.shape[0] is not None:
        return attack.search(objective, x, keys)
    x_adv = tf.cond(
        tf.shape(x)[0] > 0, lambda: attack.search(objective, x, keys), lambda: x
    )
    return tf.ensure_shape(x_adv, x.shape)


def _is_hashable(attack: Attack) -> bool:
    """Whether it is a record of numbers, without tensors."""
    try:
        hash(attack)
    except TypeError:
        return False
    return True


class _Graph:
    """A function as a graph, compiled by XLA or not.

    Attributes:
      bytes: The approximate size of its graphs, without weights.
    """

    def __init__(self, run: Callable[..., tf.Tensor], jit: bool):
        self.bytes = 0
        self._run = run
        self._sized = set()
        self._call = compiling.Fallback(self._build, jit, "the attack")

    def __call__(self, *arguments: Any) -> tf.Tensor:
        return self._call(*arguments)

    def _build(self, jit: bool) -> Callable[..., tf.Tensor]:
        # AutoGraph would rewrite our error messages, and there is nothing to convert.
        function = tf.function(self._run, autograph=False)
        compiled = compiling.compiled(self._run) if jit else function
        return functools.partial(self._call_concrete, compiled)

    def _call_concrete(self, function: Any, *arguments: Any) -> tf.Tensor:
        # By hand: plain calls warn of retracing where there are many attacks.
        with compiling.own_gradients() as tie_to:
            concrete = function.get_concrete_function(*arguments)
            tie_to(function)
        if id(concrete) not in self._sized:
            self._sized.add(id(concrete))
            self.bytes += compiling.graph_bytes(concrete)
        return concrete(*arguments)


class _Compiled:
    """Compiled attacks by (attack, recipe, jit): the last used ones that fit.

    Weights of a model that several attacks share are held, and count, once.
    """

    def __init__(self, most: int):
        """Takes the bytes that they may hold; the last one stays whatever its size."""
        self._most = most
        self._made: collections.OrderedDict[tuple, _Graph] = collections.OrderedDict()

    def __call__(self, attack: Attack, recipe: Any, jit: bool) -> _Graph:
        """The compiled attack on `recipe` with its batch as an argument."""
        key = attack, recipe, jit
        if key not in self._made:
            self._made[key] = _Graph(
                lambda batch, x, keys: _search(attack, recipe.bind(batch), x, keys),
                jit,
            )
        self._made.move_to_end(key)
        while len(self._made) > 1 and self.bytes > self._most:
            self._made.popitem(last=False)
        return self._made[key]

    def __len__(self) -> int:
        return len(self._made)

    @property
    def bytes(self) -> int:
        """The approximate size of all of them."""
        models = {id(recipe.model): recipe.model for _, recipe, _ in self._made}
        weights = sum(map(compiling.weight_bytes, models.values()))
        return weights + sum(graph.bytes for graph in self._made.values())


_compiled = _Compiled(256 * 2**20)


def begin(objective: Objective, start: tf.Tensor, clean: tf.Tensor) -> Objective:
    """Returns the objective for one run from `start` around `clean`, both [batch, ...].

    If it has a method `begin(start, clean)`, that returns an objective which has
    computed what stays the same during a run: losses that others are compared with,
    say, or folded weights.
    """
    return objective.begin(start, clean) if hasattr(objective, "begin") else objective


def loop(
    first: int | tf.Tensor, end: int | tf.Tensor, body: Callable[..., Any], state: Any
) -> Any:
    """Returns the state after state = body(number, state) for first <= number < end.

    Passes do not overlap. Otherwise up to ten would, and the features of several would
    be in memory at once.
    """
    _, state = tf.while_loop(
        lambda number, _: number < end,
        lambda number, state: (number + 1, body(number, state)),
        (first, state),
        parallel_iterations=1,
    )
    return state


def repeat(count: int | tf.Tensor, body: Callable[..., Any], state: Any) -> Any:
    """Returns `loop` over the numbers below `count`; a single pass needs no loop."""
    return body(0, state) if count == 1 else loop(0, count, body, state)


def score(objective: Objective, x: tf.Tensor, progress: tf.Tensor) -> tf.Tensor:
    """Returns each image's score, [batch] in x's dtype; a mean over draws."""
    return mean_over_draws(objective, lambda draw: _evaluate(draw, x, progress)[1])


def gradient(
    objective: Objective,
    x: tf.Tensor,
    progress: tf.Tensor,
    move: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradient of what each image raises, like `x`, and scores [batch].

    The tape watches `x` alone: no gradient by any weight is computed. Entries that are
    NaN come back as 0, infinite ones as the largest number: the gradient is finite.
    Both results are means over the draws of an objective that has some. An objective
    that computes in float16 is first scaled, per image (`scaled_gradient`).

    `move` maps a gradient to how far the attack goes from `x` along it, like `x`. It is
    passed to an objective with a method `moving(move)`, whose gradient depends on it.
    """
    if move is not None and hasattr(objective, "moving"):
        objective = objective.moving(move)
    return mean_over_draws(objective, lambda draw: _gradient(draw, x, progress))


def _gradient(
    objective: Objective, x: tf.Tensor, progress: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `gradient` does, for one draw."""
    count = len(graph_operations())
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(x)
        ascend, scores = _evaluate(objective, x, progress)
    operations = graph_operations()[count:]
    slope = tape.gradient(ascend, x)  # Of the sum: images do not share a scale.
    if slope is None:
        raise InputError(
            "What is attacked must depend on the images through differentiable "
            "TensorFlow operations, but it has no gradient; if it is a model, leave "
            "out what casts or rounds images (such as a cast to uint8), and compute an "
            "objective of yours from its argument."
        )
    if computes_in_float16(operations):
        slope = scaled_gradient(tape, ascend, x)
    # One reading pass where all is finite; cleaning takes many times as long.
    finite = tf.math.is_finite(tf.reduce_sum(slope))
    slope = tf.cond(finite, lambda: slope, lambda: _make_finite(slope))
    return tf.ensure_shape(slope, x.shape), tf.stop_gradient(scores)


def _make_finite(slope: tf.Tensor) -> tf.Tensor:
    numbers = tf.where(tf.math.is_nan(slope), tf.zeros_like(slope), slope)
    return tf.clip_by_value(numbers, -slope.dtype.max, slope.dtype.max)


def _evaluate(
    objective: Objective, x: tf.Tensor, progress: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (ascend, score), each [batch]."""
    check_arity(objective)
    result = objective(x, progress)
    pair = result if isinstance(result, tuple) else (result, result)
    if len(pair) != 2:
        raise InputError(
            "The objective must return [batch] or (ascend [batch], score [batch]); "
            f"got a tuple of {len(pair)}."
        )
    return _one_per_image(pair[0], x), _one_per_image(pair[1], x)


def _one_per_image(values: Any, x: tf.Tensor) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    if not values.shape.is_compatible_with(x.shape[:1]):
        raise InputError(
            f"The objective must return one number per image, shape {x.shape[:1]}, "
            f"but its shape is {values.shape}; reduce over all axes except the first."
        )
    return tf.ensure_shape(tf.cast(values, x.dtype), x.shape[:1])


def check_arity(objective: Objective) -> None:
    """Raises InputError unless it takes the images and the progress of the attack.

    A second argument with a default, as in `lambda x, y=labels: ...`, counts only if
    its name is `progress`.
    """
    try:
        signature = inspect.signature(objective)
    except (TypeError, ValueError):  # Some built-ins have no signature.
        return
    try:
        names = list(signature.bind(None, None).arguments)
    except TypeError:
        names = []
    second = signature.parameters[names[-1]] if names else None
    if second and (second.default is second.empty or second.name == "progress"):
        return
    raise InputError(
        "An objective must take the images and the progress of the attack, f(x, "
        f"progress), but this one takes {signature}; wrap a plain f(x) in "
        "attacks.simple(f)."
    )


def _images(x: Any) -> tf.Tensor:
    """Returns `x` as a checked tensor, with rounding outside [0, 1] clipped."""
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating or not x.shape.rank:
        raise InputError(
            "Images must be floats in [0, 1] with a leading batch axis; got "
            f"{x.dtype.name} of shape {x.shape}. Divide bytes by 255."
        )
    if x.shape.num_elements() != 0:
        with tf.control_dependencies(_check_values(x)):
            x = tf.identity(x)
    return tf.clip_by_value(x, tf.cast(0, x.dtype), tf.cast(1, x.dtype))


@tf.autograph.experimental.do_not_convert  # There is nothing to convert.
def _check_values(x: tf.Tensor) -> list[tf.Tensor]:
    """Raises InputError unless `x` is in [0, 1]; in a graph, returns the checks."""
    wide = tf.cast(x, threat.compute_dtype(x))
    valid = ~tf.math.is_nan(wide)
    inside = (wide >= -_TOLERANCE) & (wide <= 1 + _TOLERANCE)

    def range_words():
        return [
            "Images must be in [0, 1]; got values from",
            tf.reduce_min(wide),
            "to",
            tf.reduce_max(wide),
            "; put the normalisation into the model.",
        ]

    def nan_words():
        count = tf.math.count_nonzero(~valid)
        return [
            "Images must be in [0, 1]; got",
            count,
            "values that are NaN; replace them.",
        ]

    checks = [
        require(tf.reduce_all(valid), nan_words),
        require(tf.reduce_all(inside | ~valid), range_words),
    ]
    return [] if tf.executing_eagerly() else checks


def _indices(x: tf.Tensor) -> tf.Tensor:
    """Returns each image's number in the global batch, replica by replica, [batch].

    With batches of one size on all replicas, one int seed thus gives every image the
    noise that it has in the same batch on one device, and no two images the same.
    """
    size = tf.shape(x, out_type=tf.int64)[0]
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    indices = tf.cast(replica, tf.int64) * size + tf.range(size)
    return tf.ensure_shape(indices, x.shape[:1])


# Means over draws of a random objective: expectation over transformation. Such an
# objective has `draws`, a number, and `drawn(number)`, which is the objective under one
# draw of the noise (Athalye et al., ICML 2018).


def mean_over_draws(objective: Any, function: Callable[[Any], Any]) -> Any:
    """Returns the mean of `function` over the draws of an objective.

    Args:
      objective: Any; without draws the function is called on itself.
      function: An objective -> tensors of any structure, float.
    """
    count = getattr(objective, "draws", 1)
    if count == 1:
        return function(objective)
    return mean(lambda number: function(objective.drawn(number)), count)


def mean(function: Callable[[Any], Any], count: int) -> Any:
    """Returns the mean of function(0) to function(count - 1), tensors of any structure.

    Calls run one after the other, so that only one draw's features are in memory.
    """
    total = function(0)
    if count == 1:
        return total

    def add(number, total):
        return tf.nest.map_structure(tf.add, total, function(number))

    total = loop(1, count, add, total)
    return tf.nest.map_structure(lambda t: t / count, total)


# Gradients of objectives that compute in float16, without losing them on the way.
#
# A loss is a mean over the pixels of an image: each has a share of 1e-6 in it at
# 1024 px, and no positive float16 is below 6e-8. So what is climbed is multiplied by a
# power of two, and its gradient is divided by that in the images' type.

_LEAST = 2.0**-10  # If all entries of a scaled gradient are smaller, some may be lost.
_STEP = 8  # A wrong scale is changed by a factor of 2^8,
_TRIES = 4  # at most this often.
_HIGHEST = 100  # Exponents beyond these would leave float32.


def graph_operations() -> list[tf.Operation]:
    """Returns those of the graph that is being built; none outside of graphs."""
    if tf.executing_eagerly():
        return []
    return tf.compat.v1.get_default_graph().get_operations()


def computes_in_float16(operations: Iterable[tf.Operation]) -> bool:
    """Whether any of a graph's operations, or of functions they call, is float16."""
    for operation in operations:
        if any(output.dtype == tf.float16 for output in operation.outputs):
            return True
        if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            # TensorFlow has no public way to a called function's graph.
            name = operation.get_attr("f").name
            function = operation.graph._get_function(name)
            if function and computes_in_float16(function.graph.get_operations()):
                return True
    return False


def image_gradient(
    tape: tf.GradientTape, loss: tf.Tensor, x: tf.Tensor, half: bool
) -> tf.Tensor:
    """Returns each image's gradient, like `x`; zero where no loss depends on it.

    Args:
      tape: A persistent tape that watched `x` while the loss was made.
      loss: [batch].
      x: Images [batch, ...].
      half: Whether it was computed in float16; see `scaled_gradient`.
    """
    if half:
        return scaled_gradient(tape, loss, x)
    zero = tf.UnconnectedGradients.ZERO
    return tape.gradient(loss, x, unconnected_gradients=zero)


def with_replaced_gradient(
    tape: tf.GradientTape,
    x: tf.Tensor,
    values: tf.Tensor,
    make_gradient: Callable[[Callable[[tf.Tensor], tf.Tensor]], tf.Tensor],
) -> tf.Tensor:
    """Returns `values` with another gradient towards `x` than their own.

    Each loss that `make_gradient` asks for takes a backward pass, but only if a
    gradient is taken: a score still costs one forward pass. There is no gradient
    towards anything else, nor a second derivative.

    Args:
      tape: A persistent tape that watched `x` while `values` and the losses were
        computed, and has ended.
      x: Images [batch, ...].
      values: [batch]; their own gradient is dropped.
      make_gradient: Returns the gradient, like `x`. Its argument is a function that
        takes a loss, [batch], and returns its gradient, like `x`, with 0 for entries
        that are not finite.
    """
    half = computes_in_float16(graph_operations())

    def slope_of(loss):
        slope = image_gradient(tape, loss, x, half)
        return tf.where(tf.math.is_finite(slope), slope, tf.zeros_like(slope))

    @tf.custom_gradient
    def replaced(_):
        def backward(upstream):
            scale = threat.per_image(tf.cast(upstream, x.dtype), x)
            return scale * make_gradient(slope_of)

        return tf.stop_gradient(values), backward

    return replaced(x)


def scaled_gradient(
    tape: tf.GradientTape, ascend: tf.Tensor, x: tf.Tensor
) -> tf.Tensor:
    """Returns the gradient of `ascend` by `x`, computed with a scale for each image.

    The first scale is about the number of entries of an image, so the sum of the
    pixels' losses is differentiated, not their mean. Where the result is not finite, a
    smaller scale is tried; where it is zero or small, a larger one. Each try is another
    backward pass, and the last finite result stays.

    Args:
      tape: A persistent one that watched `x`.
      ascend: [batch]; perhaps of another float type than the images.
      x: [batch, ...], float32 or float64.

    Returns:
      Like `x`; not finite where no scale makes it so.
    """
    axes = threat.image_axes(x)
    entries = tf.cast(tf.reduce_prod(tf.shape(x)[1:]), tf.float32)
    first_exponent = tf.math.ceil(tf.math.log(entries) / np.float32(np.log(2)))
    exponents = tf.zeros_like(ascend, tf.int32) + tf.cast(first_exponent, tf.int32)

    def attempt(number, exponents, lowered, solved, result, _):
        scale = tf.cast(_power_of_two(exponents), ascend.dtype)
        scaled_slope = tape.gradient(
            ascend, x, scale, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        largest = tf.reduce_max(tf.abs(scaled_slope), axes)
        finite = tf.reduce_all(tf.math.is_finite(scaled_slope), axes)
        inverse_scale = tf.cast(_power_of_two(-exponents), x.dtype)
        slope = scaled_slope * threat.per_image(inverse_scale, x)
        # Where a larger scale goes too far, the previous result stays.
        take = threat.per_image(finite | ~solved, x)
        result = tf.where(take, slope, result)
        small = finite & (largest < _LEAST) & ~lowered
        pending = small | (~finite & ~solved)
        lowered |= ~finite
        change = tf.where(small, _STEP, tf.where(finite, 0, -_STEP))
        exponents = tf.minimum(exponents + change, _HIGHEST)
        return number + 1, exponents, lowered, solved | finite, result, pending

    false = tf.zeros_like(ascend, tf.bool)
    state = (0, exponents, false, false, tf.zeros_like(x), tf.ones_like(false))
    _, _, _, _, result, _ = tf.while_loop(
        lambda number, *values: (number < _TRIES) & tf.reduce_any(values[-1]),
        attempt,
        state,
        parallel_iterations=1,
    )
    return result


def _power_of_two(exponents: tf.Tensor) -> tf.Tensor:
    """Returns 2^exponents, exactly, float32: a float's bits begin with its exponent."""
    return tf.bitcast(tf.bitwise.left_shift(exponents + 127, 23), tf.float32)


# Reports of wrong values, in our sentences, in graphs too. A graph cannot raise
# `InputError`. So the assertion in it carries the sentence, and the caller of the graph
# turns TensorFlow's error into ours: `Attack`, `Evaluator.run` and the commands do. XLA
# drops assertions: there values go unchecked.

# Parts of a sentence, joined by spaces: text, and numbers that are known when it runs.
Words = Callable[[], Sequence[str | tf.Tensor]]


@tf.autograph.experimental.do_not_convert  # There is nothing to convert.
def require(holds: tf.Tensor, words: Words) -> tf.Tensor:
    """Raises `InputError` unless `holds`; in a graph, asserts it instead.

    Args:
      holds: bool, [].
      words: Returns the sentence; called, or in a graph computed, only to report.

    Returns:
      `holds`, for others to depend on.
    """
    if tf.executing_eagerly():
        if not bool(holds):
            parts = [p if isinstance(p, str) else f"{p.numpy():g}" for p in words()]
            raise InputError(re.sub(" ([;,])", r"\1", " ".join(parts)))
        return holds

    def fail():
        parts = list(words())
        parts[0] = MARK + parts[0]
        assertion = tf.debugging.Assert(False, parts, summarize=1)
        with tf.control_dependencies([assertion]):
            return tf.constant(False)

    return tf.cond(holds, lambda: tf.constant(True), fail)


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Turns TensorFlow's errors that contain a sentence of ours into `InputError`.

    These are failed assertions of `require`, mistakes found while a batch is read, and
    operations without a deterministic kernel, where such kernels are required.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        sentence = input_error_within(error)
        if sentence is None:
            raise
        raise InputError(sentence) from error
