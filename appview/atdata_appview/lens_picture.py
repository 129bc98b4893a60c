"""The lenses of a schema as a picture: what leads to it on the left, what it leads to on the right. Pure: positions.

The template draws it as SVG, with colours from the style sheet: no script, no style of its own, nothing from elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from atdata_appview.lens_graph import Hop, Neighbourhood
from atdata_appview.lens_table import State

# Places on one side; what is beyond is counted.
_SHOWN: Final = 6

_BOX_WIDTH: Final = 200
_BOX_HEIGHT: Final = 44
_PITCH: Final = 60
# Between boxes: beside the outer one, an arrow runs straight below its label, and then to the middle one.
_LABEL: Final = 116
_GAP: Final = _LABEL + 74
_MARGIN: Final = 2
# From the edge of a box to the tip of an arrow.
_TIP: Final = 3
# What has room in a box, and as a label.
_BOX_LETTERS: Final = 20
_LABEL_LETTERS: Final = 15

WIDTH: Final = 2 * _MARGIN + 3 * _BOX_WIDTH + 2 * _GAP


@dataclass(frozen=True, slots=True)
class Node:
    """What is said of a node: how it is called, the URI of one of its schemas, how many it has, and its state."""

    name: str
    schema: str
    schemas: int
    state: State

    @property
    def title(self) -> str:
        """Its name, as far as it has room."""
        return fitted(self.name, _BOX_LETTERS)

    @property
    def note(self) -> str:
        """What is special about it; empty if nothing is."""
        if self.state != "readable":
            return "not here" if self.state == "missing" else "cannot be read"
        return f"{self.schemas} equal schemas" if self.schemas > 1 else ""


@dataclass(frozen=True, slots=True)
class Box:
    """A node, where it is drawn."""

    x: float
    y: float
    node: Node


@dataclass(frozen=True, slots=True)
class Arrow:
    """Lenses between two boxes, or a projection: a curve, and what is written on it."""

    curve: str
    label: str
    label_x: float
    label_y: float
    is_projection: bool
    has_putter: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn, the schema itself first; and how many places found no room on either side."""

    height: float
    boxes: Sequence[Box]
    arrows: Sequence[Arrow]
    more_in: int
    more_out: int
    has_projections: bool
    has_putters: bool

    width: float = WIDTH
    box_width: float = _BOX_WIDTH
    box_height: float = _BOX_HEIGHT
    label_width: float = _LABEL


def draw(
    found: Neighbourhood, nodes: Callable[[str], Node], lens_names: Mapping[int, tuple[str, str]]
) -> Picture | None:
    """The neighbourhood at depth 1, of which *nodes* tells more by key; None if there is nothing around."""
    root = next(iter(found.nodes))
    into = _by_place((edge.source, edge) for edge in found.edges if edge.target == root != edge.source)
    out = _by_place((edge.target, edge) for edge in found.edges if edge.source == root != edge.target)
    if not into and not out:
        return None
    rows = max(min(len(into), _SHOWN), min(len(out), _SHOWN), 1)
    height = 2 * _MARGIN + (rows - 1) * _PITCH + _BOX_HEIGHT
    left, centre = _MARGIN, _MARGIN + _BOX_WIDTH + _GAP
    right = centre + _BOX_WIDTH + _GAP
    boxes = [Box(centre, (height - _BOX_HEIGHT) / 2, nodes(root))]
    arrows = []
    for places, x in ((into, left), (out, right)):
        shown = list(places.items())[:_SHOWN]
        for n, (key, edges) in enumerate(shown):
            y = height / 2 + (n - (len(shown) - 1) / 2) * _PITCH
            boxes.append(Box(x, y - _BOX_HEIGHT / 2, nodes(key)))
            # They end side by side at the middle box.
            end = height / 2 + (n - (len(shown) - 1) / 2) * (_BOX_HEIGHT - 12) / _SHOWN
            arrows.append(_arrow(x == left, centre, y, end, edges, lens_names))
    return Picture(
        height,
        boxes,
        arrows,
        more_in=max(0, len(into) - _SHOWN),
        more_out=max(0, len(out) - _SHOWN),
        has_projections=any(arrow.is_projection for arrow in arrows),
        has_putters=any(arrow.has_putter for arrow in arrows),
    )


def _by_place(edges: Iterable[tuple[str, Hop]]) -> dict[str, list[Hop]]:
    """By the other end, those with lenses first; where there are lenses, nobody needs the projection."""
    found: dict[str, list[Hop]] = {}
    for key, edge in edges:
        found.setdefault(key, []).append(edge)
    lenses = {key: [hop for hop in hops if hop.lens is not None] for key, hops in found.items()}
    return {
        **{key: hops for key, hops in lenses.items() if hops},
        **{key: found[key] for key, hops in lenses.items() if not hops},
    }


def _arrow(
    is_left: bool, centre: float, y: float, end: float, edges: Sequence[Hop], names: Mapping[int, tuple[str, str]]
) -> Arrow:
    outer, inner = (centre - _GAP, centre) if is_left else (centre + _BOX_WIDTH + _GAP, centre + _BOX_WIDTH)
    inwards = 1 if is_left else -1
    has_putter = any(edge.has_putter for edge in edges)
    # Room for the tips: where it leads to, and where it comes from if it can be run backwards.
    outer_tip = outer + inwards * (_TIP if has_putter or not is_left else 0)
    inner_tip = inner - inwards * (_TIP if has_putter or is_left else 0)
    bend = outer + inwards * _LABEL
    middle = (bend + inner) / 2
    if is_left:
        curve = f"M{outer_tip:g} {y:g}H{bend:g}C{middle:g} {y:g} {middle:g} {end:g} {inner_tip:g} {end:g}"
    else:
        curve = f"M{inner_tip:g} {end:g}C{middle:g} {end:g} {middle:g} {y:g} {bend:g} {y:g}H{outer_tip:g}"
    if edges[0].lens is None:
        label = "fewer fields"
    elif len(edges) > 1:
        label = f"{len(edges)} lenses"
    else:
        label = fitted(names.get(edges[0].lens, ("", ""))[1], _LABEL_LETTERS)
    return Arrow(
        curve=curve,
        label=label,
        label_x=outer if is_left else outer - _LABEL,
        label_y=y - 22,
        is_projection=edges[0].lens is None,
        has_putter=has_putter,
    )


def fitted(text: str, letters: int) -> str:
    """The beginning of *text* that takes no more room than so many letters.

    >>> fitted("Handwritten digits", 8), fitted("手書き数字", 8)
    ('Handwrit…', '手書き数…')
    """
    room = float(letters)
    for at, character in enumerate(text):
        if not unicodedata.combining(character):
            room -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if room < 0:
            return f"{text[:at].rstrip()}…"
    return text
