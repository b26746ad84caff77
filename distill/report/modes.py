"""How modes are told apart in pictures: a colour-blind-safe hue per group, a shade and a line style within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a6c00")
"""Seven colours that people with any colour blindness can tell apart (Okabe and Ito, 2008), the yellow darkened."""

_LINES = ("-", "--", ":", "-.")
_DASHES = {"-": "", "--": "6 3", ":": "2 2", "-.": "6 2 2 2"}


@dataclass(frozen=True)
class ModeStyle:
    """colour: as #rrggbb. line: a line style of matplotlib."""

    colour: str
    line: str = "-"

    @property
    def dashes(self) -> str:
        """The line style as SVG's stroke-dasharray."""
        return _DASHES[self.line]


UNKNOWN = ModeStyle("#1c2430")


def mode_groups(modes: Sequence[str]) -> list[list[str]]:
    """Modes in groups, at most as many as there are hues where that is possible.

    With few modes each is its own group. Names of parts joined by "-", such as L-C-3 for one gate after another, are grouped
    by as many first parts as fit; other modes in equal parts, in order.
    """
    if len(modes) <= len(HUES):
        return [[mode] for mode in modes]
    for parts in range(max(mode.count("-") for mode in modes), 0, -1):
        grouped: dict[str, list[str]] = {}
        for mode in modes:
            grouped.setdefault("-".join(mode.split("-")[:parts]), []).append(mode)
        if len(grouped) <= len(HUES):
            return list(grouped.values())
    size = -(-len(modes) // len(HUES))
    return [list(modes[first : first + size]) for first in range(0, len(modes), size)]


def mode_styles(modes: Sequence[str]) -> dict[str, ModeStyle]:
    """A style per mode: the hue of its group; within the group another shade and, in turn, another line style."""
    styles = {}
    for hue, group in zip(HUES, mode_groups(modes), strict=False):
        for index, mode in enumerate(group):
            lightness = 0.0 if len(group) == 1 else 0.9 * index / (len(group) - 1) - 0.45
            styles[mode] = ModeStyle(_shaded(hue, lightness), _LINES[index % len(_LINES)])
    return styles


def _shaded(colour: str, lightness: float) -> str:
    """Mixed with white (lightness > 0) or black."""
    to = 255 if lightness > 0 else 0
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(lightness) * (to - part)):02x}" for part in parts)
