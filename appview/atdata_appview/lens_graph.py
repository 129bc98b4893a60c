"""The lens graph: how samples of one schema become samples of another. Pure: no database, no clock.

A node is a structure, whoever published schemas of it, or a schema whose structure is not known: one that lenses name
and that is not here, or one that cannot be read. An edge is a lens; several between the same two nodes are several.
Where a structure is wider than another, there is an edge without a lens, a projection (see `projections`).

A path is a row of lenses, with at most one projection before each and one at the end, that passes no node twice. Of two
paths the better one has fewer lenses; then fewer projections; then fewer strangers' lenses, of whoever published
neither of the lens's schemas; then fewer that are not verified; then fewer without a putter; then lenses that came here
earlier. Between the same two nodes, there are two lenses of one publisher at most.

Anybody can publish schemas with thousands of lenses, or such as everything can be read as. So a question stops when it
has looked at so many things, and then says so.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from atdata_appview.lens_table import NO_PUTTER, End, LensTable, Numbers, State

Direction = Literal["in", "out", "both"]

#: Lenses that one question may follow, all at once, and steps that it may take one by one: some hundredth of a second.
WORK: Final = 200_000
STEPS: Final = 10_000

# What a drawing shows of the lenses between the same two nodes, and of the projections at one.
_PARALLEL: Final = 10
_PROJECTED: Final = 50

# Lenses of one publisher between the same two nodes that are told as different paths: more would crowd out others'.
_OF_ONE: Final = 2

# Answers of `loadable_as` that are kept until the graph changes.
_KEPT: Final = 64


# --- Answers


class Hop(NamedTuple):
    """One edge: from a node to a node, by their keys, and from a schema to a schema, by their URIs.

    ``lens`` is the lens's number, None of a projection.
    """

    source: str
    target: str
    source_schema: str
    target_schema: str
    lens: int | None = None
    has_putter: bool = False


class Path(NamedTuple):
    """A way from a node to a node. Without hops, they are the same.

    The schemas where it begins and ends are those that were asked for, or else the first of their nodes. Where a hop
    begins at another schema than the one before it ends at, the two have the same structure.
    """

    source: str
    target: str
    source_schema: str
    target_schema: str
    hops: tuple[Hop, ...] = ()

    @property
    def lenses(self) -> int:
        """How many of the hops are lenses."""
        return sum(hop.lens is not None for hop in self.hops)

    @property
    def is_invertible(self) -> bool:
        """Whether it can be run backwards: every hop is a lens with a putter."""
        return all(hop.has_putter for hop in self.hops)

    def starting_at(self, schema: str) -> Path:
        """The same for another schema of the node where it begins."""
        hops = self.hops
        if hops and hops[0].lens is None:
            hops = (hops[0]._replace(source_schema=schema), *hops[1:])
        return self._replace(source_schema=schema, hops=hops)


@dataclass(frozen=True, slots=True)
class Paths:
    """The best paths, the best first. If they are truncated, better or further ones may be missing."""

    paths: tuple[Path, ...]
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What lies around a node: how far each is away, the nearest first, and the edges that lead there."""

    nodes: Mapping[str, int]
    edges: tuple[Hop, ...]
    is_truncated: bool


class Loadable(Mapping[str, Path]):
    """The nodes from which another one can be reached, the nearest first, and the best path of each.

    If they are truncated, there are more.
    """

    def __init__(self, paths: Mapping[str, Path], is_truncated: bool) -> None:
        self._paths = paths
        self.is_truncated = is_truncated

    def __getitem__(self, key: str) -> Path:
        return self._paths[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


# --- The graph


class LensGraph:
    """Schemas and lenses, put in and taken out one by one, and the questions about them.

    >>> graph = LensGraph()
    >>> graph.put_schema("at://did:plc:a/x/digit", Structure((Field("image", "bytes"), Field("label", "int"))))
    >>> graph.put_schema("at://did:plc:b/x/label", Structure((Field("label", "int"),)))
    >>> graph.put_lens("at://did:plc:b/y/even", 1, "at://did:plc:b/x/label", "at://did:plc:c/x/parity")
    >>> [hop.lens for hop in graph.paths("at://did:plc:a/x/digit", "at://did:plc:c/x/parity").paths[0].hops]
    [None, 1]

    A question names a node by its key or by the URI of one of its schemas, and raises KeyError when there is none.
    """

    def __init__(self) -> None:
        self._table = LensTable()
        self._loadable: OrderedDict[tuple[str, int, int], tuple[tuple[int, int], Loadable]] = OrderedDict()
        self.put_schema = self._table.put_schema
        self.drop_schema = self._table.drop_schema
        self.put_lens = self._table.put_lens
        self.drop_lens = self._table.drop_lens

    # --- What is there

    @property
    def schemas(self) -> int:
        """How many schemas are here."""
        return self._table.schemas

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self._table.nodes

    @property
    def lenses(self) -> int:
        """How many lenses there are."""
        return self._table.lenses

    def __contains__(self, name: str) -> bool:
        return name in self._table.schema_of or name in self._table.node_by_key

    def key_of(self, schema_uri: str) -> str | None:
        """The key of the node of the schema at this URI; None if neither it is here nor a lens that names it."""
        schema = self._table.schema_of.get(schema_uri)
        return None if schema is None else self._table.key_of(schema)

    def uris_of(self, key: str, limit: int | None = None) -> list[str]:
        """The URIs of a node's schemas, in no order; none if there is no such node."""
        node = self._table.node_by_key.get(key, 0)
        return [self._table.uris[schema] for schema in self._table.members.of(node)[:limit].tolist()]

    def size_of(self, key: str) -> int:
        """How many schemas a node has; 0 if there is no such node."""
        return self._table.members.length(self._table.node_by_key.get(key, 0))

    def state_of(self, key: str) -> State:
        """Whether a node's structure is known, and if not, why."""
        return self._table.state_of(self._table.members.any_of(self._table.node_by_key[key]))

    def lenses_at(
        self, *, source: str | None = None, target: str | None = None, either: str | None = None
    ) -> list[int]:
        """The numbers of the lenses from, to, or at schemas that are structurally equal to these, the latest first."""
        table = self._table
        both = [table.source, table.target]
        found: list[Numbers] = []
        for name, ends in ((source, both[:1]), (target, both[1:]), (either, both)):
            if name is not None:
                node = [self._node(name)]
                found.append(np.concatenate([end.at(node) for end in ends]))
        lenses = _distinct(reduce(np.intersect1d, found))
        return sorted(table.numbers.array[lenses].tolist(), reverse=True)

    def _node(self, name: str) -> int:
        schema = self._table.schema_of.get(name)
        return self._table.node_by_key[name] if schema is None else self._table.node_of.raw[schema]

    def _schema(self, name: str, node: int) -> str:
        """The URI that a path shows where it begins or ends at *node*, for which *name* was asked."""
        return name if name in self._table.schema_of else _any_schema(self._table, node)

    # --- Questions

    def paths(self, source: str, target: str, max_hops: int = 4, k: int = 1) -> Paths:
        """The best *k* paths of at most *max_hops* lenses."""
        self.settle()
        start, end = self._node(source), self._node(target)
        search = _Search(self._table, start, end)
        rows = search.run(max_hops, k)
        schemas = self._schema(source, start), self._schema(target, end)
        return Paths(tuple(_path(self._table, row, *schemas) for row in rows), search.is_truncated)

    def loadable_as(self, name: str, max_hops: int = 4, limit: int = 1000) -> Loadable:
        """All nodes from which this one can be reached, itself included, at most *limit*, and how.

        The paths are those that `paths` finds first, but in one odd case: what can be projected to the wider of two
        nodes and not to the narrower, of which it has an optional field with another type, may be led in a circle.
        That is right, and longer than need be.
        """
        node = self._node(name)
        self.settle()
        asked, now = (name, max_hops, limit), (self._table.version, self._table.projections.repairs)
        version, found = self._loadable.pop(asked, (None, None))
        if found is None or version != now:
            found = _loadable(self._table, node, self._schema(name, node), max_hops, limit)
        self._loadable[asked] = now, found
        if len(self._loadable) > _KEPT:
            self._loadable.popitem(last=False)
        return found

    def neighbourhood(
        self, root: str, depth: int = 1, direction: Direction = "both", max_nodes: int = 150, max_edges: int = 300
    ) -> Neighbourhood:
        """What lies within *depth* hops of *root*. Beyond it, projections lead to and from nodes with lenses only."""
        self.settle()
        walk = _Walk(self._table, self._node(root), direction, max_nodes, max_edges)
        walk.run(depth)
        nodes = {self._table.keys[node]: distance for node, distance in walk.distances.items()}
        return Neighbourhood(nodes, tuple(walk.hops()), walk.is_truncated)

    def settle(self) -> None:
        """Do now what the next question would do first: after many changes, that takes a while.

        After the removal of a structure that had kept others out, it takes several times, and until then answers that
        this could change are truncated.
        """
        self._table.projections.settle()


# Nodes and, between each two, the lens, 0 for a projection.
_Row = tuple[tuple[int, ...], tuple[int, ...]]


def _path(table: LensTable, row: _Row, source_schema: str, target_schema: str) -> Path:
    """*row* with the names of what it passes."""
    nodes, lenses = row
    hops: list[Hop] = []
    for i, lens in enumerate(lenses):
        if lens:
            hops.append(_hop(table, lens))
        else:
            before = hops[-1].target_schema if hops else source_schema
            after = _hop(table, lenses[i + 1]).source_schema if i + 1 < len(lenses) else target_schema
            hops.append(Hop(table.keys[nodes[i]], table.keys[nodes[i + 1]], before, after))
    return Path(table.keys[nodes[0]], table.keys[nodes[-1]], source_schema, target_schema, tuple(hops))


def _hop(table: LensTable, lens: int) -> Hop:
    source, target = table.source.schema.raw[lens], table.target.schema.raw[lens]
    ends = table.key_of(source), table.key_of(target), table.uris[source], table.uris[target]
    return Hop(*ends, table.numbers.raw[lens], not table.costs.raw[lens] & NO_PUTTER)


def _any_schema(table: LensTable, node: int) -> str:
    return table.uris[table.members.any_of(node)]


# --- Sets of numbers, as bitmaps and as arrays


def _bitmap(numbers: Numbers) -> BitMap:
    # From an array of its own kind it is made ten times as fast as from any other.
    return BitMap(array("I", numbers.astype(np.uint32).tobytes()))


def _numbers(bitmap: BitMap) -> Numbers:
    return np.frombuffer(bitmap.to_array(), np.uint32).astype(np.int32)


def _mask(table: LensTable, bitmap: BitMap) -> npt.NDArray[np.bool_]:
    """For each node, whether it is among these."""
    mask = np.zeros(len(table.keys), bool)
    mask[_numbers(bitmap)] = True
    return mask


def _distinct(numbers: Numbers) -> Numbers:
    """The numbers, each once, in order."""
    return _numbers(_bitmap(numbers))


def _union(bitmaps: Iterable[BitMap]) -> BitMap:
    return BitMap.union(BitMap(), *bitmaps)


def _ends(table: LensTable, lenses: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Lenses, and the nodes that they lead from and to."""
    node_of = table.node_of.array
    return lenses, node_of[table.source.schema.array[lenses]], node_of[table.target.schema.array[lenses]]


# --- Paths from one node to another


# What a path costs, its lenses apart: one number that compares as (projections, then as what a lens costs).
_PROJECTION: Final = 1 << 24
_NEVER: Final = 1 << 62


class _Side:
    """One end of a search, from which lenses are followed round by round: the start, or, against them, the end.

    One *arrives* at a node by a lens, or by starting there, and is then *ready* there, and by a projection at each
    narrower one, to take the next lens or to stop. What the start's side reaches by lenses are arrivals, and what it
    projects them to is ready; at the end's side it is the other way round.
    """

    def __init__(self, table: LensTable, node: int, *, is_start: bool) -> None:
        self.table = table
        self.is_start = is_start
        self.end: End = table.source if is_start else table.target
        #: What lenses reach within so many rounds; what projections make of that; the lenses of each round.
        self.reached = [BitMap([node])]
        self.projected: list[BitMap] = []
        self.lenses: list[Numbers] = []
        self.new = self.reached[0]
        self.is_truncated = False
        #: Whether there may be projections of which nobody knows.
        self.is_incomplete = False
        self._next: BitMap | None = None

    @property
    def rounds(self) -> int:
        """How many times lenses were followed."""
        return len(self.lenses)

    @property
    def cost(self) -> int:
        """How much work the next step is; the lenses are seen only after the projections."""
        if self._next is None:
            return 20 * len(self.new)
        return int(self.end.degree_of(_numbers(self._next)).sum())

    def step(self) -> None:
        """Take the next step: project what is new, or follow its lenses."""
        if self._next is None:
            self.project()
        else:
            self.follow(self._next)

    def project(self) -> None:
        """Find where projections lead from what is new."""
        projections = self.table.projections
        related = projections.narrower if self.is_start else projections.wider
        new = self.new
        if len(new) > STEPS:
            self.is_truncated = True
            new = new[:STEPS]
        found = new | _union(related(node) for node in new)
        more = projections.more_narrower if self.is_start else projections.more_wider
        self.is_incomplete |= more.intersect(new)
        before = self.projected[-1] if self.projected else BitMap()
        self.projected.append(before | found)
        self._next = (found - before) & self.end.nodes

    def follow(self, nodes: BitMap) -> None:
        """Follow the lenses of these nodes."""
        chosen = _numbers(nodes)
        degrees = self.end.degree_of(chosen)
        if degrees.sum() > WORK:
            # The busiest are left out.
            self.is_truncated = True
            order = np.argsort(degrees, kind="stable")
            chosen = chosen[order][np.cumsum(degrees[order]) <= WORK]
        lenses, sources, targets = _ends(self.table, self.end.at(chosen))
        is_between = sources != targets
        self.lenses.append(lenses[is_between])
        is_met = np.zeros(len(self.table.keys), bool)
        is_met[(targets if self.is_start else sources)[is_between]] = True
        found = _bitmap(np.flatnonzero(is_met).astype(np.int32))
        self.new = found - self.reached[-1]
        self.reached.append(self.reached[-1] | found)
        self._next = None


class _Search:
    """The search for paths from one node to another, from both sides, always where the next step is less work.

    After *f* rounds from the start and *b* from the end, all paths of *f* + *b* lenses lie in what was seen. The best
    are picked from that, the shortest first, until there are enough.
    """

    def __init__(self, table: LensTable, start: int, end: int) -> None:
        self.table = table
        self.start, self.end = start, end
        self.sides = self.from_start, self.from_end = (
            _Side(table, start, is_start=True),
            _Side(table, end, is_start=False),
        )
        self.is_cut = False

    @property
    def is_truncated(self) -> bool:
        """Whether something was left out."""
        return self.is_stopped or any(side.is_incomplete for side in self.sides)

    @property
    def is_stopped(self) -> bool:
        """Whether so much was looked at that it is no use to go on."""
        return self.is_cut or any(side.is_truncated for side in self.sides)

    def run(self, max_hops: int, k: int) -> list[_Row]:
        """The best *k* rows, the best first."""
        if self.start == self.end:
            return [((self.start,), ())]
        found: list[_Row] = []
        for lenses in range(max_hops + 1):
            while sum(side.rounds for side in self.sides) < lenses:
                min(self.sides, key=lambda side: side.cost).step()
            pick = _Pick(self, lenses, k - len(found))
            found += pick.rows()
            self.is_cut |= pick.is_cut
            if len(found) >= k or self.is_stopped:
                break
        return found


# A lens's price, its number for others, its number here.
_Lens = tuple[int, int, int]


class _Pick:
    """The best rows of exactly so many lenses in what a search has seen."""

    def __init__(self, search: _Search, lenses: int, k: int) -> None:
        self.search = search
        self.table = search.table
        self.lenses = lenses
        self.k = k
        self.is_cut = False
        # By the number of lenses that are left: where one can be ready, and where the next lens leads from there.
        self.ready: dict[int, BitMap] = {}
        self.edges: dict[int, dict[int, dict[int, list[_Lens]]]] = {}
        #: What it costs at least to go on from where one has arrived; on paths that may pass a node twice.
        self.costs: list[dict[int, int]] = []
        #: How many lenses were looked at.
        self.steps = 0

    def rows(self) -> list[_Row]:
        """The best *k*, the best first."""
        if not self.narrow_down():
            return []
        found: list[_Row] = []
        # The least that it costs to go on until the end, the numbers of its lenses; what it cost so far, its row.
        start: _Row = (self.search.start,), ()
        heap: list[tuple[int, tuple[int, ...], int, _Row]] = [(0, (), 0, start)]
        while heap and len(found) < self.k:
            _, numbers, cost, row = heapq.heappop(heap)
            nodes, lenses = row
            left = self.lenses - len(numbers)
            if not left:
                is_there = nodes[-1] == self.search.end
                found.append(row if is_there else ((*nodes, self.search.end), (*lenses, 0)))
                continue
            for price, number, target, here, taken in self.going_on(nodes, lenses, left):
                so_far = cost + price
                least = so_far + self.costs[left - 1][target]
                heapq.heappush(heap, (least, (*numbers, number), so_far, ((*here, target), taken)))
            if self.steps > STEPS:
                self.is_cut = True
                break
        return found

    def narrow_down(self) -> bool:
        """Keep the lenses only over which one gets from the start to the end; False if there are none."""
        start, end = self.search.from_start, self.search.from_end
        # Backwards: where one can be ready, and can have arrived, with so many lenses left; on paths that may pass a
        # node twice. Near the end that is known already; what is further away was seen from the start.
        ready = [end.reached[left] for left in range(end.rounds + 1)]
        arrived = [end.projected[left] for left in range(end.rounds)]
        arrived.append(self.able(start.reached[start.rounds], ready[end.rounds]))
        for left in range(end.rounds + 1, self.lenses + 1):
            lenses = self.between(start.lenses[: self.lenses - left + 1], None, arrived[left - 1])
            ready.append(_bitmap(_ends(self.table, lenses)[1]))
            arrived.append(self.able(start.reached[self.lenses - left], ready[left]))
        # And forwards: of these, those that one gets to.
        here = arrived[self.lenses] & BitMap([self.search.start])
        here_with = {self.lenses: here}
        for left in range(self.lenses, 0, -1):
            narrower = _union(self.table.projections.narrower(node) for node in here)
            self.ready[left] = (here | narrower) & ready[left]
            seen = end.lenses[:left] if left <= end.rounds else start.lenses[: self.lenses - left + 1]
            lenses = self.between(seen, self.ready[left], arrived[left - 1])
            self.edges[left] = self.bundled(lenses)
            here = here_with[left - 1] = BitMap(target for targets in self.edges[left].values() for target in targets)
        # And backwards again, with what it costs.
        self.costs.append({node: 0 if node == self.search.end else _PROJECTION for node in here})
        for left in range(1, self.lenses + 1):
            self.costs.append(self.priced(left, here_with[left]))
        return self.search.start in self.costs[-1]

    def priced(self, left: int, here: BitMap) -> dict[int, int]:
        """For each node *here* what it costs at least to go on with so many lenses, if one can; keep those lenses only.

        Each lens and each node is looked at once.
        """
        start, end = self.search.start, self.search.end
        further = self.costs[left - 1]
        prices: dict[int, int] = {}
        for ready, bundles in self.edges[left].items():
            for target in [target for target in bundles if target == start or target not in further]:
                del bundles[target]
            if bundles:
                prices[ready] = min(bundle[0][0] + further[target] for target, bundle in bundles.items())
        here = here - BitMap([end])
        costs = {node: prices[node] for node in here if node in prices}
        # The cheapest first: what is projected there is never projected better.
        for ready in sorted(prices.keys() - {start, end}, key=prices.__getitem__):
            if not here:
                break
            wider = self.table.projections.wider(ready) & here
            costs.update((node, min(prices[ready] + _PROJECTION, costs.get(node, _NEVER))) for node in wider)
            here -= wider
        return costs

    def able(self, nodes: BitMap, ready: BitMap) -> BitMap:
        """Those of *nodes* at which one who arrives is ready at one of those that are *ready*."""
        projections = self.table.projections
        if len(ready) < len(nodes):
            return nodes & (ready | _union(projections.wider(node) for node in ready))
        return BitMap(node for node in nodes if node in ready or projections.narrower(node).intersect(ready))

    def between(self, seen: list[Numbers], sources: BitMap | None, targets: BitMap) -> Numbers:
        """The lenses of what was *seen* that lead from and to such nodes."""
        lenses = np.concatenate(seen) if seen else np.zeros(0, np.int32)
        found, starts, ends = _ends(self.table, lenses)
        is_meant = _mask(self.table, targets)[ends]
        if sources is not None:
            is_meant &= _mask(self.table, sources)[starts]
        return found[is_meant]

    def bundled(self, lenses: Numbers) -> dict[int, dict[int, list[_Lens]]]:
        """From each node, to each other the best lenses: more than *k* are never among the best paths."""
        table = self.table
        if len(lenses) > STEPS:
            self.is_cut = True
            lenses = lenses[np.lexsort((table.numbers.array[lenses], table.costs.array[lenses]))[:STEPS]]
        _, sources, targets = _ends(table, lenses)
        prices, numbers = table.costs.array[lenses].tolist(), table.numbers.array[lenses].tolist()
        found: dict[int, dict[int, list[_Lens]]] = {}
        for source, target, lens in zip(
            sources.tolist(), targets.tolist(), zip(prices, numbers, lenses.tolist(), strict=True), strict=True
        ):
            found.setdefault(source, {}).setdefault(target, []).append(lens)
        for bundles in found.values():
            for target, bundle in bundles.items():
                if len(bundle) > 1:
                    bundles[target] = self.chosen(bundle)
        return found

    def chosen(self, bundle: list[_Lens]) -> list[_Lens]:
        """The best lenses of those between the same two nodes."""
        found: list[_Lens] = []
        of = Counter[int]()
        for one in sorted(bundle):
            publisher = self.table.publishers.raw[one[2]]
            if of[publisher] < _OF_ONE:
                found.append(one)
                of[publisher] += 1
            if len(found) == self.k:
                break
        return found

    def going_on(
        self, nodes: tuple[int, ...], lenses: tuple[int, ...], left: int
    ) -> Iterator[tuple[int, int, int, tuple[int, ...], tuple[int, ...]]]:
        """How a row can go on by one lens, to where it does not end too early nor was before."""
        for ready in self.ready_at(nodes[-1], left):
            is_projected = ready != nodes[-1]
            if is_projected and ready in nodes:
                continue
            here, taken = ((*nodes, ready), (*lenses, 0)) if is_projected else (nodes, lenses)
            bundles = self.edges[left].get(ready, {})
            self.steps += 1 + sum(map(len, bundles.values()))
            for target, bundle in bundles.items():
                if target not in here:
                    for price, number, lens in bundle:
                        yield price + _PROJECTION * is_projected, number, target, here, (*taken, lens)

    def ready_at(self, node: int, left: int) -> list[int]:
        """Where one can be ready who has arrived at *node*."""
        narrower = self.table.projections.narrower(node) & self.ready[left]
        found = [ready for ready in narrower if ready not in (self.search.start, self.search.end)]
        return [node, *found] if node in self.ready[left] else found


# --- Everything that leads to a node


# What it costs from here to the end, the numbers of the lenses, the hops.
_Way = tuple[int, tuple[int, ...], tuple[Hop, ...]]


def _loadable(table: LensTable, end: int, schema: str, max_hops: int, limit: int) -> Loadable:
    """From the end, one lens further each round; see `_Side` for what is ready, and what arrives."""
    paths: dict[int, Path] = {}
    done = BitMap()
    # Where one is ready for the first time with so many lenses; those with fewer; the best way on.
    ready: dict[int, _Way] = {end: (0, (), ())}
    was_ready = BitMap()
    is_truncated = False
    for round_ in range(max_hops + 1):
        arrived: dict[int, tuple[int, tuple[int, ...], int]] = {
            node: (cost, numbers, node) for node, (cost, numbers, _) in ready.items() if node not in done
        }
        by_itself = BitMap(arrived)
        found = done | by_itself
        # The best first: what is found from there is never found by a better way later.
        for node, (cost, numbers, _) in sorted(ready.items(), key=lambda item: item[1][:2]):
            wider = table.projections.wider(node)
            way = cost + _PROJECTION, numbers, node
            arrived.update(dict.fromkeys((other for other in wider & by_itself if way < arrived[other]), way))
            new = wider - found
            arrived.update(dict.fromkeys(islice(new, limit + 1), way))
            found |= new
            if len(arrived) > limit - len(paths):
                is_truncated = True
                break
        nearest = sorted(arrived.items(), key=lambda item: (item[1], item[0]))[: limit - len(paths)]
        for node, (_, _, via) in nearest:
            hops = ready[via][2]
            first = schema if node == end else _any_schema(table, node)
            if via != node:
                after = hops[0].source_schema if hops else schema
                hops = (Hop(table.keys[node], table.keys[via], first, after), *hops)
            paths[node] = Path(table.keys[node], table.keys[end], first, schema, hops)
        was_ready.update(ready)
        if round_ == max_hops or is_truncated or not nearest:
            break
        done.update(arrived)
        ready = {}
        for lens, source, target in _next(table, [(node, way[0]) for node, way in nearest], was_ready, limit):
            cost, numbers, _ = arrived[target]
            hop = _hop(table, lens)
            hops = hop, *paths[target].starting_at(hop.target_schema).hops
            ready[source] = cost + table.costs.raw[lens], (table.numbers.raw[lens], *numbers), hops
    is_truncated |= table.projections.more_wider.intersect(was_ready)
    return Loadable({table.keys[node]: path for node, path in paths.items()}, is_truncated)


def _next(
    table: LensTable, arrived: Sequence[tuple[int, int]], was_ready: BitMap, limit: int
) -> list[tuple[int, int, int]]:
    """From the nodes that *arrived*, the best first, each with its cost: against the lenses that lead there.

    The best lens from each node that was not ready before, the best *limit* of these: lens, source, target.
    """
    nodes, costs = np.array(arrived, np.int64).T
    cost_of, place_of = np.zeros((2, len(table.keys)), np.int64)
    cost_of[nodes], place_of[nodes] = costs, np.arange(len(nodes))
    lenses, sources, targets = _ends(table, table.target.at(nodes))
    is_new = sources != targets
    is_new &= ~_mask(table, was_ready)[sources]
    lenses, sources, targets = lenses[is_new], sources[is_new], targets[is_new]
    prices = cost_of[targets] + table.costs.array[lenses]
    order = np.lexsort((place_of[targets], table.numbers.array[lenses], prices))
    # The first of each source: written last, from behind.
    first = np.zeros(len(table.keys), np.int64)
    places = np.arange(len(order))
    first[sources[order[::-1]]] = places[::-1]
    best = order[first[sources[order]] == places][:limit]
    return list(zip(lenses[best].tolist(), sources[best].tolist(), targets[best].tolist(), strict=True))


# --- What lies around a node


class _Walk:
    """The walk around a node, level by level: along lenses first, then along projections."""

    def __init__(self, table: LensTable, root: int, direction: Direction, max_nodes: int, max_edges: int) -> None:
        self.table = table
        self.root = root
        self.is_out, self.is_in = direction != "in", direction != "out"
        self.ends = [end for end, is_meant in ((table.source, self.is_out), (table.target, self.is_in)) if is_meant]
        self.busy = _union(end.nodes for end in self.ends)
        self.max_nodes, self.max_edges = max_nodes, max_edges
        self.is_truncated = False
        self.distances = {root: 0}
        self.known = BitMap([root])
        # From, to, and the lens, 0 for a projection.
        self.edges: dict[tuple[int, int, int], None] = {}

    def run(self, depth: int) -> None:
        """Walk so far."""
        level = [self.root]
        for distance in range(1, depth + 1):
            self.lenses(level, distance)
            for node in level:
                self.projections(node, distance)
            level = [node for node, found in self.distances.items() if found == distance]

    def lenses(self, level: list[int], distance: int) -> None:
        """Go along the lenses at these nodes, those that came first before the others."""
        nodes = np.array(level, np.int32)
        degrees = np.sum([end.degree_of(nodes) for end in self.ends], axis=0)
        # The busiest are left out, where there are many: they would be all of the picture.
        order = np.argsort(degrees, kind="stable")
        chosen = nodes[order][np.cumsum(degrees[order]) <= 10 * self.max_edges] if len(nodes) > 1 else nodes
        lenses, sources, targets = _ends(self.table, _distinct(np.concatenate([end.at(chosen) for end in self.ends])))
        shown = self.worth(lenses, sources, targets)
        self.is_truncated |= len(chosen) < len(nodes) or len(shown) < len(lenses)
        here = set(level)
        for lens, *ends in zip(*(column[shown].tolist() for column in (lenses, sources, targets)), strict=True):
            source, target = ends
            other = target if self.is_out and source in here else source
            if not self.meet(other, distance, (source, target, lens)) and len(self.edges) == self.max_edges:
                break

    def worth(self, lenses: Numbers, sources: Numbers, targets: Numbers) -> npt.NDArray[np.intp]:
        """The places of those lenses that are worth drawing, those that came first before the others."""
        numbers = self.table.numbers.array[lenses]
        order = np.lexsort((numbers, targets, sources))
        # How many are before each between the same two nodes.
        is_first = np.ones(len(order), bool)
        is_first[1:] = (np.diff(sources[order]) != 0) | (np.diff(targets[order]) != 0)
        places = np.arange(len(order))
        earlier = places - np.maximum.accumulate(np.where(is_first, places, 0))
        order = order[earlier < _PARALLEL]
        return order[np.argsort(numbers[order], kind="stable")][: 10 * self.max_edges]

    def projections(self, node: int, distance: int) -> None:
        """Go along the projections at a node."""
        if len(self.edges) == self.max_edges:
            return
        projections = self.table.projections
        for others, more, is_out in (
            (projections.narrower(node), projections.more_narrower, True),
            (projections.wider(node), projections.more_wider, False),
        ):
            if not (self.is_out if is_out else self.is_in):
                continue
            self.is_truncated |= node in more
            if node != self.root:
                # Beyond the root, what leads nowhere is left out: it would be most of the picture.
                others = others & self.busy
            shown = others if len(self.known) < self.max_nodes else others & self.known
            for other in islice(shown, _PROJECTED):
                self.meet(other, distance, (node, other, 0) if is_out else (other, node, 0))
            self.is_truncated |= len(others) > min(len(shown), _PROJECTED) or len(self.edges) == self.max_edges

    def meet(self, node: int, distance: int, edge: tuple[int, int, int]) -> bool:
        """Note an edge, and the node to which it leads; False if there is no room."""
        if edge in self.edges:
            return True
        if len(self.edges) == self.max_edges or (node not in self.distances and len(self.distances) == self.max_nodes):
            self.is_truncated = True
            return False
        if node not in self.distances:
            self.distances[node] = distance
            self.known.add(node)
        self.edges[edge] = None
        return True

    def hops(self) -> Iterator[Hop]:
        """The edges, as they are told."""
        for source, target, lens in self.edges:
            if lens:
                yield _hop(self.table, lens)
            else:
                ends = _any_schema(self.table, source), _any_schema(self.table, target)
                yield Hop(self.table.keys[source], self.table.keys[target], *ends)
