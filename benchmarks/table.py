"""The Markdown that a run leaves, and its place in RESULTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comparison import CaseResult
from measurement import Timing

__all__ = ["SectionError", "render", "rewrite_section", "section_around"]


class SectionError(Exception):
    """A results file has no place for a table; the message says what it must hold."""


def render(results: Sequence[CaseResult], setting: dict[str, str]) -> str:
    """All tables of one run in Markdown; ``setting`` says where and with what it ran."""
    return "\n\n".join(
        [
            "\n".join(f"- {name}: {value}" for name, value in setting.items()),
            "Seconds, best (median) of all repetitions; a first call in brackets holds the "
            "compilation.",
            times_table(results),
            "Against the floor, in milliseconds. Full: `x @ x.T` and one fresh pass over memory "
            "per output. Half: the lower triangle by row panels and half a pass per output.",
            floor_table(results),
            "Largest relative error of a float32 entry on the compared rows; float64 is the "
            "peer's own.",
            errors_table(results),
        ]
    )


def times_table(results: Sequence[CaseResult]) -> str:
    """Times of both sides and their ratio."""
    header = "case|n|Tangency compiled|Tangency eager|neural-tangents|ratio (median)|target"
    return markdown_table(
        header,
        [
            [
                f"`{r.case.name}`",
                str(r.case.n),
                seconds(r.compiled),
                seconds(r.eager),
                seconds(r.peer),
                f"**{r.ratio:.2f}** ({r.median_ratio:.2f})",
                f"{r.case.target_ratio:g}: {met(r.ratio >= r.case.target_ratio)}",
            ]
            for r in results
        ],
    )


def floor_table(results: Sequence[CaseResult]) -> str:
    """The parts of the floor and our time in multiples of it."""
    header = (
        "case|Gram full|Gram half|pass, fresh|pass, reused|ours / full floor"
        "|ours / half floor|target"
    )
    rows: list[list[str]] = []
    for r in results:
        full, half = r.compiled.best_s / r.floor_full_s, r.compiled.best_s / r.floor_half_s
        target = "none"
        if r.case.target_floor is not None:
            limit = r.case.target_floor
            target = f"{limit:g}: full {met(full <= limit)}, half {met(half <= limit)}"
        parts = [
            f"{1e3 * r.floors[part].best_s:.1f}"
            for part in ("gram_full", "gram_half", "pass_fresh", "pass_reused")
        ]
        rows.append([f"`{r.case.name}`", *parts, f"{full:.2f}", f"{half:.2f}", target])
    return markdown_table(header, rows)


def errors_table(results: Sequence[CaseResult]) -> str:
    """How far both sides are from float64 and from each other."""
    header = (
        "case|kernel|Tangency|neural-tangents, off diagonal|neural-tangents, diagonal"
        "|between the two, off diagonal|agree"
    )
    return markdown_table(
        header,
        [
            [f"`{r.case.name}`", name.upper()]
            + [f"{e:.1e}" for e in (errors.ours, errors.peer_off_diagonal, errors.peer_diagonal)]
            + [f"{errors.between:.1e}", "yes" if errors.agree else "**no**"]
            for r in results
            for name, errors in r.errors.items()
        ],
    )


def markdown_table(header: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table from a header with bars and rows of cells."""
    names = header.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def seconds(timing: Timing) -> str:
    """Best, median and first call of one timing."""
    return f"{timing.best_s:.3f} ({timing.median_s:.3f}) [{timing.first_call_s:.1f}]"


def met(reached: bool) -> str:
    """Whether a target is reached, in a word."""
    return "reached" if reached else "not reached"


def section_around(path: Path, name: str) -> tuple[str, str]:
    """The text up to the begin marker of section ``name`` and from its end marker on.

    Raises SectionError where the two markers are not there exactly once and in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = path.read_text(encoding="utf-8") if path.exists() else ""
    once = whole.count(begin) == 1 and whole.count(end) == 1
    if not once or whole.index(begin) > whole.index(end):
        raise SectionError(f"{path} must hold one line {begin!r} and after it one line {end!r}")
    return whole[: whole.index(begin)] + begin, whole[whole.index(end) :]


def rewrite_section(path: Path, name: str, text: str) -> None:
    """Put ``text`` between the markers of section ``name`` in ``path``; the rest stays."""
    before, after = section_around(path, name)
    path.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")
