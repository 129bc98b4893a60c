"""Own what the embedded index holds of a document: its fields, what words and numbers are made of it, its format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, NamedTuple

import orjson
import tantivy
from tantivy import Searcher

from atdata_backend.published import Published
from atdata_backend.search import ranking, text
from atdata_backend.search.base import CASELESS, FACETS, Document, Facet

# A hostile record must not cost more than its share: what lies beyond is neither indexed nor marked.
_MAX_NAME, _MAX_DESCRIPTION, _MAX_VALUE, _MAX_VALUES = 500, 10_000, 1_000, 500

# Characters of a record that is kept. Nearly all are shorter, and a hundred of them are no more than a megabyte.
_MAX_RECORD = 10_000

# Characters of a name that it is sorted by.
_MAX_SORTED = 100

_INT64 = 2**63 - 1


def schema() -> tantivy.Schema:
    made = tantivy.SchemaBuilder()
    # The words come analysed and are only taken apart at spaces.
    for name in ("name", "keywords", "handle", "text"):
        made.add_text_field(name, tokenizer_name="whitespace", index_option="position")
    for name in ("stems", "rank"):
        made.add_text_field(name, tokenizer_name="whitespace", index_option="basic")
    for name in ("uri", "whole"):
        made.add_text_field(name, tokenizer_name="raw", index_option="basic")
    made.add_text_field("by_name", tokenizer_name="raw", index_option="basic", fast=True)
    made.add_integer_field("id", indexed=True, fast=True)
    for name in ("created", "samples", "bytes", "initial", "by_created", "by_samples"):
        made.add_integer_field(name, fast=True)
    made.add_float_field("tie", fast=True)
    # What is only compared is kept as a number: to count numbers takes a third of the time that strings take.
    for name in FACETS:
        made.add_integer_field(name, indexed=True, fast=True)
    for name in ("columns", "structure"):
        made.add_integer_field(name, indexed=True)
    # Text, which Python is given in half the time of bytes. There are no texts but indexed ones: of this, no word is.
    made.add_text_field("stored", stored=True, tokenizer_name=NO_WORDS, index_option="basic")
    return made.build()


#: The name of a tokenizer that finds no words. Whoever writes an index registers `no_words` under it.
NO_WORDS = "no words"


def no_words() -> tantivy.TextAnalyzer:
    return tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.raw()).filter(tantivy.Filter.remove_long(1)).build()


_STEMMER = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).filter(tantivy.Filter.stemmer("english")).build()


def index_document(document: Document) -> tantivy.Document:
    """*document* as the index has it."""
    uri, name = text.clean(document.uri), text.clean(document.name[:_MAX_NAME])
    description = text.clean(document.description[:_MAX_DESCRIPTION])
    tags = list(dict.fromkeys(map(cut, document.tags[:_MAX_VALUES])))
    columns = text.columns(document.fields)
    labels = [*tags, cut(document.schema_name), *dict.fromkeys(column.split(":")[0] for column in columns)]
    labels += map(cut, document.keywords[:_MAX_VALUES])
    words = text.words(name)
    keywords = [word for label in labels for word in text.words(label)]
    handle = text.words(cut(document.handle or ""))
    loose = sorted(text.forms(name).union(*map(text.forms, labels)))
    all_words = [*text.words(description), *words, *keywords, *handle]
    word_stems, loose_stems = stems(all_words), stems(loose)
    facets: dict[Facet, list[str]] = {
        "tags": tags,
        "license": [cut(document.license)] if document.license else [],
        "schema": [cut(document.schema_uri)] if document.schema_uri else [],
        "publisher": [cut(document.did)],
        "storage": [cut(document.storage)] if document.storage else [],
    }
    structure = cut(document.structure) if document.structure else None
    id_ = number(uri)
    created, samples, folded_name = micros(document.created_at), amount(document.samples), text.fold(name)
    extras = {"name": words, "loose": loose, "keywords": keywords, "handle": handle}
    values: dict[str, Any] = {
        "uri": uri,
        "id": id_,
        "name": " ".join(words),
        "whole": text.whole(name)[: text.MAX_WORD],
        "keywords": " ".join(keywords),
        "handle": " ".join(handle),
        "text": " ".join(all_words),
        "stems": " ".join([*word_stems, *loose_stems]),
        "rank": " ".join(ranking.impacts(extras, word_stems, loose_stems)),
        **{facet: numbers(facet_key(facet, value) for value in of_facet) for facet, of_facet in facets.items()},
        "columns": numbers(text.key(form) for column in columns for form in text.column_forms(column)),
        "structure": numbers([structure] if structure else []),
        "created": created,
        "samples": samples,
        "bytes": amount(document.bytes),
        "initial": initial(folded_name),
        # A number for each, in the order of its value, of which the last bits tell apart those that have the same.
        "by_created": (created // 1000) << 14 | id_ >> 49,
        "by_samples": min(samples, 2**40 - 1) << 23 | id_ >> 40,
        "by_name": f"{folded_name[:_MAX_SORTED]}\t{id_:016x}",
        "tie": _tie(created, id_),
        "stored": Stored.made(uri, name, description, structure, facets, columns, document),
    }
    return tantivy.Document.from_dict(values)


def stems(words: Sequence[str]) -> list[str]:
    """The English stem of each of *words*."""
    return _STEMMER.analyze(" ".join(words))


def cut(value: str) -> str:
    """As much of *value* as is indexed."""
    return text.clean(value[:_MAX_VALUE])


def facet_key(facet: Facet, value: str) -> str:
    """What a facet's *value* is counted and filtered by."""
    return text.key(value) if facet in CASELESS else value


def numbers(values: Iterable[str]) -> list[int]:
    """The numbers that stand for *values*."""
    return list(dict.fromkeys(map(number, values)))  # each once, or it would be counted twice


def number(value: str) -> int:
    """A number that stands for *value*: of any two values, it is the same one time in 2**63."""
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") >> 1


def micros(moment: datetime) -> int:
    """Microseconds since the year 1, which no datetime precedes."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime.min.replace(tzinfo=UTC)) // timedelta(microseconds=1)


def amount(given: int | None) -> int:
    """One more than is *given*, so that zero can stand for an unknown one and comes last."""
    return 0 if given is None else min(max(given, 0), _INT64 - 2) + 1


def _tie(created: int, id_: int) -> float:
    """What tells apart documents of the same score: the newer comes first, of the same time any. As good as unique."""
    years = (created - micros(datetime(2000, 1, 1))) / (100 * 365.25 * 86_400e6)
    return 0.02 * min(max(years, 0.0), 1.0) + 2e-6 * id_ / _INT64


def named(by_name: str) -> str:
    """The name of which the value to sort by was made."""
    return by_name[: -1 - 16]


def initial(name: str) -> int:
    """The beginning of *name* as a number that sorts like it."""
    return int.from_bytes(name.encode()[:7].ljust(7, b"\0"), "big")


class Stored(NamedTuple):
    """What the index gives back of a document."""

    uri: str
    name: str
    description: str
    structure: str | None
    record: Published | None
    rest: str

    @staticmethod
    def made(
        uri: str,
        name: str,
        description: str,
        structure: str | None,
        facets: Mapping[Facet, list[str]],
        columns: list[str],
        document: Document,
    ) -> str:
        """What `of` reads: a line of what every hit needs, one of what few do, and the record as it is."""
        about, json_ = None, ""
        if one := document.record:
            about = [one.uri, one.cid, one.did, one.handle, one.problems, one.verified, one.indexed_at.isoformat()]
            json_ = one.json if len(one.json) <= _MAX_RECORD else ""
        lines = [[uri, name, description, structure, about], [facets, columns, document.stamp]]
        return "\n".join([*(orjson.dumps(line).decode() for line in lines), json_])

    @classmethod
    def of(cls, searcher: Searcher, address: tantivy.DocAddress) -> Stored:
        line, rest, json_ = str(searcher.doc(address).get_first("stored")).split("\n", 2)
        uri, name, description, structure, about = orjson.loads(line)
        if about is None:
            return cls(uri, name, description, structure, None, rest)
        of, cid, did, handle, problems, verified, indexed_at = about
        record = Published(of, cid, did, handle, json_, problems, verified, datetime.fromisoformat(indexed_at))
        return cls(uri, name, description, structure, record, rest)

    @property
    def facets(self) -> Mapping[Facet, list[str]]:
        return orjson.loads(self.rest)[0]  # type: ignore[no-any-return]

    @property
    def columns(self) -> list[str]:
        return orjson.loads(self.rest)[1]  # type: ignore[no-any-return]

    @property
    def stamp(self) -> str:
        return orjson.loads(self.rest)[2]  # type: ignore[no-any-return]


# One document with something of everything that the analysis treats in its own way.
_SPECIMEN = Document(
    uri="at://did:plc:x/ac.foundation.dataset.record/x",
    did="did:plc:x",
    handle="x.example",
    name="The WikiQA imageNet-1k Café of Æ 数据集 🐋",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    description="Anybody's policies, 2018: e\u0301, สวัสดี, हिन्दी " + "word " * 3,
    tags=(" Speech-Recognition", "speech-recognition", "ﬁn"),
    license="CC0-1.0",
    schema_uri="at://did:plc:x/ac.foundation.dataset.sampleSchema/X",
    schema_name="ImageText",
    fields=("Image:ndarray:uint8", "label_id:int"),
    storage="external",
    samples=7,
    bytes=7,
    structure="x",
    keywords=("ndarray",),
    record=Published(
        uri="at://did:plc:x/ac.foundation.dataset.record/x",
        cid="bafyreix",
        did="did:plc:x",
        handle="x.example",
        json='{"name": "The WikiQA"}',
        problems=("license: must be a string",),
        verified=True,
        indexed_at=datetime(2026, 1, 1, tzinfo=UTC),
    ),
)


def _format() -> int:
    """A number of all that decides what is in an index: its schema, tantivy's release, what we make of a document."""
    definition = schema().__reduce__()[1]  # as for pickle: the fields with their options
    release = version("tantivy")  # whose files another may not read
    made = index_document(_SPECIMEN).to_dict()
    stamp = json.dumps([definition, release, made], sort_keys=True, default=lambda value: bytes(value).hex())
    return int.from_bytes(hashlib.sha256(stamp.encode()).digest()[:4], "big")


#: The index's folder is named after it, so that a change of the schema or of the analysis cannot be forgotten: the next
#: writer then starts an empty index and removes the old one, readers find nothing until it has, and the feed fills it.
FORMAT = _format()
