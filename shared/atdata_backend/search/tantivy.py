"""Own the embedded search index: a folder that one process writes and many read."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import tantivy
from tantivy import Query as Q  # noqa: N817 - ours is `Query`

from atdata.errors import ConfigError
from atdata_backend.search import text
from atdata_backend.search.base import Document, Facet, Hit, Query, Results
from atdata_backend.search.tantivy_documents import FORMAT, NO_WORDS, Stored, index_document, no_words, schema
from atdata_backend.search.tantivy_queries import After, Search, Snapshot, similar

log = logging.getLogger(__name__)

# Bytes of stored documents that are packed together.
_BLOCK = 1024

# Where tantivy lists what an index consists of. Each commit replaces it.
_META = "meta.json"

# What a batch may take, as it is needed, before it becomes two segments. One thread is enough: 1,000 documents take
# less than a second.
_WRITER_BYTES = 50_000_000

# How tantivy, which has one exception for everything, says that a file is not as it was written. Not among them: a
# lock that another holds, a folder that is closed to us, a disk that is full.
_DAMAGE = (
    "Data corrupt",
    "FileDoesNotExist(",
    "kind: InvalidData",
    "kind: UnexpectedEof",
    "the schema does not match",
    "IncompatibleIndex",
)

# What tantivy keeps in an index's folder: two lists, a lock or two, and the files of segments.
_FILE = re.compile(r"meta\.json|\.managed\.json|\.tantivy-[a-z]+\.lock|\.tmp\w+|[0-9a-f]{32}\.[0-9a-z.]+")


class TantivyEngine:
    """Search in an embedded tantivy index in *folder*.

    >>> engine = TantivyEngine(Path("search"))
    >>> engine.apply([document], deletes=[])
    >>> [hit.uri for hit in engine.search(Query("imagenet")).hits]
    ['at://did:plc:…/ac.foundation.dataset.record/3l…']

    Any number of processes may read; they see a commit at their next search. Without an index, readers find nothing.
    The first write opens the index for writing: ConfigError if another process has it open already. An index whose
    files are damaged or of another schema is replaced by an empty one then, with a warning; readers raise ConfigError.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / f"index-{FORMAT:08x}"
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._index: tantivy.Index | None = None
        self._writer: tantivy.IndexWriter | None = None
        self._current: Snapshot | None = None
        # By number; only those that were ever among the most frequent.
        self._values: dict[Facet, dict[int, str]] = {}
        # Where facets are counted while the page is made. It has threads only once that was asked for.
        self._threads = ThreadPoolExecutor(thread_name_prefix="facets")
        self._schemas: TantivyEngine | None = None

    @property
    def schemas(self) -> TantivyEngine:
        """The same for schemas, in a folder within this one's. It is closed with this one."""
        with self._reading:
            if self._schemas is None:
                self._schemas = TantivyEngine(self._folder.parent / "schemas")
            return self._schemas

    def apply(self, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        """Store and remove documents, deletes first; durable and visible to all when it returns.

        With nothing to do, it opens the index for writing, and so replaces a damaged one. A batch that finds the index
        damaged leaves an empty one and raises ConfigError, so that whoever starts next fills it with everything.
        """
        with self._writing:
            try:
                writer = self._open_writer()
                if upserts or deletes:
                    self._write(writer, upserts, deletes)
            except ValueError as error:
                if not _is_damage(error):
                    raise
                self._start_over(error)
                if upserts or deletes:
                    raise ConfigError(
                        f"the search index in {self._folder.parent} was damaged and is empty now; "
                        "start again: it will be filled again"
                    ) from error

    def _write(self, writer: tantivy.IndexWriter, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        try:
            for uri in deletes:
                writer.delete_documents_by_term("uri", text.clean(uri))
            for document in upserts:
                writer.delete_documents_by_term("uri", text.clean(document.uri))
                writer.add_document(index_document(document))
            writer.commit()
        except BaseException:
            writer.rollback()
            raise

    def search(self, query: Query) -> Results:
        """The page of *query*. Raises `BadCursor`."""
        asked = text.asked(query.text)
        after = After.of(query, asked)
        snapshot = self._snapshot()
        if snapshot is None:
            return Results(hits=(), total=0, facets={facet: {} for facet in query.facets})
        with self._intact():
            return Search(snapshot, query, asked, after, self._values, self._threads).results()

    def similar(self, uri: str, limit: int) -> tuple[Hit, ...]:
        """The document at *uri*, and after it those that are most like it; nothing if it is not here."""
        snapshot = self._snapshot()
        if snapshot is None:
            return ()
        with self._intact():
            return similar(snapshot, uri, limit)

    def count(self) -> int:
        """How many documents there are."""
        snapshot = self._snapshot()
        return snapshot.searcher.num_docs if snapshot else 0

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Every document's URI and stamp, in no particular order, as of now."""
        snapshot = self._snapshot()
        if snapshot and (count := snapshot.searcher.num_docs):
            with self._intact():
                hits = snapshot.searcher.search(Q.all_query(), count, count=False).hits
            for _, address in hits:
                with self._intact():
                    stored = Stored.of(snapshot.searcher, address)
                yield stored.uri, stored.stamp

    def clear(self) -> None:
        """Remove every document."""
        with self._writing:
            try:
                writer = self._open_writer()
                writer.delete_all_documents()
                writer.commit()
            except ValueError as error:
                if not _is_damage(error):
                    raise
                self._start_over(error)

    def close(self) -> None:
        """Give up the writer's lock, when running merges are done, and the files."""
        self._threads.shutdown()
        with self._writing:
            if self._writer:
                self._writer.wait_merging_threads()
            self._writer = None
        with self._reading:
            self._index = self._current = None
            schemas, self._schemas = self._schemas, None
        if schemas:
            schemas.close()

    def _snapshot(self) -> Snapshot | None:
        """The index as of the last commit of any process, or None if there is no index."""
        with self._reading:
            try:
                # Asking for it takes microseconds, tantivy's own watcher half a second.
                stat = (self._folder / _META).stat()
            except FileNotFoundError:
                self._index = self._current = None
                return None
            commit = f"{stat.st_ino:x}-{stat.st_mtime_ns:x}"
            try:
                if self._index is None:
                    self._index = tantivy.Index.open(str(self._folder))
                    self._index.config_reader("manual")
                    self._current = None
                if self._current is None or self._current.id != commit:
                    self._index.reload()
                    self._current = Snapshot(commit, self._index.searcher(), self._index.schema)
            except (OSError, ValueError) as error:
                raise self._unreadable(error) from error
            return self._current

    @contextmanager
    def _intact(self) -> Iterator[None]:
        """Raises ConfigError when the files turn out to be damaged, which tantivy finds where it reads them."""
        try:
            yield
        except BaseException as error:
            # Some damage makes tantivy panic, which Python sees as an exception of no public type.
            is_panic = type(error).__name__ == "PanicException"
            if is_panic or _is_damage(error) or str(error).startswith("An IO error occurred"):
                raise self._unreadable(error) from error
            raise

    def _unreadable(self, error: BaseException) -> ConfigError:
        return ConfigError(
            f"cannot read the search index in {self._folder.parent} ({error}); check that this process may "
            "write there, too, since readers lock a file, or delete the folder: it will be filled again"
        )

    def _open_writer(self) -> tantivy.IndexWriter:
        if self._writer:
            return self._writer
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            is_new = not (self._folder / _META).exists()
            index = tantivy.Index(schema(), path=str(self._folder))
            if is_new:
                index = self._in_small_blocks()
            index.register_tokenizer(NO_WORDS, no_words())
            self._writer = index.writer(_WRITER_BYTES, 1)
        except (OSError, ValueError) as error:
            if _is_damage(error):
                raise
            folder = self._folder.parent
            if "LockBusy" in str(error):
                message = (
                    f"another process is writing the search index in {folder}; stop it, or give this one its own folder"
                )
            else:
                message = (
                    f"cannot open the search index in {folder} for writing ({error}); check that the folder is "
                    "writable and the disk not full, or delete it: it will be filled again"
                )
            raise ConfigError(message) from error
        for old in self._folder.parent.glob("index-*"):
            if old != self._folder and _is_index(old):
                log.info("removing the search index %s, which %s replaces", old, self._folder.name)
                shutil.rmtree(old, ignore_errors=True)
        return self._writer

    def _in_small_blocks(self) -> tantivy.Index:
        """The new index, set to keep stored documents in blocks of the size of one.

        The hits of a page lie far apart, and a block is unpacked whole for each. The default, 16 KiB, makes sense where
        all documents are read in a row. For this setting the bindings have no argument, so it goes where it is kept.
        """
        meta, new = self._folder / _META, self._folder / ".tmp_meta"
        content = json.loads(meta.read_text())
        content["index_settings"]["docstore_blocksize"] = _BLOCK
        new.write_text(json.dumps(content))
        new.replace(meta)
        return tantivy.Index(schema(), path=str(self._folder))

    def _start_over(self, error: BaseException) -> None:
        """Replace the damaged index by an empty one. Nothing is lost: it is derived from the database."""
        if not _is_index(self._folder):
            raise ConfigError(
                f"{self._folder} should be a search index and holds something else; move it away, or set another folder"
            ) from error
        log.warning("the search index in %s is damaged (%s); starting an empty one", self._folder, error)
        self._writer = None
        with self._reading:
            self._index = self._current = None
        # Out of the readers' way in one step: they find nothing rather than a half. Opening the new one removes it.
        aside = self._folder.with_name(f"{self._folder.name}-damaged")
        try:
            if aside.exists() and _is_index(aside):
                shutil.rmtree(aside)
            self._folder.rename(aside)
        except OSError as failure:
            message = f"cannot replace the damaged search index in {self._folder.parent} ({failure}); delete it"
            raise ConfigError(message) from failure
        self._open_writer()


def _is_index(folder: Path) -> bool:
    """Whether there is nothing in *folder* but what tantivy writes, so that it is ours to remove."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return bool(names) and all(map(_FILE.fullmatch, names))


def _is_damage(error: BaseException) -> bool:
    """Whether *error* comes of files that are not as they were written."""
    return any(sign in str(error) for sign in _DAMAGE)
