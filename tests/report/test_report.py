"""The report is one page without references to the outside, and a browser draws all of it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tangency.datasets import load
from tangency.report import render, write
from tangency.report.figures import all_figures
from tangency.report.words import number
from tangency.study import Study, perceptrons, study

FIGURES = {
    "heat_empirical",
    "heat_infinite",
    "convergence",
    "spectrum",
    "power",
    "training_loss",
    "test_loss",
    "drift",
    "outputs",
    "learning_curve",
    "leave_one_out",
    "trainability",
}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def small() -> Study:
    data = load("wine", examples=30)
    family = perceptrons(data.features, data.out, width=32, depth=1)
    return study(data, family, steps=8, widths=(8, 32))


@pytest.fixture(scope="module")
def report(small: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(small, tmp_path_factory.mktemp("report") / "report.html")


def test_page_needs_nothing_from_outside(small: Study) -> None:
    page = render(small)
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)', page)
    assert "@import" not in page


def test_figures_are_the_numbers_of_the_study(small: Study) -> None:
    figures = all_figures(small)
    assert set(figures) == FIGURES
    actual = figures["training_loss"]["data"][0]
    assert actual["x"] == small.check.steps[1:].tolist()
    assert actual["y"] == pytest.approx(small.check.loss[1:].tolist(), rel=1e-4)
    heat = figures["heat_empirical"]["data"][0]["z"]
    kernel, order = small.check.ntk, small.data.order
    assert small.check.ntk_infinite is not None
    unit = float(small.check.ntk_infinite.diagonal().mean())
    assert heat[2][7] == pytest.approx(float(kernel[order[2], order[7]]) / unit, abs=1e-3)
    json.dumps(figures, allow_nan=False)


def test_page_tells_the_verdict_and_the_scores(small: Study) -> None:
    page = render(small)
    assert f">{small.check.regime}</p>" in page
    for score in small.scores:
        assert f"{score.accuracy:.1%}" in page
    assert "linear" in page


def test_names_cannot_break_out_of_the_page(small: Study) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    data = dataclasses.replace(small.data, name=evil, classes=(evil, "b", "c"))
    page = render(dataclasses.replace(small, data=data, network=evil))
    assert "<img" not in page.replace(_library(page), "")


def _library(page: str) -> str:
    return max(re.findall(r"<script>.*?</script>", page, flags=re.DOTALL), key=len)


def test_missing_parts_are_left_out(small: Study) -> None:
    bare = dataclasses.replace(
        small, convergence=None, convergence_reason="no width here", program=None,
        program_reason="an odd operation",
    )  # fmt: skip
    page = render(bare)
    assert "no width here" in page
    assert "an odd operation" in page
    assert 'data-figure="convergence"' not in page


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234567, "0.123"), (12345.6, "12,346"), (1e-7, "1.00e-07"), (0, "0")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: install chromium and chromium-driver to test the report in one")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


@pytest.mark.parametrize("width", [1280, 390])
def test_browser_draws_every_figure(browser: Any, report: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(report.as_uri())
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(p => p.querySelector('.main-svg') &&"
        " (p.querySelector('.scatterlayer path') || p.querySelector('.heatmaplayer image')))"
        ".map(p => p.id)"
    )
    assert set(drawn) == FIGURES
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    widest = browser.execute_script(
        "return Math.max(...[...document.querySelectorAll('.main-svg')]"
        ".map(s => s.getBoundingClientRect().right))"
    )
    assert widest <= width
    assert browser.get_log("browser") == []
