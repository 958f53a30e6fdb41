# SPDX-License-Identifier: Apache-2.0
"""Attacks and training on one GPU, beside TensorFlow's limit and PyTorch.

    python benchmarks/gpu.py --torch_python=/usr/bin/python3
    python benchmarks/gpu.py --part=attack,limit --batch_sizes=32
    python benchmarks/gpu.py --tiny --torch_python=python    # A rehearsal on a CPU.

Each part is a process of its own with a limit of time, so that a slow one takes nothing
from the others; each line is printed, and the JSON file written, as soon as it is
measured. The first call, in which XLA compiles, is in the column "first". A step of an
attack is a pass forwards and one backwards to the images; one of training is three
passes. TFLOP/s count the multiplications and additions of convolutions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import timing

Record = dict[str, Any]

# Seconds that a part may take, with its start. Those after the first five, which take
# less than four minutes in all, are run only if named.
_LIMITS = {
    "matmul": 25,
    "attack": 90,
    "limit": 35,
    "torch": 25,
    "train": 60,
    "drn_train": 90,
    "free_train": 90,
    "deterministic": 60,
    "float16": 60,
    "torch_train": 60,
    "torch_compile": 150,
}
_USUAL = tuple(_LIMITS)[:5]
_CLASSES = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the parts, one after the other."""
    args = _arguments(argv)
    if args.worker:
        _work(args)
        return
    records: list[Record] = []
    for part in args.part.split(","):
        if part.startswith("torch") and not args.torch_python:
            continue
        for record in _run(part, args):
            records.append(_completed(record, records))
            print(_line(records[-1]), flush=True)
            timing.write(args, records)
    print(f"written to {args.output}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--part", default=",".join(_USUAL), help=f"out of {', '.join(_LIMITS)}")
    add("--torch_python", default="", help="a Python that has PyTorch; empty: without")
    add("--batch_sizes", default="8,32", help="of attacks")
    add("--image_size", default="256x512", help="of attacks")
    add("--seconds", type=float, default=0, help="limit of each part; 0: its own")
    add("--rounds", type=int, default=5, help="of each, of which the median counts")
    add("--steps", type=int, default=20, help="of PGD")
    add("--tiny", action="store_true", help="small nets and images: a rehearsal")
    add("--output", default="runs/benchmarks/gpu.json")
    add("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.tiny:
        args.batch_sizes, args.image_size, args.rounds, args.steps = "2", "32", 1, 2
    return args


def _run(part: str, args: argparse.Namespace) -> Iterator[Record]:
    """The records of a part, which runs in a process of its own."""
    own = [f"--{k}={v}" for k, v in vars(args).items() if k not in ("worker", "tiny")]
    own += ["--tiny"] if args.tiny else []
    command = [sys.executable, __file__, *own, f"--worker={part}"]
    limit = args.seconds or _LIMITS[part]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ended = threading.Event()

    def end():
        ended.set()
        os.killpg(process.pid, signal.SIGKILL)  # With what it has started.

    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr))
    reader.start()
    timer = threading.Timer(limit, end)
    timer.start()
    start = time.perf_counter()
    for line in process.stdout:
        if line.startswith("{"):
            yield {"part": part, **json.loads(line)}
    code = process.wait()
    timer.cancel()
    reader.join(5)
    if ended.is_set():
        yield {"part": part, "what": f"ended after {limit:g} s", "error": "time"}
    elif code:
        told = "".join(errors).strip().splitlines()[-1:] or [f"exit {code}"]
        yield {"part": part, "what": "ended", "error": told[0][:300]}
    else:
        seconds = time.perf_counter() - start
        print(f"# {part}: {seconds:.0f} s in all", flush=True)


def _completed(record: Record, before: Sequence[Record]) -> Record:
    """The record with what follows from it: rates, and shares of matrix products."""
    if "ms" not in record:
        return record
    made = dict(record)
    if "batch" in made:
        made["images_per_s"] = 1000 * made["batch"] / made["ms"]
    if "gflop" in made:
        made["tflops"] = made["gflop"] * made.get("batch", 1) / made["ms"]
        for other in before:
            if other["part"] == "matmul" and other.get("dtype") == made.get("dtype"):
                made["share"] = made["tflops"] / other["tflops"]
    return made


def _line(record: Record) -> str:
    if "ms" not in record:
        return f"{record['part']:14} {record.get('what', '')} {record.get('error', '')}"
    cells = [
        f"{record['part']:14} {record['what']:44} {record['dtype']:9}",
        f"B{record.get('batch', 0):<3d} {record['ms']:9.2f} ms",
        f"{record.get('images_per_s', 0):9.1f} images/s",
        f"{record.get('tflops', 0):7.1f} TFLOP/s",
        f"{100 * record.get('share', 0):5.1f} %",
        f"first {record['first_s']:5.1f} s",
    ]
    extra = [f"{k} {record[k]}" for k in ("loss", "peak_gb", "note") if k in record]
    return "  ".join([*cells, *extra])


# What follows runs in the processes of the parts.


def _work(args: argparse.Namespace) -> None:
    """Prints the records of one part as lines of JSON."""
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    for what, run in _PARTS[args.worker](args):
        logging.getLogger("absl").addHandler(handler)  # XLA may be left out.
        try:
            found = run()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:400]}
        if warnings:
            found["note"] = "; ".join(warnings)[:300]
            warnings.clear()
        print(json.dumps({**what, **found}), flush=True)


Case = tuple[Record, Callable[[], Record]]


def _import(deterministic: bool = False) -> None:
    from mtr_tf.cli import startup

    startup.import_tensorflow(deterministic)
    import tensorflow as tf

    if deterministic:
        tf.config.experimental.enable_op_determinism()


def _timed(run: Callable[[], Any], rounds: int, per: int = 1) -> Record:
    """Milliseconds per step, a median over rounds, and seconds of the first call."""
    import tensorflow as tf

    def wait(value) -> None:
        float(tf.reduce_sum(tf.cast(value, tf.float32)))

    start = time.perf_counter()
    wait(run())
    first, times = time.perf_counter() - start, []
    wait(run())
    for _ in range(rounds):
        start = time.perf_counter()
        wait(run())
        times.append(time.perf_counter() - start)
    found = {"ms": 1000 * sorted(times)[len(times) // 2] / per, "first_s": first}
    if tf.config.list_physical_devices("GPU"):
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
        found["peak_gb"] = round(peak / 2**30, 1)
    return found


def _matmul(args: argparse.Namespace) -> Iterator[Case]:
    """How fast matrix products are: what other rates are a share of."""
    _import()
    import tensorflow as tf

    side, count = (64, 2) if args.tiny else (8192, 20)
    for dtype in ("bfloat16", "float16", "float32"):
        a = tf.cast(tf.random.normal((side, side)) / side**0.5, dtype)

        @tf.function(jit_compile=True)
        def products(x, a):
            for _ in range(count):
                x = x @ a
            return x

        yield (
            {"what": f"{side} x {side}", "dtype": dtype, "gflop": 2e-9 * side**3},
            lambda f=products, a=a: _timed(lambda: f(a, a), args.rounds, count),
        )


def _problem(args: argparse.Namespace, batch: int, policy: str = "float32"):
    """The paper's net with random weights, and its work per image and pass."""
    import keras
    import net_spec
    import problems

    keras.config.set_dtype_policy(policy)
    settings = argparse.Namespace(
        model="drn_d_22",
        width=4 if args.tiny else 0,
        image_size=args.image_size,
        decoders="shared",
        tasks="seg,depth,autoencoder",
    )
    problem = problems.random(settings, batch)
    keras.config.set_dtype_policy("float32")
    spec, arrays = net_spec.describe(problem.model)
    height, width = problem.x.shape[1:3]
    return problem, spec, arrays, net_spec.forward_flops(spec, height, width) / 1e9


def _batch_sizes(args: argparse.Namespace) -> list[int]:
    return sorted(map(int, args.batch_sizes.split(",")), reverse=True)


def _attack(args: argparse.Namespace) -> Iterator[Case]:
    """The product's PGD, with XLA and without, in float32 and with --fast."""
    _import()
    for batch in _batch_sizes(args):  # The most telling first, as below.
        for jit in ("on", "off"):
            for dtype in ("float32", "bfloat16"):
                yield _attack_case(args, batch, dtype, jit)


def _deterministic(args: argparse.Namespace) -> Iterator[Case]:
    """The same with deterministic kernels, as `python -m mtr_tf.attack` has it."""
    _import(deterministic=True)
    for dtype in ("float32", "bfloat16"):
        yield _attack_case(args, min(_batch_sizes(args)), dtype, "on")


def _float16(args: argparse.Namespace) -> Iterator[Case]:
    """The same in float16."""
    _import()
    for batch in _batch_sizes(args):
        yield _attack_case(args, batch, "float16", "on")


def _attack_case(args: argparse.Namespace, batch: int, dtype: str, jit: str) -> Case:
    what = f"PGD-{args.steps}, jit={jit}"
    about = {"what": what, "dtype": dtype, "batch": batch, "jit": jit}

    def run() -> Record:
        from mtr_tf import attacks
        from mtr_tf.models import folding

        problem, _, _, gflop = _problem(args, batch)
        model = problem.model
        if dtype != "float32":
            model = folding.in_half(model, dtype)
        objective = problem.objective(model)
        attack = attacks.PGD(8 / 255, 2 / 255, args.steps)

        def call():
            return attack(objective, problem.x, seed=0, jit=jit)

        found = _timed(call, args.rounds, args.steps)
        loss = problem.head(min(batch, 8)).loss(call()[:8])
        return {**found, "gflop": 2 * gflop, "loss": round(loss, 5)}

    return about, run


def _limit(args: argparse.Namespace) -> Iterator[Case]:
    """A pass forwards and backwards to the images, compiled by XLA: no attack."""
    _import()
    for batch in _batch_sizes(args)[:1]:
        for dtype in ("bfloat16", "float32", "float16"):
            policy = dtype if dtype == "float32" else f"mixed_{dtype}"

            def run(batch=batch, policy=policy) -> Record:
                problem, _, _, gflop = _problem(args, batch, policy)
                passes = problem.passes(args.steps, jit=True)
                return {**_timed(passes, args.rounds, args.steps), "gflop": 2 * gflop}

            yield {"what": "forward + backward", "dtype": dtype, "batch": batch}, run


def _train(args: argparse.Namespace) -> Iterator[Case]:
    """Training steps at 64 px: the product's loop with its input, and the bare step."""
    _import(deterministic=True)
    yield from _all_training_cases(args)


def _free_train(args: argparse.Namespace) -> Iterator[Case]:
    """The first of these two with --nodeterministic."""
    _import()
    yield from itertools.islice(_all_training_cases(args), 2)


def _all_training_cases(args: argparse.Namespace) -> Iterator[Case]:
    from mtr_tf import tasks

    every = ",".join(tasks.TASKS)
    cases = [  # The most telling first: a limit of time may cut the rest off.
        ("resnet18", "seg,depth", "on", "float32"),
        ("resnet18", "seg,depth", "off", "float32"),
        ("resnet18", every, "on", "float32"),
        ("small", "seg,depth", "on", "float32"),
        ("small", "seg,depth", "off", "float32"),
        ("resnet18", every, "off", "float32"),
        ("resnet18", "seg,depth", "on", "mixed_bfloat16"),
    ]
    side = 32 if args.tiny else 64
    batch = 4 if args.tiny else 32
    width = 4 if args.tiny else None
    for model, names, jit, policy in cases:
        yield from _training_cases(
            args, model, names, jit, policy, (side, side), batch, width
        )


def _drn_train(args: argparse.Namespace) -> Iterator[Case]:
    """Training DRN-D-22 on crops of 256, batch 16, as the paper does."""
    _import(deterministic=True)
    side, batch = (32, 2) if args.tiny else (256, 16)
    for policy in ("float32", "mixed_bfloat16"):
        yield from _training_cases(
            args,
            "drn_d_22",
            "seg,depth,autoencoder",
            "on",
            policy,
            (side, side),
            batch,
            4 if args.tiny else None,
        )


def _training_cases(
    args, model, names, jit, policy, sides, batch, width
) -> Iterator[Case]:
    """The bare step on a batch that is on the device, then the product's loop."""
    from mtr_tf import tasks

    names = tasks.resolve(names.split(","))
    dtype = policy.removeprefix("mixed_")
    what = f"{model}, {len(names)} tasks, jit={jit}"
    about = {"dtype": dtype, "batch": batch, "jit": jit, "model": model}
    state: dict[str, Any] = {}

    def bare() -> Record:
        state["steps"] = _Steps(model, names, jit == "on", policy, sides, batch, width)
        return state["steps"].bare(args)

    def product() -> Record:
        return state["steps"].product(args)

    yield {**about, "what": f"step, {what}"}, bare
    yield {**about, "what": f"loop, {what}"}, product


class _Steps:
    """A net that is trained on random images; both ways use one compiled step."""

    def __init__(self, model, names, jit, policy, sides, batch, width):
        import keras
        import net_spec
        import numpy as np
        import tensorflow as tf

        from mtr_tf import models
        from mtr_tf import tasks
        from mtr_tf.data import augment
        from mtr_tf.data import batching
        from mtr_tf.data.source import Columns
        from mtr_tf.training import step as step_lib
        from mtr_tf.training.losses import Weighting

        gpu = tf.config.list_physical_devices("GPU")
        self._strategy = tf.distribute.OneDeviceStrategy("GPU:0" if gpu else "CPU:0")
        with self._strategy.scope():
            keras.config.set_dtype_policy(policy)
            net = models.build(model, names, (*sides, 3), _CLASSES, width=width)
            keras.config.set_dtype_policy("float32")
            optimizer = keras.optimizers.Adam(1e-3)
            optimizer.build(net.trainable_variables)
        losses = {name: tasks.TASKS[name].loss for name in names}
        weighting = Weighting(dict.fromkeys(names, 1.0))
        learner = step_lib.Learner(net, optimizer, losses, weighting, 0.0, batch)
        self._step = step_lib.compile_step(learner, self._strategy, jit)
        self._steps = step_lib.compile_steps(learner, self._strategy, step=self._step)
        self._batch = batch
        spec, _ = net_spec.describe(net)
        self._gflop = 3e-9 * net_spec.forward_flops(spec, *sides)
        rng = np.random.default_rng(0)
        count = max(2 * batch, 256)
        targets = {}
        for name in names:
            if tasks.TASKS[name].discrete:
                targets[name] = rng.integers(0, _CLASSES, (count, *sides), np.uint8)
            else:
                shape = (count, *sides, tasks.TASKS[name].channels)
                targets[name] = rng.random(shape, np.float32)
        columns = Columns(
            images=rng.integers(0, 256, (count, *sides, 3), np.uint8),
            targets=targets,
            masks={},
        )

        def batches(context):
            return batching.train_batches(
                columns,
                names,
                batch_size=batch,
                seed=0,
                first_step=0,
                last_step=10**6,
                augment=augment.Augment(True, None),
                context=context,
            )

        self._iterator = iter(self._strategy.distribute_datasets_from_function(batches))

    def bare(self, args: argparse.Namespace) -> Record:
        """The compiled step alone, on one batch."""
        import tensorflow as tf

        with tf.device("GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"):
            batch = tf.nest.map_structure(tf.identity, next(self._iterator))
        run = tf.function(
            lambda batch: self._strategy.run(self._step, (batch,)), autograph=False
        )
        count = 2 if args.tiny else 20

        def several():
            for _ in range(count):
                losses = run(batch)
            return losses

        return {**_timed(several, args.rounds, count), "gflop": self._gflop}

    def product(self, args: argparse.Namespace) -> Record:
        """Steps as `python -m mtr_tf.train` takes them, 20 in one call."""
        import tensorflow as tf

        count = 2 if args.tiny else 20
        found = _timed(
            lambda: self._steps(self._iterator, tf.constant(count)), args.rounds, count
        )
        return {**found, "gflop": self._gflop}


def _torch(args: argparse.Namespace) -> Iterator[Case]:
    """PyTorch's eager PGD on the same net."""
    cases = [
        {"kind": "pgd", "dtype": d, "channels_last": c, "compile": False, "batch": b}
        for b in _batch_sizes(args)
        for d, c in (
            ("bfloat16", False),
            ("float32", False),
            ("bfloat16", True),
            ("float32", True),
        )
    ]
    return _of_torch(args, cases, args.image_size)


def _torch_train(args: argparse.Namespace) -> Iterator[Case]:
    """PyTorch's eager training steps of DRN-D-22, crops of 256, batch 16."""
    cases = [
        {"kind": "train", "dtype": d, "channels_last": c, "compile": False, "batch": b}
        for b in ((2,) if args.tiny else (16,))
        for d in ("float32", "bfloat16")
        for c in (False, True)
    ]
    return _of_torch(args, cases, "32" if args.tiny else "256")


def _torch_compile(args: argparse.Namespace) -> Iterator[Case]:
    """PGD with torch.compile."""
    cases = [
        {"kind": "pgd", "dtype": d, "channels_last": True, "compile": True, "batch": b}
        for b in _batch_sizes(args)
        for d in ("bfloat16", "float32")
    ]
    return _of_torch(args, cases, args.image_size)


def _of_torch(
    args: argparse.Namespace, cases: Sequence[Record], size: str
) -> Iterator[Case]:
    """Runs the cases in the Python that has PyTorch, with this net."""
    environment = _plain_environment()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Here it only describes the net.
    _import()
    args = argparse.Namespace(**{**vars(args), "image_size": size})
    problem, spec, arrays, gflop = _problem(args, 1)
    import net_spec

    with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder, "weights.npz")
        net_spec.save(weights, arrays)
        settings = {
            "spec": spec,
            "weights": str(weights),
            "sides": list(problem.x.shape[1:3]),
            "classes": _CLASSES,
            "steps": args.steps,
            "rounds": args.rounds,
            "cases": list(cases),
        }
        path = pathlib.Path(folder, "settings.json")
        path.write_text(json.dumps(settings))
        process = subprocess.Popen(
            [args.torch_python, str(pathlib.Path(__file__).parent / "torch_spec.py")]
            + [str(path)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for line in process.stdout:
            record = json.loads(line)
            what = f"PyTorch {record['kind']}"
            what += ", torch.compile" if record["compile"] else ", eager"
            what += ", NHWC" if record["channels_last"] else ", NCHW"
            passes = 2 if record["kind"] == "pgd" else 3
            yield {"what": what, "gflop": passes * gflop}, lambda r=record: r
        process.wait()


def _plain_environment() -> dict[str, str]:
    """The environment without what is TensorFlow's: its Python may be another."""
    ours = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")
    return {k: v for k, v in os.environ.items() if k not in ours}


_PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Case]]] = {
    "matmul": _matmul,
    "attack": _attack,
    "limit": _limit,
    "torch": _torch,
    "train": _train,
    "free_train": _free_train,
    "drn_train": _drn_train,
    "deterministic": _deterministic,
    "float16": _float16,
    "torch_train": _torch_train,
    "torch_compile": _torch_compile,
}

if __name__ == "__main__":
    main()
