# SPDX-License-Identifier: Apache-2.0
"""Attacks and training on one GPU, beside TensorFlow's limit and PyTorch.

    python benchmarks/gpu.py --torch_python=/usr/bin/python3
    python benchmarks/gpu.py --part=attack,limit --batch_sizes=32
    python benchmarks/gpu.py --part=attack --batch_sizes=8 --profile=FOLDER
    python benchmarks/gpu.py --tiny --torch_python=python    # A rehearsal on a CPU.

XLA compiles for half a minute and longer, mostly on the CPU. So each group of cases
runs in a process of its own: several compile at the same time, and are then timed one
after the other while the rest wait. PyTorch runs afterwards, alone. Each line is
printed, and the JSON file written, as soon as it is measured; cases that exceed their
time limit are ended. The column "first" is the first call, in which XLA compiles. A
step of an attack is a pass forwards and one backwards to the images; a step of training
is three passes. TFLOP/s count the multiplications and additions of convolutions.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import timing

Record = dict[str, Any]
Case = tuple[Record, Callable[[], Record]]

_DEFAULT_PARTS = "matmul,attack,train,torch"
_READY = {"ready": True}  # A worker's message that it has compiled.
_CLASSES = 8
_KERNELS = 8  # The number of kernels of a profile that are shown.


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the parts."""
    args = _arguments(argv)
    if args.worker:
        _work(args)
        return
    records: list[Record] = []
    for names in _worker_groups(args):
        for record in _group_records(names, args):
            records.append(_add_rates(record, records))
            print(_line(records[-1]), flush=True)
            timing.write(args, records)
    timing.write(args, records)
    if not args.torch_python:
        print("without PyTorch; to have it too, give --torch_python")
    print(f"written to {args.output}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "gpu", rounds=5)
    add = parser.add_argument
    add("--part", default=_DEFAULT_PARTS, help=f"out of {', '.join(_PARTS)}")
    add("--torch_python", default="", help="a Python that has PyTorch; empty: without")
    add("--batch_sizes", default="8,32", help="of attacks")
    add("--image_size", default="256x512", help="of attacks")
    add("--seconds", type=float, default=200, help="to compile, and to be measured")
    add("--steps", type=int, default=20, help="of PGD")
    limit = max(1, min(10, 5 * (os.cpu_count() or 1) // 8))
    add("--processes", type=int, default=limit, help="that compile at the same time")
    add("--profile", default="", help="a folder for the trace of one call of each case")
    add("--tiny", action="store_true", help="small nets and images: a rehearsal")
    add("--worker", default="", help=argparse.SUPPRESS)
    parser.set_defaults(waits=False)  # Whether a worker has yet to wait for its turn.
    args = parser.parse_args(argv)
    for part in args.part.split(","):
        if part not in _PARTS:
            parser.error(f"--part={part} must be out of {', '.join(_PARTS)}")
    if args.tiny:
        args.batch_sizes, args.image_size, args.rounds, args.steps = "2", "32", 1, 2
    return args


def _worker_groups(args: argparse.Namespace) -> Iterator[list[str]]:
    """Yields names of groups of cases whose processes compile at the same time."""
    parts = args.part.split(",")
    tensorflow_parts = [part for part in parts if not part.startswith("torch")]
    names = [
        f"{part}:{i}"
        for part in tensorflow_parts
        for i in range(len(_PARTS[part](args)))
    ]
    for i in range(0, len(names), args.processes):
        yield names[i : i + args.processes]
    if args.torch_python:
        yield from ([f"{part}:0"] for part in parts if part not in tensorflow_parts)


def _group_records(names: Iterable[str], args: argparse.Namespace) -> Iterator[Record]:
    """Yields the records of groups that compile together and are timed in turn."""
    deadline = time.monotonic() + args.seconds
    processes = [_Process(name, args) for name in names]
    try:
        for process in processes:
            process.compile(deadline)
        for process in processes:
            yield from process.records()
    finally:
        for process in processes:
            process.end()


class _Process:
    """A process that compiles a group of cases, and measures them on request."""

    def __init__(self, name: str, args: argparse.Namespace):
        """Starts the process; `name` is "PART:INDEX" with the group's index."""
        settings = {k: v for k, v in vars(args).items() if k not in ("tiny", "waits")}
        flags = [
            f"--{key}={value}" for key, value in {**settings, "worker": name}.items()
        ]
        self._part = name.partition(":")[0]
        # PyTorch compiles in this time, too.
        self._seconds = args.seconds * (2 if self._part.startswith("torch") else 1)
        self._what: Record = {"part": self._part, "what": name}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *flags, *["--tiny"] * args.tiny],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._early: list[Record] = []  # Cases that failed before they were compiled.
        self._ended = False
        self._said: queue.Queue[Record | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            if (record := _parse_record(line)) is not None:
                self._said.put(record)
        self._said.put(None)

    def _read_errors(self) -> None:
        self._errors.extend(self._process.stderr)

    def _next(self, deadline: float) -> Record | None:
        """The next record of the process; None at its end, or after the deadline.

        At the deadline, the process is ended.
        """
        try:
            return self._said.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.end()
            self._what["error"] = "took too long; give more --seconds"
            return None

    def compile(self, deadline: float) -> None:
        """Waits until the process has compiled or ended."""
        while (record := self._next(deadline)) not in (None, _READY):
            self._early.append({"part": self._part, **record})
        self._ended = record is None

    def records(self) -> Iterator[Record]:
        """Yields the records that the process measures now, and a record of failure."""
        yield from self._early
        with contextlib.suppress(BrokenPipeError):  # The process died while it waited.
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + self._seconds
        while not self._ended and (record := self._next(deadline)) is not None:
            yield {"part": self._part, **record}
        if self._process.wait() and "error" not in self._what:
            self._reader.join(5)
            error_lines = [line.strip() for line in self._errors if line.strip()]
            self._what["error"] = (error_lines or ["no word"])[-1][:300]
        if "error" in self._what:
            yield self._what

    def end(self) -> None:
        """Ends the process and its children."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _parse_record(line: str) -> Record | None:
    """The record in a line of output; None if the line is something else."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _add_rates(record: Record, earlier_records: Sequence[Record]) -> Record:
    """The record with derived rates, and its share of the rate of matrix products."""
    if "ms" not in record:
        return record
    result = dict(record)
    if "batch" in result:
        result["images_per_s"] = 1000 * result["batch"] / result["ms"]
    if "gflop" in result:
        result["tflops"] = result["gflop"] * result.get("batch", 1) / result["ms"]
        for candidate in earlier_records:
            is_product = candidate["part"] == "matmul" and "tflops" in candidate
            if is_product and candidate["dtype"] == result.get("dtype"):
                result["share"] = result["tflops"] / candidate["tflops"]
    return result


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
    kernels = [
        f"    {kernel['ms']:9.2f} ms  {kernel['count']:6d} x {kernel['name'][:100]}"
        for kernel in record.get("kernels", ())
    ]
    return "\n".join(["  ".join([*cells, *extra]), *kernels])


# The rest runs in the processes of the parts.


def _work(args: argparse.Namespace) -> None:
    """Prints the records of one group as lines of JSON."""
    part, _, place = args.worker.partition(":")
    args.waits = True
    if not part.startswith("torch"):  # PyTorch's need TensorFlow only on the CPU.
        _import(part not in _NONDETERMINISTIC)
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    for facts, run in _PARTS[part](args)[int(place)]:
        logging.getLogger("absl").addHandler(handler)  # Warns if XLA is left out.
        try:
            result = run()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:400]}
        if warnings:
            result["note"] = "; ".join(warnings)[:300]
            warnings.clear()
        if "XLA cannot compile" in result.get("note", ""):
            result["what"] = f"{facts['what']}, but without XLA"
        print(json.dumps({**facts, **result}), flush=True)


def _import(deterministic: bool) -> None:
    from mtr_tf.cli import startup

    startup.import_tensorflow(deterministic)
    import tensorflow as tf

    if deterministic:
        tf.config.experimental.enable_op_determinism()


def _measure(
    run: Callable[[], Any], args: argparse.Namespace, steps: int = 1
) -> Record:
    """Milliseconds per step, the median over rounds, and seconds of the first call."""
    import tensorflow as tf

    def seconds() -> float:
        start = time.perf_counter()
        float(tf.reduce_sum(tf.cast(run(), tf.float32)))  # Waits for the GPU.
        return time.perf_counter() - start

    first = seconds()
    _wait_for_turn(args)
    seconds()
    times = sorted(1000 * seconds() / steps for _ in range(args.rounds))
    record = {"ms": times[len(times) // 2], "first_s": first}
    record |= {"least_ms": times[0], "most_ms": times[-1]}
    if tf.config.list_physical_devices("GPU"):
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
        record["peak_gb"] = round(peak / 2**30, 1)
    if args.profile:
        record["kernels"] = _kernels(seconds, pathlib.Path(args.profile))
    return record


def _wait_for_turn(args: argparse.Namespace) -> None:
    """Reports that the first call is done, and waits while other workers are timed."""
    if args.waits:
        args.waits = False
        print(json.dumps(_READY), flush=True)
        sys.stdin.readline()


def _kernels(run: Callable[[], float], folder: pathlib.Path) -> list[Record]:
    """The GPU's kernels that take longest in one call, from TensorFlow's profiler.

    The trace stays in the folder, for TensorBoard.
    """
    import tensorflow as tf

    place = folder / f"{os.getpid()}-{time.monotonic_ns()}"
    tf.profiler.experimental.start(str(place))
    try:
        run()
    finally:
        tf.profiler.experimental.stop()
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = place.rglob("*.xplane.pb")
    return _longest_kernels(xplane_pb2.XSpace.FromString(path.read_bytes()))


def _longest_kernels(space: Any) -> list[Record]:
    """Names, counts and milliseconds of the kernels that take longest in a trace."""
    times: dict[str, float] = collections.defaultdict(float)
    counts: dict[str, int] = collections.Counter()
    for plane in space.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):  # Others sum these up.
                continue
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                times[name] += event.duration_ps / 1e9
                counts[name] += 1
    names = sorted(times, key=lambda name: -times[name])
    total = {"name": "all", "count": counts.total(), "ms": sum(times.values())}
    kernels = [
        {"name": n, "count": counts[n], "ms": times[n]} for n in names[:_KERNELS]
    ]
    return [total, *kernels] if names else []


def _matmul(args: argparse.Namespace) -> list[list[Case]]:
    """The speed of matrix products, which the other rates are shares of."""
    side, count = (64, 2) if args.tiny else (8192, 20)

    def run(dtype: str) -> Record:
        import tensorflow as tf

        a = tf.cast(tf.random.normal((side, side)) / side**0.5, dtype)

        @tf.function(jit_compile=True)
        def products(x, a):
            for _ in range(count):
                x = x @ a
            return x

        return _measure(lambda: products(a, a), args, count)

    facts = {"what": f"{side} x {side}", "gflop": 2e-9 * side**3}
    return [
        [
            ({**facts, "dtype": dtype}, lambda dtype=dtype: run(dtype))
            for dtype in ("bfloat16", "float16", "float32")
        ]
    ]


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


def _attack(args: argparse.Namespace) -> list[list[Case]]:
    """The library's PGD, with XLA and without, in float32 and with --fast."""
    return [
        [_attack_case(args, batch, dtype, jit) for jit, dtype in group]
        for batch in _batch_sizes(args)
        for group in (
            [("on", "float32")],
            [("on", "bfloat16")],
            [("off", "float32"), ("off", "bfloat16")],
        )
    ]


def _float16(args: argparse.Namespace) -> list[list[Case]]:
    """The library's PGD in float16."""
    return [
        [_attack_case(args, batch, "float16", "on")] for batch in _batch_sizes(args)
    ]


def _attack_case(args: argparse.Namespace, batch: int, dtype: str, jit: str) -> Case:
    name = f"PGD-{args.steps}, jit={jit}"
    description = {"what": name, "dtype": dtype, "batch": batch, "jit": jit}

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

        record = _measure(call, args, args.steps)
        loss = problem.head(min(batch, 8)).loss(call()[:8])
        return {**record, "gflop": 2 * gflop, "loss": round(loss, 5)}

    return description, run


def _limit(args: argparse.Namespace) -> list[list[Case]]:
    """A pass forwards and backwards to the images, compiled by XLA: no attack."""

    def run(batch: int, dtype: str) -> Record:
        policy = dtype if dtype == "float32" else f"mixed_{dtype}"
        problem, _, _, gflop = _problem(args, batch, policy)
        passes = problem.passes(args.steps, jit=True)
        return {**_measure(passes, args, args.steps), "gflop": 2 * gflop}

    return [
        [
            (
                {"what": "forward + backward", "dtype": dtype, "batch": batch},
                lambda batch=batch, dtype=dtype: run(batch, dtype),
            )
        ]
        for batch in _batch_sizes(args)
        for dtype in ("bfloat16", "float32", "float16")
    ]


_ALL_TASKS = "all"  # Tasks.


def _train(args: argparse.Namespace) -> list[list[Case]]:
    """Training steps at 64 px: the library's loop with its input, and the bare step."""
    return [
        _training_cases(args, "resnet18", "seg,depth", "on", "float32"),
        _training_cases(args, "resnet18", "seg,depth", "off", "float32"),
        _training_cases(args, "resnet18", _ALL_TASKS, "on", "float32"),
    ]


def _more_train(args: argparse.Namespace) -> list[list[Case]]:
    """Training steps of a small net, of all tasks without XLA, and in bfloat16."""
    return [
        _training_cases(args, "small", "seg,depth", "on", "float32"),
        _training_cases(args, "small", "seg,depth", "off", "float32"),
        _training_cases(args, "resnet18", _ALL_TASKS, "off", "float32"),
        _training_cases(args, "resnet18", "seg,depth", "on", "mixed_bfloat16"),
    ]


def _drn_train(args: argparse.Namespace) -> list[list[Case]]:
    """Training DRN-D-22 on crops of 256, batch 16, as the paper does.

    The tasks share a decoder: this is the net of `_problem`, and so PyTorch's.
    """
    return [
        _training_cases(args, "drn_d_22", "seg,depth,autoencoder", "on", policy)
        for policy in ("float32", "mixed_bfloat16")
    ]


def _training_cases(
    args: argparse.Namespace, model: str, names: str, jit: str, policy: str
) -> list[Case]:
    """The bare step on a batch on the device, then the library's loop."""
    (side, batch), width = (256, 16) if model == "drn_d_22" else (64, 32), None
    if args.tiny:
        side, batch, width = 32, 2, 4
    name = f"{model}, {names.count(',') + 1} tasks, jit={jit}"
    if names == _ALL_TASKS:
        name = f"{model}, all tasks, jit={jit}"
    description = {"dtype": policy.removeprefix("mixed_"), "batch": batch}
    description |= {"jit": jit, "model": model}
    state: dict[str, Any] = {}

    def bare() -> Record:
        from mtr_tf import tasks

        task_names = tuple(tasks.TASKS) if names == _ALL_TASKS else tasks.resolve(names)
        state["steps"] = _Steps(
            model, task_names, jit == "on", policy, (side, side), batch, width
        )
        return state["steps"].bare(args)

    def product() -> Record:
        return state["steps"].product(args)

    return [
        ({**description, "what": f"step, {name}"}, bare),
        ({**description, "what": f"loop, {name}"}, product),
    ]


class _Steps:
    """Trains a net on random images; `bare` and `product` use one compiled step."""

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
            shape = (*sides, 3)
            decoders = "shared" if model == "drn_d_22" else "separate"
            net = models.build(
                model, names, shape, _CLASSES, width=width, decoders=decoders
            )
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

        def run_steps():
            for _ in range(count):
                losses = run(batch)
            return losses

        return {**_measure(run_steps, args, count), "gflop": self._gflop}

    def product(self, args: argparse.Namespace) -> Record:
        """Steps as `python -m mtr_tf.train` takes them, 20 in one call."""
        import tensorflow as tf

        count = 2 if args.tiny else 20
        record = _measure(
            lambda: self._steps(self._iterator, tf.constant(count)), args, count
        )
        return {**record, "gflop": self._gflop}


def _torch(args: argparse.Namespace) -> list[Iterator[Case]]:
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
    return [_torch_cases(args, cases, args.image_size)]


def _torch_train(args: argparse.Namespace) -> list[Iterator[Case]]:
    """PyTorch's eager training steps of DRN-D-22, crops of 256, batch 16."""
    cases = [
        {"kind": "train", "dtype": d, "channels_last": c, "compile": False, "batch": b}
        for b in ((2,) if args.tiny else (16,))
        for d in ("float32", "bfloat16")
        for c in (False, True)
    ]
    return [_torch_cases(args, cases, "32" if args.tiny else "256")]


def _torch_compile(args: argparse.Namespace) -> list[Iterator[Case]]:
    """PGD with torch.compile."""
    cases = [
        {"kind": "pgd", "dtype": d, "channels_last": True, "compile": True, "batch": b}
        for b in _batch_sizes(args)
        for d in ("bfloat16", "float32")
    ]
    return [_torch_cases(args, cases, args.image_size)]


def _torch_cases(
    args: argparse.Namespace, cases: Sequence[Record], size: str
) -> Iterator[Case]:
    """Yields the cases, run by the Python that has PyTorch, with this net."""
    _wait_for_turn(args)  # PyTorch compiles and is timed case by case.
    environment = _torch_environment()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # This process only describes the net.
    _import(False)
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
            if (record := _parse_record(line)) is None:
                continue
            what = f"PyTorch {record['kind']}"
            what += ", torch.compile" if record["compile"] else ", eager"
            what += ", NHWC" if record["channels_last"] else ", NCHW"
            passes = 2 if record["kind"] == "pgd" else 3
            yield {"what": what, "gflop": passes * gflop}, lambda r=record: r
        if code := process.wait():
            error = f"{args.torch_python} ended with exit code {code}: has it PyTorch?"
            yield {"what": "PyTorch"}, lambda: {"error": error}


def _torch_environment() -> dict[str, str]:
    """The environment without variables of this Python; PyTorch's may be another."""
    variables = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")
    return {k: v for k, v in os.environ.items() if k not in variables}


_PARTS: dict[str, Callable[[argparse.Namespace], Sequence[Iterable[Case]]]] = {
    "matmul": _matmul,
    "attack": _attack,
    "train": _train,
    "torch": _torch,
    "more_train": _more_train,
    "drn_train": _drn_train,
    "float16": _float16,
    "limit": _limit,
    "free_attack": _attack,
    "free_train": _train,
    "free_drn_train": _drn_train,
    "torch_train": _torch_train,
    "torch_compile": _torch_compile,
}
# Parts whose kernels need not be deterministic; the others use deterministic ones, as
# the commands do.
_NONDETERMINISTIC = ("matmul", "limit", "free_attack", "free_train", "free_drn_train")

if __name__ == "__main__":
    main()
