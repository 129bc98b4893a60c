"""Memory while a dataset goes up to a PDS as blobs and comes back. Prints one JSON line.

    python tests/benchmarks/blob_memory.py [--megabytes 200] [--shard 40] [--samples-of 602112]

`--megabytes 1000` is the size that the limit of 250 MB is meant for. Uploading and reading are a process each; the
peaks are of resident memory, from the start of the interpreter, the AT Protocol SDK included. The PDS is the reference
one, on this machine, with its files in a temporary folder: that takes three times the dataset's size on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from numpy.typing import NDArray

import atdata


@atdata.packable
class Picture:
    """One sample: some pixels."""

    pixels: NDArray[np.uint8]
    label: int


def write(folder: Path, megabytes: int, shard: int, size: int) -> str:
    """Shards of random pixels; their URL."""
    import webdataset as wds

    rng = np.random.default_rng(0)
    shards, number = max(1, round(megabytes / shard)), 0
    for i in range(shards):
        with wds.writer.TarWriter(str(folder / f"{i:03}.tar")) as sink:
            for _ in range(shard * 1_000_000 // size):
                sink.write(Picture(rng.integers(0, 256, size, np.uint8), number).as_wds)
                number += 1
    return str(folder / f"{{000..{shards - 1:03}}}.tar")


def measure(what: str, *arguments: str) -> dict[str, float]:
    """Run this file's *what* in a new process."""
    run = subprocess.run(
        [sys.executable, __file__, "--run", what, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return measured


def upload(session: str, url: str, shard: str) -> dict[str, object]:
    from atdata.atmosphere import AtmosphereClient, DatasetPublisher, PDSBlobStore, SchemaPublisher

    client = AtmosphereClient()
    client.login_with_session(session)
    schema = SchemaPublisher(client).publish(Picture)
    urls = PDSBlobStore(client).write_shards(atdata.Dataset[Picture](url), prefix="pictures", maxsize=int(shard) * 1e6)
    return {"uri": DatasetPublisher(client).publish_with_urls(urls, schema, name="pictures"), "shards": len(urls)}


def read(uri: str) -> dict[str, object]:
    from atdata.atmosphere import AtmosphereClient, DatasetLoader

    samples = total = 0
    for batch in DatasetLoader(AtmosphereClient()).to_dataset(uri, Picture).ordered(batch_size=16):
        samples += len(batch)
        total += batch.pixels.nbytes
    return {"samples": samples, "bytes": total}


def peak() -> float:
    """The largest resident memory of this process so far, in MB."""
    try:
        # Not getrusage, whose figure begins with that of the process that started us.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure, or be measured."""
    if sys.argv[1:2] == ["--run"]:
        what, *arguments = sys.argv[2:]
        started = time.perf_counter()
        found = {"upload": upload, "read": read}[what](*arguments)
        print(json.dumps({**found, "seconds": time.perf_counter() - started, "peak_mb": peak()}))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="the size of the dataset")
    parser.add_argument("--shard", type=int, default=40, help="the size of a shard, in megabytes")
    parser.add_argument("--samples-of", type=int, default=3 * 448 * 448, help="the size of a sample, in bytes")
    options = parser.parse_args()

    from network.atproto_network import start_network

    from atdata.atmosphere import AtmosphereClient

    with tempfile.TemporaryDirectory() as folder, start_network() as network:
        os.environ |= {"ATDATA_PLC_URL": network.plc, "ATDATA_CACHE": f"{folder}/cache", "ATDATA_NO_PROGRESS": "1"}
        url = write(Path(folder), options.megabytes, options.shard, options.samples_of)
        account = network.create_account()
        client = AtmosphereClient(network.pds)
        client.login(account.handle, account.password)
        up = measure("upload", client.export_session(), url, str(options.shard))
        down = measure("read", str(up["uri"]))
    megabytes = down["bytes"] / 1e6
    print(
        json.dumps(
            {
                "benchmark": "blob_memory",
                "megabytes": round(megabytes),
                "samples": down["samples"],
                "shards": up["shards"],
                "upload_peak_mb": round(up["peak_mb"]),
                "upload_mb_per_s": round(megabytes / up["seconds"], 1),
                "read_peak_mb": round(down["peak_mb"]),
                "read_mb_per_s": round(megabytes / down["seconds"], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
