"""From a path of published lenses to one lens of this program, made of those that are registered here. No I/O.

A published lens names its code, and nobody fetches that: it counts as registered here when a lens of `LensNetwork`
leads between sample types of the same two structures (`atdata.structure`), and its getter has the name of the function
in the record's `getterCode` (`transforms/simplify.py:simplify_getter`); where the record names no function, when the
lens has the record's name. Folders and files are not compared: installed packages have them elsewhere.

Types of one structure are different classes, for different people declare them. Between two lenses, and where a path
has a projection, samples are read anew as the type that comes next, from what would be stored of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from atdata.errors import LensError, SchemaError
from atdata.lens import Lens, LensNetwork, read_as
from atdata.structure import Structure, covers, structure_of_type
from atdata.views import LensPath, LensView

__all__ = ["compose", "project"]


def compose(
    paths: Iterable[LensPath], source: type[Any] | None, view: type[Any], registered: Sequence[Lens[Any, Any]]
) -> Lens[Any, Any]:
    """The lens from *source* to *view* along the first of *paths* all of whose lenses are among *registered*.

    >>> compose(appview.find_lens_path(uri, Simple), None, Simple, LensNetwork().lenses)
    Lens(simplify: Full → Simple)

    *source* is the type of the samples that there are; None where there is what is stored, which the first lens can
    read as its own type. Raises LensError, a ValueError, that says which code to install when no path will do.
    """
    best: list[LensView] | None = None
    for path in paths:
        missing: list[LensView] = []
        lenses: list[Lens[Any, Any]] = []
        for hop in path.hops:
            if hop.lens is None:
                continue
            at = lenses[-1].view_type if lenses else source
            local = _find(hop.lens, hop.from_key, hop.to_key, at, registered)
            if local is None:
                missing.append(hop.lens)
            else:
                lenses.append(local)
        if not missing and (whole := _joined(source, view, lenses)) is not None:
            return whole
        # That for which there is least to install; of equal ones the first, which is the best.
        if missing and (best is None or len(missing) < len(best)):
            best = missing
    if best is None:
        raise LensError(f"no path of published lenses leads to {view.__name__}")
    raise LensError(
        "there is a path of published lenses, and code is never fetched; install and import: "
        + "; ".join(map(_where, best))
    )


def project(there: type[Any], source: type[Any] | None, view: type[Any]) -> Lens[Any, Any] | None:
    """The lens that reads samples of type *there* as *view* by their fields; None where they lack what it needs.

    >>> project(Full, None, Simple)
    Lens(identity: Simple → Simple)

    *source* is as in `compose`.
    """
    have, want = _structure(there), _structure(view)
    return None if have is None or want is None or not covers(have, want) else _joined(source, view, ())


def _find(
    lens: LensView, from_key: str, to_key: str, at: type[Any] | None, registered: Sequence[Lens[Any, Any]]
) -> Lens[Any, Any] | None:
    """The registered lens that the published *lens* is; of several, one that takes samples of type *at* as they are."""
    code = lens.getter_code
    _, colon, function = code.path.rpartition(":") if code else ("", "", "")
    found = None
    for one in registered:
        name = _function_name(one) if colon else one.name
        if name != (function.rpartition(".")[2] if colon else lens.name):
            continue
        if _key(one.source_type) == from_key and _key(one.view_type) == to_key:
            if one.source_type is at:
                return one
            found = found or one
    return found


def _function_name(lens: Lens[Any, Any]) -> str:
    getter = inspect.unwrap(lens.getter_function)
    name: str = getattr(getter, "__qualname__", type(getter).__qualname__)
    return name.rpartition(".")[2]


def _structure(sample_type: type[Any]) -> Structure | None:
    try:
        return structure_of_type(sample_type)
    except SchemaError:  # no schema can express it, so that none was published
        return None


def _key(sample_type: type[Any]) -> str | None:
    structure = _structure(sample_type)
    return None if structure is None else structure.fingerprint


def _joined(source: type[Any] | None, view: type[Any], lenses: Sequence[Lens[Any, Any]]) -> Lens[Any, Any] | None:
    """One lens of *lenses* and of what lies between their types; None where samples of one are none of the next."""
    at = source or (lenses[0].source_type if lenses else view)
    steps: list[Lens[Any, Any]] = []
    for lens in (*lenses, None):
        wanted = view if lens is None else lens.source_type
        if at is not wanted:
            have, want = _structure(at), _structure(wanted)
            if have is None or want is None or not covers(have, want):
                return None
            steps.append(read_as(at, wanted))
        if lens is not None:
            steps.append(lens)
            at = lens.view_type
    whole = steps[0] if steps else LensNetwork().transform(view, view)
    for step in steps[1:]:
        whole = whole | step
    return whole


def _where(lens: LensView) -> str:
    """A published lens, and where its code is."""
    code = lens.getter_code
    if code is None:
        return f"{_line(lens.name)} ({lens.uri}), of whose code the record says nothing: ask {lens.publisher}"
    return f"{_line(lens.name)} ({lens.uri}): {_line(code.repository)} at {_line(code.commit)}, {_line(code.path)}"


def _line(text: str) -> str:
    """A stranger's text, fit for a message of one line."""
    return "".join(c for c in text[:200] if c.isprintable())
