from __future__ import annotations

from coverage_page import Outcome, differences, read_statuses, render, without_paths

OUTCOMES = {
    "first": [
        Outcome("A, x.mean((2, 3))", "lib.a", "exact", 1.23),
        Outcome("B", "lib.b(x|y)", "sampled", 20.0, "standard error: NNGP 1e-02, NTK 2e-02"),
    ],
    "second": [Outcome("C", "lib.c", "not yet", 0.1, "no rule for a | b\nsecond line")],
}


def test_page_gives_back_what_it_was_made_of() -> None:
    page = render(OUTCOMES)
    assert read_statuses(page) == {"A, x.mean((2, 3))": "exact", "B": "sampled", "C": "not yet"}
    assert page.startswith("3 networks: 1 exact, 1 sampled, 1 not yet.\n")


def test_every_row_has_five_cells() -> None:
    rows = [line for line in render(OUTCOMES).splitlines() if line.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}


def test_differences_name_every_change() -> None:
    committed = {"A": "exact", "B": "sampled", "C": "exact"}
    found = {"A": "exact", "B": "not yet", "D": "exact"}
    assert differences(committed, found) == [
        "B: sampled in the table, not yet now",
        "C: exact in the table, not listed now",
        "D: not listed in the table, exact now",
    ]
    assert differences(committed, committed) == []


def test_messages_lose_folders_and_line_numbers() -> None:
    message = (
        "no rule for aten.sort.default in module 'a.b' (File \"/some/where/net.py\", line 12, "
        "in forward: x.sort()).\nDo something else."
    )
    assert without_paths(message) == (
        "no rule for aten.sort.default in module 'a.b' (net.py, forward: x.sort())."
    )
    assert without_paths("") == ""
