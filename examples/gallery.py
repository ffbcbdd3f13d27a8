"""How an example shows its figure: `present(figure)` at its end.

python examples/two_clusters.py                  writes two_clusters.html beside where you stand
python examples/two_clusters.py --json FOLDER    writes FOLDER/two_clusters.json, for the docs
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["present"]


def present(figure: Figure) -> None:
    """Write the figure of the running script as a page, or as JSON for the documentation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, metavar="FOLDER")
    folder: Path | None = parser.parse_args().json
    name = Path(sys.argv[0]).stem
    if folder is None:
        target = Path(f"{name}.html")
        figure.write_html(target)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{name}.json"
        target.write_text(figure.to_json() + "\n", encoding="utf-8")
    print(f"figure: {target}")
