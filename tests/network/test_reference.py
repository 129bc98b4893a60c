"""Every example of the reference documentation, as it stands, against the reference PDS.

Only the host, handles, passwords and what stands for some URI (`...`, `abc`, `xyz`, `other-user`) are filled in.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network.atproto_network import Account, Network
from network.fixtures import has_node, start_network
from numpy.typing import NDArray
from shard_files import write_shard

import atdata
from atdata.atmosphere import AtmosphereClient, AtmosphereIndex, LensPublisher

SHARED = Path(os.environ.get("ATDATA_SHARED", Path(__file__).parents[3] / "shared"))
REFERENCE = SHARED / "reference" / "atmosphere.txt"
if not REFERENCE.exists():
    pytest.skip(f"the reference is not there: {REFERENCE}; set ATDATA_SHARED", allow_module_level=True)


def examples(text: str) -> Iterator[str]:
    """The code in *text*: the longest runs of lines that are Python, parted at headings."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        end = next((end for end in range(len(lines), at, -1) if is_python(lines[at:end])), at)
        start = at
        for statement in ast.parse("\n".join(lines[at:end])).body:
            # Headings such as "Overview" and "Listing and Retrieving" are expressions to Python.
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Name | ast.BoolOp):
                yield "\n".join(lines[start : at + statement.lineno - 1]).strip()
                start = at + statement.lineno
        yield "\n".join(lines[start:end]).strip()
        at = max(end, at + 1)


def is_python(lines: list[str]) -> bool:
    if lines[0][:1] in ("", " "):
        return False
    try:
        return bool(ast.parse("\n".join(lines)).body)
    except SyntaxError:
        return False


EXAMPLES = [code for code in examples(REFERENCE.read_text("utf-8")) if code]


@atdata.packable
class MySample:
    """What the examples call MySample."""

    features: NDArray[np.float32]
    label: int


@atdata.packable
class FullSample:
    """What the examples call FullSample."""

    image: NDArray[np.uint8]
    label: str


@atdata.packable
class SimpleSample:
    """What the examples call SimpleSample."""

    label: str


@atdata.packable
class Image:
    """As the ImageSample of the examples."""

    image: NDArray[Any]
    label: str
    confidence: float


class Reader:
    """What runs the examples, one after the other, in one namespace; what they take for granted is there."""

    def __init__(self, network: Network, folder: Path) -> None:
        alice, other, mine = (network.create_account() for _ in range(3))
        client = AtmosphereClient(base_url=network.pds)
        client.login(alice.handle, alice.password)
        index = AtmosphereIndex(client)
        write_shard(folder / "mine.tar", samples := [MySample(np.ones(4, np.float32), i) for i in range(40)])
        for i in range(10):
            write_shard(folder / f"data-{i:06}.tar", [Image(np.zeros((4, 4), np.float32), "cat", 0.5)])
        full, simple = (index.publish_schema(kind) for kind in (FullSample, SimpleSample))
        dataset = atdata.Dataset[MySample](str(folder / "mine.tar"))
        self.entry = index.insert_dataset(dataset, name="mine")
        lens = LensPublisher(client).publish(name="simplify", source_schema=full, target_schema=simple)
        self.processed: list[Any] = []
        self.names: dict[str, Any] = {
            "__name__": "examples",
            "atdata": atdata,
            "np": np,
            "NDArray": NDArray,
            "dataset": dataset,
            "samples": samples,
            "MySample": MySample,
            "MySampleType": MySample,
            "FullSample": FullSample,
            "SimpleSample": SimpleSample,
            "full_schema_uri": full,
            "simple_schema_uri": simple,
            "process": self.processed.append,
        }
        abc = "at://did:plc:abc/ac.foundation.dataset"
        self.filled_in = {
            "AtmosphereClient()": f'AtmosphereClient(base_url="{network.pds}")',
            '"https://pds.example.com"': f'"{network.pds}"',
            '"alice.bsky.social", "app-password"': (hers := credentials(network, alice)),
            '"handle.bsky.social", "app-password"': hers,
            '"myhandle.bsky.social", "app-password"': credentials(network, mine),
            "did:plc:other-user": other.did,
            "at://did:plc:.../ac.foundation.dataset.record/...": self.entry.uri,
            f"{abc}.record/xyz": self.entry.uri,
            f"{abc}.lens/xyz": lens,
            f"{abc}.sampleSchema/xyz": full,
            f"{abc}.sampleSchema/source": full,
            f"{abc}.sampleSchema/target": simple,
        }

    def run(self, code: str) -> None:
        for placeholder, value in self.filled_in.items():
            code = code.replace(placeholder, value)
        if "MySampleType" in code:
            # The text speaks of a dataset's URI again, after one of a lens.
            self.names["uri"] = self.entry.uri
        exec(compile(code, "example", "exec", dont_inherit=True), self.names)


def credentials(network: Network, account: Account) -> str:
    headers = {"authorization": f"Bearer {account.access_jwt}"}
    made = network.procedure("com.atproto.server.createAppPassword", {"name": "examples"}, headers=headers)
    return f'"{account.handle}", "{made["password"]}"'


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """One run through the reference, in a folder of its own, on a network of its own."""
    if not has_node():
        pytest.skip("the test network needs Node.js 20 or newer, with npm: https://nodejs.org/")
    folder = tmp_path_factory.mktemp("reference")
    with start_network() as network, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {"PLC_URL": network.plc, "CACHE": str(folder / "cache"), "NO_PROGRESS": "1"}.items():
            patch.setenv(f"ATDATA_{name}", value)
        yield Reader(network, folder)


def name_of(code: str) -> str:
    """The first line that is not an import or a comment."""
    lines = (line for line in code.splitlines() if line and not line.startswith(("import", "from", "#", "@")))
    return next(lines, code.splitlines()[0])[:60]


@pytest.mark.parametrize("code", EXAMPLES, ids=name_of)
def test_example(reader: Reader, code: str) -> None:
    """The example runs, after those before it."""
    reader.run(code)


def test_examples_are_all_there() -> None:
    """What was run is the whole of the code: each class of the package is used, and prose is left over."""
    code = "\n".join(EXAMPLES)
    for name in ("AtmosphereIndex(client, data_store=store)", "publish_with_blobs", "publish_from_lens",
                 "find_by_schemas", "AtUri.parse", "login_with_session", "np.random", "data_urls[0]"):  # fmt: skip
        assert name in code
    assert len(EXAMPLES) == 22
    assert "federated ecosystem" not in code


def test_examples_did_what_they_say(reader: Reader) -> None:
    """The loops of the examples had something to go through, and what they made is what they say it is."""
    names = reader.names
    assert len(reader.processed) >= 4
    assert names["ds"].sample_type.__name__ == "FeatureSample"
    assert [len(batch) for batch in names["ds"].ordered(batch_size=600)] == [600, 400]
    assert names["entry"].uri.startswith(f"at://{names['client'].did}/ac.foundation.dataset.record/")
