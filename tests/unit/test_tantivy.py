"""What only the embedded engine does: a folder, one writer, readers in other processes, formats, snapshots."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atdata.errors import ConfigError
from atdata_backend.search import cursors, open_engine, tantivy, tantivy_queries
from atdata_backend.search import text as text_module
from atdata_backend.search.base import FACETS, BadCursor, Document, Query
from atdata_backend.search.tantivy import TantivyEngine
from atdata_backend.search.tantivy_documents import index_document

DAY = datetime(2026, 1, 1, tzinfo=UTC)


def dataset(key: object, name: str = "whale songs", **values: object) -> Document:
    made = Document(
        uri=f"at://did:plc:alice/ac.foundation.dataset.record/{key}",
        did="did:plc:alice",
        handle="alice.example",
        name=name,
        created_at=DAY,
    )
    return replace(made, **values)  # type: ignore[arg-type]


def keys(engine: TantivyEngine, query: Query) -> list[str]:
    return [hit.uri.rsplit("/", 1)[1] for hit in engine.search(query).hits]


Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> object:
    """Starts a Python process that has an `engine` on the same folder and runs the given code."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        head = (
            "import sys\n"
            "from pathlib import Path\n"
            "from datetime import datetime, UTC\n"
            "from atdata_backend.search.base import Document, Query\n"
            "from atdata_backend.search.tantivy import TantivyEngine\n"
            f"engine = TantivyEngine(Path({str(tmp_path)!r}))\n"
            "def dataset(key):\n"
            "    return Document(uri=f'at://x/{key}', did='did:plc:x', handle=None, name='whale',\n"
            "                    created_at=datetime(2026, 1, 1, tzinfo=UTC))\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", head + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


def answer(process: subprocess.Popen[str], line: str = "") -> str:
    """What *process* prints next, after it has read *line*."""
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def test_second_writer(tmp_path: Path) -> None:
    """Only one engine writes a folder at a time; another one that tries is told so, and may once the first closes."""
    first, second = TantivyEngine(tmp_path), TantivyEngine(tmp_path)
    first.apply([dataset(1)], [])
    for write in (lambda: second.apply([dataset(2)], []), second.clear):
        with pytest.raises(ConfigError, match=r"another process is writing the search index in .*stop it"):
            write()
    assert second.count() == 1
    first.close()
    second.apply([dataset(2)], [])
    assert second.count() == 2
    second.close()


def test_second_writer_in_another_process(tmp_path: Path, start: Start) -> None:
    """The lock holds across processes, and dies with its holder."""
    holder = start("engine.apply([dataset(1)], [])\nprint('written', flush=True)\nsys.stdin.read()")
    assert answer(holder) == "written"
    engine = TantivyEngine(tmp_path)
    with pytest.raises(ConfigError, match="another process"):
        engine.apply([dataset(2)], [])
    holder.kill()
    holder.wait()
    engine.apply([dataset(2)], [])
    assert engine.count() == 2
    engine.close()


def test_readers_in_other_processes(tmp_path: Path, start: Start) -> None:
    """A reader in another process sees each commit at its next search, from before there is an index."""
    reader = start("for line in sys.stdin:\n    print(engine.search(Query('whale')).total, flush=True)")
    assert answer(reader, "?") == "0"
    engine = TantivyEngine(tmp_path)
    for n in range(1, 30):
        engine.apply([dataset(n)], [])
        assert answer(reader, "?") == str(n)
    engine.apply([], [dataset(1).uri])
    assert answer(reader, "?") == "28"
    engine.clear()
    assert answer(reader, "?") == "0"
    engine.close()


def test_killed_writer_leaves_the_last_commit(tmp_path: Path, start: Start) -> None:
    """A writer that is killed between commits loses nothing that it had committed."""
    writer = start("n = 0\nwhile True:\n    n += 1\n    engine.apply([dataset(n)], [])\n    print(n, flush=True)")
    for _ in range(20):
        committed = int(answer(writer))
    writer.kill()
    writer.wait()
    engine = TantivyEngine(tmp_path)
    assert committed <= engine.count()
    engine.apply([dataset("after")], [])
    assert engine.search(Query("whale", limit=100)).total == engine.count()
    engine.close()


def test_reading_creates_nothing(tmp_path: Path) -> None:
    """An engine that only reads leaves the folder as it is, also where there is none."""
    for folder in (tmp_path, tmp_path / "missing"):
        engine = TantivyEngine(folder)
        assert engine.search(Query("x", facets=FACETS)).total == engine.count() == len(list(dict(engine.stamps()))) == 0
        engine.close()
    assert list(tmp_path.iterdir()) == []


def test_removed_index(tmp_path: Path) -> None:
    """A reader whose index is removed finds nothing, and finds the next one."""
    writer, reader = TantivyEngine(tmp_path), TantivyEngine(tmp_path)
    writer.apply([dataset(1)], [])
    assert reader.count() == 1
    writer.close()
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert reader.count() == 0
    writer = TantivyEngine(tmp_path)
    writer.apply([dataset(2), dataset(3)], [])
    assert reader.count() == 2
    writer.close()


def test_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened for writing in another format, the index starts empty and the old one goes; readers keep to theirs."""
    old = TantivyEngine(tmp_path)
    old.apply([dataset(1)], [])
    old.close()
    monkeypatch.setattr(tantivy, "FORMAT", tantivy.FORMAT + 1)
    new = TantivyEngine(tmp_path)
    assert new.count() == 0
    assert old.count() == 1, "reading alone must not remove what another version may still serve"
    new.apply([dataset(2)], [])
    assert (new.count(), old.count()) == (1, 0)
    assert len(list(tmp_path.iterdir())) == 1
    new.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_not_writable(tmp_path: Path) -> None:
    """A folder that cannot be written is the operator's to mend, and the error names it."""
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        TantivyEngine(tmp_path).apply([dataset(1)], [])


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    """The same where the folder is a file."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot open the search index in .*file"):
        TantivyEngine(tmp_path / "file").apply([dataset(1)], [])


def test_a_failed_batch_leaves_nothing(tmp_path: Path) -> None:
    """If a document of a batch cannot be indexed, none of it is, and the next batch goes in."""
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(1)], [])
    with pytest.raises(AttributeError):
        engine.apply([dataset(2), None], [dataset(1).uri])  # type: ignore[list-item]
    engine.apply([dataset(3)], [])
    assert sorted(uri[-1] for uri in dict(engine.stamps())) == ["1", "3"]
    engine.close()


def test_small_commits_are_merged(tmp_path: Path) -> None:
    """Many commits of one document each leave few files to search."""
    engine = TantivyEngine(tmp_path)
    for n in range(60):
        engine.apply([dataset(n % 20)], [])
    assert engine.count() == 20
    engine.close()  # waits for merges
    assert len(list(tmp_path.glob("*/*.idx"))) < 16


def scored(n: int) -> Document:
    return dataset(n, description="whale " * (n % 7) + "filler " * (n % 11), created_at=DAY + timedelta(seconds=n))


def test_pages_by_relevance_go_on_anywhere(tmp_path: Path) -> None:
    """A cursor says all that it takes to go on: after a restart, after merges, when the last hit shown is gone."""
    engine = TantivyEngine(tmp_path)
    engine.apply([scored(n) for n in range(200)], [])
    query = Query("whale", limit=50)
    whole = keys(engine, replace(query, limit=200))
    assert len(whole) == 200
    page = engine.search(query)
    for n in range(20):  # of which some make the index merge its files
        engine.apply([scored(300 + n)], [])
    engine.apply([], [page.hits[-1].uri])
    engine.close()
    restarted = TantivyEngine(tmp_path)
    rest = keys(restarted, replace(query, limit=300, cursor=page.cursor))
    assert [key for key in rest if int(key) < 300] == whole[50:]
    restarted.close()


def test_a_page_goes_on_however_much_came_before_it(tmp_path: Path) -> None:
    """Far more than a page of better hits come, or go, before the place that a cursor names."""
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(n, description="whale") for n in range(300)], [])
    query = Query("whale", limit=100)
    whole = keys(engine, replace(query, limit=300))
    cursor = engine.search(query).cursor
    better = [dataset(1_000 + n, name="Whale") for n in range(700)]
    engine.apply(better, [])
    assert keys(engine, replace(query, limit=300, cursor=cursor)) == whole[100:]
    engine.apply([], [document.uri for document in better])
    engine.apply([], [f"at://did:plc:alice/ac.foundation.dataset.record/{key}" for key in whole[:100]])
    assert keys(engine, replace(query, limit=300, cursor=cursor)) == whole[100:]
    engine.close()


def test_what_a_query_matches_does_not_change_from_page_to_page(tmp_path: Path) -> None:
    """What was near enough for the first page is for the last, even if by then many have the very word."""
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(n, name=f"whale {n}") for n in range(30)], [])
    for sort in ("relevance", "newest", "name"):
        query = Query("whael", sort=sort, limit=10)  # type: ignore[arg-type]
        page = engine.search(query)
        assert page.total == 30
        engine.apply([dataset(100 + n, name=f"whael {n}") for n in range(300)], [])
        seen = [hit.uri for hit in page.hits]
        while page.cursor:
            page = engine.search(replace(query, cursor=page.cursor))
            seen += [hit.uri for hit in page.hits]
        assert {dataset(n).uri for n in range(30)} <= set(seen)
        assert len(seen) == len(set(seen))
        engine.apply([], [dataset(100 + n).uri for n in range(300)])
    engine.close()


def test_a_score_is_a_documents_own(tmp_path: Path) -> None:
    """Whatever else is indexed, in however many commits, and in which order: hits come in the same order."""
    made = [scored(n) for n in range(60)]
    orders = []
    for documents in ([made], [[one] for one in reversed(made)], [made[::2], made[1::2]]):
        engine = TantivyEngine(tmp_path / str(len(orders)))
        for batch in documents:
            engine.apply(batch, [])
        orders.append(keys(engine, Query("whale filler", limit=100)))
        engine.close()
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 60


def test_deep_pages(tmp_path: Path) -> None:
    """Pages are complete over thousands of hits, too, while 50 records come and 50 go between any two pages."""
    engine = TantivyEngine(tmp_path)
    engine.apply([scored(n) for n in range(2_000)], [])
    seen: list[str] = []
    page = engine.search(Query("whale", limit=100))
    gone: set[str] = set()
    for step in range(40):
        seen += [hit.uri for hit in page.hits]
        if page.cursor is None:
            break
        going = [scored(step * 100 + n).uri for n in range(50)]
        gone.update(going)
        engine.apply([scored(5_000 + step * 50 + n) for n in range(50)], going)
        page = engine.search(Query("whale", limit=100, cursor=page.cursor))
    assert page.cursor is None
    assert len(seen) == len(set(seen))
    assert {scored(n).uri for n in range(2_000)} - gone <= set(seen)
    engine.close()


def test_common_words_beside_rarer_ones_only_rank(tmp_path: Path) -> None:
    """A word that far more documents have than another of the query finds none by itself; alone, it finds all."""
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(n, name=f"Set {n}", description="data of all kinds") for n in range(1_100)], [])
    engine.apply([dataset(f"w{n}", name=f"Whale {n}", description="songs" + " data" * (n % 2)) for n in range(30)], [])
    assert engine.search(Query("data")).total == 1_115
    found = engine.search(Query("whale data", limit=100, facets=("publisher",)))
    assert found.total == found.facets["publisher"]["did:plc:alice"] == len(found.hits) == 30
    assert all(int(key[1:]) % 2 for key in keys(engine, Query("whale data", limit=15)))
    # Few have it, so it may be a mistake, or not what is meant.
    engine.apply([dataset(f"o{n}", name=f"Orca {n}") for n in range(10)], [])
    assert engine.search(Query("orca data")).total == 1_125
    engine.close()


def test_a_query_of_many_misspelt_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typos are forgiven in six of them; and a page that never ends is compared with them for so long only."""
    words = [f"{a}{b}lanternfish" for a in "bcdf" for b in "aeiou"]
    engine = TantivyEngine(tmp_path)
    text = " ".join(f"{word} {word}es" for word in words) * 20
    engine.apply([dataset("a", name=words[0], description=text), *(dataset(word, name=word) for word in words)], [])
    asked = " ".join(word.replace("fish", "fihs") for word in words)
    assert set(keys(engine, Query(asked))) == {"a", *words[:6]}
    compared: list[str] = []
    within = text_module.within
    monkeypatch.setattr(text_module, "within", lambda a, b, edits: compared.append(a) or within(a, b, edits))
    monkeypatch.setattr(tantivy_queries, "_MAX_COMPARISONS", 10)
    assert len(engine.search(Query(asked)).hits) == 7
    assert 0 < len(compared) <= 60  # which it may exceed by one word
    engine.close()


def test_documents_at_the_limits(tmp_path: Path) -> None:
    """Whatever a hostile record says can be stored, sorted and browsed."""
    engine = TantivyEngine(tmp_path)
    engine.apply(
        [
            dataset("a", samples=10**30, created_at=datetime.max.replace(tzinfo=UTC)),
            dataset("b", samples=-5, created_at=datetime.min.replace(tzinfo=UTC)),
            dataset("c", created_at=datetime(2026, 1, 1), name=""),
            dataset("d", description="word " * 200_000, name="n" * 100_000, tags=("t" * 100_000,) * 5_000),
            dataset("e", fields=("::",) * 5_000, schema_name="\x00", handle="\ud800", license="", storage=""),
        ],
        [],
    )
    assert keys(engine, Query(sort="newest"))[::4] == ["a", "b"]
    assert keys(engine, Query(sort="samples"))[0] == "a"
    assert set(keys(engine, Query(min_samples=0))) == {"a", "b"}
    assert len(keys(engine, Query("word", facets=FACETS))) == 1
    assert engine.count() == 5
    engine.close()


def test_page_sizes(tmp_path: Path) -> None:
    """A page has at least one hit and at most a thousand, whatever is asked for."""
    engine = TantivyEngine(tmp_path)
    engine.apply([scored(n) for n in range(1_200)], [])
    for text in ("", "whale"):
        assert [len(keys(engine, Query(text, limit=n))) for n in (-1, 0, 1, 2**40)] == [1, 1, 1, 1_000]
    engine.close()


def test_open_engine(tmp_path: Path) -> None:
    """The settings decide: a folder, or the URL of a server; one of them there must be."""
    assert isinstance(open_engine(folder=tmp_path, meili_url=None), TantivyEngine)
    assert not isinstance(open_engine(folder=tmp_path, meili_url="http://127.0.0.1:9"), TantivyEngine)
    with pytest.raises(ValueError, match="needs a folder"):
        open_engine(folder=None, meili_url=None)


def _damage(index: Path, how: str) -> None:
    """Do to the files of *index* what a crash, a full disk or a careless hand does."""
    meta = index / "meta.json"
    match how:
        case "broken meta.json":
            meta.write_text("{broken")
        case "empty meta.json":
            meta.write_bytes(b"")
        case "broken list of files":
            (index / ".managed.json").write_text("{broken")
        case "a file missing":
            for file in index.glob("*.store"):
                file.unlink()
        case "a file cut short":
            for file in index.glob("*.term"):
                os.truncate(file, file.stat().st_size // 2)
        case "an empty file":
            for file in index.glob("*.idx"):
                os.truncate(file, 0)
        case _:
            for file in index.glob("*.fast"):
                file.write_bytes(bytes(file.stat().st_size))


DAMAGES = (
    "broken meta.json",
    "empty meta.json",
    "broken list of files",
    "a file missing",
    "a file cut short",
    "an empty file",
    "a file of zeros",
)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_index_is_replaced(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Readers say what is wrong. Who opens the index for writing gets an empty one, which a feed fills again."""
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(n) for n in range(20)], [])
    engine.close()
    _damage(next(tmp_path.glob("index-*")), how)
    reader = TantivyEngine(tmp_path)
    with pytest.raises(ConfigError, match="search index"):
        reader.count()

    writer = TantivyEngine(tmp_path)
    writer.apply([], [])
    assert "damaged" in caplog.text
    assert writer.count() == reader.count() == 0
    writer.apply([dataset(1)], [])
    assert keys(reader, Query("whale")) == keys(writer, Query("whale")) == ["1"]
    writer.close()
    reader.close()
    assert TantivyEngine(tmp_path).count() == 1
    assert len(list(tmp_path.iterdir())) == 1, "the damaged files are gone"


@pytest.mark.parametrize("how", [*DAMAGES, "positions missing"])
def test_a_batch_does_not_hide_that_the_index_is_empty(how: str, tmp_path: Path) -> None:
    """A batch that meets a damaged index is not taken: with it, the new index would not be empty, and never filled."""
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(n) for n in range(20)], [])
    engine.close()
    if how == "positions missing":  # found only when words are deleted
        for file in tmp_path.glob("*/*.pos"):
            file.unlink()
    else:
        _damage(next(tmp_path.glob("index-*")), how)
    engine = TantivyEngine(tmp_path)
    with pytest.raises(ConfigError, match="start again"):
        engine.apply([dataset(1)], [])
    assert engine.count() == 0
    engine.apply([dataset(2)], [])
    assert engine.count() == 1
    engine.close()


def test_another_writer_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second writer is refused, and leaves the first one's index alone."""
    first, second = TantivyEngine(tmp_path), TantivyEngine(tmp_path)
    first.apply([dataset(1)], [])
    with pytest.raises(ConfigError, match="another process is writing"):
        second.apply([], [])
    assert first.count() == 1
    assert not caplog.records
    first.close()


def test_damage_found_while_searching(tmp_path: Path) -> None:
    """Bytes that changed within a file are found when they are read, and said in the same words."""
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(n) for n in range(200)], [])
    engine.close()
    for file in tmp_path.glob("*/*.store"):
        with file.open("r+b") as stored:
            stored.seek(file.stat().st_size // 4)
            stored.write(bytes(range(256)))
    engine = TantivyEngine(tmp_path)
    assert engine.count() == 200
    for ask in (lambda: engine.search(Query("whale")), lambda: list(dict(engine.stamps()))):
        with pytest.raises(ConfigError, match="cannot read the search index"):
            ask()
    engine.close()


def test_a_forged_cursor_of_half_a_character(tmp_path: Path) -> None:
    """JSON can smuggle half of a surrogate pair into a cursor; it is refused like any other that is not ours."""
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(n) for n in range(3)], [])
    for query, position in (
        (Query(sort="name"), ["\ud800", 1, 1, []]),
        (Query("whale"), [1.0, 1, 1, ["\udfff"]]),
    ):
        with pytest.raises(BadCursor):
            engine.search(replace(query, cursor=cursors.encode("tantivy", query, position)))
    engine.close()


def test_a_schema_of_many_colons(tmp_path: Path) -> None:
    """A hostile schema costs no more than its share: of few fields, the beginnings, in three forms each."""
    columns = [f"{n}:" + "a:" * 500 for n in range(500)]
    made = index_document(dataset(1, fields=tuple(columns)))
    assert len(made.to_dict()["columns"]) == 3 * 200
    engine = TantivyEngine(tmp_path)
    engine.apply([dataset(1, fields=tuple(columns)), dataset(2, fields=("image:ndarray:uint8",))], [])
    for asked in ("7", "7:a", columns[7]):
        assert keys(engine, Query(fields=(asked,))) == ["1"]
    for asked in ("image", "image:ndarray", "image:ndarray:uint8"):
        assert keys(engine, Query(fields=(asked,))) == ["2"]
    engine.close()
