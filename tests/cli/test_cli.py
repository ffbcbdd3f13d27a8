"""The command line: what it writes, says and returns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tangency.cli import main
from tangency.datasets import load
from tangency.infinite import InfiniteKernel
from tangency.study import perceptrons

SMALL = ["--width", "16", "--depth", "1", "--examples", "30"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("command", [[], ["study"], ["kernel"], ["spectrum"]])
def test_help_shows_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    shown = capsys.readouterr().out
    assert "Usage: tangency" in shown
    assert not command or f"tangency {command[0]} digits" in shown


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "study" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_kernel_into_a_file(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"k{suffix}"
    assert run("kernel", "wine", *SMALL, "--out", str(out)) == 0
    captured = capsys.readouterr()
    assert "kernel_test_train" in captured.out
    assert captured.err == ""
    if suffix == ".npz":
        with np.load(out) as archive:
            found = {name: torch.from_numpy(archive[name]) for name in archive.files}
    else:
        from safetensors.torch import load_file

        found = load_file(out)
    data = load("wine", examples=30)
    family = perceptrons(data.features, data.out, width=16, depth=1)
    expected = InfiniteKernel(family.network(0), data.x_train[:2], init=family.init)
    assert torch.allclose(found["kernel"], expected.ntk(data.x_train))
    cross = expected.ntk(data.x_test, data.x_train)
    assert torch.allclose(found["kernel_test_train"], cross)
    assert torch.equal(found["targets"], data.y_train)
    assert run("spectrum", str(out), "--modes", "3") == 0
    assert "Spectrum of 30 modes" in capsys.readouterr().out


def test_spectrum_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.npz"
    arguments = ["spectrum", "wine", *SMALL, "--kind", "nngp", "--out", str(out)]
    assert run(*arguments) == 0
    assert "target power" in capsys.readouterr().out
    with np.load(out) as found:
        assert np.allclose(found["modes"].T @ found["modes"], np.eye(30), atol=1e-4)


def test_study_with_a_model_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "from torch import nn\ndef make(i, o): return nn.Linear(i, o)\n"
    (tmp_path / "my_linear_model.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["wine", "--model", "my_linear_model:make", "--examples", "30", "--steps", "5"]
    assert run("study", *arguments, "--out", "r.html") == 0
    shown = capsys.readouterr().out
    assert "lazy" in shown
    assert "takes no width" in shown
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "irises"], "'irises' is neither a file nor one of digits"),
        (["study", "wine", "--model", "nonsense"], "is not MODULE:FACTORY"),
        (["study", "wine", "--model", "m:f", "--depth", "2"], "not your own model"),
        (["study", "wine", "--activation", "swish"], "activation"),
        (["study", "wine", "--steps", "0"], "steps"),
        (["study", "wine", "--out", "no/such/folder/r.html"], "cannot write"),
        (["kernel", "wine", "--out", "k.txt"], "must end in"),
        (["spectrum", "wine", "--learning-rate", "-1"], "must be positive"),
        (["study"], "DATASET_OR_FILE"),
        (["stdy"], "stdy"),
        (["study", "wine", "--wdth", "3"], "--wdth"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/bad.csv"], "line 2, column 'a': 'x' is not a number"),
        (["wine", "--model", "no_such_module_here:f"], "cannot import 'no_such_module_here'"),
        (["wine", "--examples", "1000"], "at most 125 can train"),
        (["wine", *SMALL, "--steps", "20", "--learning-rate", "1000"], "diverged"),
    ],
)
def test_failure_is_one_line_and_code_1(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.csv").write_text("a,y\n" + "x,1\n" * 12, encoding="utf-8")
    given = [a.format(tmp_path) for a in arguments]
    assert run("study", *given, "--out", str(tmp_path / "r.html")) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tangency", "study", "wine", "--examples", "1000"]
    plain, debug = (
        subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        for more in ([], ["--debug"])
    )
    assert plain.returncode == 1
    assert "Traceback" not in plain.stderr
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize(("package", "extra"), [("plotly", "report"), ("jinja2", "report")])
def test_missing_extras_are_named_before_any_work(
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert run("study", "wine", *SMALL) == 1
    assert f"pip install 'tangency[{extra}]'" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK nonsense"])
def test_broken_kernel_files(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".npz", ".safetensors"):
        path = tmp_path / f"k{suffix}"
        path.write_bytes(content)
        assert run("spectrum", str(path)) == 1
        assert capsys.readouterr().err.count("\n") == 1
