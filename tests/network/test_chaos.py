"""What is left after accounts came, changed and went while the indexer was killed, cut off and without a database."""

from __future__ import annotations

import tempfile
from pathlib import Path

from network.atproto_network import Network
from network.chaos import Plan, run


def test_after_a_short_chaos_nothing_differs(network: Network) -> None:
    """The index, search and the network say the same; `python tests/network/chaos.py` is the full one."""
    # Not tmp_path, whose parent pytest closes: run by root, Postgres runs as another user.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        result = run(Plan(accounts=8, writes=250, kills=3, cuts=3, restarts=1, off=2.0), network, Path(folder))
    assert "no difference" in result.verify
    print(result)
