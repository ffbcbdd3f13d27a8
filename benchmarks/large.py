"""The trace kernel of ResNet-18 on many images in tiles: ``python benchmarks/large.py 2000``.

Prints the plan, with its estimate of memory and time, before anything is computed, and time and
peak memory after. 2000 images take two hours on two cores. With a GPU:
``python benchmarks/large.py 10000 --device cuda --memory 60``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from cases import Case
from convolutional import smooth_images
from finite import networks
from finite.cases import IMAGE
from finite.side import FEW, forget_peak, peak_memory

import tangency as tg

GIBIBYTE = 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute the kernel; the exit code is 1 where it took more memory than it was given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("n", type=int, help="images")
    parser.add_argument("--memory", type=float, default=4.0, help="budget in GiB (4)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    options = parser.parse_args(arguments)
    budget = int(options.memory * GIBIBYTE)
    x = torch.from_numpy(smooth_images(Case("", (), IMAGE, n=options.n)).x).to(options.device)
    model = networks.make("resnet18").to(options.device)
    kernel = tg.EmpiricalKernel(model, output="trace", memory=budget)
    kernel.ntk(x[:FEW])  # brings in whatever is made once, so that the peak is the kernel's alone
    print(kernel.plan(x), flush=True)
    seconds, peak = watched(lambda: kernel.ntk(x), x.device)
    entries = options.n**2 / 1e6
    print(
        f"{options.n} images: {seconds:.1f} s, {seconds / entries:.0f} s per million entries, "
        f"peak {peak / GIBIBYTE:.2f} GiB of {options.memory:g}"
    )
    return 0 if peak <= budget else 1


def watched(work: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds that `work` takes, and what it adds to the peak of the device's memory in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before, start = torch.cuda.max_memory_allocated(device), time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) - before
    forget_peak()
    before, start = peak_memory(), time.perf_counter()
    work()
    return time.perf_counter() - start, peak_memory() - before


if __name__ == "__main__":
    sys.exit(main())
