"""`atdata up` before and beside its processes: its settings and help, its data folder, and the line that it shows."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import web
from click.testing import CliRunner
from web import Reply

from atdata.cli import cli
from atdata.errors import ConfigError
from atdata.syntax import format_datetime
from atdata_appview.settings import AppViewSettings
from atdata_backend.settings import misspelt_variables
from atdata_deploy.processes import data_folder
from atdata_deploy.progress import Answer, Line, ask, line_of, meilisearch_trouble
from atdata_deploy.settings import UpSettings
from atdata_indexer.settings import IndexerSettings

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
STARTED = NOW - timedelta(minutes=5)
ROOT, SOMEBODY = 0, 54321


# --- Settings


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("localhost:2583", "ws://localhost:2583"),
        ("pds.localhost", "ws://pds.localhost"),
        ("127.0.0.1:2583", "ws://127.0.0.1:2583"),
        ("[::1]:2583", "ws://[::1]:2583"),
        ("bsky.network", "wss://bsky.network"),
        ("relay.example:8443", "wss://relay.example:8443"),
        ("http://localhost:2583", "http://localhost:2583"),
        ("wss://localhost", "wss://localhost"),
        ("one.example, localhost:2583", "wss://one.example,ws://localhost:2583"),
    ],
)
def test_a_relay_without_a_scheme(given: str, meant: str) -> None:
    """Hosts on this machine are spoken to without TLS, all others with it; a scheme that is given stays."""
    assert UpSettings.load(relay=given).relay == meant


@pytest.mark.parametrize("name", ["relay", "plc_url", "meili_url", "handle_resolver"])
@pytest.mark.parametrize(
    "value", ["", "http://", "http://:1", "http://host:port", "ftp://host", "http://host/?a=b", "http://a b/", "a.b,"]
)
def test_what_is_no_url_is_refused(name: str, value: str) -> None:
    """Every setting that names a service must name a host, by a scheme that is spoken there."""
    with pytest.raises(ConfigError, match=f"ATDATA_{name.upper()}: "):
        UpSettings.load(**{name: value})


@pytest.mark.parametrize("name", ["plc_url", "meili_url", "handle_resolver"])
@pytest.mark.parametrize("value", ["nosuch", "localhost:2582"])
def test_services_need_a_scheme(name: str, value: str) -> None:
    """Nothing is guessed about the URL of a directory, a search server or a resolver."""
    with pytest.raises(ConfigError, match="must be the URL of a service"):
        UpSettings.load(**{name: value})


def test_an_empty_folder_name_is_not_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--data ''` is a mistake; ATDATA_DATA= is as good as unset."""
    with pytest.raises(ConfigError, match="ATDATA_DATA: is empty"):
        UpSettings.load(data="")
    monkeypatch.setenv("ATDATA_DATA", "")
    assert UpSettings.load().data == Path(".data")


def test_misspelt_variables_are_named_with_what_was_meant() -> None:
    """A variable that no service, library or test reads is pointed out, the others are not."""
    environment = {
        **{f"ATDATA_{name}": "x" for name in ("RELAY", "RATE_LIMIT", "QUARANTINE_BYTES", "CACHE", "TEST_DATABASE_URL")},
        "atdata_port": "8000",
        "ATDATA_RELY": "x",
        "ATDATA_PLC": "x",
        "ATDATA_XYZZY": "x",
        "PATH": "x",
    }
    assert misspelt_variables(environment, [UpSettings, IndexerSettings, AppViewSettings]) == [
        "ATDATA_PLC is no setting and has no effect: did you mean ATDATA_PLC_URL?",
        "ATDATA_RELY is no setting and has no effect: did you mean ATDATA_RELAY?",
        "ATDATA_XYZZY is no setting and has no effect",
    ]


def test_help_shows_defaults() -> None:
    """Each flag's help names its variable and its default, also those that are the indexer's."""
    output = " ".join(CliRunner().invoke(cli, ["up", "--help"], terminal_width=300).output.split())
    for flag, variable in (("--relay", "RELAY"), ("--plc", "PLC_URL"), ("--data", "DATA"), ("--port", "PORT")):
        default = UpSettings.model_fields[variable.lower()].default or IndexerSettings.model_fields["plc_url"].default
        assert flag in output
        assert f"[ATDATA_{variable}, default {default}]" in output


# --- The data folder


def test_a_folder_of_another_user_is_refused_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who did not run on it before is told who did, and no file is made, changed or opened for writing."""
    with data_folder(tmp_path / "data") as folder:
        (folder / "lock").write_text("as it was")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    with pytest.raises(ConfigError, match=r"belongs to \w+: run as \w+, or give another folder with --data"):
        with data_folder(folder):
            pass
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


def test_root_takes_no_folder_from_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root could write to it, and what root writes the owner could not use: an empty folder is refused, too."""
    if os.geteuid() == ROOT:
        os.chown(tmp_path, SOMEBODY, SOMEBODY)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: ROOT)
    with pytest.raises(ConfigError, match="belongs to"), data_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_writable_folder_may_be_lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of somebody else's that nobody has run on and that may be written to is taken, as volumes are."""
    tmp_path.chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    with data_folder(tmp_path) as folder:
        assert (folder / "lock").exists()


# --- The line


def status(updated: datetime = NOW, **indexer: Any) -> Mapping[str, Any]:
    """An answer of `getStatus`."""
    report = {"relay": "pds.test", "connected": True, "trouble": None, "seq": 19, "lagSeconds": 0.04, **indexer}
    return {
        "records": {"dataset": 1200, "schema": 103},
        "repositories": {"desynchronized": 2},
        "backlog": 3,
        "quarantine": [{"reason": "x", "count": 4}],
        "indexer": {"status": {"framesPerSecond": 7.0, **report}, "updatedAt": format_datetime(updated)},
    }


COUNTS = "records 1,303  7 frames/s  to search 3  to fetch 2  quarantined 4"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (status(), Line(f"seq 19  lag 0.0 s  {COUNTS}")),
        (status(seq=None, lagSeconds=None), Line(f"nothing heard yet  {COUNTS}")),
        (status(lagSeconds=None), Line(f"seq 19  nothing new yet  {COUNTS}")),
        (status(connected=False), Line("connecting to pds.test …")),
        (status(connected=False, trouble="cannot read pds.test"), Line("cannot read pds.test", is_trouble=True)),
        # Connected, and still something is wrong: the search engine, the directory.
        (status(trouble="search is behind"), Line("search is behind", is_trouble=True)),
        ({**status(), "indexer": None}, Line("waiting for the indexer …")),
        (status(STARTED - timedelta(seconds=1), trouble="of last week"), Line("waiting for the indexer …")),
        (status(NOW - timedelta(seconds=60)), Line("the indexer has not reported for 60 s", is_trouble=True)),
    ],
)
def test_the_line_of_a_status(answer: Mapping[str, Any], line: Line) -> None:
    """Numbers where all is well; what is wrong where it is not; nothing of what an earlier run said."""
    assert line_of(answer, STARTED, NOW) == line


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (Reply(b'{"version": "1"}'), Answer(status={"version": "1"})),
        (Reply(b'{"error": "X", "message": "no database"}', 503), Answer(trouble="the AppView says: no database")),
        (Reply(b"{}", 500), Answer(trouble="the AppView says: 500")),
        (Reply(b"<html>", 200), Answer(trouble="what answers at {url} is not the AppView")),
        (Reply(b"[]", 200), Answer(trouble="what answers at {url} is not the AppView")),
    ],
)
def test_an_appview_that_fails_says_why(reply: Reply, answer: Answer) -> None:
    """An answer without a status is trouble, in the AppView's own words where it has any."""
    with web.serve(lambda _: reply) as server:
        trouble = answer.trouble.replace("{url}", server.url) if answer.trouble else None
        assert ask(server.url) == Answer(answer.status, trouble)


def test_an_appview_that_does_not_listen_is_no_trouble_yet() -> None:
    """It takes a moment to start: neither a status nor trouble."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        answer = ask(f"http://127.0.0.1:{probe.getsockname()[1]}")
    assert answer == Answer()
    assert not answer.is_listening


def test_a_proxy_is_not_asked_for_our_own_appview(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY in the environment does not come between us and a service on this machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with web.serve(lambda _: Reply(b"{}")) as server:
        assert ask(server.url) == Answer(status={})


def test_what_is_wrong_with_a_meilisearch() -> None:
    """A server that is well is no trouble; another service, and none at all, are named with the setting."""
    with web.serve(lambda path: Reply(b'{"status": "available"}' if path == "/health" else b"", 200)) as server:
        assert meilisearch_trouble(server.url) is None
    with web.serve(lambda _: Reply(b"not here", 404)) as server:
        assert "is no Meilisearch that is well (HTTP 404): check ATDATA_MEILI_URL" in str(
            meilisearch_trouble(server.url)
        )
    trouble = str(meilisearch_trouble(server.url.replace("http://", "http://user:secret@")))
    assert "does not answer" in trouble
    assert "ATDATA_MEILI_URL" in trouble
    assert "secret" not in trouble
