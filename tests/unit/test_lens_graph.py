"""The lens graph against one that is written down in full and searched by trying everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atdata.structure import Field, Structure, covers
from atdata_appview import lens_graph, projections
from atdata_appview.lens_graph import Hop, LensGraph, Path
from atdata_appview.projections import Projections

# Of three publishers, two of whom have lenses, too.
URIS = [f"at://did:plc:{publisher}/schema/{name}" for publisher, name in zip("abcabc", "stuvwx", strict=True)]


def structure(*fields: str) -> Structure:
    """Of fields such as `label:int`, or `label?:int` for one that is optional."""
    parts = [text.partition(":") for text in fields]
    return Structure(tuple(Field(name.rstrip("?"), type_, name.endswith("?")) for name, _, type_ in parts))


# --- The oracle


@dataclass
class Lens:
    number: int
    source: str
    target: str
    has_putter: bool = False
    is_verified: bool = False

    @property
    def uri(self) -> str:
        return f"at://did:plc:{'abx'[self.number % 3]}/lens/{self.number}"

    @property
    def cost(self) -> tuple[bool, bool, bool]:
        publishers = [uri.split("/")[2] for uri in (self.uri, self.source, self.target)]
        return publishers[0] not in publishers[1:], not self.is_verified, not self.has_putter


@dataclass
class Model:
    """The same graph, in two dictionaries."""

    schemas: dict[str, Structure | None] = field(default_factory=dict)
    lenses: dict[str, Lens] = field(default_factory=dict)

    def key(self, uri: str) -> str:
        held = self.schemas.get(uri)
        return held.fingerprint if held else uri

    def members(self) -> dict[str, set[str]]:
        named = {uri for lens in self.lenses.values() for uri in (lens.source, lens.target)}
        found: dict[str, set[str]] = {}
        for uri in named | self.schemas.keys():
            found.setdefault(self.key(uri), set()).add(uri)
        return found

    def projections(self) -> set[tuple[str, str]]:
        held = {one.fingerprint: one for one in self.schemas.values() if one}
        return {
            (wide, narrow)
            for wide, narrow in product(held, held)
            if wide != narrow
            and covers(held[wide], held[narrow])
            and {each.name for each in held[wide].fields} & {each.name for each in held[narrow].fields}
        }

    def edges(self) -> list[tuple[str, str, Lens | None]]:
        lenses = [(self.key(lens.source), self.key(lens.target), lens) for lens in self.lenses.values()]
        return [*((source, target, None) for source, target in self.projections()), *lenses]

    def paths(self, source: str, target: str, max_hops: int) -> list[tuple[Any, list[tuple[str, str, int | None]]]]:
        """Every path, the best first, with what it costs."""
        leading: dict[str, list[tuple[str, str, Lens | None]]] = {}
        told = Counter[tuple[str, str, str]]()
        for edge in sorted(self.edges(), key=lambda edge: (edge[2].cost, edge[2].number) if edge[2] else ()):
            if edge[2]:
                # The best two of a publisher between the same two.
                told[of := (edge[0], edge[1], edge[2].uri.split("/")[2])] += 1
                if told[of] > 2:
                    continue
            leading.setdefault(edge[0], []).append(edge)

        def extend(row: list[tuple[str, str, Lens | None]], seen: list[str]) -> Iterator[Any]:
            if seen[-1] == target:
                lenses = [lens for _, _, lens in row if lens]
                cost = (
                    len(lenses),
                    len(row) - len(lenses),
                    *(sum(lens.cost[i] for lens in lenses) for i in range(3)),
                    [lens.number for lens in lenses],
                )
                yield cost, [(a, b, lens.number if lens else None) for a, b, lens in row]
                return
            for edge in leading.get(seen[-1], ()):
                _, to, lens = edge
                if to in seen or (lens is None and row and row[-1][2] is None):
                    continue
                if lens and sum(each[2] is not None for each in row) == max_hops:
                    continue
                yield from extend([*row, edge], [*seen, to])

        return sorted(extend([], [source]), key=lambda found: found[0])


def put_lens(graph: LensGraph, uri: str, lens: Lens) -> None:
    flags = {"has_putter": lens.has_putter, "is_verified": lens.is_verified}
    graph.put_lens(uri, lens.number, lens.source, lens.target, **flags)


def rows(path: Path) -> list[tuple[str, str, int | None]]:
    return [(hop.source, hop.target, hop.lens) for hop in path.hops]


# --- Any graph, by any changes

structures = st.lists(
    st.builds(
        Field,
        st.sampled_from("abc"),
        st.sampled_from(["int", "str", "ndarray:uint8", "ndarray:uint8:2x2", "ndarray:uint8:2x0"]),
        st.booleans(),
    ),
    max_size=3,
    unique_by=lambda each: each.name,
).map(lambda fields: Structure(tuple(fields)))
# Some that cover each other more often than chance has it.
related = st.sampled_from(
    [("a:int",), ("b:int",), ("a:int", "b:int"), ("a:int", "b:int", "c:int"), ("a:int", "b?:int"), ("a:int", "b:str")]
).map(lambda fields: structure(*fields))
uris = st.sampled_from(URIS)
numbers = st.integers(1, 16)
puts_of_schemas = st.tuples(st.just("put_schema"), uris, st.none() | structures | related)
puts_of_lenses = st.tuples(st.just("put_lens"), numbers, uris, uris, st.booleans(), st.booleans())
drops = st.tuples(st.just("drop_schema"), uris) | st.tuples(st.just("drop_lens"), numbers)
changes = st.tuples(
    # So many that there are ways around and cycles.
    st.lists(st.tuples(st.just("put_schema"), uris, related), max_size=5),
    st.tuples(
        *(st.tuples(st.just("put_lens"), st.just(n), uris, uris, st.booleans(), st.booleans()) for n in range(1, 13))
    ),
    st.lists(puts_of_schemas | puts_of_lenses | drops, max_size=12),
).map(lambda parts: [change for part in parts for change in part])


def applied(changes: list[Any]) -> tuple[Model, LensGraph]:
    model, graph = Model(), LensGraph()
    for kind, *given_ in changes:
        match kind, given_:
            case "put_schema", (uri, held):
                model.schemas[uri] = held
                graph.put_schema(uri, held)
            case "drop_schema", (uri,):
                model.schemas.pop(uri, None)
                graph.drop_schema(uri)
            case "put_lens", (number, *ends_and_flags):
                lens = Lens(number, *ends_and_flags)
                model.lenses[lens.uri] = lens
                put_lens(graph, lens.uri, lens)
            case "drop_lens", (number,):
                uri = Lens(number, "", "").uri
                model.lenses.pop(uri, None)
                graph.drop_lens(uri)
    return model, graph


@given(changes)
@settings(max_examples=80, deadline=None)
def test_after_any_changes_the_graph_holds_what_it_should(changes: list[Any]) -> None:
    """Nodes, their schemas, what is missing, and the lenses at each, are those of the changes' outcome."""
    model, graph = applied(changes)
    members = model.members()
    assert graph.nodes == len(members)
    assert graph.schemas == len(model.schemas)
    assert graph.lenses == len(model.lenses)
    for key, uris in members.items():
        assert set(graph.uris_of(key)) == uris
        assert graph.size_of(key) == len(uris)
        states = {
            "missing" if uri not in model.schemas else "unreadable" if model.schemas[uri] is None else "readable"
            for uri in uris
        }
        assert states == {graph.state_of(key)}
        for uri in uris:
            assert graph.key_of(uri) == key
    for uri in URIS:
        if model.key(uri) not in members:
            assert graph.key_of(uri) is None
            assert uri not in graph
    for key, other in product(members, members):
        at_source = {lens.number for lens in model.lenses.values() if model.key(lens.source) == key}
        at_target = {lens.number for lens in model.lenses.values() if model.key(lens.target) == other}
        assert sorted(graph.lenses_at(source=key)) == sorted(at_source)
        assert sorted(graph.lenses_at(target=other)) == sorted(at_target)
        assert sorted(graph.lenses_at(source=key, target=other)) == sorted(at_source & at_target)
        ends = [lens for lens in model.lenses.values() if key in (model.key(lens.source), model.key(lens.target))]
        assert sorted(graph.lenses_at(either=key)) == sorted(lens.number for lens in ends)
        assert sorted(graph.lenses_at(either=key, target=other)) == sorted(
            lens.number for lens in ends if model.key(lens.target) == other
        )


@given(changes, st.integers(0, 4), st.integers(1, 6))
@settings(max_examples=250, deadline=None)
def test_the_best_paths_are_those_that_trying_everything_finds(changes: list[Any], max_hops: int, k: int) -> None:
    """Between any two nodes, however the graph came about: the same paths, in the same order, and no others."""
    model, graph = applied(changes)
    for source, target in product(model.members(), repeat=2):
        every = model.paths(source, target, max_hops)
        found = graph.paths(source, target, max_hops, k)
        assert not found.is_truncated
        assert [rows(path) for path in found.paths] == [row for _, row in every[:k]]
        for path, (cost, row) in zip(found.paths, every, strict=False):
            assert path.lenses == cost[0]
            assert path.is_invertible == (cost[1] == cost[4] == 0)
            assert_consistent(model, path)
            assert (path.source, path.target) == (source, target)
            assert len(row) == len(path.hops)


def assert_consistent(model: Model, path: Path) -> None:
    """Its schemas are of its nodes, and those of its lenses their own."""
    lenses = {lens.number: lens for lens in model.lenses.values()}
    assert model.key(path.source_schema) == path.source
    assert model.key(path.target_schema) == path.target
    at = path.source
    for hop in path.hops:
        assert hop.source == at
        at = hop.target
        assert (model.key(hop.source_schema), model.key(hop.target_schema)) == (hop.source, hop.target)
        if hop.lens is not None:
            lens = lenses[hop.lens]
            assert (hop.source_schema, hop.target_schema) == (lens.source, lens.target)
            assert hop.has_putter == lens.has_putter
        else:
            assert not hop.has_putter
    assert at == path.target
    for before, after in zip(path.hops, path.hops[1:], strict=False):
        if None in (before.lens, after.lens):
            assert before.target_schema == after.source_schema


@given(changes, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_what_is_loadable_is_what_has_a_path(changes: list[Any], max_hops: int) -> None:
    """Exactly the nodes from which there is a path, each with its best one, those with fewer lenses first."""
    model, graph = applied(changes)
    keys = list(model.members())
    for target in keys:
        every = {source: model.paths(source, target, max_hops) for source in keys}
        found = graph.loadable_as(target, max_hops)
        assert not found.is_truncated
        best = {source: paths[0][1] for source, paths in every.items() if paths}
        # One that goes in a circle: see `loadable_as`.
        odd = {source for source, path in found.items() if len({hop.source for hop in path.hops}) < len(path.hops)}
        assert {source: rows(path) for source, path in found.items() if source not in odd} == {
            source: row for source, row in best.items() if source not in odd
        }
        assert [path.lenses for path in found.values()] == sorted(path.lenses for path in found.values())
        for path in found.values():
            assert_consistent(model, path)


@given(changes, st.integers(0, 3), st.sampled_from(["in", "out", "both"]))
@settings(max_examples=200, deadline=None)
def test_a_neighbourhood_is_what_lies_within_so_many_hops(changes: list[Any], depth: int, direction: Any) -> None:
    """Each node at its distance, and every edge that starts, on the way from the root, at less than the depth."""
    model, graph = applied(changes)
    edges = [(source, target, lens.number if lens else None) for source, target, lens in model.edges()]
    assume(max(Counter(edge[:2] for edge in edges).values(), default=0) <= 10)  # more parallel ones are not all drawn
    busy_out, busy_in = ({edge[end] for edge in edges if edge[2] is not None} for end in (0, 1))
    busy = {"out": busy_out, "in": busy_in, "both": busy_out | busy_in}[direction]
    for root in model.members():
        distances, expected = {root: 0}, set()
        for distance in range(depth):
            for edge in edges:
                for here, there, way in ((edge[0], edge[1], "out"), (edge[1], edge[0], "in")):
                    is_shown = edge[2] is not None or here == root or there in busy
                    if direction in (way, "both") and distances.get(here) == distance and is_shown:
                        distances.setdefault(there, distance + 1)
                        expected.add(edge)
        found = graph.neighbourhood(root, depth, direction)
        assert not found.is_truncated
        assert found.nodes == distances
        assert list(found.nodes.values()) == sorted(found.nodes.values())
        assert sorted(map(str, expected)) == sorted(str((hop.source, hop.target, hop.lens)) for hop in found.edges)


# --- What is wider


@given(st.lists(structures, min_size=2, max_size=12, unique_by=lambda each: each.fingerprint), st.data())
@settings(max_examples=200, deadline=None)
def test_wider_and_narrower_are_what_comparing_all_finds(every: list[Structure], data: st.DataObject) -> None:
    """Also after some were taken out again: those that cover, or are covered, and share a field."""
    projections = Projections()
    for number, one in enumerate(every):
        projections.add(number, one)
    gone = data.draw(st.sets(st.sampled_from(range(len(every))), max_size=len(every) - 1))
    if data.draw(st.booleans()):
        projections.settle()
    for number in gone:
        projections.remove(number)
    left = [number for number in range(len(every)) if number not in gone]

    def expected(wider: int, narrower: int) -> bool:
        fields = [{each.name for each in every[number].fields} for number in (wider, narrower)]
        return wider != narrower and covers(every[wider], every[narrower]) and bool(fields[0] & fields[1])

    for one in left:
        if data.draw(st.booleans()):  # as if it had come again
            projections.remove(one)
            projections.add(one, every[one])
        assert list(projections.wider(one)) == [other for other in left if expected(other, one)]
        assert list(projections.narrower(one)) == [other for other in left if expected(one, other)]


def test_types_of_different_families_have_nothing_to_do_with_each_other() -> None:
    """Neither is read as the other, unless one of them leaves something open."""
    dtypes = ["uint8", "int64", "intp", "datetime64", "datetime64[s]"]
    shapes = ["", ":2", ":0", ":2x2", ":2x0", ":0x3", ":20"]
    plain = ["int", "str", "array", "ref<at://a/b/c>", *(f"ndarray:{one}{shape}" for one in dtypes for shape in shapes)]
    types = [*plain, *(f"array<{one}>" for one in plain), *(f"array<array<{one}>>" for one in plain)]
    alone = {one: structure(f"x:{one}") for one in types}
    for one, other in product(types, types):
        families = projections._family(one), projections._family(other)
        assert "" in families or families[0] == families[1] or not covers(alone[one], alone[other])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_left_out_is_known_to_be(data: st.DataObject) -> None:
    """With room for two narrower ones: what is told is right, and what is not told is among those of which there may
    be more. Where there is room again, everything is told."""
    every = [
        *(structure(*(f"{name}:int" for name in names)) for n in (1, 2, 3, 4) for names in combinations("abcd", n)),
        *(structure(*fields) for fields in (["a?:int"], ["b?:int"], ["a:int", "b?:int"], ["a:int", "b?:str"])),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projections, "NARROWER", 2)
        known, here = Projections(), set[int]()
        for number in data.draw(st.lists(st.sampled_from(range(len(every))), min_size=5, max_size=60)):
            (known.remove if number in here else known.add)(number, *([] if number in here else [every[number]]))
            here ^= {number}
            if data.draw(st.booleans()):
                known.settle()
        known.settle()
        for one, other in product(here, here):
            is_wider = (
                one != other
                and covers(every[one], every[other])
                and not {each.name for each in every[one].fields}.isdisjoint(each.name for each in every[other].fields)
            )
            told = other in known.narrower(one)
            assert told == (one in known.wider(other))
            assert is_wider or not told
            if is_wider and not told:
                assert len(known.narrower(one)) == 2
                assert one in known.more_narrower
                assert other in known.more_wider


# --- By example


def digits() -> LensGraph:
    """Alice and Bob have the same structure, Carol a narrower one; lenses lead on from there."""
    graph = LensGraph()
    graph.put_schema("at://alice/s/digit", structure("image:ndarray:uint8", "label:int"))
    graph.put_schema("at://bob/s/number", structure("label:int", "image:ndarray:uint8"))
    graph.put_schema("at://carol/s/label", structure("label:int"))
    graph.put_lens("at://carol/l/parity", 7, "at://carol/s/label", "at://dora/s/parity", has_putter=True)
    graph.put_lens("at://bob/l/text", 8, "at://bob/s/number", "at://erin/s/text")
    return graph


def test_a_path_says_through_which_schemas_it_goes() -> None:
    """Alice's schema is Bob's by structure: the path begins at hers, and its lens at his."""
    graph = digits()
    (path,) = graph.paths("at://alice/s/digit", "at://erin/s/text").paths
    assert path.source_schema == "at://alice/s/digit"
    (hop,) = path.hops
    assert hop.source == path.source
    assert (hop.source_schema, hop.target_schema, hop.lens) == ("at://bob/s/number", "at://erin/s/text", 8)


def test_a_projection_is_a_hop_of_its_own() -> None:
    """Before the lens of a narrower structure stands the projection to it, from the schema that was asked for."""
    graph = digits()
    (path,) = graph.paths("at://bob/s/number", "at://dora/s/parity").paths
    key, narrow = graph.key_of("at://alice/s/digit"), graph.key_of("at://carol/s/label")
    assert path.hops == (
        Hop(key, narrow, "at://bob/s/number", "at://carol/s/label"),
        Hop(narrow, "at://dora/s/parity", "at://carol/s/label", "at://dora/s/parity", 7, has_putter=True),
    )
    assert path.lenses == 1
    assert not path.is_invertible
    (lens_alone,) = graph.paths("at://carol/s/label", "at://dora/s/parity").paths
    assert lens_alone.is_invertible


def test_equal_structures_need_no_hop() -> None:
    """The path between two schemas of one structure is empty, can be run backwards, and names both."""
    (path,) = digits().paths("at://alice/s/digit", "at://bob/s/number", k=5).paths
    assert path.hops == ()
    assert path.is_invertible
    assert (path.source_schema, path.target_schema) == ("at://alice/s/digit", "at://bob/s/number")


def test_what_is_loadable_begins_at_the_schema_that_one_has() -> None:
    """One path serves all schemas of a structure: it is told where it begins."""
    graph = digits()
    path = graph.loadable_as("at://dora/s/parity")[graph.key_of("at://alice/s/digit") or ""]
    assert path.source_schema == "at://alice/s/digit"
    moved = path.starting_at("at://bob/s/number")
    assert moved.source_schema == moved.hops[0].source_schema == "at://bob/s/number"
    assert moved.hops[1:] == path.hops[1:]


def test_a_lens_to_its_own_structure_is_no_part_of_a_path() -> None:
    """It is there, and is drawn, and leads nowhere."""
    graph = digits()
    graph.put_lens("at://bob/l/same", 9, "at://bob/s/number", "at://alice/s/digit")
    assert 9 in graph.lenses_at(either="at://alice/s/digit")
    assert 9 in [hop.lens for hop in graph.neighbourhood("at://alice/s/digit").edges]
    assert len(graph.paths("at://alice/s/digit", "at://erin/s/text", k=10).paths) == 1
    assert len(graph.loadable_as("at://alice/s/digit")) == 1


def test_no_path_passes_a_place_twice() -> None:
    """Neither by lenses that lead in a circle nor by a projection to where it was before."""
    graph = LensGraph()
    for name, fields in (("start", ["s:int"]), ("narrow", ["a:int"]), ("wide", ["a:int", "b:int"]), ("end", ["e:int"])):
        graph.put_schema(name, structure(*fields))
    for number, ends in enumerate(
        ["start narrow", "narrow wide", "narrow end", "wide narrow", "end wide", "wide start"]
    ):
        graph.put_lens(f"lens {number}", number, *ends.split())
    found = graph.paths("start", "end", 8, 10)
    assert [[hop.lens for hop in path.hops] for path in found.paths] == [[0, 2]]


def test_who_is_not_there_is_a_key_error() -> None:
    """Neither a schema nor a lens names it."""
    for ask in (LensGraph().neighbourhood, LensGraph().loadable_as):
        with pytest.raises(KeyError):
            ask("at://nobody/s/x")


def test_answers_are_kept_until_the_graph_changes() -> None:
    """The same question has the same answer, and another after a change."""
    graph = digits()
    first = graph.loadable_as("at://dora/s/parity")
    assert graph.loadable_as("at://dora/s/parity") is first
    graph.put_schema("at://alice/s/digit", structure("label:int", "image:ndarray:uint8"))  # as it was
    assert graph.loadable_as("at://dora/s/parity") is first
    graph.drop_lens("at://carol/l/parity")
    graph.put_lens("at://carol/l/parity", 10, "at://carol/s/label", "at://dora/s/parity")
    assert graph.loadable_as("at://dora/s/parity")[graph.key_of("at://carol/s/label") or ""].hops[0].lens == 10


# --- Hubs, which somebody is bound to make


def hub(spokes: int) -> LensGraph:
    """A hub from and to which so many lenses lead, cycles everywhere, and a chain past it."""
    graph = LensGraph()
    for n in range(1, spokes + 1):
        graph.put_lens(f"at://in/{n}", 2 * n, f"at://spoke/s/{n}", "at://hub/s/x")
        graph.put_lens(f"at://out/{n}", 2 * n + 1, "at://hub/s/x", f"at://spoke/s/{n}")
    return graph


def test_a_hub_is_not_followed_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for more than may be looked at is told so, and gets the best of what was seen."""
    monkeypatch.setattr(lens_graph, "WORK", 1000)
    graph = hub(3000)
    found = graph.paths("at://spoke/s/1", "at://spoke/s/2", 8, 1)
    assert rows(found.paths[0])[0][2] == 2
    assert not found.is_truncated
    many = graph.paths("at://spoke/s/1", "at://spoke/s/2", 8, 10)
    assert many.is_truncated
    assert many.paths == found.paths
    near = graph.neighbourhood("at://hub/s/x", 2, "both", max_nodes=50, max_edges=60)
    assert near.is_truncated
    assert len(near.nodes) <= 50
    assert len(near.edges) <= 60
    loadable = graph.loadable_as("at://spoke/s/1", 2, limit=20)
    assert loadable.is_truncated
    assert len(loadable) <= 20


def test_thousands_of_parallel_lenses_hide_nothing() -> None:
    """The best of them are told, then the longer way around."""
    graph = LensGraph()
    for n in range(1, 3001):
        graph.put_lens(f"at://many{n // 2}/{n}", n, "at://a/s/a", "at://a/s/b", is_verified=n > 2990)
    graph.put_lens("at://one", 5000, "at://a/s/a", "at://a/s/c")
    graph.put_lens("at://two", 5001, "at://a/s/c", "at://a/s/b")
    found = graph.paths("at://a/s/a", "at://a/s/b", 4, 10)
    assert [path.hops[0].lens for path in found.paths] == list(range(2991, 3001))
    assert {hop.target for hop in graph.neighbourhood("at://a/s/a").edges} == {"at://a/s/b", "at://a/s/c"}


def test_everything_covers_a_structure_of_one_field() -> None:
    """A thousand wider ones are loadable as it at once, as far as is asked for."""
    graph = LensGraph()
    graph.put_schema("at://one/s/x", structure("id:int"))
    for n in range(1000):
        graph.put_schema(f"at://wide/s/{n}", structure("id:int", f"field{n}:str"))
    found = graph.loadable_as("at://one/s/x", limit=2000)
    assert len(found) == 1001
    assert not found.is_truncated
    assert graph.loadable_as("at://one/s/x", limit=10).is_truncated
    assert len(graph.paths("at://wide/s/7", "at://one/s/x").paths[0].hops) == 1


def test_a_schema_takes_its_lenses_along() -> None:
    """Thousands of lenses of a missing schema are those of a structure as soon as it is there, and when it changes."""
    graph = hub(1000)
    graph.put_schema("at://other/s/x", structure("id:int"))
    graph.put_schema("at://hub/s/x", structure("id:int"))
    (path,) = graph.paths("at://other/s/x", "at://spoke/s/5").paths
    assert path.hops[0].lens == 11
    graph.put_schema("at://hub/s/x", structure("id:str"))
    assert graph.paths("at://other/s/x", "at://spoke/s/5").paths == ()
    graph.drop_schema("at://hub/s/x")
    assert graph.state_of("at://hub/s/x") == "missing"
    assert len(graph.paths("at://spoke/s/1", "at://spoke/s/2").paths) == 1


def test_a_stranger_does_not_get_in_front() -> None:
    """The lens of the schemas' publisher is first, whatever others say of theirs; of these, the verified ones."""
    graph = LensGraph()
    ends = "at://alice/s/full", "at://alice/s/simple"
    graph.put_lens("at://mallory/l/claims", 1, *ends, has_putter=True)
    graph.put_lens("at://mallory/l/verified", 2, *ends, is_verified=True)
    graph.put_lens("at://alice/l/honest", 3, *ends)
    graph.put_lens("at://alice/l/back", 4, *ends, has_putter=True)
    found = graph.paths(*ends, k=10).paths
    assert [path.hops[0].lens for path in found] == [4, 3, 2, 1]
    assert [path.is_invertible for path in found] == [True, False, False, True]
    assert graph.loadable_as(ends[1])[ends[0]].hops[0].lens == 4


def test_one_publisher_does_not_crowd_out_the_others() -> None:
    """Of a dozen lenses of one stranger between the same two schemas, two are among the best paths."""
    graph = LensGraph()
    ends = "at://alice/s/full", "at://alice/s/simple"
    for n in range(12):
        graph.put_lens(f"at://mallory/l/{n}", n, *ends, has_putter=True, is_verified=True)
    graph.put_lens("at://bob/l/honest", 12, *ends)
    assert [path.hops[0].lens for path in graph.paths(*ends, k=10).paths] == [0, 1, 12]


# --- Hostile structures


def test_of_a_field_of_many_types_few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of given lengths have to do with those that leave lengths open only, and nobody asks about the others."""
    compared = Counter[str]()

    def is_read_as(written: str, read: str) -> bool:
        compared[written] += 1
        return covers(structure(f"x:{written}"), structure(f"x:{read}"))

    monkeypatch.setattr(projections, "_is_read_as", is_read_as)
    graph = LensGraph()
    for n in range(1, 201):
        graph.put_schema(f"at://a/s/{n}", structure("id:int", *(f"x{i}?:ndarray:uint8:{n}" for i in range(5))))
    assert not compared
    graph.put_schema("at://a/s/any", structure("x0:ndarray:uint8"))
    assert compared.total() == 2 * 200
    graph.put_schema("at://a/s/more", structure("x0:ndarray:uint8:1000"))
    assert compared.total() == 2 * 201
    # And what one structure may cause has an end.
    monkeypatch.setattr(projections, "_MEETS", 300)
    compared.clear()
    graph.put_schema("at://a/s/much", structure(*(f"x{i}:ndarray:int8:0" for i in range(5))))
    assert compared.total() == 2 * 300


def test_an_optional_field_of_many_types_is_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has it as another type is told at once, and with nobody left the next field is not looked at."""
    looks: list[str] = []
    less = projections._less
    monkeypatch.setattr(projections, "_less", lambda numbers, field: looks.append(field.name) or less(numbers, field))
    known = Projections()
    for n in range(100):
        known.add(n, structure("id:int", *(f"x{i}?:ndarray:uint8:{n + 1}" for i in range(20))))
        known.settle()
    assert len(looks) == 99  # for the first there was nobody
    assert not any(known.wider(n) for n in range(100))


def test_with_room_for_no_more_no_candidate_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand structures are narrower than a new one: it looks at as many as it can note."""
    monkeypatch.setattr(projections, "NARROWER", 10)
    known = Projections()
    for n in range(1000):
        known.add(n, structure(f"x{n}:int"))
    known.settle()
    looked: list[int] = []

    class Watched(list[Any]):
        def __getitem__(self, place: Any) -> Any:
            looked.append(place)
            return super().__getitem__(place)

    known._required = Watched(known._required)
    known.add(1000, structure(*(f"x{n}:int" for n in range(1000))))
    known.settle()
    assert len(known.narrower(1000)) == 10
    assert len([place for place in looked if place != 1000]) == 10


def test_a_structure_that_takes_long_to_look_at_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that are nearly narrower cost their fields; when that is too much, it is said, and not for ever."""
    known = Projections()
    for n in range(20):
        known.add(n, structure(*(f"x{i}:int" for i in range(90) if i != n), "z:int"))
    known.add(20, structure("x50:int"))
    known.settle()
    monkeypatch.setattr(projections, "_LOOKS", 1000)
    known.add(21, structure(*(f"x{i}:int" for i in range(99))))
    known.settle()
    assert not known.narrower(21)
    assert 21 in known.more_narrower
    assert 20 in known.more_wider
    monkeypatch.undo()
    known.remove(21)
    known.add(21, structure(*(f"x{i}:int" for i in range(99))))
    assert list(known.narrower(21)) == [20]
    assert not known.more_narrower
    assert not known.more_wider


def test_decoys_hide_nothing_unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others have taken all the room for projections, answers are truncated; when they go, it is there."""
    monkeypatch.setattr(projections, "NARROWER", 5)
    graph = LensGraph()
    graph.put_schema("popular", structure(*(f"c{n}:int" for n in range(9))))
    for n in range(5):
        graph.put_schema(f"decoy{n}", structure(f"c{n}:int", "c8:int"))
    assert not graph.paths("popular", "decoy0").is_truncated
    graph.settle()
    graph.put_schema("honest", structure("c0:int", "c1:int"))
    graph.put_lens("at://a/l/on", 1, "honest", "end")
    for target in ("honest", "end"):
        assert graph.paths("popular", target) == lens_graph.Paths((), is_truncated=True)
        assert graph.loadable_as(target).is_truncated
    assert graph.neighbourhood("popular").is_truncated
    assert graph.neighbourhood("honest").is_truncated
    assert not graph.paths("honest", "end").paths[0].hops[1:]
    graph.drop_schema("decoy3")
    for target in ("honest", "end"):
        assert len(graph.paths("popular", target).paths) == 1
        assert graph.key_of("popular") in graph.loadable_as(target)
        assert not graph.paths("popular", target).is_truncated
        assert not graph.loadable_as(target).is_truncated


def test_paths_are_priced_by_looking_at_each_lens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything arrives at everything over one narrower structure, that is not tried one by one."""
    monkeypatch.setattr(lens_graph, "STEPS", 1000)
    looked = [0]

    class Watched(dict[Any, Any]):
        def items(self) -> Any:
            looked[0] += len(self)
            return super().items()

        def __iter__(self) -> Iterator[Any]:
            looked[0] += len(self)
            return super().__iter__()

    bundled = lens_graph._Pick.bundled

    def watched(pick: Any, lenses: Any) -> Any:
        return {source: Watched(targets) for source, targets in bundled(pick, lenses).items()}

    monkeypatch.setattr(lens_graph._Pick, "bundled", watched)
    graph, ends = LensGraph(), [("start", "hub"), ("hub", "end")]
    graph.put_schema("narrow", structure("id:int"))
    for n in range(200):
        graph.put_schema(f"wide{n}", structure("id:int", f"field{n}:int"))
        ends += [("hub", f"wide{n}"), (f"wide{n}", "hub"), ("narrow", f"wide{n}")]
    for n, (source, target) in enumerate(ends):
        graph.put_lens(f"at://lens/{n}", n, source, target)
    found = graph.paths("start", "end", 8, 10)
    assert [path.lenses for path in found.paths] == [2]
    assert found.is_truncated
    # For paths of up to 4 lenses, where it gives up: each lens twice to find a price, and then so many steps.
    assert looked[0] <= 2 * sum(range(5)) * len(ends) + 2 * 1000


def test_what_was_left_out_is_looked_for_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One structure that goes makes room at many others: each is looked at once, when it is its turn."""
    monkeypatch.setattr(projections, "NARROWER", 1)
    monkeypatch.setattr(projections, "_LOOKS", 1)
    known = Projections()
    for n in range(5):
        known.add(n, structure("a:int", "b:int", f"A{n}:int"))
    known.settle()
    for n, name in enumerate("ab"):
        known.add(5 + n, structure(f"{name}:int"))
        known.settle()
    known.remove(5)
    for turn in range(1, 6):
        known.settle()
        assert known.repairs == turn
        assert len(known.wider(6)) == turn
        assert (6 in known.more_wider) == (turn < 5)
