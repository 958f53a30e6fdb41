# SPDX-License-Identifier: Apache-2.0
"""Which graphs XLA compiles, and what happens if it cannot.

On GPUs a compiled graph takes a half to a quarter of the time; on CPUs it takes longer.
Compiling a new graph takes 5 to 50 seconds, so short jobs are faster without it.
`worthwhile` says where the limit is.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import logging
from tensorflow.python.framework import ops  # There is no public path to it.

from mtr_tf.errors import InputError
from mtr_tf.errors import is_out_of_memory

MODES = ("auto", "on", "off")

# On an H100, XLA saves 8 ms of each forward and backward pass of a batch of up to a
# million pixels (launching kernels takes as long for small batches), and in proportion
# more above: 4000 passes save the half minute that compiling takes.
PASSES = 4000
_PIXELS = 2**20
_IN_XLA = contextvars.ContextVar("in_xla", default=False)
TRAINING_STEP = 3  # A training step saves as much as this many passes.


def worthwhile(mode: str, passes: float, pixels: float) -> bool:
    """Whether XLA should compile a graph.

    Args:
      mode: "on", "off", or "auto": on a GPU, if it saves more time than it takes.
      passes: How often a batch goes forwards and backwards through the graph in total.
      pixels: Pixels of a batch on one device: height x width x images.

    Raises:
      InputError: There is no such mode.
    """
    if mode not in MODES:
        raise InputError(f"jit must be one of {', '.join(MODES)}; got {mode!r}.")
    if mode != "auto":
        return mode == "on"
    return on_gpu() and passes * max(1.0, pixels / _PIXELS) >= PASSES


def on_gpu() -> bool:
    """Whether graphs run on a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def say(what: str, mode: str, reason: str = "") -> None:
    """Logs what was chosen and why; logs nothing if there was no choice.

    Args:
      what: Name of what is compiled, or not.
      mode: As for `worthwhile`.
      reason: Why, if the mode does not explain it.
    """
    if mode == "auto" and not on_gpu():
        return
    if mode == "auto" and not reason:
        reason = f"which pays from {PASSES} passes of a batch on"
    logging.info("XLA compiles %s (--jit=%s%s)", what, mode, reason and f", {reason}")


def in_xla() -> bool:
    """Whether the graph that is being traced is for XLA."""
    return _IN_XLA.get()


def compiled(
    function: Callable[..., Any],
) -> tf.types.experimental.PolymorphicFunction:
    """Returns the function as a tf.function that XLA compiles."""

    def traced(*arguments: Any) -> Any:
        token = _IN_XLA.set(True)
        try:
            return function(*arguments)
        finally:
            _IN_XLA.reset(token)

    return tf.function(traced, jit_compile=True, autograph=False)


@contextlib.contextmanager
def own_gradients() -> Iterator[Callable[[Any], None]]:
    """Yields `tie_to(owner)`: new gradients are deleted together with `owner`.

    These are the gradients registered inside the `with` block. TensorFlow registers one
    for each use of tf.custom_gradient in a graph, for ever, and through it holds the
    graph: some MB for each model that is attacked.
    """
    registry = getattr(ops.gradient_registry, "_registry", {})
    old_names = set(registry)

    def tie_to(owner: Any) -> None:
        names = [name for name in registry if name not in old_names]
        names = [name for name in names if name.startswith("CustomGradient-")]
        if names:
            weakref.finalize(owner, _forget, registry, names).atexit = False

    yield tie_to


def _forget(registry: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        registry.pop(name, None)


_OPERATION = 10_000  # Bytes that an operation of a graph takes, in Python and C++.


def graph_bytes(concrete: Any) -> int:
    """Estimates the bytes of a concrete function's graph, without weights."""
    graph = concrete.graph.as_graph_def()
    inner = sum(len(function.node_def) for function in graph.library.function)
    return _OPERATION * (len(graph.node) + inner)


def weight_bytes(model: Any) -> int:
    """Returns the bytes of a Keras model's variables; 0 for any other callable."""
    variables = getattr(model, "variables", ())
    sizes = (math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
    return sum(sizes)


def per_replica(step: Callable[..., Any], jit: bool) -> Callable[..., Any]:
    """Returns the step for `strategy.run`; with `jit`, XLA compiles it per replica.

    A compiled step must not communicate with other replicas, which XLA cannot follow.
    """
    if not jit:
        return step
    compiled_step = compiled(step)
    # A Python function, because strategies take tf.functions apart.
    return lambda *arguments: compiled_step(*arguments)


def replicated(
    strategy: tf.distribute.Strategy,
    step: Callable[..., Any],
    arguments: tuple,
    jit: bool,
    what: str,
) -> Fallback:
    """Builds a step that all replicas run, for arguments of one signature.

    It is traced explicitly, because TensorFlow warns of retracing if many functions are
    each traced once, as in a sweep.

    Args:
      strategy: The strategy whose replicas run it.
      step: What `per_replica` takes.
      arguments: Examples of the arguments of later calls.
      jit: Whether XLA is to compile it.
      what: Its name, for the one sentence that is logged.
    """

    def build(jit: bool) -> Callable[..., Any]:
        run = per_replica(step, jit)
        function = tf.function(lambda *args: strategy.run(run, args), autograph=False)
        with own_gradients() as tie_to:
            concrete = function.get_concrete_function(*arguments)
            tie_to(concrete)
        return concrete

    return Fallback(build, jit, what)


class Fallback:
    """A function that continues without XLA if XLA cannot compile it.

    The first call finds this out, and must change nothing if it fails: all that it
    changes must be inside the compiled part, so that it happens completely or not at
    all.
    """

    def __init__(
        self, build: Callable[[bool], Callable[..., Any]], jit: bool, what: str
    ):
        """Takes a builder of the function, with XLA or without.

        Args:
          build: `build(jit)` returns the function.
          jit: Whether to try XLA.
          what: Its name, for the one sentence that is logged.
        """
        self._build, self._what = build, what
        self._function = build(jit)
        self._untried = jit

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function."""
        if not self._untried:
            return self._function(*arguments)
        self._untried = False
        try:
            return self._function(*arguments)
        except tf.errors.OpError as error:
            if is_out_of_memory(error):
                raise
            xla_error = error
        self._function = self._build(False)
        result = self._function(*arguments)  # Raises too if XLA is not the cause.
        logging.warning(
            "XLA cannot compile %s, which continues without it (%s)",
            self._what,
            _reason(xla_error.message),
        )
        return result


def _reason(text: str) -> str:
    """Returns the first line of an error, which says what is not supported."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no reason given"])[0][:160]
