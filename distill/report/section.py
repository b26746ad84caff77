"""A section of the report: what it holds as functions of the results, and the part of a page that they give."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.report.policies import Results
from distill.report.tables import Table

KINDS = ("run", "conversion", "comparison")
"""What is reported: `results["kind"]`."""


@dataclass(frozen=True)
class Picture:
    """source: a data URI, "" for one that is not in the page; alt: what it shows; caption: lines above it, the first bold.

    note: said below the pictures, such as why one is not in the page; file: where it lies beside the page, if it does.
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
    """What a section says of some results. level: of its heading; missing: said in place of everything else."""

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
    """One thing that the report shows: every field but the first may be left out. Listed in distill.report.contents.

    table: None where the results hold nothing for it; pictures: given the report's folder, where clips lie; lines: a list of
    sentences, or of commands when `code`. A section without table, pictures and lines is left out, in a run's report
    replaced by `missing`, what was not measured, where that is given.
    text: paragraphs that introduce the rest; notes: paragraphs below it; legend: of the pictures.
    kinds: of reports it stands in; level: 2, or 3 for one that stands under the section before it.
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
        """What it says of these results; None where it is left out."""
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
    """What all sections say, in their order; one whose heading would stand under a section left out moves up."""
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
