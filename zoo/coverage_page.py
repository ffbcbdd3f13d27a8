"""What became of one architecture, and its row in the Markdown table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Outcome", "Status", "differences", "read_statuses", "render", "without_paths"]

Status: TypeAlias = Literal["exact", "sampled", "not yet"]

COLUMNS = "| architecture | source | kernel | seconds | remark |"
_ROW = re.compile(r"^\| (?P<name>[^|]+?) \| .*? \| (?P<status>exact|sampled|not yet) \|")


@dataclass(frozen=True)
class Outcome:
    """Whether a network has a limit kernel, and how.

    Attributes:
        name: of the architecture.
        source: where the network comes from.
        status: "exact" (closed forms and deterministic quadrature), "sampled"
            (`numerical="sample"`), or "not yet".
        seconds: to build the kernel object and to evaluate a 2x2 matrix, together.
        remark: the standard error of a sampled kernel, the reason of a missing one.
    """

    name: str
    source: str
    status: Status
    seconds: float
    remark: str = ""

    def row(self) -> str:
        """The Markdown row."""
        cells = (self.name, self.source, self.status, f"{self.seconds:.1f}", self.remark)
        return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def render(sections: Mapping[str, Sequence[Outcome]]) -> str:
    """All tables in Markdown, one heading a section, after a line that counts."""
    outcomes = [outcome for section in sections.values() for outcome in section]
    counts = {s: sum(o.status == s for o in outcomes) for s in ("exact", "sampled", "not yet")}
    lines = [
        f"{len(outcomes)} networks: {counts['exact']} exact, {counts['sampled']} sampled, "
        f"{counts['not yet']} not yet."
    ]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", COLUMNS, re.sub("[^|]+", " --- ", COLUMNS)]
        lines += [outcome.row() for outcome in section]
    return "\n".join(lines) + "\n"


def read_statuses(page: str) -> dict[str, str]:
    """Name of every network in a rendered page, with its status."""
    matches = (_ROW.match(line) for line in page.splitlines())
    return {match["name"]: match["status"] for match in matches if match}


def differences(committed: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """One line for every network whose status is not the committed one."""
    lines = []
    for name in [*committed, *(name for name in found if name not in committed)]:
        before, now = committed.get(name, "not listed"), found.get(name, "not listed")
        if before != now:
            lines.append(f"{name}: {before} in the table, {now} now")
    return lines


def without_paths(message: str) -> str:
    """The first line of an error message, its source paths cut to the file's name."""
    lines = message.strip().splitlines()
    first = lines[0] if lines else ""
    return re.sub(r'File "(?:[^"]*[/\\])?([^"/\\]+)", line \d+, in (\w+)', r"\1, \2", first)
