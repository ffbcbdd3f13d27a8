"""Run Tangency and a peer library side by side: ``python benchmarks/run.py fully_connected``.

Each side runs in processes of its own, one at a time and in turn, on the same inputs: see
README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from cases import FULLY_CONNECTED, Case, checked_rows, examples
from comparison import TOLERANCE, CaseResult, Rows, compare_rows
from measurement import SideReport, Timing, pooled
from peer_environment import PeerEnvironmentError, ensure_peer_environment
from table import SectionError, render, rewrite_section, section_around

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
BUSY_LOAD = 0.5


class SideError(Exception):
    """A side's process ended with an error; its own output says why."""


@dataclass(frozen=True)
class Runner:
    """Starts the sides' processes for one case, inside one temporary folder."""

    case: Case
    folder: Path
    peer_python: Path
    repetitions: int

    def side(self, label: str, python: Sequence[str], script: str, *flags: str) -> Path:
        """Run one side to its end; returns where its report lies, if it times anything."""
        report = self.folder / f"{label}.json"
        command = [*python, str(HERE / script), "--case", self.case.name]
        command += ["--input", str(self.folder / "input.npz"), "--report", str(report)]
        command += ["--kernels", str(self.folder / f"{label}.npz")]
        command += ["--repetitions", str(self.repetitions), *flags]
        # A cache of its own: the first round's first call compiles, whatever ran here before.
        own = {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor")}
        if subprocess.run(command, check=False, env=os.environ | own).returncode != 0:
            raise SideError(f"{script} failed on {self.case.name}; its message stands above")
        return report

    def ours(self, label: str, *flags: str) -> SideReport:
        """Our side, in the driver's own environment."""
        script = "ours_fully_connected.py"
        return SideReport.read(self.side(label, [sys.executable], script, *flags))

    def peer(self) -> SideReport:
        """The peer's side, in its environment."""
        return SideReport.read(self.peer_side("peer"))

    def reference(self) -> Rows:
        """The compared rows in float64."""
        self.peer_side("reference", "--reference")
        return self.rows("reference")

    def peer_side(self, label: str, *flags: str) -> Path:
        """Run the peer's script; a PYTHONPATH meant for ours (-E) must not reach it."""
        python = [str(self.peer_python), "-E"]
        return self.side(label, python, "peer_fully_connected.py", *flags)

    def rows(self, label: str) -> Rows:
        """The compared rows that the process of that label saved."""
        with np.load(self.folder / f"{label}.npz", allow_pickle=False) as data:
            return {"nngp": data["nngp"], "ntk": data["ntk"]}


def run_case(
    case: Case, peer_python: Path, rounds: int, repetitions: int
) -> tuple[CaseResult, dict[str, str]]:
    """Measure one case: ours, peer, ours, peer...; returns the result and the versions run."""
    with tempfile.TemporaryDirectory(prefix="tangency-bench-") as name:
        folder = Path(name)
        rows = checked_rows(case)
        np.savez(folder / "input.npz", x=examples(case), rows=rows)
        runner = Runner(case, folder, peer_python, repetitions)
        ours: list[SideReport] = []
        peers: list[SideReport] = []
        for number in range(rounds):
            say(f"{case.name}: round {number + 1} of {rounds}, Tangency")
            ours.append(runner.ours("compiled"))
            say(f"{case.name}: round {number + 1} of {rounds}, neural-tangents")
            peers.append(runner.peer())
        say(f"{case.name}: Tangency eager, float64 reference")
        eager = runner.ours("eager", "--eager")
        result = CaseResult(
            case=case,
            compiled=pooled([report.timings["compiled"] for report in ours]),
            eager=eager.timings["eager"],
            peer=pooled([report.timings["jitted"] for report in peers]),
            floors=pooled_floors(ours),
            errors=compare_rows(
                runner.rows("compiled"), runner.rows("peer"), runner.reference(), rows
            ),
        )
    versions = ours[0].versions | peers[0].versions
    return result, versions | {"torch threads": str(ours[0].threads)}


def pooled_floors(reports: Sequence[SideReport]) -> dict[str, Timing]:
    """Each part of the floor over all rounds."""
    return {part: pooled([report.floors[part] for report in reports]) for part in reports[0].floors}


def describe_setting(versions: dict[str, str], rounds: int, repetitions: int) -> dict[str, str]:
    """Where, when and with what a run was made."""
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{processor_name()}, {usable_cores()} cores",
        "load average before": load,
        "repetitions": f"{rounds} rounds of {repetitions}, the sides in turn, one at a time",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
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
    parser.add_argument("suite", nargs="?", default="fully_connected", choices=["fully_connected"])
    parser.add_argument(
        "--case",
        action="append",
        choices=sorted(FULLY_CONNECTED),
        help="one case only; may be given again (default: all)",
    )
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each side")
    parser.add_argument("--repetitions", type=positive, default=7, help="timed calls in a turn")
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
        help="also rewrite the measured section of RESULTS.md, if the kernels agree",
    )
    options = parser.parse_args(arguments)
    if options.write and options.case:
        parser.error("--write needs every case: leave out --case")
    return options


def positive(text: str) -> int:
    """A count from the command line, at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def run_suite(options: argparse.Namespace) -> bool:
    """Run the cases, leave JSON and table; returns whether all kernels agree."""
    if options.write:
        section_around(RESULTS, options.suite)
    say(f"the peer's environment: {options.peer_env}")
    peer_python = ensure_peer_environment(options.peer_env, options.peer_python)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY_LOAD:
        say(f"warning: load average {os.getloadavg()[0]:.2f}: others use these cores")
    setting = describe_setting({}, options.rounds, options.repetitions)
    results: list[CaseResult] = []
    for name in options.case or FULLY_CONNECTED:
        result, versions = run_case(
            FULLY_CONNECTED[name], peer_python, options.rounds, options.repetitions
        )
        setting["versions"] = ", ".join(f"{key} {value}" for key, value in versions.items())
        results.append(result)
    text = render(results, setting)
    print(text)
    save_json(options.suite, results, setting)
    agreed = all(result.agree for result in results)
    if options.write and agreed:
        rewrite_section(RESULTS, options.suite, text)
    return agreed


def save_json(suite: str, results: Sequence[CaseResult], setting: dict[str, str]) -> None:
    """Keep everything measured in ``results/``, one file a run."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{suite}-{stamp}.json"
    content = {"setting": setting, "cases": [result.to_dict() for result in results]}
    path.write_text(json.dumps(content, indent=1))
    say(f"saved {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the driver; returns the exit code: 1 where something failed or kernels disagree."""
    options = read_options(arguments)
    try:
        agreed = run_suite(options)
    except (PeerEnvironmentError, SectionError, SideError) as error:
        say(f"error: {error}")
        return 1
    if not agreed:
        say(f"error: the kernels disagree by more than {TOLERANCE:g}; see the table")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
