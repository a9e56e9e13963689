"""The three programs from outside: their version, what they say where a package is missing, and `make demo`."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
WITHOUT: Final = """
import runpy, sys
sys.modules[sys.argv[2]] = None  # its import fails as if it were not installed
sys.argv = [sys.argv[1]]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("package", ["daemon", "train", "export"])
def test_the_version(package: str) -> None:
    done = run(sys.executable, "-m", package, "--version")
    assert (done.returncode, done.stdout) == (0, f"medusa-{package} {importlib.metadata.version('medusa-rt')}\n"), done


@pytest.mark.parametrize(
    ("package", "missing", "extra"),
    [
        ("daemon", "typer", "demo"),
        ("daemon", "redis", "demo"),
        ("train", "typer", "train"),
        ("train", "torch", "train"),
        ("export", "torch", "export"),
        ("export", "onnx", "export"),
    ],
)
def test_a_missing_package_names_the_extra_that_brings_it(package: str, missing: str, extra: str) -> None:
    done = run(sys.executable, "-c", WITHOUT, package, missing)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"medusa-{package} needs the package {missing}, which is not here: pip install 'medusa-rt[{extra}]'"
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("call", ["a call.wav", 'it\'s "quoted".wav'])
def test_make_demo_takes_any_path(tmp_path: Path, call: str) -> None:
    program = tmp_path / "bin" / "medusa-daemon"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / ".demo").touch()  # newer than what it is made from: nothing is installed
    done = run("make", "--silent", "demo", f"VENV={tmp_path}", f"CALL={call}")
    assert (done.returncode, done.stdout) == (0, f"<demo><{call}>"), done.stderr
