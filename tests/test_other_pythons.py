"""The base install works on a Python that is not the one which runs the other tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OTHERS = ["3.13", "3.12"]
"""The first one that is on this machine, and is not our own, is taken."""

TESTED = ["ledger", "protocol", "transcript", "accounting", "candidates", "middleware", "record", "checkpoints",
          "registry", "strategies", "both_ways"]  # fmt: skip
"""Tests that need no extra, and are quick."""

NEEDED = ["hypothesis", "langchain-openai", "langgraph-checkpoint-sqlite", "pytest", "pytest-asyncio", "pytest-socket"]


def interpreters(version: str) -> Iterator[str]:
    yield f"python{version}"
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, root.glob(f"versions/{version}.*/bin/python"))


def runs(interpreter: str) -> bool:
    try:
        return subprocess.run([interpreter, "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def other_python() -> str:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version in OTHERS:
        for interpreter in interpreters(version):
            if version != own and runs(interpreter):
                return interpreter
    pytest.skip(f"this machine has none of Python {', '.join(OTHERS)} besides its own {own}")


def test_the_base_install_works_on_another_python(tmp_path: Path) -> None:
    uv, python = [sys.executable, "-m", "uv"], tmp_path / "venv" / "bin" / "python"
    subprocess.run([*uv, "venv", "--quiet", "--python", other_python(), str(tmp_path / "venv")], check=True)
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    install = [*uv, "pip", "install", "--quiet", "--python", str(python), *pinned, str(ROOT), *NEEDED]
    installed = subprocess.run(install, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    # From elsewhere, so that what is installed is tested and not the checkout.
    tests = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTED]
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "--import-mode", "append"]
    options = ["-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [str(python), "-m", "pytest", *options, *config, *tests], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
