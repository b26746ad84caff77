"""A section of the report: functions of the results, and the part of a page they produce."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.report.policies import Results
from distill.report.tables import Table

KINDS = ("run", "conversion", "comparison")
"""The kinds of reports: `results["kind"]`."""


@dataclass(frozen=True)
class Picture:
    """source: a data URI, "" for one that is not in the page. alt: what it shows. caption: lines above it, the first bold.

    note: printed below the pictures, such as why one is missing. file: its path next to the page, if any.
    """

    source: str
    alt: str
    caption: tuple[str, ...] = ()
    note: str = ""
    file: str = ""


@dataclass(frozen=True)
class LegendEntry:
    """colour: of a line in the pictures above, "" for the cross of a failure; counts: small, after the name."""

    colour: str
    name: str
    counts: str = ""


@dataclass(frozen=True)
class Part:
    """The content of a section for some results. level: of its heading. missing: printed instead of everything else."""

    title: str
    level: int
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    legend: tuple[LegendEntry, ...] = ()
    table: Table | None = None
    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    code: bool = False
    missing: str = ""


def _no_table(results: Results) -> Table | None:
    return None


def _nothing(results: Results) -> Sequence[str]:
    return ()


def _no_pictures(results: Results, folder: Path) -> Sequence[Picture]:
    return ()


def _no_legend(results: Results) -> Sequence[LegendEntry]:
    return ()


@dataclass(frozen=True)
class Section:
    """One topic of the report; every field but the first is optional. Listed in distill.report.contents.

    table: None when the results hold nothing for it. pictures: get the report's folder, which holds the clips. lines:
    sentences, or commands when `code`. A section without table, pictures and lines is omitted; in a run's report it is
    replaced by `missing`, if given. text: paragraphs before the rest. notes: paragraphs after it. legend: of the pictures.
    kinds: of reports it belongs to. level: 2, or 3 for a sub-section of the section before it.
    """

    title: str
    table: Callable[[Results], Table | None] = _no_table
    text: Callable[[Results], Sequence[str]] = _nothing
    pictures: Callable[[Results, Path], Sequence[Picture]] = _no_pictures
    legend: Callable[[Results], Sequence[LegendEntry]] = _no_legend
    notes: Callable[[Results], Sequence[str]] = _nothing
    lines: Callable[[Results], Sequence[str]] = _nothing
    code: bool = False
    missing: str = ""
    kinds: tuple[str, ...] = KINDS
    level: int = 2

    def part(self, results: Results, folder: Path) -> Part | None:
        """Its content for these results; None when it is omitted."""
        if results["kind"] not in self.kinds:
            return None
        table, pictures, lines = self.table(results), tuple(self.pictures(results, folder)), tuple(self.lines(results))
        notes = tuple(self.notes(results))
        if table is None and not pictures and not lines:
            missing = self.missing if results["kind"] == "run" else ""
            return Part(self.title, self.level, notes=notes, missing=missing) if missing or notes else None
        legend = tuple(self.legend(results)) if pictures else ()
        return Part(
            self.title, self.level, tuple(self.text(results)), pictures, legend, table, notes, lines, self.code
        )


def parts(sections: Sequence[Section], results: Results, folder: Path) -> list[Part]:
    """The content of all sections, in order; a sub-section whose section is omitted moves up a level."""
    filled: list[Part] = []
    headed = True
    for section in sections:
        part = section.part(results, folder)
        if section.level == 2:
            headed = part is not None
        if part is not None:
            filled.append(part if headed else replace(part, level=2))
            headed = True
    return filled


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A picture as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
