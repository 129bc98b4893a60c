"""What the documentation says of settings and commands is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from atdata.cli import cli
from atdata_backend.settings import Settings
from atdata_deploy.settings import UpSettings
from atdata_indexer.settings import IndexerSettings

ROOT = Path(__file__).parents[2]


def table(settings: type[Settings]) -> str:
    """The settings of a class as the README shows them."""
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        default = "" if field.is_required() or field.default is None else f"`{field.default}`"
        rows.append(f"| `ATDATA_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


@pytest.mark.parametrize(("readme", "settings"), [("indexer", IndexerSettings), ("deploy", UpSettings)])
def test_settings_tables(readme: str, settings: type[Settings]) -> None:
    """Every setting stands in its README, with its default and what it does."""
    text = (ROOT / readme / "README.md").read_text("utf-8")
    assert table(settings) in text, f"{readme}/README.md should have:\n\n{table(settings)}\n"


def test_links() -> None:
    """Links between the READMEs lead to files that are there."""
    for readme in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("tests/*/README.md")]:
        text = re.sub(r"```.*?```", "", readme.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (readme.parent / target).exists(), f"{readme}: {target}"


def test_every_command_has_help() -> None:
    """`atdata --help` lists the commands, and each explains itself."""
    runner = CliRunner()
    listed = runner.invoke(cli, ["--help"]).output
    for name in ("appview", "indexer", "mcp", "migrate", "search", "up"):
        assert name in listed
        assert runner.invoke(cli, [name, "--help"]).exit_code == 0


def test_flags_of_up_are_documented_settings() -> None:
    """Each flag of `atdata up` sets a setting, and the help names the variables."""
    output = CliRunner().invoke(cli, ["up", "--help"]).output
    for name in ("RELAY", "PLC_URL", "DATA", "HOST", "PORT", "BACKFILL", "DATABASE_URL", "MEILI_URL"):
        assert f"ATDATA_{name}" in output
