"""Our side of one fully connected case: the public API of Tangency, as a user would call it.

Started by ``run.py``, which says where to leave the results.
"""

from __future__ import annotations

import importlib.metadata

import torch
from cases import BIAS, HIDDEN_WEIGHT, OUTPUT_WEIGHT, WIDTH, Case
from floors import time_floors
from measurement import Job, SideReport, measure, read_job, save_rows
from torch import nn

import tangency as tg


def build_model(case: Case) -> nn.Sequential:
    """The case's network as an ordinary module."""
    activation = {"relu": nn.ReLU, "gelu": nn.GELU}[case.activation]
    layers: list[nn.Module] = []
    fan_in = case.d
    for _ in range(case.hidden_layers):
        layers += [nn.Linear(fan_in, WIDTH), activation()]
        fan_in = WIDTH
    return nn.Sequential(*layers, nn.Linear(fan_in, 1))


def build_kernel(case: Case, example: torch.Tensor, compiled: bool) -> tg.InfiniteKernel:
    """The infinite kernel of the case's network, with the scales that the peer is given."""
    model = build_model(case)
    init = tg.Init(
        weight=HIDDEN_WEIGHT, bias=BIAS, overrides={f"{len(model) - 1}.weight": OUTPUT_WEIGHT}
    )
    return tg.InfiniteKernel(model, example, init=init, parametrization="ntk", compile=compiled)


def time_side(job: Job) -> None:
    """Time the symmetric kernels in float32, compiled or eager, and leave report and rows."""
    eager = job.options.eager
    x = torch.from_numpy(job.x)
    kernel = build_kernel(job.case, x[:2], compiled=not eager)
    timing, pair = measure(lambda: kernel.pair(x), job.repetitions)
    rows = torch.from_numpy(job.rows)
    save_rows(job.kernels, pair.nngp[rows].numpy(), pair.ntk[rows].numpy())
    del pair
    SideReport(
        timings={"eager" if eager else "compiled": timing},
        versions={name: importlib.metadata.version(name) for name in ("tangency", "torch")},
        threads=torch.get_num_threads(),
        floors={} if eager else time_floors(x, job.repetitions),
    ).write(job.report)


def main() -> None:
    """Read the driver's request and carry it out."""
    time_side(
        read_job(
            "Tangency on one fully connected case",
            {"--eager": "compile=False: PyTorch operation by operation"},
        )
    )


if __name__ == "__main__":
    main()
