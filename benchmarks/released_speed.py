# SPDX-License-Identifier: Apache-2.0
"""PGD on DRN-D-22 with three tasks: here, and in PyTorch as the released code is.

    pip install -e ".[bench]"
    python benchmarks/released_speed.py

The net has shared decoders, which is what the released code computes. PyTorch has the
same weights. In its first two rows, all layers or only the decoder's run again for each
task, and gradients by all weights are taken with those by the image (the released code
runs the decoder again). In its best row, shared layers run once, and only the gradient
by the image is taken.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from collections.abc import Sequence

from mtr_tf.cli import startup

startup.import_tensorflow()  # Without its start-up noise.

import net_spec
import numpy as np
import problems
import timing

from mtr_tf import attacks

_GOAL = 3.3
_EPSILON = 4 / 255
_STEP_SIZE = 1 / 255
_OURS = "mtr_tf"
_NAIVE = "PyTorch, network per task, weight gradients"
_BEST = "PyTorch, trunk once, image gradient only"
_COLUMNS = {
    "what": "s",
    "batch": "d",
    "ms per step": ".1f",
    "over ours": ".2f",
    "CPU over ours": ".2f",
    "loss": ".4f",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON."""
    args = _arguments(argv)
    try:
        import torch
    except ImportError as error:
        sys.exit(f"PyTorch is not installed ({error}): pip install -e '.[bench]'")
    torch.manual_seed(0)
    problem = problems.random(args, args.batch_size)
    contestants = {
        _OURS: _mtr_tf(problem, args.steps),
        **_torch_loops(problem, args.steps),
    }
    images_by_name = {name: run() for name, run in contestants.items()}
    times = timing.alternate(contestants, args.rounds, warm_up=1)
    our_duration = times[_OURS]
    records = [
        {
            "what": name,
            "batch": args.batch_size,
            "ms per step": 1000 * duration.wall / args.steps,
            "over ours": duration.over(our_duration).wall,
            "CPU over ours": duration.over(our_duration).cpu,
            "loss": problem.loss(images_by_name[name]),
        }
        for name, duration in times.items()
    ]
    gains = {row["what"]: row["over ours"] for row in records}
    goals = [
        (f"{gains[_NAIVE]:.2f} times as fast as {_NAIVE}, goal {_GOAL}",
         gains[_NAIVE] >= _GOAL),
        (f"{gains[_BEST]:.2f} times as fast as {_BEST}, goal 1", gains[_BEST] >= 1),
    ]  # fmt: skip
    timing.finish(args, records, _COLUMNS, goals)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "released_speed", rounds=7)
    problems.add_flags(
        parser,
        model="drn_d_22",
        image_size="128x256",
        tasks="seg,depth,autoencoder",
        decoders="shared",
    )
    parser.add_argument("--steps", type=int, default=5, help="of PGD")
    parser.add_argument("--batch_size", type=int, default=1, help="images")
    return parser.parse_args(argv)


def _mtr_tf(problem: problems.Problem, steps: int) -> Callable[[], np.ndarray]:
    objective = problem.objective()
    attack = attacks.PGD(_EPSILON, _STEP_SIZE, steps, random_start=False)
    return lambda: attack(objective, problem.x).numpy()


def _torch_loops(
    problem: problems.Problem, steps: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Returns PGD in PyTorch, written in three ways; images as in Keras."""
    import torch
    import torch_spec

    spec, arrays = net_spec.describe(problem.model)
    net = torch_spec.Net(spec, arrays).eval()
    first = next(
        i for i, node in enumerate(spec["nodes"]) if node["name"].startswith("decoder")
    )
    encoder, decoder = spec["nodes"][:first], spec["nodes"][first:]
    x = torch.tensor(np.transpose(problem.x.numpy(), (0, 3, 1, 2)))
    targets = {name: _torch_target(t) for name, t in problem.targets.items()}

    def one_head(x, task, earlier):
        """Returns the output of a task, from the image or from earlier values."""
        others = [f"_{name}" for name in problem.names if name != task]
        nodes = [
            node
            for node in (decoder if earlier else spec["nodes"])
            if not node["name"].endswith(tuple(others))
        ]
        return net.values(x, nodes, earlier)[spec["outputs"][task]]

    def network_per_head(x):
        return {task: one_head(x, task, {}) for task in problem.names}

    def decoder_per_head(x):
        features = net.values(x, encoder, {})
        return {task: one_head(x, task, features) for task in problem.names}

    def loop(forward, weights):
        net.requires_grad_(weights)
        point = x
        for _ in range(steps):
            point = point.detach().requires_grad_()
            losses = torch_spec.losses(forward(point), targets)
            if weights:
                net.zero_grad()
                losses.backward()
                slope = point.grad
            else:
                (slope,) = torch.autograd.grad(losses, point)
            next_point = point.detach() + _STEP_SIZE * slope.sign()
            point = torch.clamp(next_point.clamp(x - _EPSILON, x + _EPSILON), 0, 1)
        return np.transpose(point.numpy(), (0, 2, 3, 1))

    return {
        _NAIVE: lambda: loop(network_per_head, True),
        "PyTorch, decoder per task, weight gradients": lambda: loop(
            decoder_per_head, True
        ),
        _BEST: lambda: loop(net, False),
    }


def _torch_target(target):
    import torch

    target = torch.tensor(target.numpy())
    return target.permute(0, 3, 1, 2) if target.ndim == 4 else target.long()


if __name__ == "__main__":
    main()
