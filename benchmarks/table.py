"""The Markdown that a run leaves, and its place in RESULTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comparison import CaseResult
from floor_tables import FLOOR_TABLES
from markdown import markdown_table, reached, seconds
from measurement import pooled

__all__ = ["SectionError", "render", "rewrite_section", "section_around"]


class SectionError(Exception):
    """A results file has no place for a table; the message says what it must hold."""


def render(suite: str, results: Sequence[CaseResult], setting: dict[str, str]) -> str:
    """All tables of one run in Markdown; ``setting`` says where and with what it ran."""
    return "\n\n".join(
        [
            "\n".join(f"- {name}: {value}" for name, value in setting.items()),
            "Seconds, best (median) of all repetitions; a first call in brackets holds the "
            "compilation. Ratio: best to best (medians; lowest to highest of the rounds).",
            times_table(results),
            FLOOR_TABLES[suite](results),
            "Largest relative error of a float32 entry on the compared rows; float64 is the "
            "peer's own.",
            errors_table(results),
        ]
    )


def times_table(results: Sequence[CaseResult]) -> str:
    """Times of both sides and their ratio."""
    header = (
        'case|n|Tangency, `compile=True`|Tangency, `compile="auto"`|Tangency, `compile=False`'
        "|neural-tangents|ratio|target"
    )
    return markdown_table(
        header,
        [
            [
                f"`{r.case.name}`",
                r.case.size,
                seconds(pooled(r.compiled)),
                seconds(r.default),
                seconds(r.eager),
                seconds(pooled(r.peer)),
                ratio(r),
                f"{r.case.target_ratio:g}: {reached(r.ratio >= r.case.target_ratio)}",
            ]
            for r in results
        ],
    )


def ratio(result: CaseResult) -> str:
    """The ratio of the best times, of the medians, and its range over the rounds."""
    low, high = min(result.round_ratios), max(result.round_ratios)
    return f"**{result.ratio:.2f}** ({result.median_ratio:.2f}; {low:.2f} to {high:.2f})"


def errors_table(results: Sequence[CaseResult]) -> str:
    """How far both sides are from float64 and from each other."""
    header = (
        "case|kernel|Tangency|neural-tangents, off diagonal|neural-tangents, diagonal"
        "|between the two, off diagonal|agree"
    )
    return markdown_table(
        header,
        [
            [
                f"`{r.case.name}`",
                name.upper(),
                f"{errors.ours:.1e}",
                f"{errors.peer_off_diagonal:.1e}",
                "none" if errors.peer_diagonal is None else f"{errors.peer_diagonal:.1e}",
                f"{errors.between:.1e}",
                "yes" if errors.agree else "**no**",
            ]
            for r in results
            for name, errors in r.errors.items()
        ],
    )


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
