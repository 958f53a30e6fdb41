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
from tensorflow.python.framework import ops  # It has no public way there.

from mtr_tf.errors import InputError
from mtr_tf.errors import is_out_of_memory

MODES = ("auto", "on", "off")

# On an H100 XLA saves 8 ms of each pass forwards and backwards of a batch, whether that
# is small (launching kernels takes as long) or a million pixels large, and in
# proportion above: so 4000 passes save the half minute that compiling takes.
PASSES = 4000
_PIXELS = 2**20
_IN_XLA = contextvars.ContextVar("in_xla", default=False)
TRAINING_STEP = 3  # A training step saves as much as so many passes.


def worthwhile(mode: str, passes: float, pixels: float) -> bool:
    """Whether XLA should compile a graph.

    Args:
      mode: "on", "off", or "auto": on a GPU, where that saves the time it takes.
      passes: How often a batch goes forwards and backwards through the graph, in all.
      pixels: Of the images in a batch on one device, height x width x images.

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


def say(what: str, mode: str, why: str = "") -> None:
    """Logs what was chosen and why; logs nothing if there was no choice.

    Args:
      what: Is compiled, or is not.
      mode: As for `worthwhile`.
      why: Where it is not for the mode.
    """
    if mode == "auto" and not on_gpu():
        return
    if mode == "auto" and not why:
        why = f"which pays from {PASSES} passes of a batch on"
    logging.info("XLA compiles %s (--jit=%s%s)", what, mode, why and f", {why}")


def in_xla() -> bool:
    """Whether the graph that is being made is for XLA."""
    return _IN_XLA.get()


def compiled(
    function: Callable[..., Any],
) -> tf.types.experimental.PolymorphicFunction:
    """Returns it as a tf.function that XLA compiles."""

    def traced(*arguments: Any) -> Any:
        token = _IN_XLA.set(True)
        try:
            return function(*arguments)
        finally:
            _IN_XLA.reset(token)

    return tf.function(traced, jit_compile=True, autograph=False)


@contextlib.contextmanager
def own_gradients() -> Iterator[Callable[[Any], None]]:
    """Yields `owned_by(owner)`: gradients registered within go when `owner` does.

    TensorFlow registers a gradient for each use of tf.custom_gradient in a graph, for
    ever, and through it holds the graph: some MB for each model that is attacked.
    """
    registry = getattr(ops.gradient_registry, "_registry", {})
    before = set(registry)

    def owned_by(owner: Any) -> None:
        names = [name for name in registry if name not in before]
        names = [name for name in names if name.startswith("CustomGradient-")]
        if names:
            weakref.finalize(owner, _forget, registry, names).atexit = False

    yield owned_by


def _forget(registry: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        registry.pop(name, None)


_OPERATION = 10_000  # Bytes that an operation of a graph takes, in Python and beneath.


def graph_bytes(concrete: Any) -> int:
    """About what the graph of a concrete function holds, without weights."""
    graph = concrete.graph.as_graph_def()
    inner = sum(len(function.node_def) for function in graph.library.function)
    return _OPERATION * (len(graph.node) + inner)


def weight_bytes(model: Any) -> int:
    """What the variables of a Keras model take; 0 of any other callable."""
    variables = getattr(model, "variables", ())
    sizes = (math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
    return sum(sizes)


def per_replica(step: Callable[..., Any], jit: bool) -> Callable[..., Any]:
    """Returns the step for `strategy.run`; with `jit` each replica's is compiled.

    Such a step must not speak to other replicas, which XLA could not follow.
    """
    if not jit:
        return step
    made = compiled(step)
    # A function of Python's: strategies take tf.functions apart.
    return lambda *arguments: made(*arguments)


def replicated(
    strategy: tf.distribute.Strategy,
    step: Callable[..., Any],
    arguments: tuple,
    jit: bool,
    what: str,
) -> Fallback:
    """A step that all replicas run, compiled for arguments of this kind.

    Compiled by hand because TensorFlow warns of retracing where many functions are each
    compiled once, as in a sweep.

    Args:
      strategy: Whose replicas run it.
      step: As `per_replica` takes it.
      arguments: Such as it will be called with.
      jit: Whether XLA is to compile it.
      what: Its name, for the one sentence that is logged.
    """

    def build(jit: bool) -> Callable[..., Any]:
        run = per_replica(step, jit)
        made = tf.function(lambda *args: strategy.run(run, args), autograph=False)
        with own_gradients() as owned_by:
            concrete = made.get_concrete_function(*arguments)
            owned_by(concrete)
        return concrete

    return Fallback(build, jit, what)


class Fallback:
    """A function that continues without XLA if XLA cannot compile it.

    This is found out in the first call, which must change nothing if it fails:
    everything that it changes must be inside the compiled part, so that it is done
    completely or not at all.
    """

    def __init__(
        self, build: Callable[[bool], Callable[..., Any]], jit: bool, what: str
    ):
        """Takes what makes the function, with XLA or without.

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
            refused = error
        self._function = self._build(False)
        found = self._function(*arguments)  # Raises, if it was not for XLA.
        logging.warning(
            "XLA cannot compile %s, which continues without it (%s)",
            self._what,
            _reason(refused.message),
        )
        return found


def _reason(text: str) -> str:
    """The beginning of an error that says what is not supported."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no reason given"])[0][:160]
