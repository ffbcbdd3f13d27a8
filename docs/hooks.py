"""Steps of the documentation build: pages from scripts, figures, and formulas as MathML.

Formulas become MathML when the pages are built, so that they need neither a script nor a network
to be read, and a formula that cannot be parsed fails the build.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from math_core import LatexToMathML

sys.path.insert(0, str(Path(__file__).parent))
import example_pages

CONVERTER = LatexToMathML()
SCRIPT = "<!-- script: "
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put scripts, examples and figures in the places of their markers."""
    markdown = example_pages.expand(markdown, "../" * page.url.count("/") or ".")
    if SCRIPT not in markdown:
        return markdown
    before, rest = markdown.split(SCRIPT, 1)
    name, after = rest.split(" -->", 1)
    script = Path(page.file.abs_src_path).with_name(name)
    return before + _narrate(script.read_text(encoding="utf-8")) + after


def on_post_build(config: Any, **_: Any) -> None:
    """Put plotly.js beside the pages, which load nothing from elsewhere."""
    example_pages.write_library(Path(config["site_dir"]))


def on_page_content(content: str, **_: Any) -> str:
    """Write every formula of the page as MathML."""
    return FORMULA.sub(_mathml, content)


def _narrate(source: str) -> str:
    """Markdown of a script in cells: `# %% [markdown]` cells are prose, `# %%` cells are code."""
    pages = []
    for cell in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        header, _, body = cell.partition("\n")
        if "[markdown]" in header:
            pages.append(re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip())
        else:
            pages.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(pages)


def _mathml(match: re.Match[str]) -> str:
    tex = html.unescape(match["tex"]).strip()
    return CONVERTER.convert_with_local_state(tex, displaystyle=match["tag"] == "div")
