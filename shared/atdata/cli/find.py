"""The commands `atdata search` and `atdata mcp`: an AppView from the terminal, and for language models."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any, Final

import click

from atdata.errors import ConfigError

# Those of `atdata.appview`, which is not loaded for `--help`.
_SORTS: Final = ("relevance", "newest", "oldest", "samples", "name")

_appview = click.option("--appview", "url", metavar="URL", envvar="ATDATA_APPVIEW", help="[ATDATA_APPVIEW]")


@click.command()
@click.argument("words", nargs=-1)
@_appview
@click.option("--tag", "tags", multiple=True, help="Has this tag; several times: all of them.")
@click.option("--license", "licenses", multiple=True, help="Has this license, such as MIT; several times: any of them.")
@click.option("--publisher", "publishers", multiple=True, help="By this handle or DID; several times: any of them.")
@click.option("--schema", "schemas", metavar="URI", multiple=True, help="Of this schema; several times: any of them.")
@click.option("--loadable-as", metavar="URI", help="Can be read as this schema, or as a structure's fingerprint.")
@click.option("--sort", type=click.Choice(_SORTS), default="relevance", show_default=True)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the whole record.")
def search(words: tuple[str, ...], url: str | None, limit: int, as_json: bool, **filters: Any) -> None:
    """Find datasets by WORDS, on the whole network; without any, the newest."""
    from atdata.appview import AppView

    found = AppView(_known(url)).search_datasets(" ".join(words), **filters)
    for n, hit in enumerate(islice(found, limit)):
        if as_json:
            members = {"uri": hit.uri, "cid": hit.cid, "publisher": str(hit.publisher), "record": hit.stored}
            click.echo(json.dumps(members))
            continue
        if n == 0:
            click.echo(f"{'NAME':<32} {'PUBLISHER':<28} {'SAMPLES':>12}  URI")
        samples = hit.record.size and hit.record.size.samples
        count = "" if samples is None else f"{samples:,}"
        click.echo(f"{_cell(hit.name, 32)} {_cell(str(hit.publisher), 28)} {count:>12}  {hit.uri}")
    if not as_json:
        click.echo(f"{found.total:,} found" if found.total else "nothing found; try fewer or other words, or filters")


@click.command()
@_appview
def mcp(url: str | None) -> None:
    """Serve the AppView's questions to language models: MCP, over standard input and output."""
    from atdata.appview import AppView
    from atdata.mcp_server import make_server

    make_server(AppView(_known(url))).run("stdio")


def _known(url: str | None) -> str:
    if not url:
        raise ConfigError("which AppView? give --appview URL, or set ATDATA_APPVIEW; `atdata up` serves one")
    return url


def _cell(text: str, width: int) -> str:
    """A stranger's text in a column: of one line, and nothing in it that moves a terminal's cursor."""
    shown = "".join(c for c in text if c.isprintable())
    return f"{shown if len(shown) <= width else shown[: width - 1] + '…':<{width}}"
