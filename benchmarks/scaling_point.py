"""One point of a scaling study: time and peak memory of one kernel, in this fresh process.

Started by ``scaling.py``; prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch
from measurement import measure
from ours import build_kernel
from scaling_studies import STUDIES

RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in the unit of ``ru_maxrss``."""


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RUSAGE_UNIT


def forget_peak() -> None:
    """Start the peak anew where the system can (Linux): capturing the module had one of its own."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")


def main() -> None:
    """Measure the point and print it."""
    parser = argparse.ArgumentParser(description="One point of a scaling study")
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("value", type=int)
    parser.add_argument("--repetitions", type=int, required=True)
    options = parser.parse_args()
    study = STUDIES[options.study]
    case = study.case(options.value)
    x = torch.from_numpy(study.inputs(case).x)
    kernel = build_kernel(case, x[:2], True)
    # Two examples bring in whatever is made once, so that the peak is that of the kernel alone.
    start = time.perf_counter()
    kernel.pair(x[:2])
    once_s = time.perf_counter() - start
    forget_peak()
    before = peak_memory()
    kernel.pair(x)
    memory = peak_memory() - before
    timing, _ = measure(lambda: kernel.pair(x), options.repetitions)
    print(json.dumps({"seconds": timing.best_s, "memory": memory, "once_s": once_s}))


if __name__ == "__main__":
    main()
