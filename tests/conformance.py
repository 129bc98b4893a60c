"""Where the conformance data and corpora are, which nobody in this project wrote."""

import os
from pathlib import Path

import pytest


def shared_folder() -> Path:
    """`$ATDATA_SHARED`, else the folder `shared` beside the project. Skips the test where there is none."""
    folder = Path(os.environ.get("ATDATA_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "conformance").is_dir():
        pytest.skip(f"no conformance data in {folder}; set ATDATA_SHARED to the folder that has it")
    return folder
