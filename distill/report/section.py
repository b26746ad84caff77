"""A section of the report: functions of the results, and the part of a page they produce."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    """colour: of a line in the pictures above, "" for the cross of a failure; counts: small, after the name.

    dashes: of the line, as SVG's stroke-dasharray.
    """

    colour: str
    name: str
    counts: str = ""
    dashes: str = ""


@dataclass(frozen=True)
class Part:
    """The content of a section for some results. level: of its heading. missing: printed instead of everything else.

    interactive: data for the page's own script, by the name of what the script makes of it. terms: (term, meaning).
    """

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
    interactive: tuple[str, Mapping[str, Any]] | None = None
    terms: tuple[tuple[str, str], ...] = ()


def _no_table(results: Results) -> Table | None:
    return None


def _nothing(results: Results) -> Sequence[str]:
    return ()


def _no_pictures(results: Results, folder: Path) -> Sequence[Picture]:
    return ()


def _no_interactive(results: Results) -> tuple[str, Mapping[str, Any]] | None:
    return None


def _no_terms(results: Results) -> Sequence[tuple[str, str]]:
    return ()


def _no_legend(results: Results) -> Sequence[LegendEntry]:
    return ()


@dataclass(frozen=True)
class Section:
    """One topic of the report; every field but the first is optional. Listed in distill.report.contents.

    table: None when the results hold nothing for it. pictures: get the report's folder, which holds the clips. lines:
    sentences, or commands when `code`. A section without table, pictures and lines is omitted; in a run's report it is
    replaced by `missing`, if given. text: paragraphs before the rest. notes: paragraphs after it. legend: of the pictures.
    interactive, terms: see `Part`. kinds: of reports it belongs to. level: 2, or 3 for a sub-section of the section before it.
    """

    title: str
    table: Callable[[Results], Table | None] = _no_table
    text: Callable[[Results], Sequence[str]] = _nothing
    pictures: Callable[[Results, Path], Sequence[Picture]] = _no_pictures
    legend: Callable[[Results], Sequence[LegendEntry]] = _no_legend
    notes: Callable[[Results], Sequence[str]] = _nothing
    lines: Callable[[Results], Sequence[str]] = _nothing
    interactive: Callable[[Results], tuple[str, Mapping[str, Any]] | None] = _no_interactive
    terms: Callable[[Results], Sequence[tuple[str, str]]] = _no_terms
    code: bool = False
    missing: str = ""
    kinds: tuple[str, ...] = KINDS
    level: int = 2

    def part(self, results: Results, folder: Path) -> Part | None:
        """Its content for these results; None when it is omitted."""
        if results["kind"] not in self.kinds:
            return None
        table, pictures, lines = self.table(results), tuple(self.pictures(results, folder)), tuple(self.lines(results))
        notes, interactive, terms = tuple(self.notes(results)), self.interactive(results), tuple(self.terms(results))
        if table is None and not pictures and not lines and interactive is None and not terms:
            missing = self.missing if results["kind"] == "run" else ""
            return Part(self.title, self.level, notes=notes, missing=missing) if missing or notes else None
        legend = tuple(self.legend(results)) if pictures else ()
        return Part(
            self.title, self.level, tuple(self.text(results)), pictures, legend, table, notes, lines, self.code,
            interactive=interactive, terms=terms,
        )  # fmt: skip


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
