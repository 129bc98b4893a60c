"""The embedded index on disk: what makes it another format, and what becomes of one that is."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tantivy

from atdata.errors import ConfigError
from atdata_backend.search import ranking, tantivy_documents, text
from atdata_backend.search.base import Document, Query
from atdata_backend.search.tantivy import TantivyEngine
from atdata_backend.search.tantivy_documents import FORMAT


def document(key: str) -> Document:
    return Document(
        uri=f"at://did:plc:alice/ac.foundation.dataset.record/{key}",
        did="did:plc:alice",
        handle=None,
        name="whale songs",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def other_schema() -> tantivy.Schema:
    """A schema with one field fewer than ours."""
    return tantivy.SchemaBuilder().add_text_field("uri", stored=True, tokenizer_name="raw").build()


def test_the_format_is_made_of_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes a field changes the format, without having to think of it."""
    monkeypatch.setattr(tantivy_documents, "schema", other_schema)
    assert tantivy_documents._format() != FORMAT


@pytest.mark.parametrize("name", ["fold", "forms", "key", "clean", "words"])
def test_the_format_is_made_of_the_analysis(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does whoever changes what is made of a document's text: its words would no longer be those asked for."""
    before = getattr(text, name)
    monkeypatch.setattr(text, name, lambda value: before(str(value).replace("i", "j").replace("I", "J")))
    assert tantivy_documents._format() != FORMAT


def test_the_format_is_made_of_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does whoever weighs the words of a document otherwise."""
    monkeypatch.setitem(ranking._WEIGHTS, "keywords", 3.0)
    assert tantivy_documents._format() != FORMAT


def test_the_format_is_the_same_everywhere() -> None:
    """The same code has the same format in every process, whatever order its sets have: an index is made once."""
    code = "from atdata_backend.search.tantivy_documents import FORMAT; print(FORMAT)"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == FORMAT


def test_an_index_of_another_schema_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is derived data: the next writer starts an empty one, which the feed fills again."""
    folder = tmp_path / f"index-{FORMAT:08x}"
    folder.mkdir()
    index = tantivy.Index(other_schema(), path=str(folder))
    writer = index.writer()
    writer.add_document(tantivy.Document(uri="at://x"))
    writer.commit()
    writer.wait_merging_threads()
    del writer, index

    engine = TantivyEngine(tmp_path)
    engine.apply([], [])
    assert "the schema does not match" in caplog.text
    assert engine.count() == 0
    engine.apply([document("a")], [])
    assert engine.search(Query("whale")).total == 1
    engine.close()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_folder_that_is_no_index_stays(tmp_path: Path) -> None:
    """Old indexes are removed; what only has a name like theirs is not ours."""
    for name in ("index-1", "index-photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "index-1" / "meta.json").write_text("{}")
    (tmp_path / "index-photos" / "owl.jpg").write_text("an owl")
    (tmp_path / "index-of-things.txt").write_text("things")
    engine = TantivyEngine(tmp_path)
    engine.apply([document("a")], [])
    engine.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"index-{FORMAT:08x}", "index-of-things.txt", "index-photos"]
    )


def test_a_damaged_folder_that_holds_something_else_stays(tmp_path: Path) -> None:
    """Where files of others stand among the index's, nothing is removed, and the error says so."""
    folder = tmp_path / f"index-{FORMAT:08x}"
    folder.mkdir()
    (folder / "meta.json").write_text("{broken")
    (folder / "thesis.odt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds something else; move it away"):
        TantivyEngine(tmp_path).apply([document("a")], [])
    assert (folder / "thesis.odt").read_text() == "years of work"
