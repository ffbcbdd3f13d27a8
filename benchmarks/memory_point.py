"""Peak memory of one kernel, in this fresh process.

Started by ``memory.py``; prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from cases import Case
from convolutional import smooth_images
from memory_networks import POINTS, SHAPE
from scaling_point import forget_peak, peak_memory

import tangency as tg


def main() -> None:
    """Measure the point and print it."""
    parser = argparse.ArgumentParser(description="Peak memory of one kernel")
    parser.add_argument("point", choices=list(POINTS))
    point = POINTS[parser.parse_args().point]
    torch.manual_seed(0)
    count = point.rows + (point.columns or 0)
    x = torch.from_numpy(smooth_images(Case("", (), SHAPE, n=count)).x)
    kernel = tg.InfiniteKernel(point.make().eval(), x[:2], **point.options)
    forget_peak()
    before = peak_memory()
    start = time.perf_counter()
    kernel.pair(x[: point.rows], None if point.columns is None else x[point.rows :])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "memory": peak_memory() - before}))


if __name__ == "__main__":
    main()
