"""Which structures are wider or narrower than others, found without comparing each with all. Pure.

A sample of a wider structure is read as a narrower one by leaving fields out: a projection. That is
`atdata.structure.covers` with one thing more: something must be left of the sample. Everything could be read as what
requires no field at all; here, only what has at least one of its fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final

from pyroaring import BitMap

from atdata.structure import Field, Structure, covers

#: So many narrower structures of one are known: the first that came here. Who makes thousands has no good in mind.
NARROWER: Final = 500

# A field's type is compared with so many others that fields of its name have. The types that come after them are read
# as themselves only.
_TYPES: Final = 500

# Structures that are looked at for the narrower ones of one.
_CANDIDATES: Final = 2000

# Of most structures, none is wider: they share this one.
_NONE: Final = BitMap()


class Projections:
    """Structures by numbers that the caller gives them; those that are wider or narrower than one.

    >>> projections = Projections()
    >>> projections.add(1, Structure((Field("image", "ndarray:uint8:28x28"), Field("label", "int"))))
    >>> projections.add(2, Structure((Field("label", "int"),)))
    >>> list(projections.wider(2)), list(projections.narrower(1))
    ([1], [2])

    Both are kept for every structure, at some two bytes a pair and 200 a set, and so are there at once. Nobody may
    change the sets. What a new structure adds to them, some tenth of a millisecond's work, is found at the next
    question, so that many can be added at once for less.
    """

    def __init__(self) -> None:
        # Each field once, by name and then type: most structures share theirs with others.
        self._named: dict[str, _Field | dict[str, _Field]] = {}
        self._required: list[tuple[_Field, ...]] = []
        self._optional: list[tuple[_Field, ...]] = []
        # Those that require nothing.
        self._lenient = BitMap()
        self._wider: list[BitMap] = []
        self._narrower: list[BitMap] = []
        # Those whose narrower ones are so many that no further one is noted; and those of which nothing is noted yet.
        self._full = BitMap()
        self._new: dict[int, None] = {}
        self._settled = BitMap()

    def add(self, number: int, structure: Structure) -> None:
        """Number a structure; the number is not in use."""
        while len(self._required) <= number:
            self._required.append(())
            self._optional.append(())
            self._wider.append(_NONE)
            self._narrower.append(_NONE)
        required = tuple(self._field(field) for field in structure.fields if not field.optional)
        optional = tuple(self._field(field) for field in structure.fields if field.optional)
        for field in required:
            field.required = _with(field.required, number)
        for field in optional:
            field.optional = _with(field.optional, number)
        if required:
            # Whoever looks for narrower ones finds each by one of its fields: one that few others have.
            rarest = min(required, key=lambda field: _size(field.required))
            rarest.filed = _with(rarest.filed, number)
        else:
            self._lenient.add(number)
        self._required[number], self._optional[number] = required, optional
        self._new[number] = None

    def remove(self, number: int) -> None:
        """Forget a structure."""
        required, optional = self._required[number], self._optional[number]
        self._required[number], self._optional[number] = (), ()
        self._lenient.discard(number)
        for field in required:
            field.required = _without(field.required, number)
            field.filed = _without(field.filed, number)
        for field in optional:
            field.optional = _without(field.optional, number)
        for field in (*required, *optional):
            if field.required is None and field.optional is None:
                self._forget(field)
        for other in self._wider[number]:
            self._narrower[other].discard(number)
        for other in self._narrower[number]:
            self._wider[other].discard(number)
        self._full -= self._wider[number]
        self._wider[number] = self._narrower[number] = _NONE
        self._full.discard(number)
        self._settled.discard(number)
        self._new.pop(number, None)

    def wider(self, number: int) -> BitMap:
        """The structures that can be projected to this one."""
        if self._new:
            self.settle()
        return self._wider[number]

    def narrower(self, number: int) -> BitMap:
        """The structures to which this one can be projected, at most `NARROWER`."""
        if self._new:
            self.settle()
        return self._narrower[number]

    def settle(self) -> None:
        """Find what is wider and narrower than those that are new."""
        new = list(self._new)
        for number in new:
            self._note(self._find_wider(number) - self._full, number)
        # What is narrower than one that is new, and new itself, is found from its own side.
        for number in new if self._settled else ():
            for other in self._find_narrower(number, self._settled):
                if number not in self._full:
                    self._note(BitMap([number]), other)
        self._settled.update(new)
        self._new.clear()

    def _note(self, wider: BitMap, narrower: int) -> None:
        if not wider:
            return
        self._wider[narrower] = self._wider[narrower] | wider
        for number in wider:
            known = self._narrower[number]
            if known is _NONE:
                self._narrower[number] = BitMap([narrower])
            else:
                known.add(narrower)
                if len(known) >= NARROWER:
                    self._full.add(number)

    def _find_wider(self, number: int) -> BitMap:
        required, optional = self._required[number], self._optional[number]
        found: BitMap | None = None
        # The rarest field first: often, nobody else has it.
        for field in sorted(required, key=lambda field: _size(field.required)):
            having = _union(other.required for other in field.written)
            found = having if found is None else found & having
            if len(found) <= 1:
                break
        if found is None:
            fields = [other for field in optional for other in field.written]
            found = _union(chain((field.required for field in fields), (field.optional for field in fields)))
        found.discard(number)
        for field in optional if found else ():
            # Who has this field has it as something that can be read.
            for other in self._types(field.name):
                if other not in field.written:
                    found -= _union((other.required, other.optional))
        return found

    def _find_narrower(self, number: int, among: BitMap) -> list[int]:
        required, optional = self._required[number], self._optional[number]
        sure = {read for field in required for read in field.read}
        perhaps = sure.union(*(field.read for field in optional))
        candidates = _union(field.filed for field in sure)
        if self._lenient:
            candidates |= _union(field.optional for field in perhaps) & self._lenient
        candidates &= among
        candidates.discard(number)
        if len(candidates) > _CANDIDATES:
            candidates = candidates[:_CANDIDATES]
        names = {field.name for field in chain(required, optional)}
        return [
            other
            for other in candidates
            if sure.issuperset(self._required[other])
            and all(field in perhaps or field.name not in names for field in self._optional[other])
        ]

    def _types(self, name: str) -> Iterable[_Field]:
        named = self._named[name]
        return (named,) if isinstance(named, _Field) else named.values()

    def _field(self, field: Field) -> _Field:
        named = self._named.get(field.name)
        if named is None:
            first = self._named[field.name] = _Field(field.name, field.type)
            return first
        if isinstance(named, _Field):
            if named.type == field.type:
                return named
            named = self._named[field.name] = {named.type: named}
        found = named.get(field.type)
        if found is None:
            others = list(named.values())
            # Its name is that of the others: a copy for each type would be memory for nothing.
            found = named[field.type] = _Field(others[0].name, field.type)
            if len(others) < _TYPES:
                found.meet(others)
        return found

    def _forget(self, field: _Field) -> None:
        named = self._named.get(field.name)
        if isinstance(named, dict) and len(named) > 1:
            del named[field.type]
        else:
            del self._named[field.name]
        field.part()


# Most fields of the world are used by one structure; a set of one takes 200 bytes, its number next to nothing.
_Posting = BitMap | int | None


class _Field:
    """A field that structures have, and which: those that require it, those that do not, those filed under it.

    And the fields of the same name as which it can be read, and that are read as it; itself is one of both.
    """

    __slots__ = ("filed", "name", "optional", "read", "required", "type", "written")

    def __init__(self, name: str, type_: str) -> None:
        self.name = name
        self.type = type_
        self.required: _Posting = None
        self.optional: _Posting = None
        self.filed: _Posting = None
        self.read: tuple[_Field, ...] = (self,)
        self.written: tuple[_Field, ...] = (self,)

    def meet(self, others: Sequence[_Field]) -> None:
        """Get to know fields of the same name."""
        for other in others:
            if _is_read_as(self.type, other.type):
                self.read += (other,)
                other.written += (self,)
            if _is_read_as(other.type, self.type):
                self.written += (other,)
                other.read += (self,)

    def part(self) -> None:
        """Be forgotten by them."""
        for other in self.read:
            other.written = tuple(field for field in other.written if field is not self)
        for other in self.written:
            other.read = tuple(field for field in other.read if field is not self)
        self.read = self.written = ()


@lru_cache(4096)
def _alone(type_: str) -> Structure:
    return Structure((Field("x", type_),))


def _is_read_as(written: str, read: str) -> bool:
    return covers(_alone(written), _alone(read))


def _with(posting: _Posting, number: int) -> _Posting:
    if posting is None:
        return number
    if isinstance(posting, int):
        return BitMap([posting, number])
    posting.add(number)
    return posting


def _without(posting: _Posting, number: int) -> _Posting:
    if posting is None or isinstance(posting, int):
        return None if posting == number else posting
    posting.discard(number)
    return posting or None


def _size(posting: _Posting) -> int:
    if posting is None:
        return 0
    return 1 if isinstance(posting, int) else len(posting)


def _union(postings: Iterable[_Posting]) -> BitMap:
    """A set of its own, which the caller may change."""
    found = BitMap()
    for posting in postings:
        if isinstance(posting, int):
            found.add(posting)
        elif posting is not None:
            found |= posting
    return found
