"""mypy and pyright understand the library's types as its users meet them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHECKERS = {
    "mypy": ["mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), "--no-incremental"],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


def check(checker: str, file: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *CHECKERS[checker], str(HERE / file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("checker", CHECKERS)
def test_right_code_is_accepted(checker):
    """`Dataset[ImageSample]` iterates as `ImageSample`, in batches as `SampleBatch[ImageSample]`, and so on."""
    run = check(checker, "samples.py")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_code_is_not(checker):
    """Every mistake is found, and nothing else."""
    lines = (HERE / "mistakes.py").read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    output = check(checker, "mistakes.py").stdout
    found = {int(number) for number in re.findall(r"mistakes\.py:(\d+)(?::\d+)?(?: -)?:? error", output)}
    assert found == expected, output
