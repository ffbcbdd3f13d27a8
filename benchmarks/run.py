"""Run Tangency and a peer library side by side: ``python benchmarks/run.py convolutional``.

Each side runs in processes of its own, one at a time and in turn, on the same inputs: see
README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from cases import Suite
from comparison import TOLERANCE, CaseResult
from peer_environment import PeerEnvironmentError, ensure_peer_environment
from runner import Plan, SideError, run_case
from suites import SUITES
from table import SectionError, render, rewrite_section, section_around
from yardsticks import YARDSTICKS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
OUTPUTS = HERE / "results"
BUSY_LOAD = 0.5


def describe_setting(rounds: int, repetitions: int) -> dict[str, str]:
    """Where, when and with what a run was made."""
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{processor_name()}, {usable_cores()} cores",
        "load average before": load,
        "repetitions": f"{rounds} rounds of {repetitions}, the sides in turn, one at a time",
    }


def processor_name() -> str:
    """The processor's name as the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process, and so each side, may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def say(text: str) -> None:
    """Progress, kept apart from the table on standard output."""
    print(text, file=sys.stderr, flush=True)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"{', '.join(SUITES)} (all)")
    parser.add_argument("--case", action="append", help="one case only; may be given again (all)")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each side")
    parser.add_argument(
        "--repetitions", type=positive, help="timed calls in a turn (by default the suite's own)"
    )
    parser.add_argument(
        "--profile", action="store_true", help="also leave a profile of each case in results/"
    )
    parser.add_argument(
        "--peer-env",
        type=Path,
        default=HERE.parent / ".venv-peer",
        help="the peer's environment, made if missing (default: .venv-peer in the project)",
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, help="Python 3.10 to 3.12 to make it from"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="also rewrite the suite's section of RESULTS.md, if the kernels agree",
    )
    options = parser.parse_args(arguments)
    if options.write and options.case:
        parser.error("--write needs every case: leave out --case")
    for name in options.suites:
        if name not in SUITES:
            parser.error(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    options.suites = [SUITES[name] for name in options.suites or SUITES]
    known = [name for suite in options.suites for name in suite.cases]
    for name in options.case or []:
        if name not in known:
            parser.error(f"there is no case {name!r}; there are {', '.join(known)}")
    return options


def positive(text: str) -> int:
    """A count from the command line, at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def run_suite(suite: Suite, options: argparse.Namespace) -> bool:
    """Run a suite's cases, leave JSON and tables; returns whether all kernels agree."""
    names = [name for name in suite.cases if options.case is None or name in options.case]
    if not names:
        return True
    if options.write:
        section_around(RESULTS, suite.name)
    OUTPUTS.mkdir(exist_ok=True)
    plan = Plan(
        suite=suite,
        peer_python=ensure_peer_environment(options.peer_env, options.peer_python),
        rounds=options.rounds,
        repetitions=options.repetitions or suite.repetitions,
        profiles=OUTPUTS if options.profile else None,
        say=say,
    )
    setting = describe_setting(plan.rounds, plan.repetitions)
    results: list[CaseResult] = []
    for name in names:
        result, versions = run_case(suite.cases[name], plan)
        setting["versions"] = ", ".join(f"{key} {value}" for key, value in versions.items())
        results.append(result)
    text = render(suite.name, results, setting)
    print(text)
    save_json(suite.name, results, setting)
    agreed = all(result.agree for result in results)
    if options.write and agreed:
        rewrite_section(RESULTS, suite.name, text)
    return agreed


def save_json(suite: str, results: Sequence[CaseResult], setting: dict[str, str]) -> None:
    """Keep everything measured in ``results/``, one file a run."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = OUTPUTS / f"{suite}-{stamp}.json"
    cases = [result.to_dict() | {"yardsticks": YARDSTICKS[suite](result)} for result in results]
    path.write_text(json.dumps({"setting": setting, "cases": cases}, indent=1))
    say(f"saved {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the driver; returns the exit code: 1 where something failed or kernels disagree."""
    options = read_options(arguments)
    say(f"the peer's environment: {options.peer_env}")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY_LOAD:
        say(f"warning: load average {os.getloadavg()[0]:.2f}: others use these cores")
    try:
        disagreeing = [suite.name for suite in options.suites if not run_suite(suite, options)]
    except (PeerEnvironmentError, SectionError, SideError) as error:
        say(f"error: {error}")
        return 1
    for name in disagreeing:
        say(f"error: {name}: kernels disagree by more than {TOLERANCE:g}; see its table")
    return 1 if disagreeing else 0


if __name__ == "__main__":
    sys.exit(main())
