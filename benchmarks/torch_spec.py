# SPDX-License-Identifier: Apache-2.0
"""PyTorch on a net that `net_spec` describes: PGD steps and training steps, timed.

This program needs only PyTorch and NumPy, so that it can run under another Python than
TensorFlow's. It prints a JSON object per line, each as soon as it is measured.

    python benchmarks/torch_spec.py SETTINGS.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Net(nn.Module):
    """Images [batch, 3, height, width] -> {task: output}."""

    def __init__(self, spec: dict[str, Any], arrays: dict[str, np.ndarray]):
        """Takes a specification, and weights by names like `conv1.kernel`."""
        super().__init__()
        self.spec = spec
        self.parts = nn.ModuleDict()
        for node in spec["nodes"]:
            make_module = _MODULES.get(node["op"])
            if make_module is not None:
                prefix = f"{node['name']}."
                weights = {
                    key.removeprefix(prefix): torch.tensor(array)
                    for key, array in arrays.items()
                    if key.startswith(prefix)
                }
                self.parts[node["name"]] = make_module(node, weights)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Computes the nodes one after the other."""
        values = {}
        for node in self.spec["nodes"]:
            inputs = [values[name] for name in node["inputs"]]
            if node["op"] == "input":
                value = x
            elif node["op"] == "add":
                value = inputs[0] + inputs[1]
            elif node["op"] == "relu":
                value = torch.relu(inputs[0])
            elif node["op"] == "pool":
                size = node["size"]
                value = functional.max_pool2d(inputs[0], size, node["stride"])
            elif node["op"] == "pad":
                value = functional.pad(inputs[0], [node["size"]] * 4)
            else:
                value = self.parts[node["name"]](inputs[0])
            values[node["name"]] = value
        return {task: values[name] for task, name in self.spec["outputs"].items()}


class _Rescale(nn.Module):
    def __init__(self, node, weights):
        super().__init__()
        for key in ("scale", "offset"):
            self.register_buffer(key, weights[key].float().reshape(1, -1, 1, 1))

    def forward(self, x):
        return x * self.scale + self.offset


class _Up(nn.Module):
    """Bilinear, as one frozen transposed convolution per channel."""

    def __init__(self, node, weights):
        super().__init__()
        factor = node["factor"]
        ramp = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
        self.register_buffer("kernel", torch.outer(ramp, ramp)[None, None])
        self.factor, self.edge = factor, node["edge"]

    def forward(self, x):
        if self.edge:
            return functional.interpolate(
                x, scale_factor=self.factor, mode="bilinear", align_corners=False
            )
        channels, factor = x.shape[1], self.factor
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        return functional.conv_transpose2d(
            x, kernel, stride=factor, padding=factor // 2, groups=channels
        )


def _conv(node, weights):
    convolution = nn.Conv2d(
        node["in"],
        node["out"],
        node["size"],
        node["stride"],
        node["padding"],
        node["dilation"],
        bias=node["bias"],
    )
    convolution.weight.data = weights["kernel"].permute(3, 2, 0, 1).contiguous()
    if node["bias"]:
        convolution.bias.data = weights["bias"]
    return convolution


def _transposed(node, weights):
    convolution = nn.ConvTranspose2d(
        node["in"], node["out"], node["size"], node["stride"], bias=node["bias"]
    )
    convolution.weight.data = weights["kernel"].permute(3, 2, 0, 1).contiguous()
    if node["bias"]:
        convolution.bias.data = weights["bias"]
    return convolution


def _norm(node, weights):
    norm = nn.BatchNorm2d(len(weights["gamma"]), node["epsilon"])
    norm.weight.data, norm.bias.data = weights["gamma"], weights["beta"]
    norm.running_mean, norm.running_var = (
        weights["moving_mean"],
        weights["moving_variance"],
    )
    return norm


_MODULES = {
    "conv": _conv,
    "transposed": _transposed,
    "norm": _norm,
    "rescale": _Rescale,
    "up": _Up,
}


def losses(outputs: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]):
    """Returns the sum over tasks of the mean loss over all pixels."""
    total = 0.0
    for task, output in outputs.items():
        output, target = output.float(), targets[task]
        if target.dtype == torch.int64:
            total = total + functional.cross_entropy(output, target)
        elif task == "autoencoder":
            total = total + functional.mse_loss(output, target)
        else:
            total = total + functional.l1_loss(output, target)
    return total


def pgd(net, x, targets, steps: int, dtype: torch.dtype | None) -> torch.Tensor:
    """Plain PGD in the l-inf ball of 8/255; `dtype`: of autocast, None for none."""
    epsilon, step = 8 / 255, 2 / 255
    point = x.clone()
    for _ in range(steps):
        point.requires_grad_()
        with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=bool(dtype)):
            outputs = net(point)
        (slope,) = torch.autograd.grad(losses(outputs, targets), point)
        next_point = point.detach() + step * slope.sign()
        point = next_point.clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return point


def batch_of(spec, size: int, sides: list[int], classes: int):
    """Returns random images and targets."""
    x = torch.rand(size, 3, *sides, device=DEVICE)
    targets = {}
    for task, name in spec["outputs"].items():
        channels = _channels(spec, name)
        if task == "seg":
            shape = (size, *sides)
            targets[task] = torch.randint(0, classes, shape, device=DEVICE)
        else:
            targets[task] = torch.rand(size, channels, *sides, device=DEVICE)
    return x, targets


def _channels(spec, name: str) -> int:
    by_name = {node["name"]: node for node in spec["nodes"]}
    while "out" not in by_name[name]:
        name = by_name[name]["inputs"][0]
    return by_name[name]["out"]


def timed(run: Callable[[], Any], rounds: int, steps: int) -> dict[str, float]:
    """Returns milliseconds per step, a median, and the seconds of the first call."""
    start = time.perf_counter()
    run()
    _wait()
    first, times = time.perf_counter() - start, []
    run()
    for _ in range(rounds):
        _wait()
        start = time.perf_counter()
        run()
        _wait()
        times.append(time.perf_counter() - start)
    return {"ms": 1000 * sorted(times)[len(times) // 2] / steps, "first_s": first}


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _case(settings: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Measures one case; see `gpu.py` for the settings."""
    net = Net(settings["spec"], dict(np.load(settings["weights"]))).to(DEVICE)
    x, targets = batch_of(
        settings["spec"], case["batch"], settings["sides"], settings["classes"]
    )
    if case["channels_last"]:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    dtype = {"float32": None, "bfloat16": torch.bfloat16}[case["dtype"]]
    forward_net = torch.compile(net, dynamic=False) if case["compile"] else net
    steps, rounds = settings["steps"], settings["rounds"]
    if case["kind"] == "pgd":
        net.eval().requires_grad_(False)
        return timed(lambda: pgd(forward_net, x, targets, steps, dtype), rounds, steps)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)

    def train():
        for _ in range(steps):
            with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=bool(dtype)):
                outputs = forward_net(x)
            optimizer.zero_grad()
            losses(outputs, targets).backward()
            optimizer.step()

    return timed(train, rounds, steps)


def main(path: str) -> None:
    """Measures all cases of the settings in a file."""
    with open(path) as file:
        settings = json.load(file)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    for case in settings["cases"]:
        try:
            result = _case(settings, case)
        except Exception as error:  # The other cases are still measured.
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps({**case, **result}), flush=True)
        if case["compile"]:
            torch._dynamo.reset()


if __name__ == "__main__":
    main(sys.argv[1])
