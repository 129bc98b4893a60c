"""`deploy/setup` and the scripts on top of it: what they make, mend, and leave alone. Python and pip are stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"

# Makes a copy of itself where a virtual environment should be; pip works there once its module is there. STOP names
# where `deploy/setup` is killed, as by a closed terminal.
PYTHON = """#!/usr/bin/env bash
here=$(cd "$(dirname "$0")" && pwd)
case "$1 ${2:-}" in
"-c "*) ;;
"-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    [ "${STOP:-}" != venv ] || kill -9 "$PPID"
    touch "$3/bin/pip"
    ;;
"-m pip")
    [ -e "$here/pip" ] || exit 1
    [ "$3" != --version ] || exit 0
    if [ "${STOP:-}" = pip ]; then rm "$here/pip"; kill -9 "$PPID"; fi
    echo "$@" >>"$here/installed"
    printf '#!/bin/sh\\necho "atdata $*, data in $ATDATA_DATA"\\n' >"$here/atdata"
    chmod +x "$here/atdata"
    ;;
esac
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with only what the scripts look at."""
    root = tmp_path / "a checkout"
    (root / "deploy").mkdir(parents=True)
    for name in ("setup", "up"):
        shutil.copy(DEPLOY / name, root / "deploy" / name)
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "python").write_text(PYTHON)
    (root / "python").chmod(0o755)
    return root


def run(root: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command or (root / "deploy/setup",),
        env={"PATH": os.environ["PATH"], "PYTHON": str(root / "python"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_installed_once(root: Path) -> None:
    """The first run makes the environment and installs; the second finds that done; another pyproject.toml is news."""
    assert run(root).returncode == 0
    installed = root / ".venv/bin/installed"
    first = installed.read_text()
    assert "--editable" in first
    assert run(root).stderr == ""
    assert installed.read_text() == first
    (root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert run(root).returncode == 0
    assert len(installed.read_text()) > len(first)


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_an_interrupted_run_is_mended_by_the_next(root: Path, step: str) -> None:
    """Killed while the environment was made, or while pip replaced itself: it is made anew."""
    assert run(root, STOP=step).returncode == -9
    again = run(root)
    assert again.returncode == 0, again.stderr
    assert "making a virtual environment" in again.stderr
    assert (root / ".venv/bin/installed").exists()


def test_an_environment_of_another_making_is_not_removed(root: Path) -> None:
    """A .venv without pip that does not say that we made it stays, and one sentence says what is the matter."""
    precious = root / ".venv/precious"
    precious.parent.mkdir()
    precious.write_text("precious")
    refused = run(root)
    assert refused.returncode == 1
    assert "was not made by this command: move it away" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert precious.read_text() == "precious"


def test_an_environment_of_another_making_that_works_is_used(root: Path) -> None:
    """A .venv made by hand, with Python and pip, is installed into."""
    run(root, root / "python", "-m", "venv", root / ".venv")
    assert run(root).returncode == 0
    assert (root / ".venv/bin/installed").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")
def test_another_users_environment_is_left_alone(root: Path) -> None:
    """One sentence names the owner; nothing is removed or installed."""
    run(root, STOP="venv")
    before = sorted(root.rglob("*"))
    os.chown(root / ".venv", 54321, 54321)
    refused = run(root)
    assert refused.returncode == 1
    assert "belongs to 54321" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert sorted(root.rglob("*")) == before


def test_up_may_be_a_symlink(root: Path, tmp_path: Path) -> None:
    """Called by a link from elsewhere, `deploy/up` finds its checkout."""
    link = tmp_path / "bin" / "run-it"
    link.parent.mkdir()
    link.symlink_to(Path("../a checkout/deploy/up"))
    done = run(root, link, "--port", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"atdata up --port 1, data in {root}/.data\n"
