"""The README's example of publishing and loading, on the reference PDS."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from network.atproto_network import Account, Network

README = Path(__file__).parents[2] / "README.md"


def test_publish_and_load(
    network: Network,
    account: Account,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The example prints what its comment says; only host, handle and password are filled in."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    for stands_for, value in {
        "AtmosphereClient()": f"AtmosphereClient({network.pds!r}, plc_url={network.plc!r})",
        "alice.example.com": account.handle,
        "app-password": account.password,
    }.items():
        assert stands_for in code
        code = code.replace(stands_for, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATDATA_PLC_URL", network.plc)
    monkeypatch.setenv("ATDATA_ALLOW_PRIVATE_HOSTS", "true")
    monkeypatch.setenv("ATDATA_NO_PROGRESS", "1")
    module = ModuleType("readme")
    # Where classes look up their module's names.
    monkeypatch.setitem(sys.modules, "readme", module)
    exec(compile(code, str(README), "exec"), vars(module))
    promised = re.findall(r"print\(.*#\s*(.*)", code)
    assert capsys.readouterr().out.split("\n")[:-1] == promised
