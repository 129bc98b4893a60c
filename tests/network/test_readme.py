"""What the README shows: the demo, the search, and the example of publishing and loading, on the reference PDS."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import pytest
from network.atproto_network import Account, Network, has_node
from network.corpus import card_records, own_cards

from atdata.atmosphere import records
from atdata.atmosphere.records import DatasetRecord
from atdata_backend.search.base import Document, Query
from atdata_backend.search.tantivy import TantivyEngine

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text("utf-8")

# As the demo and the README write them: those of a run, and shortened.
SECRETS = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}…")


def blocks(language: str, beginning: str = "") -> list[str]:
    """The README's code blocks that begin so."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [block for block in found if block.startswith(beginning)]


Run = Callable[[str, Mapping[str, str]], list[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs code of the README in a folder of its own; what it printed, line by line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATDATA_NO_PROGRESS", "1")

    def run_code(code: str, replaced: Mapping[str, str]) -> list[str]:
        for stands_for, value in replaced.items():
            assert stands_for in code
            code = code.replace(stands_for, value)
        module = ModuleType("readme")
        # Where classes look up their module's names.
        monkeypatch.setitem(sys.modules, "readme", module)
        exec(compile(code, "README.md", "exec"), vars(module))
        return capsys.readouterr().out.splitlines()

    return run_code


def test_publish_and_load(network: Network, account: Account, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """The programs print what the comments say; only host, handle, password and URI are filled in.

    Loading is a program of its own: to try it again publishes nothing.
    """
    monkeypatch.setenv("ATDATA_PLC_URL", network.plc)
    monkeypatch.setenv("ATDATA_ALLOW_PRIVATE_HOSTS", "1")
    publish, load, _ = blocks("python")
    login = {
        "AtmosphereClient()": f"AtmosphereClient({network.pds!r})",
        "alice.example.com": account.handle,
        "app-password": account.password,
    }
    (uri,) = run(publish, login)
    promised = re.findall(r"print\(.*#\s*(.*)", load)
    for _ in range(2):
        assert run(load, {"at://did:plc:…/ac.foundation.dataset.record/…": uri}) == promised
    assert len(account.list_records("ac.foundation.dataset.record")) == 1


def test_the_first_search_finds_something(tmp_path: Path) -> None:
    """The question of the README, typo and all, finds among the demo's datasets the one that it shows."""
    (shown,) = blocks("console", "$ curl")
    url = shown.split("'")[1]
    engine = TantivyEngine(tmp_path)
    documents: list[Document] = []
    for card in own_cards():
        dataset = card_records(card, "did:plc:x")[-1]
        value = records.read(dataset.collection, dataset.value).value
        assert isinstance(value, DatasetRecord)
        assert value.created_at is not None
        about = {"description": value.description or "", "tags": value.tags}
        documents.append(Document(dataset.uri, "did:plc:x", None, value.name, value.created_at, **about))
    engine.apply(documents, [])
    results = engine.search(Query(parse_qs(urlsplit(url).query)["q"][0]))
    names = {document.uri: document.name for document in documents}
    assert f'"name": "{names[results.hits[0].uri]}"' in shown
    assert f'"total":{results.total}' in shown
    for marked in re.findall("<mark>.*?</mark>", shown):
        assert marked in results.hits[0].highlights["description"]
    engine.close()


@contextmanager
def demo(data: Path, *flags: str) -> Iterator[str]:
    """What the demo prints, while it runs, on free ports and in *data*."""
    command = [sys.executable, HERE / "atproto_network.py", "--data", data, "--publish", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUTF8": "1"}) as process:
        assert process.stdout is not None
        try:
            lines = []
            while not lines or not lines[-1].startswith("Ctrl-C"):
                lines.append(process.stdout.readline())
                assert lines[-1], "it ended"
            yield "".join(lines)
        finally:
            process.send_signal(2)
            process.wait(60)


@pytest.mark.skipif(not has_node() and os.environ.get("CI") != "true", reason="Node.js and npm are not on the PATH")
def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """It prints what the README shows, and what it says of publishing works. Started again it is the same network."""
    with demo(tmp_path / "demo") as printed:
        pds, plc = re.findall(r"http://localhost:\d+", printed)[:2]

        def as_shown(text: str) -> str:
            text = text.replace(str(tmp_path / "demo"), ".data-demo").replace(plc, "http://localhost:2582")
            for scheme in ("http", "ws"):
                text = text.replace(pds.replace("http", scheme), f"{scheme}://localhost:2583")
            return SECRETS.sub("secret", text)

        (shown,) = blocks("console", "$ tests/network/demo")
        beginning = as_shown(shown).partition("\n")[2].removesuffix("…\n")
        assert as_shown(printed).startswith(beginning)
        (command,) = re.findall(r"deploy/up .*", beginning)
        assert blocks("console", f"$ {command}\n")

        publish, load, login = blocks("python")
        lines = [line.strip() for line in printed.splitlines() if line.startswith("  client")]
        assert as_shown("\n".join(lines)) == as_shown(login).strip()
        (export,) = re.findall(r"  (export .*)", printed)
        assert as_shown(export) in as_shown(README)
        for name, value in (pair.split("=") for pair in export.split()[1:]):
            monkeypatch.setenv(name, value)
        stands_for = 'client = AtmosphereClient()\nclient.login("alice.example.com", "app-password")'
        (uri,) = run(publish, {stands_for: "\n".join(lines)})
        assert run(load, {"at://did:plc:…/ac.foundation.dataset.record/…": uri}) == ["(32, 28, 28) [0, 1, 2]"]
    with demo(tmp_path / "demo") as again:
        assert again == printed.replace(f"datasets {len(own_cards())}", f"datasets {len(own_cards()) + 1}")
    assert (tmp_path / "demo" / "accounts.json").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(not has_node() and os.environ.get("CI") != "true", reason="Node.js and npm are not on the PATH")
def test_a_second_demo(network: Network, tmp_path: Path) -> None:
    """A port that is taken, as by a demo that runs, is named in one sentence."""
    port = network.pds.rpartition(":")[2]
    command = [sys.executable, HERE / "atproto_network.py", "--data", tmp_path / "demo", "--pds-port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"port {port} is taken: stop what uses it" in done.stderr
    assert "Traceback" not in done.stderr
