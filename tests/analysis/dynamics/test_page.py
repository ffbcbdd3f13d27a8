"""The code on docs/dynamics.md runs as it stands, block after block."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "dynamics.md"


@pytest.mark.slow
def test_code_runs():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    found: dict[str, object] = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), found)
    assert found["after"].covariance.shape == (2, 10, 10)
    assert found["prediction"].test.shape == (2000, 10)
