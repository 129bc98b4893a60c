"""Which structures are wider or narrower than others, found without comparing each with all. Pure.

A sample of a wider structure is read as a narrower one by leaving fields out: a projection. That is
`atdata.structure.covers` with one thing more: something must be left of the sample. Everything could be read as what
requires no field at all; here, only what has at least one of its fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Final

from pyroaring import BitMap

from atdata.structure import Field, Structure, covers

#: So many narrower structures of one are known: the first that came here. Who makes thousands has no good in mind.
NARROWER: Final = 500

# Types of one name that leave something open: those that come after them are read as themselves only. And comparisons
# of types that one structure may cause: so are the new types that it has then.
_OPEN: Final = 50
_MEETS: Final = 10_000

# Fields that are looked at for the narrower ones of one structure; a structure counts as some itself.
_LOOKS: Final = 200_000
_LOOKS_EACH: Final = 10

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

    Where one may have more narrower structures than are known, it is in `more_narrower`, and those that may be these
    are in `more_wider`. When one of the known is removed, the others are looked for again, some each time one settles.
    """

    def __init__(self) -> None:
        # Each field once, by name and then type: most structures share theirs with others.
        self._named: dict[str, _Field | _Types] = {}
        self._required: list[tuple[_Field, ...]] = []
        self._optional: list[tuple[_Field, ...]] = []
        # Those that require nothing.
        self._lenient = BitMap()
        self._wider: list[BitMap] = []
        self._narrower: list[BitMap] = []
        # Those whose narrower ones are so many that no further one is noted.
        self._full = BitMap()
        self.more_narrower = BitMap()
        self.more_wider = BitMap()
        #: Counts how often something was found that was left out before.
        self.repairs = 0
        # Those of which nothing is noted yet, and those to look at again.
        self._new: dict[int, None] = {}
        self._again: dict[int, None] = {}
        self._settled = BitMap()
        self._meets = 0

    def add(self, number: int, structure: Structure) -> None:
        """Number a structure; the number is not in use."""
        while len(self._required) <= number:
            self._required.append(())
            self._optional.append(())
            self._wider.append(_NONE)
            self._narrower.append(_NONE)
        self._meets = _MEETS
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
        for named in self._several(chain(required, optional)):
            if named.having is not None:
                named.having.add(number)
        self._required[number], self._optional[number] = required, optional
        self._new[number] = None

    def remove(self, number: int) -> None:
        """Forget a structure."""
        required, optional = self._required[number], self._optional[number]
        self._required[number], self._optional[number] = (), ()
        self._lenient.discard(number)
        for named in self._several(chain(required, optional)):
            if named.having is not None:
                named.having.discard(number)
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
        self._again.update(dict.fromkeys(self._wider[number] & self.more_narrower))
        self._wider[number] = self._narrower[number] = _NONE
        for numbers in (self._full, self.more_narrower, self.more_wider, self._settled):
            numbers.discard(number)
        for waiting in (self._new, self._again):
            waiting.pop(number, None)

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
        """Find what is wider and narrower than those that are new, and look at some again."""
        new = list(self._new)
        for number in new:
            self._note(self._find_wider(number), number)
        # What is narrower than one that is new, and new itself, is found from its own side.
        for number in new if self._settled else ():
            self._note_narrower(number)
        self._settled.update(new)
        self._new.clear()
        looks = 0
        while self._again and looks < _LOOKS:
            number = next(iter(self._again))
            del self._again[number]
            self.more_narrower.discard(number)
            looks += self._note_narrower(number)
            self.repairs += 1
        if not self.more_narrower:
            self.more_wider.clear()

    def _note(self, wider: BitMap, narrower: int) -> None:
        if left_out := wider & self._full:
            self.more_narrower |= left_out
            self.more_wider.add(narrower)
            wider = wider - left_out
        if not wider:
            return
        self._wider[narrower] = self._wider[narrower] | wider
        for number in wider:
            known = self._narrower[number]
            if known is _NONE:
                known = self._narrower[number] = BitMap()
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
            found = _union(
                chain.from_iterable((one.required, one.optional) for field in optional for one in field.written)
            )
        found.discard(number)
        for field in optional:
            if not found:
                break
            # Who has a field of this name has it as something that can be read.
            for named in self._several([field]):
                if named.having is None:
                    named.having = _union(
                        chain.from_iterable((one.required, one.optional) for one in named.of.values())
                    )
                found -= _less(found & named.having, field)
        return found

    def _note_narrower(self, number: int) -> int:
        """Note the settled ones that are narrower, as far as they are looked at; returns how many looks that took."""
        required, optional = self._required[number], self._optional[number]
        sure = {read for field in required for read in field.read}
        perhaps = sure.union(*(field.read for field in optional))
        candidates = _union(field.filed for field in sure)
        if self._lenient:
            candidates |= _union(field.optional for field in perhaps) & self._lenient
        candidates &= self._settled
        candidates.discard(number)
        candidates -= self._narrower[number]
        names = {field.name for field in chain(required, optional)}
        looks = 0
        for place, other in enumerate(candidates):
            if number in self._full or looks >= _LOOKS:
                self.more_narrower.add(number)
                self.more_wider |= candidates[place:]
                break
            theirs, may_have = self._required[other], self._optional[other]
            looks += _LOOKS_EACH
            # With more fields than there are here it asks for one that is not.
            if len(theirs) > len(required):
                continue
            looks += len(theirs)
            if sure.issuperset(theirs):
                looks += len(may_have)
                if all(field in perhaps or field.name not in names for field in may_have):
                    self._note(BitMap([number]), other)
        return looks

    def _several(self, fields: Iterable[_Field]) -> Iterator[_Types]:
        """The types of each of these fields' names that has several."""
        for field in fields:
            named = self._named[field.name]
            if isinstance(named, _Types):
                yield named

    def _field(self, field: Field) -> _Field:
        named = self._named.get(field.name)
        if named is None:
            first = self._named[field.name] = _Field(field.name, field.type)
            return first
        if isinstance(named, _Field):
            if named.type == field.type:
                return named
            named = self._named[field.name] = _Types(named)
        found = named.of.get(field.type)
        if found is None:
            # Its name is that of the others: a copy for each type would be memory for nothing.
            found = _Field(next(iter(named.of.values())).name, field.type)
            self._meets -= named.add(found, self._meets)
        return found

    def _forget(self, field: _Field) -> None:
        named = self._named.get(field.name)
        if isinstance(named, _Types) and len(named.of) > 1:
            named.remove(field)
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

    def meet(self, others: Iterable[_Field]) -> None:
        """Get to know fields of the same name."""
        for other in others:
            for one, as_other in ((self, other), (other, self)):
                if _is_read_as(one.type, as_other.type):
                    one.read += (as_other,)
                    as_other.written += (one,)

    def part(self) -> None:
        """Be forgotten by them."""
        for other in self.read:
            other.written = _apart(other.written, self)
        for other in self.written:
            other.read = _apart(other.read, self)
        self.read = self.written = ()


class _Types:
    """The types that fields of one name have, and, once somebody asked, the structures that have a field of that name.

    Thousands of types can be of one name: each is compared only with those with which it could have to do.
    """

    __slots__ = ("_families", "having", "of")

    def __init__(self, first: _Field) -> None:
        self.of: dict[str, _Field] = {}
        self.having: BitMap | None = None
        # By what two of them have in common where one is read as the other; those that leave something open, under "".
        self._families: dict[str, tuple[_Field, ...]] = {}
        self.add(first, 0)

    def add(self, field: _Field, limit: int) -> int:
        """Add a type, and have it meet the others, at most *limit*; returns how many."""
        family = _family(field.type)
        open_ones, relatives = self._families.get("", ()), self._families.get(family, ())
        others: tuple[_Field, ...] = ()
        if family:
            others = (open_ones + relatives)[:limit]
        elif len(open_ones) < _OPEN:
            others = tuple(islice(self.of.values(), limit))
        field.meet(others)
        if family != field.type and len(relatives) < _OPEN:
            self._families[family] = (*relatives, field)
        self.of[field.type] = field
        return len(others)

    def remove(self, field: _Field) -> None:
        """Forget a type."""
        del self.of[field.type]
        family = _family(field.type)
        if field in (relatives := self._families.get(family, ())):
            self._families[family] = _apart(relatives, field)
            if not self._families[family]:
                del self._families[family]


@lru_cache(4096)
def _family(type_: str) -> str:
    """Nothing for a type that leaves lengths or items open. Of the others, no two of different families are read as one
    another: an array's is its type without the dtype, any other's is itself."""
    inner = type_.replace("array<", "").rstrip(">")
    if inner == "array":
        return ""
    if not inner.startswith("ndarray:"):
        return type_
    _, dtype, *shape = inner.split(":")
    is_open = not shape or "0" in shape[0].split("x")
    return "" if is_open else type_.replace(f":{dtype}:", ":")


def _apart(fields: tuple[_Field, ...], field: _Field) -> tuple[_Field, ...]:
    place = fields.index(field)
    return fields[:place] + fields[place + 1 :]


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


def _less(numbers: BitMap, field: _Field) -> BitMap:
    """The numbers, without those of structures that have a field which is read as this one."""
    for other in field.written:
        if not numbers:
            break
        for posting in (other.required, other.optional):
            if isinstance(posting, int):
                numbers.discard(posting)
            elif posting is not None:
                numbers -= posting
    return numbers


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
