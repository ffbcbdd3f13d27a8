"""The pages of the examples: docstring, interactive figure and code of a script in `examples/`.

`<!-- example: NAME -->` stands for the whole of `examples/NAME.py`, `<!-- figure: NAME -->` for its
figure alone, as drawn from `docs/figures/NAME.json`. Nothing is loaded from elsewhere: plotly.js
comes with the Plotly package.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

__all__ = ["expand", "write_library"]

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = re.compile(r"<!-- example: (?P<name>\w+) -->")
FIGURE = re.compile(r"<!-- figure: (?P<name>\w+) -->")
LIBRARY = "javascripts/plotly.min.js"

DRAW = """
<div class="plot" id="figure-{name}" role="img" aria-label="{name}"></div>
<script>
(() => {{
  const figure = {json};
  const target = document.getElementById("figure-{name}");
  const ink = getComputedStyle(target).color;
  figure.layout.font = {{...figure.layout.font, color: ink}};
  figure.layout.autosize = true;
  delete figure.layout.width;
  const draw = () => Plotly.newPlot(target, figure.data, figure.layout,
    {{responsive: true, displayModeBar: false}});
  if (window.Plotly) draw();
  else {{
    const library = document.createElement("script");
    library.src = "{library}";
    library.onload = draw;
    document.head.append(library);
  }}
}})();
</script>
"""


def expand(markdown: str, to_root: str) -> str:
    """Put examples and figures in the places of their markers.

    Args:
        markdown: the page.
        to_root: relative path from the page to the root of the site, such as "../..".
    """
    markdown = EXAMPLE.sub(lambda match: _example(match["name"]), markdown)
    return FIGURE.sub(lambda match: _figure(match["name"], to_root), markdown)


def write_library(site: Path) -> None:
    """Put plotly.js into the built site."""
    from plotly.offline import get_plotlyjs

    target = site / LIBRARY
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(get_plotlyjs(), encoding="utf-8")


def _example(name: str) -> str:
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    story = ast.get_docstring(tree)
    if story is None:
        raise ValueError(f"examples/{name}.py has no docstring: it is the text of its page.")
    code = "\n".join(source.splitlines()[tree.body[0].end_lineno :]).strip()
    title, _, text = story.partition("\n")
    return (
        f"# {title.rstrip('.')}\n{text}\n\n<!-- figure: {name} -->\n\n"
        f"Run it: `python examples/{name}.py`\n\n```python\n{code}\n```\n"
    )


def _figure(name: str, to_root: str) -> str:
    figure = (ROOT / "docs" / "figures" / f"{name}.json").read_text(encoding="utf-8").strip()
    return DRAW.format(
        name=name, json=figure.replace("<", "\\u003c"), library=f"{to_root}/{LIBRARY}"
    )
