"""Schemas, nodes and lenses as numbers, what is known of them in flat arrays, and changes one by one. Pure.

A node is a structure, or a schema whose structure is not known. Lenses hang on schemas, and schemas on nodes: a schema
that gets another structure takes its lenses along at once, however many they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from atdata.structure import Structure
from atdata_appview.projections import Projections

Numbers = npt.NDArray[np.int32]
State = Literal["missing", "unreadable", "readable"]

_MISSING, _UNREADABLE, _READABLE = range(3)
_STATES: Final[tuple[State, ...]] = ("missing", "unreadable", "readable")

# What a lens costs on a path, as one number that compares as (a stranger's, not verified, without putter): first what
# the publisher cannot claim.
STRANGER: Final = 1 << 16
NOT_VERIFIED: Final = 1 << 8
NO_PUTTER: Final = 1

# Neither wider nor narrower than any: what is known of a schema that is missing or cannot be read.
_NOTHING: Final = Structure(())


class LensTable:
    """All that is held, and how it changes. Numbers start at 1, and are used again; 0 stands for none.

    Some 20 bytes a schema, 15 a node and 45 a lens, beside URIs, keys and structures. A change costs as much as it
    changes.
    """

    def __init__(self) -> None:
        #: Counts the changes.
        self.version = 0
        # Schemas.
        self.schema_of: dict[str, int] = {}
        self.uris: list[str] = [""]
        self.states = bytearray(1)
        self.node_of = Column(np.int32)
        self._free_schemas: list[int] = []
        # Nodes.
        self.node_by_key: dict[str, int] = {}
        self.keys: list[str] = [""]
        self.members = Lists()
        self.projections = Projections()
        self._free_nodes: list[int] = []
        # Lenses, by the hash of their URI: 64 bits, keyed anew for each process, so that nobody can make two the same.
        self._lens_of: dict[int, int] = {}
        self.numbers = Column(np.int64)
        self.costs = Column(np.int32)
        #: A number for each publisher, of 32 bits of such a hash.
        self.publishers = Column(np.int32)
        self._free_lenses: list[int] = []
        #: Their ends: where they come from, and where they lead to.
        self.source, self.target = End(), End()

    # --- Counts

    @property
    def schemas(self) -> int:
        """How many schemas are here."""
        missing = self.states.count(_MISSING) - 1 - len(self._free_schemas)
        return len(self.schema_of) - missing

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.node_by_key)

    @property
    def lenses(self) -> int:
        """How many lenses there are."""
        return len(self._lens_of)

    # --- Schemas

    def put_schema(self, uri: str, structure: Structure | None) -> None:
        """Put the schema at *uri* in, or in place of what was there; without a structure, it cannot be read."""
        schema = self.schema_of.get(uri) or self._new_schema(uri)
        state = _UNREADABLE if structure is None else _READABLE
        if self.states[schema] != state or (structure is not None and structure.fingerprint != self.key_of(schema)):
            self._seat(schema, state, structure)

    def drop_schema(self, uri: str) -> None:
        """Take the schema at *uri* out, if it is there. Lenses that name it stay, and miss it."""
        schema = self.schema_of.get(uri)
        if schema is not None and self.states[schema] != _MISSING:
            self._seat(schema, _MISSING, None)
            self._forget_if_unused(schema)

    def key_of(self, schema: int) -> str:
        """The key of the node of a schema."""
        return self.keys[self.node_of.raw[schema]]

    def state_of(self, schema: int) -> State:
        """Whether a schema's structure is known, and if not, why."""
        return _STATES[self.states[schema]]

    def _new_schema(self, uri: str) -> int:
        schema = self._free_schemas.pop() if self._free_schemas else len(self.uris)
        if schema == len(self.uris):
            self.uris.append(uri)
            self.states.append(_MISSING)
        self.uris[schema] = uri
        self.schema_of[uri] = schema
        self.node_of.reach(schema)
        self._seat(schema, _MISSING, None)
        return schema

    def _forget_if_unused(self, schema: int) -> None:
        is_named = self.source.lenses.length(schema) or self.target.lenses.length(schema)
        if is_named or self.states[schema] != _MISSING or not self.node_of.raw[schema]:
            return
        self._leave(schema)
        del self.schema_of[self.uris[schema]]
        self.uris[schema] = ""
        self._free_schemas.append(schema)

    def _seat(self, schema: int, state: int, structure: Structure | None) -> None:
        """Make a schema a member of the node where it belongs."""
        self.version += 1
        self.states[schema] = state
        key = self.uris[schema] if structure is None else structure.fingerprint
        node = self.node_by_key.get(key, 0)
        if node and node == self.node_of.raw[schema]:
            return
        if self.node_of.raw[schema]:
            self._leave(schema)
        if not node:
            node = self._free_nodes.pop() if self._free_nodes else len(self.keys)
            if node == len(self.keys):
                self.keys.append(key)
            self.keys[node] = key
            self.node_by_key[key] = node
            self.projections.add(node, structure or _NOTHING)
        self.node_of.raw[schema] = node
        self.members.add(node, schema)
        for end in (self.source, self.target):
            end.come(node, schema)

    def _leave(self, schema: int) -> None:
        node = self.node_of.raw[schema]
        self.node_of.raw[schema] = 0
        self.members.remove(node, schema)
        for end in (self.source, self.target):
            end.go(node, schema)
        if not self.members.length(node):
            del self.node_by_key[self.keys[node]]
            self.keys[node] = ""
            self.projections.remove(node)
            self._free_nodes.append(node)

    # --- Lenses

    def put_lens(
        self, uri: str, number: int, source: str, target: str, *, has_putter: bool = False, is_verified: bool = False
    ) -> None:
        """Put the lens at *uri* in, or in place of what was there. Its *number* is the caller's; earlier lenses have
        smaller ones. It is a stranger's when neither schema is of its publisher."""
        publisher = _publisher(uri)
        is_strange = publisher not in (_publisher(source), _publisher(target))
        cost = STRANGER * is_strange + NOT_VERIFIED * (not is_verified) + NO_PUTTER * (not has_putter)
        lens = self._lens_of.get(hash(uri), 0)
        if lens:
            ends = self.uris[self.source.schema.raw[lens]], self.uris[self.target.schema.raw[lens]]
            if (*ends, self.numbers.raw[lens], self.costs.raw[lens]) == (source, target, number, cost):
                return
            self.drop_lens(uri)
        self.version += 1
        lens = self._free_lenses.pop() if self._free_lenses else len(self._lens_of) + 1
        self._lens_of[hash(uri)] = lens
        for column, value in ((self.numbers, number), (self.costs, cost), (self.publishers, hash(publisher) >> 32)):
            column.reach(lens)
            column.raw[lens] = value
        for end, name in ((self.source, source), (self.target, target)):
            schema = self.schema_of.get(name) or self._new_schema(name)
            end.add(self.node_of.raw[schema], schema, lens)

    def drop_lens(self, uri: str) -> None:
        """Take the lens at *uri* out, if it is there."""
        lens = self._lens_of.pop(hash(uri), 0)
        if not lens:
            return
        self.version += 1
        schemas = {end.schema.raw[lens]: None for end in (self.source, self.target)}
        for end in (self.source, self.target):
            end.remove(self.node_of.raw[end.schema.raw[lens]], lens)
        self._free_lenses.append(lens)
        for schema in schemas:
            self._forget_if_unused(schema)


def _publisher(uri: str) -> str:
    """The authority of an AT URI."""
    return uri.removeprefix("at://").partition("/")[0]


class End:
    """One end of all lenses: at which schema it is, and, the other way round, which have it at a schema or a node."""

    def __init__(self) -> None:
        self.schema = Column(np.int32)
        self.lenses = Lists()
        self.schemas = Lists()
        #: How many lenses have it at a node, and the nodes where that is any.
        self.degree = Column(np.int32)
        self.nodes = BitMap()

    def add(self, node: int, schema: int, lens: int) -> None:
        """A lens has it at this schema."""
        self.schema.reach(lens)
        self.schema.raw[lens] = schema
        self.lenses.add(schema, lens)
        if self.lenses.length(schema) == 1:
            self.schemas.add(node, schema)
        self._count(node, 1)

    def remove(self, node: int, lens: int) -> None:
        """A lens is no more."""
        schema = self.schema.raw[lens]
        self.lenses.remove(schema, lens)
        if not self.lenses.length(schema):
            self.schemas.remove(node, schema)
        self._count(node, -1)

    def come(self, node: int, schema: int) -> None:
        """A schema is of this node now, with its lenses."""
        if self.lenses.length(schema):
            self.schemas.add(node, schema)
            self._count(node, self.lenses.length(schema))

    def go(self, node: int, schema: int) -> None:
        """A schema leaves this node, with its lenses."""
        if self.lenses.length(schema):
            self.schemas.remove(node, schema)
            self._count(node, -self.lenses.length(schema))

    def at(self, nodes: Sequence[int] | Numbers) -> Numbers:
        """All lenses that have it at these nodes, of which none is there twice."""
        return self.lenses.of_all(self.schemas.of_all(np.asarray(nodes, np.int32)))

    def degree_of(self, nodes: Numbers) -> Numbers:
        """How many lenses have it at each of these nodes."""
        self.degree.reach(int(nodes.max(initial=0)))
        return self.degree.array[nodes]

    def _count(self, node: int, more: int) -> None:
        self.degree.reach(node)
        degree = self.degree.raw[node] + more
        self.degree.raw[node] = degree
        if degree == more:
            self.nodes.add(node)
        elif not degree:
            self.nodes.discard(node)


class Column:
    """An array that grows: as one of NumPy's, and, for one number at a time, as a view that is faster at that."""

    __slots__ = ("array", "raw")

    def __init__(self, dtype: Any) -> None:
        self.array: npt.NDArray[Any] = np.zeros(16, dtype)
        self.raw = self.array.data

    def reach(self, index: int) -> None:
        """Have a place at this index: 0, if nothing was written there."""
        if index >= len(self.raw):
            grown = np.zeros(index + index // 4 + 16, self.array.dtype)
            grown[: len(self.array)] = self.array
            self.array, self.raw = grown, grown.data


class Lists:
    """Lists of numbers, each number in one list at most: what hangs on a head, in no order.

    The numbers of one head lie side by side, with room for some more; when that is not enough, they move to where there
    is twice as much. So those of many heads are gathered by a few operations on arrays, however many they are.
    """

    def __init__(self) -> None:
        self._start, self._length, self._room = Column(np.int32), Column(np.int32), Column(np.int32)
        self._items = Column(np.int32)
        self._place = Column(np.int32)
        self._end = self._count = 0

    def length(self, head: int) -> int:
        """How many hang on a head."""
        length = self._length.raw
        return length[head] if head < len(length) else 0

    def add(self, head: int, item: int) -> None:
        """Hang a number on a head. It hangs on no other."""
        if head >= len(self._length.raw):
            for column in (self._start, self._length, self._room):
                column.reach(head)
        self._place.reach(item)
        length = self._length.raw[head]
        if length == self._room.raw[head]:
            self._move(head, max(2 * length, 1))
        place = self._start.raw[head] + length
        self._items.raw[place] = item
        self._place.raw[item] = place
        self._length.raw[head] = length + 1
        self._count += 1

    def remove(self, head: int, item: int) -> None:
        """Take a number from the head where it hangs."""
        items, place = self._items.raw, self._place.raw
        length = self._length.raw[head] - 1
        last = items[self._start.raw[head] + length]
        items[place[item]] = last
        place[last] = place[item]
        self._length.raw[head] = length
        self._count -= 1

    def of(self, head: int) -> Numbers:
        """What hangs on a head."""
        start = self._start.raw[head] if head < len(self._start.raw) else 0
        return self._items.array[start : start + self.length(head)]

    def any_of(self, head: int) -> int:
        """One of those that hang on a head, which is not bare."""
        return self._items.raw[self._start.raw[head]]

    def of_all(self, heads: Numbers) -> Numbers:
        """What hangs on any of these heads, each of which is there once."""
        heads = heads[heads < len(self._length.array)]
        lengths = self._length.array[heads]
        ends = np.cumsum(lengths)
        total = ends[-1] if len(ends) else 0
        places = np.arange(total) + np.repeat(self._start.array[heads] - (ends - lengths), lengths)
        found: Numbers = self._items.array[places]
        return found

    def _move(self, head: int, room: int) -> None:
        if self._end > 4 * self._count + 1024:
            self._compact()
        self._items.reach(self._end + room)
        if self._length.raw[head]:
            items = self.of(head).copy()
            end = self._end + len(items)
            self._items.array[self._end : end] = items
            self._place.array[items] = np.arange(self._end, end)
        self._start.raw[head], self._room.raw[head] = self._end, room
        self._end += room

    def _compact(self) -> None:
        """Close the gaps that moves have left."""
        heads = np.flatnonzero(self._length.array).astype(np.int32)
        items = self.of_all(heads)
        lengths = self._length.array[heads]
        self._room.array[:] = 0
        self._room.array[heads] = lengths
        self._start.array[heads] = np.cumsum(lengths) - lengths
        self._items = Column(np.int32)
        self._items.reach(2 * len(items))
        self._items.array[: len(items)] = items
        self._place.array[items] = np.arange(len(items))
        self._end = len(items)
