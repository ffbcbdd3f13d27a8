"""The page: figures and sentences put into the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tangency.errors import InvalidInput, MissingDependency
from tangency.report import figures, words
from tangency.study import Study

__all__ = ["check_available", "render", "write"]

TEMPLATES = Path(__file__).parent / "templates"


def check_available() -> None:
    """Raises MissingDependency where Plotly or Jinja2 are not installed."""
    _dependencies()


def write(study: Study, path: str | Path) -> Path:
    """Write the report of `study` to the file `path`, and return its full path.

    Raises:
        InvalidInput: the file cannot be written.
        MissingDependency: Plotly or Jinja2 are not installed.
    """
    page = render(study)
    target = Path(path)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write the report to {target}: {error.strerror}.") from error
    return target.resolve()


def render(study: Study) -> str:
    """The report as the text of one HTML page; scripts and figures are inside.

    Raises:
        MissingDependency: Plotly or Jinja2 are not installed.
    """
    environment, library = _dependencies()
    drawn = {name: _safe_json(figure) for name, figure in figures.all_figures(study).items()}
    template = environment.get_template("report.html")
    page: str = template.render(
        study=study, figures=drawn, plotly=library, **words.everything(study)
    )
    return page


def _dependencies() -> tuple[Any, str]:
    """The template environment, and the text of plotly.js."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependency.for_extra("jinja2", "report") from error
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependency.for_extra("plotly", "report") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment, get_plotlyjs()


def _safe_json(figure: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: no tag can end it."""
    return json.dumps(figure, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
