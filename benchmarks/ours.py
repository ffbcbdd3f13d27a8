"""Our side of one case: the public API of Tangency, as a user would call it.

Started by ``run.py``, which says where to leave the results.
"""

from __future__ import annotations

import cProfile
import importlib.metadata
import io
import math
import pstats
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from cases import BIAS, HIDDEN_WEIGHT, OUTPUT_WEIGHT, Case, Layer
from floors import FLOORS
from measurement import Job, SideReport, job_parser, measure, read_job, save_rows
from torch import Tensor, nn

import tangency as tg

__all__ = ["Compile", "build_kernel", "build_layers"]

Compile = bool | Literal["auto"]

COMPILE: dict[str, Compile] = {"compiled": True, "default": "auto", "eager": False}
"""What ``compile=`` is in each mode, by the name of the mode's timing."""

WIDTH = {"linear": 512, "conv": 64}
"""Of hidden layers; the limit does not depend on it."""
PROFILED_LINES = 40


def build_model(case: Case) -> nn.Sequential:
    """The case's network as an ordinary module."""
    return build_layers(case.layers, case.shape, case.filter_size)


def build_layers(
    layers: Sequence[Layer], shape: tuple[int, ...], filter_size: int
) -> nn.Sequential:
    """A chain of layers on inputs of one shape."""
    modules: list[nn.Module] = []
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        if layer == "linear":
            width = 1 if last else WIDTH[layer]
            modules.append(nn.Linear(math.prod(shape), width))
            shape = (width,)
        elif layer == "conv":
            width = WIDTH[layer]
            modules.append(nn.Conv2d(shape[0], width, filter_size, padding=filter_size // 2))
            shape = (width, *shape[1:])
        elif layer == "pool":
            modules.append(nn.AvgPool2d(2))
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
        elif layer == "global_pool":
            modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            shape = (shape[0], 1, 1)
        else:
            modules.append({"relu": nn.ReLU, "gelu": nn.GELU, "flatten": nn.Flatten}[layer]())
    return nn.Sequential(*modules)


def build_kernel(case: Case, example: Tensor, compiled: Compile) -> tg.InfiniteKernel:
    """The infinite kernel of the case's network, with the scales that the peer is given."""
    model = build_model(case)
    init = tg.Init(
        weight=HIDDEN_WEIGHT, bias=BIAS, overrides={f"{len(model) - 1}.weight": OUTPUT_WEIGHT}
    )
    return tg.InfiniteKernel(model, example, init=init, parametrization="ntk", compile=compiled)


def time_side(job: Job) -> None:
    """Time the kernels in float32 in one mode, and leave report, rows and profile."""
    mode = job.options.mode
    x = torch.from_numpy(job.inputs.x)
    other = None if job.inputs.other is None else torch.from_numpy(job.inputs.other)
    kernel = build_kernel(job.case, x[:2], COMPILE[mode])
    timing, pair = measure(lambda: kernel.pair(x, other), job.repetitions)
    rows = torch.from_numpy(job.rows)
    save_rows(job.kernels, pair.nngp[rows].numpy(), pair.ntk[rows].numpy())
    del pair
    if job.options.profile is not None:
        write_profile(job.options.profile, lambda: kernel.pair(x, other))
    SideReport(
        timings={mode: timing},
        versions={name: importlib.metadata.version(name) for name in ("tangency", "torch")},
        threads=torch.get_num_threads(),
        floors=FLOORS[job.suite.name](x, job.repetitions) if mode == "compiled" else {},
    ).write(job.report)


def write_profile(path: Path, call: Callable[[], object]) -> None:
    """Where the time of one call goes, function by function, each without those it calls."""
    profile = cProfile.Profile()
    profile.runcall(call)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(PROFILED_LINES)
    path.write_text(text.getvalue())


def main() -> None:
    """Read the driver's request and carry it out."""
    parser = job_parser("Tangency on one case")
    parser.add_argument("--mode", choices=list(COMPILE), default="compiled")
    parser.add_argument("--profile", type=Path, help="a text file: the profile of one more call")
    time_side(read_job(parser))


if __name__ == "__main__":
    main()
