"""The trace kernel of ResNet-18 on many images in tiles: ``python benchmarks/large.py 2000``.

Prints the plan, with its estimate of memory and time, before anything is computed, and time and
peak memory after. 2000 images take hours on two cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

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
    options = parser.parse_args(arguments)
    budget = int(options.memory * GIBIBYTE)
    x = torch.from_numpy(smooth_images(Case("", (), IMAGE, n=options.n)).x)
    kernel = tg.EmpiricalKernel(networks.make("resnet18"), output="trace", memory=budget)
    kernel.ntk(x[:FEW])  # brings in whatever is made once, so that the peak is the kernel's alone
    print(kernel.plan(x), flush=True)
    forget_peak()
    before, start = peak_memory(), time.perf_counter()
    matrix = kernel.ntk(x)
    seconds, peak = time.perf_counter() - start, peak_memory() - before
    entries = matrix.numel() / 1e6
    print(
        f"{options.n} images: {seconds:.1f} s, {seconds / entries:.0f} s per million entries, "
        f"peak {peak / GIBIBYTE:.2f} GiB of {options.memory:g}"
    )
    return 0 if peak <= budget else 1


if __name__ == "__main__":
    sys.exit(main())
