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
    import torch_drn

    net = torch_drn.Net(problem.model, problem.names).eval()
    x = torch.tensor(np.transpose(problem.x.numpy(), (0, 3, 1, 2)))
    targets = {name: _torch_target(t) for name, t in problem.targets.items()}

    def loop(forward, weights):
        net.requires_grad_(weights)
        point = x
        for _ in range(steps):
            point = point.detach().requires_grad_()
            losses = _torch_losses(forward(point), targets)
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
        _NAIVE: lambda: loop(net.network_per_head, True),
        "PyTorch, decoder per task, weight gradients": lambda: loop(
            net.decoder_per_head, True
        ),
        _BEST: lambda: loop(net.trunk_once, False),
    }


def _torch_target(target):
    import torch

    target = torch.tensor(target.numpy())
    return target.permute(0, 3, 1, 2) if target.ndim == 4 else target.long()


def _torch_losses(outputs, targets):
    """Returns the sum of the tasks' losses, each a mean, as in mtr_tf.losses."""
    from torch.nn import functional

    losses = {
        "seg": functional.cross_entropy,
        "depth": functional.l1_loss,
        "autoencoder": functional.mse_loss,
    }
    return sum(losses[name](outputs[name], target) for name, target in targets.items())


if __name__ == "__main__":
    main()
