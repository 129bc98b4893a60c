"""Own lenses: views of one sample type as another, the registry of them, and the laws they should keep.

A lens is a getter from a source S to a view V, and a putter that carries a changed view back into the source. The laws
are those of Foster et al., "Combinators for bidirectional tree transformations" (2007).
"""

from __future__ import annotations

import inspect
import operator
import sys
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Final, Generic, TypeVar

from atdata import codec
from atdata.errors import LensError
from atdata.hints import is_sample_type
from atdata.sample import DictSample, brief, is_same

__all__ = ["Counterexample", "Lens", "LensLaws", "LensNetwork", "check_lens_laws", "lens", "read_as"]

S = TypeVar("S")
V = TypeVar("V")
W = TypeVar("W")


class Lens(Generic[S, V]):
    """A view of a sample type S as another, V.

    >>> @atdata.lens
    ... def simplify(source: FullSample) -> SimpleSample:
    ...     return SimpleSample(label=source.label)
    >>> @simplify.putter
    ... def simplify_put(view: SimpleSample, source: FullSample) -> FullSample:
    ...     return dataclasses.replace(source, label=view.label)
    >>> simplify(full).label
    'cat'

    `a | b` is the lens through both. The types are read from the getter's annotations unless they are given. Raises
    LensError, a ValueError, when a type is missing, and when the getter gives something else than its type.
    """

    # How another process makes the lens anew, where it is made of others and not declared.
    _made: tuple[Callable[..., Any], tuple[Any, ...]] | None = None

    def __init__(
        self,
        getter: Callable[[S], V],
        putter: Callable[[V, S], S] | None = None,
        *,
        source_type: type[S] | None = None,
        view_type: type[V] | None = None,
    ) -> None:
        if source_type is None or view_type is None:
            found = _types_of(getter)
            source_type, view_type = source_type or found[0], view_type or found[1]
        name = getattr(getter, "__name__", "lens")
        for sample_type in (source_type, view_type):
            if sample_type is not DictSample and not is_sample_type(sample_type):
                raise LensError(
                    f"{name}: a lens leads from one sample type to another, and {_name(sample_type)} is none; "
                    "decorate the class with @atdata.packable"
                )
        self.source_type: type[S] = source_type
        self.view_type: type[V] = view_type
        self.getter_function = getter
        self.putter_function = putter
        self.name: str = name
        self.__name__ = self.name
        self.__doc__ = getter.__doc__ or type(self).__doc__

    def get(self, source: S, /) -> V:
        """The view of *source*. Raises LensError when the getter gives something else."""
        view = self.getter_function(source)
        if not isinstance(view, self.view_type):
            found = "None; does it return?" if view is None else f"{type(view).__name__} {brief(view)}"
            raise LensError(f"lens {self.name}: expected {_name(self.view_type)}, found {found}")
        return view

    def put(self, view: V, source: S, /) -> S:
        """*source* with what *view* says in it; *source* unchanged if the lens has no putter."""
        return source if self.putter_function is None else self.putter_function(view, source)

    def __call__(self, source: S, /) -> V:
        """The view of *source*."""
        return self.get(source)

    def putter(self, function: Callable[[V, S], S]) -> Callable[[V, S], S]:
        """Make *function*, called with a view and a source, this lens's putter; for use as a decorator."""
        self.putter_function = function
        return function

    def __or__(self, other: Lens[V, W]) -> Lens[S, W]:
        if not isinstance(other, Lens):
            return NotImplemented
        if not issubclass(self.view_type, other.source_type):
            raise LensError(
                f"{self.name} | {other.name}: the one gives {_name(self.view_type)}, "
                f"the other takes {_name(other.source_type)}"
            )

        def get(source: S) -> W:
            return other.get(self.get(source))

        def put(view: W, source: S) -> S:
            return self.put(other.put(view, self.get(source)), source)

        get.__name__ = get.__qualname__ = f"{self.name}_then_{other.name}"
        both = Lens(get, put, source_type=self.source_type, view_type=other.view_type)
        both._made = operator.or_, (self, other)
        return both

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._made is not None:
            return self._made
        getter = self.getter_function
        # Under the getter's name a declared lens is found, and not the function.
        where = getattr(getter, "__module__", ""), getattr(getter, "__qualname__", "")
        found = getattr(sys.modules.get(where[0]), where[1], None)
        return (_declared, where) if found is self else super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"Lens({self.name}: {_name(self.source_type)} → {_name(self.view_type)})"


def _declared(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _types_of(getter: Callable[..., Any]) -> tuple[type[Any], type[Any]]:
    name = getattr(getter, "__name__", repr(getter))
    try:
        hints = typing.get_type_hints(getter, localns=_names_around(getter))
        signature = inspect.signature(getter)
    except (NameError, TypeError, ValueError) as e:
        raise LensError(f"{name}: its type hints cannot be read: {e}; give source_type and view_type") from None
    parameters = list(signature.parameters.values())
    source, view = hints.get(parameters[0].name) if parameters else None, hints.get("return")
    try:
        signature.bind(None)
    except TypeError:
        source = None  # it takes more than the source, or less
    if not isinstance(source, type) or not isinstance(view, type):
        raise LensError(f"{name}: a lens is declared like `def {name}(source: FullSample) -> SimpleSample`")
    return source, view


def _names_around(getter: Callable[..., Any]) -> dict[str, Any]:
    """Names of the function around *getter* that it uses: where types are local, they are among them."""
    names = {}
    if inspect.isfunction(getter):
        for name, cell in zip(getter.__code__.co_freevars, getter.__closure__ or (), strict=True):
            with suppress(ValueError):  # not assigned yet
                names[name] = cell.cell_contents
    return names


def _name(sample_type: type[Any]) -> str:
    return getattr(sample_type, "__name__", str(sample_type))


# --- The registry


class LensNetwork:
    """The registry of all lenses: whoever makes one, gets the same.

    >>> LensNetwork().transform(FullSample, SimpleSample)
    Lens(simplify: FullSample → SimpleSample)

    `@lens` registers here. Where no lens leads from S to V directly, the shortest path through others does; and every
    sample type can be viewed from a `DictSample`, whose fields are taken by name. Putting such a view back writes what
    was changed in it; all else, fields that the view does not know among it, stays as it was stored.
    """

    _instance: ClassVar[LensNetwork | None] = None
    _lenses: dict[type[Any], dict[type[Any], Lens[Any, Any]]]

    def __new__(cls) -> LensNetwork:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance._lenses = {}
        return cls._instance

    def register(self, lens: Lens[Any, Any]) -> None:
        """Make *lens* known. It takes the place of an earlier one between the same types, as notebooks need it."""
        if not isinstance(lens, Lens):
            raise LensError(f"{getattr(lens, '__name__', lens)!s} is no lens; make one of a function: @atdata.lens")
        self._lenses.setdefault(lens.source_type, {})[lens.view_type] = lens

    @property
    def lenses(self) -> tuple[Lens[Any, Any], ...]:
        """All that are registered."""
        return tuple(lens for views in self._lenses.values() for lens in views.values())

    def transform(self, source: type[S], view: type[V]) -> Lens[S, V]:
        """The lens from *source* to *view*: direct, or through as few others as possible.

        Raises LensError, a ValueError, when no path of lenses leads there.
        """
        found = self._find(source, view)
        if found is None and (twin := self._twin(source, view)) is not None:
            raise LensError(
                f"no lens leads from this {_name(source)} to {_name(view)}, but one does from another class of this "
                f"name, {twin.__module__}.{twin.__qualname__}; read the samples as that class: "
                f"load_dataset(uri, {_name(source)})"
            )
        if found is None:
            raise LensError(
                f"no lens leads from {_name(source)} to {_name(view)}; "
                f"declare one: @atdata.lens on a function that takes {_name(source)} and returns {_name(view)}"
            )
        return found

    def _twin(self, source: type[Any], view: type[Any]) -> type[Any] | None:
        """A class with the name of *source*, such as that of which its schema was made, from which lenses lead on."""
        twins = (one for one in self._lenses if one is not source and _name(one) == _name(source))
        return next((one for one in twins if self._find(one, view) is not None), None)

    def _find(self, source: type[Any], view: type[Any]) -> Lens[Any, Any] | None:
        if source is view:
            return _identity(source)
        if source is DictSample and view not in self._lenses.get(source, {}):
            return read_as(source, view) if is_sample_type(view) else None
        # Breadth first, in the order of registration, so that the answer is the same every time.
        paths: deque[tuple[type[Any], Lens[Any, Any] | None]] = deque([(source, None)])
        seen = {source}
        while paths:
            at, path = paths.popleft()
            for target, step in self._lenses.get(at, {}).items():
                if target in seen:
                    continue
                seen.add(target)
                longer = step if path is None else path | step
                if target is view:
                    return longer
                paths.append((target, longer))
        return None


def _identity(sample_type: type[Any]) -> Lens[Any, Any]:
    def identity(source: Any) -> Any:
        return source

    lens = Lens(identity, lambda view, _: view, source_type=sample_type, view_type=sample_type)
    lens._made = _identity, (sample_type,)
    return lens


def read_as(source_type: type[S], view_type: type[V]) -> Lens[S, V]:
    """The lens that reads what is stored of a sample as another type, whose fields are taken by name.

    >>> read_as(DictSample, Digit)
    Lens(read_as: DictSample → Digit)

    Getting raises SampleError for a field that the view needs and does not find.
    """
    read: Any = view_type

    def get(source: Any) -> Any:
        return read.from_data(source.raw) if isinstance(source, DictSample) else read.from_bytes(source.packed)

    def put(view: Any, source: Any) -> Any:
        stored = codec.unpack_map(source.packed)
        viewed = codec.unpack_map(read.from_data(stored).packed)
        return type(source).from_data(_put_changes(stored, viewed, codec.unpack_map(view.packed)))

    get.__name__ = "read_as"
    lens = Lens(get, put, source_type=source_type, view_type=view_type)
    lens._made = read_as, (source_type, view_type)
    return lens


def _put_changes(stored: Any, viewed: Any, changed: Any) -> Any:
    """*stored* with what is different in *changed* from *viewed*, both as a view packs them.

    Of maps, what the view does not know stays; lists are gone through side by side.
    """
    if codec.is_identical(viewed, changed):
        return stored
    if all(isinstance(one, dict) for one in (stored, viewed, changed)):
        put = {name: value for name, value in stored.items() if name not in viewed}
        for name, value in changed.items():
            if name in viewed and name in stored:
                put[name] = _put_changes(stored[name], viewed[name], value)
            # A view has None where nothing is stored.
            elif name not in viewed or not codec.is_identical(viewed[name], value):
                put[name] = value
        # In the order in which they were stored, the new ones last.
        return {name: put[name] for name in (*stored, *put) if name in put}
    if all(isinstance(one, list) for one in (stored, viewed, changed)) and len(stored) == len(viewed):
        known = len(stored)
        both = zip(stored, viewed, changed, strict=False)
        return [*(_put_changes(*three) for three in both), *changed[known:]]
    return changed


# --- Declaring lenses


class _Declare:
    """The decorator `@atdata.lens`. The network stands beside it, so that `atdata.lens.LensNetwork()` works."""

    LensNetwork = LensNetwork

    def __call__(self, getter: Callable[[S], V]) -> Lens[S, V]:
        """Make a lens of *getter*, a function from one sample type to another, and register it.

        >>> @atdata.lens
        ... def simplify(source: FullSample) -> SimpleSample:
        ...     return SimpleSample(label=source.label)
        """
        made = Lens(getter)
        LensNetwork().register(made)
        return made


lens: Final = _Declare()


class _Module(types.ModuleType):
    """This module. Both `@atdata.lens` and `atdata.lens.LensNetwork()` are in use, so the module can be called."""

    def __call__(self, getter: Callable[[S], V]) -> Lens[S, V]:
        return lens(getter)


sys.modules[__name__].__class__ = _Module


# --- Laws


@dataclass(frozen=True)
class Counterexample:
    """The samples with which a lens breaks a law: what it should have given, and what it gave instead."""

    source: Any
    views: tuple[Any, ...]
    expected: Any
    actual: Any


@dataclass(frozen=True)
class LensLaws:
    """Which laws a lens keeps. Each is None where it held for all samples, else the first counterexample.

    >>> laws = check_lens_laws(simplify, samples)
    >>> assert laws, laws
    """

    get_put: Counterexample | None = None
    """GetPut: putting back the view of a source changes nothing."""
    put_get: Counterexample | None = None
    """PutGet: a view that was put is the view one gets."""
    put_put: Counterexample | None = None
    """PutPut: of two views put one after the other, the last one counts."""

    def __bool__(self) -> bool:
        return self.get_put is None and self.put_get is None and self.put_put is None

    def __str__(self) -> str:
        laws = {"GetPut": self.get_put, "PutGet": self.put_get, "PutPut": self.put_put}
        return "\n".join(
            f"{name} holds" if found is None else f"{name} is broken: expected {found.expected!r}, got {found.actual!r}"
            for name, found in laws.items()
        )


def check_lens_laws(lens: Lens[S, V], samples: Iterable[S]) -> LensLaws:
    """Try the three lens laws on *samples*, with the views of some put into others.

    >>> print(check_lens_laws(simplify, samples))
    GetPut holds
    PutGet holds
    PutPut holds

    Raises ValueError when there are no samples: then nothing is shown.
    """
    sources = list(samples)
    if not sources:
        raise LensError("the laws of a lens are checked with samples; give at least one, better some that differ")
    views = [lens.get(source) for source in sources]
    get_put = put_get = put_put = None
    for i, source in enumerate(sources):
        if get_put is None:
            get_put = _compare(source, lens.put(views[i], source), source, views[i])
        # Neighbours stand for all pairs, which would be too many.
        first, second = views[(i + 1) % len(views)], views[(i + 2) % len(views)]
        once = lens.put(first, source)
        if put_get is None:
            put_get = _compare(first, lens.get(once), source, first)
        if put_put is None:
            put_put = _compare(lens.put(second, source), lens.put(second, once), source, first, second)
    return LensLaws(get_put, put_get, put_put)


def _compare(expected: Any, actual: Any, source: Any, *views: Any) -> Counterexample | None:
    return None if is_same(expected, actual) else Counterexample(source, views, expected, actual)
