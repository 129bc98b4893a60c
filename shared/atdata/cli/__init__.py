"""The `atdata` command: finds the commands of whatever is installed, and turns our errors into one line."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import click

from atdata import __version__
from atdata.cli.find import mcp, search
from atdata.errors import AtdataError, ConfigError, how_to_install

#: The exit code of a mistake that starting again will not mend, as in sysexits.h.
EX_CONFIG = 78


class _Commands(click.Group):
    """A group whose commands come from the entry points `atdata.commands`, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(point.name for point in entry_points(group="atdata.commands"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for point in entry_points(group="atdata.commands", name=cmd_name):
            try:
                command = point.load()
            except ModuleNotFoundError as e:
                # The bare library lists the services' commands, too: their packages are extras.
                raise ConfigError(
                    f"`atdata {cmd_name}` needs the package {e.name!r}: {how_to_install('all')}"
                ) from None
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Short help without loading what may not be installed.
        with formatter.section("Commands"):
            formatter.write_dl([(name, f"see `atdata {name} --help`") for name in self.list_commands(ctx)])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Typed datasets on the AT Protocol."""


cli.add_command(search)
cli.add_command(mcp)


def main() -> None:
    """Run the command line. Our own errors become one line: exit code 78 where settings are at fault, else 1."""
    try:
        cli.main(standalone_mode=False)
    except AtdataError as e:
        click.echo(f"atdata: {e}", err=True)
        sys.exit(EX_CONFIG if isinstance(e, ConfigError) else 1)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
