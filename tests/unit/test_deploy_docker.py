"""The image and the services of deploy/, as far as they can be told without Docker."""

from __future__ import annotations

import re
from pathlib import Path

from atdata_appview.settings import AppViewSettings
from atdata_backend.settings import misspelt_variables
from atdata_indexer.settings import IndexerSettings

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text("utf-8")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
README = (ROOT / "deploy" / "README.md").read_text("utf-8")


def test_services_are_given_settings_that_exist() -> None:
    """Every ATDATA_ variable of compose.yaml is one that a service reads."""
    variables = dict.fromkeys(re.findall(r"ATDATA_\w+", COMPOSE), "")
    assert len(variables) >= 8
    assert misspelt_variables(variables, [IndexerSettings, AppViewSettings]) == []


def test_no_secret_stands_in_the_file() -> None:
    """Passwords and keys come from outside, have no default, and are in the README."""
    secrets = re.findall(r"^ +\w*(?:PASSWORD|KEY): (.*)$", COMPOSE, flags=re.MULTILINE)
    assert len(secrets) >= 4
    for secret in secrets:
        name = re.match(r"\$\{(\w+):\?", secret)
        assert name, secret
        assert name[1] in README


def test_the_image_has_what_the_build_needs() -> None:
    """What is copied is there, is let through to the build, and holds every package of the distribution."""
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    copied = [
        name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, flags=re.MULTILINE) for name in line.split()
    ]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignore
    packages = re.findall(r'"(\w+)/\w+",?$', (ROOT / "pyproject.toml").read_text("utf-8"), flags=re.MULTILINE)
    assert len(packages) == 5
    assert set(packages) <= set(copied)
