"""The peer's own virtual environment, made once and made again when its pins change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["PeerEnvironmentError", "ensure_peer_environment"]

REQUIREMENTS = Path(__file__).with_name("peer-requirements.txt")
STAMP = "tangency-peer-requirements.txt"
SUPPORTED_PYTHON = ((3, 10), (3, 12))
"""First and last Python that the pinned jaxlib has wheels for and the driver runs on."""


class PeerEnvironmentError(Exception):
    """The peer's environment could not be made; the message says what to do."""


def ensure_peer_environment(path: Path, python: str = sys.executable) -> Path:
    """Make the environment at ``path`` unless it already holds the pinned packages.

    ``python`` is the interpreter that the environment is made from. Returns the environment's
    own interpreter. Raises PeerEnvironmentError where the folder is something else, the
    interpreter does not fit or a package cannot be installed.
    """
    interpreter = path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = path / STAMP
    wanted = REQUIREMENTS.read_text()
    if interpreter.exists() and stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    if path.exists() and any(path.iterdir()) and not (path / "pyvenv.cfg").exists():
        raise PeerEnvironmentError(
            f"{path} exists and is not a virtual environment; give another folder by --peer-env"
        )
    check_python(python)
    run([python, "-m", "venv", str(path)])
    pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "install", "--no-deps", "--requirement", str(REQUIREMENTS)])
    # Written last: an installation that was interrupted is done again.
    stamp.write_text(wanted)
    return interpreter


def check_python(python: str) -> None:
    """Refuse an interpreter that the pinned packages have no wheels for."""
    code = "import sys; print(sys.version_info[0], sys.version_info[1])"
    major, minor = (int(part) for part in run([python, "-c", code]).split())
    first, last = SUPPORTED_PYTHON
    if not first <= (major, minor) <= last:
        raise PeerEnvironmentError(
            f"{python} is Python {major}.{minor}; the peer's JAX needs "
            f"{first[0]}.{first[1]} to {last[0]}.{last[1]}: name one by --peer-python"
        )


def run(command: list[str]) -> str:
    """Run a step of the installation and return what it prints."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PeerEnvironmentError(f"there is no program {command[0]}") from error
    if done.returncode != 0:
        raise PeerEnvironmentError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout
