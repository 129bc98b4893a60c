"""The public surface: what is listed is there, and importing it costs little."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

import atdata

# What `library.md` lists for `atdata` itself.
CONTRACT = (
    "packable", "PackableSample", "DictSample", "Dataset", "SampleBatch", "Lens", "lens", "URLSource", "S3Source",
    "BlobSource", "load_dataset", "DatasetDict", "schema_to_type", "generate_cid", "verify_cid", "Packable",
    "IndexEntry", "AbstractIndex", "AbstractDataStore", "DataSource",
)  # fmt: skip


def test_every_documented_name_is_public():
    """Each name of the contract is an attribute, and listed."""
    for name in CONTRACT:
        assert name in atdata.__all__
        assert getattr(atdata, name) is not None


def test_what_is_listed_is_there_and_what_is_not_is_an_error():
    """`__all__`, `dir()` and attribute access agree."""
    assert sorted(atdata.__all__) == sorted(set(atdata.__all__))
    for name in atdata.__all__:
        assert getattr(atdata, name) is not None
        assert name in dir(atdata)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = atdata.nothing
    assert isinstance(atdata.schema, types.ModuleType)
    assert atdata.lens.LensNetwork() is atdata.LensNetwork()


def test_every_modules_list_is_right():
    """Each public module lists names that it has, and defines itself."""
    for info in pkgutil.iter_modules(atdata.__path__, "atdata."):
        if info.ispkg or info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name in module.__all__:
            assert hasattr(module, name), f"{info.name}.{name}"


HEAVY = ["numpy", "fastapi", "psycopg", "boto3", "botocore", "torch", "atproto", "atproto_client", "httpx", "pyarrow",
         "webdataset", "tqdm"]  # fmt: skip


def modules_after(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_import_is_light():
    """`import atdata` loads nothing heavy, and nothing else of its own."""
    loaded = modules_after("import atdata")
    assert loaded.isdisjoint(HEAVY)
    assert {name for name in loaded if name.startswith("atdata")} == {"atdata"}


def test_reading_local_shards_needs_no_network():
    """Samples, datasets and lenses load NumPy and msgpack, but no HTTP client, no SDK and no server's packages."""
    loaded = modules_after("from atdata import Dataset, packable, lens, load_dataset, schema_to_type, URLSource")
    assert "numpy" in loaded
    assert loaded.isdisjoint(set(HEAVY) - {"numpy"})


def test_no_module_can_run_what_it_reads():
    """Neither pickle, nor eval, nor a shell: no module of the library names them as a call."""
    import ast
    from pathlib import Path

    folder = Path(atdata.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "marshal", "shelve", "subprocess"} & set(names), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert node.value.value is False, path
