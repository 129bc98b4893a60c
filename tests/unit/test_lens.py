"""Lenses: getting and putting, composition, the shortest path, and the three laws."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import atdata
import atdata.codec
from atdata import DictSample, Lens, LensNetwork, check_lens_laws, packable
from atdata.errors import LensError
from atdata.lens import lens


@packable
class Full:
    image: NDArray[np.uint8]
    label: str
    confidence: float


@packable
class Simple:
    label: str
    confidence: float


@packable
class Name:
    name: str


@packable
class Other:
    other: int


@pytest.fixture(autouse=True)
def _own_network() -> Iterator[None]:
    """Each test starts with no lenses, and leaves the registry as it was."""
    network = LensNetwork()
    saved, network._lenses = network._lenses, {}
    yield
    network._lenses = saved


def simplify() -> Lens[Full, Simple]:
    @atdata.lens
    def simplify(source: Full) -> Simple:
        """Without the image."""
        return Simple(source.label, source.confidence)

    @simplify.putter
    def simplify_put(view: Simple, source: Full) -> Full:
        return dataclasses.replace(source, label=view.label, confidence=view.confidence)

    assert simplify.putter_function is simplify_put
    return simplify


def naming() -> Lens[Simple, Name]:
    @lens
    def naming(source: Simple) -> Name:
        return Name(source.label)

    @naming.putter
    def naming_put(view: Name, source: Simple) -> Simple:
        return Simple(view.name, source.confidence)

    return naming


FULL = Full(np.arange(4, dtype=np.uint8), "cat", 0.5)


def test_get_put_and_call():
    """A lens gets a view, is called for it, and puts a changed view back."""
    view = simplify()
    assert view(FULL) == view.get(FULL) == Simple("cat", 0.5)
    assert view.put(Simple("dog", 0.25), FULL) == Full(FULL.image, "dog", 0.25)
    assert (view.source_type, view.view_type, view.name, view.__name__) == (Full, Simple, "simplify", "simplify")
    assert view.__doc__ == "Without the image."
    assert repr(view) == "Lens(simplify: Full → Simple)"


def test_without_a_putter_the_source_stays():
    """`put` of a lens without a putter gives the source back, unchanged."""

    @lens
    def look(source: Full) -> Simple:
        return Simple(source.label, source.confidence)

    assert look.put(Simple("dog", 1.0), FULL) is FULL


def test_composition():
    """`a | b` goes through both, and back; types that do not meet are refused."""
    both = simplify() | naming()
    assert both.get(FULL) == Name("cat")
    assert both.put(Name("dog"), FULL) == Full(FULL.image, "dog", 0.5)
    assert (both.source_type, both.view_type) == (Full, Name)
    assert both.name == "simplify_then_naming"
    with pytest.raises(LensError, match=r"naming \| simplify: the one gives Name, the other takes Full"):
        _ = naming() | simplify()
    with pytest.raises(TypeError):
        _ = naming() | 3


def test_the_network_is_one():
    """Every LensNetwork() is the registry in which @lens puts what it makes, however it is reached."""
    made = simplify()
    assert LensNetwork() is LensNetwork() is atdata.lens.LensNetwork()
    assert atdata.lens.LensNetwork().transform(Full, Simple) is made
    assert atdata.lens.Lens is Lens


def test_paths_are_found():
    """Without a direct lens, the shortest path is taken; a direct one is preferred; none is a ValueError."""
    simplify()
    naming()
    network = LensNetwork()
    path = network.transform(Full, Name)
    assert path.get(FULL) == Name("cat")
    assert path.put(Name("dog"), FULL).label == "dog"

    @lens
    def direct(source: Full) -> Name:
        return Name("direct")

    assert network.transform(Full, Name) is direct
    with pytest.raises(ValueError, match="no lens leads from Name to Full; declare one"):
        network.transform(Name, Full)
    with pytest.raises(ValueError, match="no lens leads from Other to Full"):
        network.transform(Other, Full)


def test_the_shortest_path_is_taken():
    """Of two paths, the one through fewer lenses, whichever was registered first."""
    network = LensNetwork()

    def step(source: type, view: type, label: str) -> None:
        network.register(Lens(lambda one: view(label), source_type=source, view_type=view))

    types = [packable(type(f"Step{i}", (), {"__annotations__": {"label": str}})) for i in range(4)]
    for short_first in (True, False):
        network._lenses = {}
        long = [(types[0], types[1], "a"), (types[1], types[2], "b"), (types[2], Name, "long")]
        short = [(types[0], types[3], "c"), (types[3], Name, "short")]
        for source, view, label in (*short, *long) if short_first else (*long, *short):
            step(source, view, label)
        assert network.transform(types[0], Name).get(types[0]("x")) == Name("short")


def test_circles_do_not_trap_the_search():
    """Lenses that lead back are no obstacle."""
    simplify()

    @lens
    def back(source: Simple) -> Full:
        return Full(np.zeros(1, np.uint8), source.label, source.confidence)

    naming()
    assert LensNetwork().transform(Full, Name).get(FULL) == Name("cat")
    with pytest.raises(LensError):
        LensNetwork().transform(Full, Other)


def test_a_later_lens_takes_the_place_of_an_earlier_one():
    """As a notebook cell is run again."""
    simplify()
    second = simplify()
    assert LensNetwork().transform(Full, Simple) is second


def test_every_type_is_its_own_view():
    """The lens from a type to itself changes nothing."""
    identity = LensNetwork().transform(Full, Full)
    assert identity.get(FULL) is FULL
    assert identity.put(FULL, FULL) is FULL


def test_every_type_is_a_view_of_dict_samples():
    """Fields are taken by name, and put back beside those that the view does not have."""
    source = DictSample.from_bytes(FULL.packed)
    view = LensNetwork().transform(DictSample, Simple)
    assert view.get(source) == Simple("cat", 0.5)
    changed = view.put(Simple("dog", 1.0), source)
    assert changed.label == "dog"
    np.testing.assert_array_equal(changed.image, FULL.image)
    with pytest.raises(atdata.errors.SampleError, match="field other: is missing"):
        LensNetwork().transform(DictSample, Other).get(source)

    @lens
    def own(source: DictSample) -> Other:
        return Other(len(source))

    assert LensNetwork().transform(DictSample, Other) is own
    with pytest.raises(LensError):
        LensNetwork().transform(DictSample, int)


@packable
class Part:
    name: str
    pixels: NDArray[np.float32]


@packable
class Whole:
    part: Part
    parts: list[Part]
    meta: dict[str, Any]
    ratio: float
    note: str | None = None


COMPACT = b"\x03<f4\x01" + struct.pack("<q", 2) + np.array([1, 2], "<f4").tobytes()


def stored(**changes: Any) -> DictSample:
    part = {"name": "a", "pixels": COMPACT, "unknown": 1}
    fields = {"part": part, "parts": [part, {**part, "name": "b"}], "meta": {"k": 1, "deep": [COMPACT]}, "ratio": 2}
    return DictSample.from_bytes(atdata.codec.pack_map({**fields, "other": [3], **changes}))


def test_a_view_of_a_dict_sample_keeps_the_laws():
    """Putting back what was got changes no byte, whatever the view does not know and however it was written."""
    view = LensNetwork().transform(DictSample, Whole)
    source = stored()
    assert view.put(view.get(source), source).packed == source.packed
    laws = check_lens_laws(view, [source])
    assert laws, str(laws)
    written = [DictSample.from_bytes(Whole(Part(n, np.ones(1, np.float32)), [], {}, 0.5).packed) for n in "abc"]
    laws = check_lens_laws(view, written)
    assert laws, str(laws)


def test_putting_a_view_into_a_dict_sample_changes_what_changed():
    """What was changed in a view is written; what is beside it, at any depth, stays as it was stored."""
    view = LensNetwork().transform(DictSample, Whole)
    source = stored()
    sample = view.get(source)
    sample.part.name = "x"
    sample.parts[1].pixels[0] = 5
    sample.parts.append(Part("c", np.zeros(1, np.float32)))
    del sample.meta["k"]
    sample.note = "new"
    put = view.put(sample, source)
    assert view.get(put) == sample
    raw = put.raw
    assert raw["part"] == {"name": "x", "pixels": COMPACT, "unknown": 1}
    assert raw["parts"][0]["pixels"] == COMPACT
    assert put.parts[1]["pixels"].tolist() == [5, 2]
    assert put.parts[1]["unknown"] == 1
    assert raw["parts"][2].keys() == {"name", "pixels"}
    assert raw["meta"] == {"deep": [COMPACT]}
    assert raw["ratio"] == 2
    assert list(raw) == ["part", "parts", "meta", "ratio", "other", "note"]


def test_a_view_sees_changes_in_place():
    """What was changed in a DictSample is what its view shows, and what stays when the view is put back."""
    view = LensNetwork().transform(DictSample, Simple)
    source = DictSample.from_bytes(FULL.packed)
    source.image[:] = 9
    assert LensNetwork().transform(DictSample, Full).get(source).image.tolist() == [9, 9, 9, 9]
    assert view.put(Simple("dog", 1.0), source).image.tolist() == [9, 9, 9, 9]


def test_declarations_without_types_are_errors():
    """A getter without annotations, or with ones that cannot be read, says how a lens is declared."""
    with pytest.raises(LensError, match=r"a lens is declared like `def bare\(source: FullSample\) -> SimpleSample`"):

        @lens
        def bare(source):
            return source

    with pytest.raises(LensError, match="nothing"):

        @lens
        def nothing() -> Simple:
            return Simple("a", 1.0)

    with pytest.raises(LensError, match="type hints cannot be read"):

        @lens
        def unknown(source: Nonsense) -> Simple:  # noqa: F821
            return Simple("a", 1.0)

    made = Lens(lambda source: Name(source.label), source_type=Simple, view_type=Name)
    assert made(Simple("a", 1.0)) == Name("a")


fulls = st.builds(
    Full,
    st.lists(st.integers(0, 255), max_size=3).map(lambda values: np.array(values, np.uint8)),
    st.text(),
    st.floats(),
)


@given(st.lists(fulls, min_size=1, max_size=5))
def test_good_lenses_keep_the_laws(samples):
    """Getter and putter that fit keep all three laws, for any samples, NaN among them; so does their composition."""
    for good in (simplify(), simplify() | naming(), LensNetwork().transform(Full, Full)):
        laws = check_lens_laws(good, samples)
        assert laws, str(laws)
        assert str(laws) == "GetPut holds\nPutGet holds\nPutPut holds"


SAMPLES = [FULL, Full(np.zeros(1, np.uint8), "dog", 0.25), Full(np.ones(1, np.uint8), "emu", 0.75)]


def make(put) -> Lens[Full, Simple]:
    return Lens(lambda source: Simple(source.label, source.confidence), put, source_type=Full, view_type=Simple)


def test_broken_laws_have_a_counterexample():
    """Each law is reported by itself, with the first samples that break it."""
    stubborn = check_lens_laws(make(None), SAMPLES)
    assert stubborn.get_put is None
    assert stubborn.put_get.source == SAMPLES[0]
    assert stubborn.put_get.views == (Simple("dog", 0.25),)
    assert stubborn.put_get.expected == Simple("dog", 0.25)
    assert stubborn.put_get.actual == Simple("cat", 0.5)
    assert not stubborn
    assert "PutGet is broken: expected Simple(label='dog'" in str(stubborn)

    forgetful = check_lens_laws(make(lambda view, source: Full(np.zeros(9), view.label, view.confidence)), SAMPLES)
    assert forgetful.get_put.source == SAMPLES[0]
    assert forgetful.put_get is None
    assert forgetful.put_put is None

    def count(view: Simple, source: Full) -> Full:
        is_same = view.label == source.label
        return Full(source.image if is_same else np.append(source.image, 1), view.label, view.confidence)

    counting = check_lens_laws(make(count), SAMPLES)
    assert counting.get_put is None
    assert counting.put_get is None
    assert counting.put_put.views == (Simple("dog", 0.25), Simple("emu", 0.75))


def test_laws_need_samples():
    """Nothing is shown by no samples."""
    with pytest.raises(ValueError, match="at least one"):
        check_lens_laws(make(None), [])


def test_a_getter_that_gives_something_else_is_named():
    """A view of another type is a LensError with the lens, what was expected and what was found."""

    @atdata.lens
    def to_name(source: Simple) -> Name:
        return source.label  # type: ignore[return-value]

    @atdata.lens
    def to_nothing(source: Simple) -> Other:
        pass  # type: ignore[return]

    with pytest.raises(LensError, match="lens to_name: expected Name, found str 'cat'"):
        to_name(Simple("cat", 0.5))
    with pytest.raises(LensError, match="lens to_nothing: expected Other, found None"):
        to_nothing.get(Simple("cat", 0.5))
    with pytest.raises(LensError, match="lens to_name: expected Name"):
        (simplify() | to_name).get(Full(np.zeros(1, np.uint8), "cat", 0.5))


def test_what_is_no_lens_is_refused_where_it_is_declared():
    """A getter takes one source, and both its types are sample types; only lenses are registered."""
    with pytest.raises(LensError, match="declared like"):

        @atdata.lens
        def two(source: Full, other: Full) -> Simple:
            raise NotImplementedError

    with pytest.raises(LensError, match="number: a lens leads from one sample type to another, and int is none"):

        @atdata.lens
        def number(source: Full) -> int:
            raise NotImplementedError

    with pytest.raises(LensError, match=r"_own_names is no lens; make one of a function: @atdata.lens"):
        LensNetwork().register(_own_names)  # type: ignore[arg-type]


def _own_names(source: Full) -> Name:
    raise NotImplementedError


def test_two_classes_of_one_name_are_told_apart():
    """Where lenses lead on from a class of the same name, the error says so, and what to load."""
    simplify()
    decoded = packable(type("Full", (), {"__annotations__": {"label": str}}))
    with pytest.raises(
        LensError, match=r"one does from another class of this name, .*Full; .* load_dataset\(uri, Full"
    ):
        LensNetwork().transform(decoded, Simple)
