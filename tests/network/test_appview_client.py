"""Published on the reference PDS, found through the AppView, loaded by name, viewed along a published lens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from network.atproto_network import Account, Network
from network.system import System, start_system
from numpy.typing import NDArray
from postgres import TestDatabases
from shard_files import write_shard

import atdata
from atdata import AppView, LensNetwork, load_dataset
from atdata.atmosphere import AtmosphereClient, AtmosphereIndex, LabelPublisher, LensPublisher, PDSBlobStore
from atdata.errors import LensError, NotFoundError
from atdata.views import RecordChange


@atdata.packable
class Recording:
    wave: NDArray[np.float64]
    caption: str
    snr: float


@atdata.packable
class Caption:
    text: str


def to_caption(source: Recording) -> Caption:
    """What was said."""
    return Caption(source.caption)


@pytest.fixture(scope="module")
def system(network: Network, postgres: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with postgres.database() as url, start_system(network, url, tmp_path_factory.mktemp("client")) as system:
        yield system


@pytest.fixture(autouse=True)
def _own_lenses() -> Iterator[None]:
    registry = LensNetwork()
    saved, registry._lenses = registry._lenses, {}
    yield
    registry._lenses = saved


def test_from_publishing_to_another_type(
    system: System, network: Network, account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What one person publishes, another finds by words or by type, loads by `@handle/name`, and reads as their type.

    What came by way of the AppView is what the publisher's own server has.
    """
    monkeypatch.setenv("ATDATA_PLC_URL", network.plc)
    monkeypatch.setenv("ATDATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ATDATA_NO_PROGRESS", "1")
    monkeypatch.delenv("ATDATA_APPVIEW", raising=False)

    client = AtmosphereClient(network.pds)
    client.login(account.handle, account.password)
    publishing = AtmosphereIndex(client, data_store=PDSBlobStore(client))
    samples = [Recording(np.arange(4.0) * i, f"caption {i}", i / 2) for i in range(5)]
    source = atdata.Dataset[Recording](write_shard(tmp_path / "train.tar", samples))
    entry = publishing.insert_dataset(source, name="market-calls", description="Calls among onions.", tags=["audio"])
    caption = publishing.publish_schema(Caption, version="1.2.0")
    registered = atdata.lens(to_caption)
    lens = LensPublisher(client).publish_from_lens(
        registered,
        source_schema=entry.schema_ref,
        target_schema=caption,
        code_repository="https://example.com/lenses",
        code_commit="abc123",
    )
    LabelPublisher(client).publish(name="calls", dataset_uri=entry.uri, version="1.0.0")

    appview = AppView(system.url)
    name = f"@{account.handle}/calls@1.0.0"

    def resolved() -> bool:
        try:
            return appview.resolve_dataset(name).schema is not None
        except NotFoundError:
            return False

    system.until(resolved, "the AppView to know the label")
    system.settled()

    # Somebody else finds it.
    index = AtmosphereIndex(appview=system.url)
    (hit,) = index.search_datasets("market onoins", publishers=[account.handle])
    assert (hit.uri, hit.cid, hit.name, hit.verified) == (entry.uri, entry.cid, "market-calls", True)
    assert dict(hit.stored) == dict(entry.stored)
    by_type = system.until(
        lambda: [one for one in index.datasets_loadable_as(Caption) if one.publisher.did == account.did], "the lens"
    )
    assert [one.uri for one in by_type] == [entry.uri]
    assert appview.resolve_schema(account.handle, "Caption", version=">=1.1").uri == caption

    # And loads it, with the same result as without the AppView.
    dataset = load_dataset(name, index=index, split="train")
    captions = [f"caption {i}" for i in range(5)]
    assert [sample.caption for sample in dataset] == captions
    directly = load_dataset(f"@{account.did}/calls@1.0.0", split="train")
    assert dataset.sample_type is directly.sample_type
    assert dataset.list_shards() == directly.list_shards()

    # As another type: through the lens, which is registered here.
    (path,) = index.find_lens_path(entry.schema_ref, Caption)
    assert [one.uri for one in path.lenses] == [lens]
    assert [sample.text for sample in dataset.as_type(Caption)] == captions
    assert [type(sample) for sample in by_type[0].load(Caption, split="train")] == [Caption] * 5
    LensNetwork()._lenses = {}
    with pytest.raises(LensError, match=r"https://example\.com/lenses at abc123, .*test_appview_client\.py:to_caption"):
        dataset.as_type(Caption)

    # What happened is told to whoever asks. (In which order, an index that first hears of an account may choose.)
    missing = {entry.schema_ref, entry.uri, caption, lens}
    last = 0
    for change in appview.changes(cursor=0):
        if isinstance(change, RecordChange):
            assert change.seq > last
            last = change.seq
            if change.uri == entry.uri:
                assert (change.action, change.record, change.cid) == ("create", dict(entry.stored), entry.cid)
            missing.discard(change.uri)
        if not missing:
            break
