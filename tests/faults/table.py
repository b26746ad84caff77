"""The table of tries: how often each fault was tried at each stage, what was lost, and the line that was shown."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- tries: written by `make faults` -->", "<!-- end of tries -->"


OFTEN = 30


def tries(short: int, full: int = 30) -> int:
    """How often a fault is tried: `full` times by `make faults`, which sets FAULT_TRIES, else `short` times."""
    factor = float(os.environ.get("FAULT_TRIES") or 0)
    return max(short, round(full * factor / 30)) if factor else short


@dataclass
class Row:
    """One fault at one stage."""

    tries: int = 0
    lost: list[str] = field(default_factory=list)
    lines: Counter[str] = field(default_factory=Counter)


@dataclass
class Table:
    """rows: by fault and stage."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def add(self, fault: str, stage: str, lost: list[str], line: str) -> None:
        """Count a try. lost: what it cost, [] for nothing. line: what was shown."""
        row = self.rows.setdefault((fault, stage), Row())
        row.tries += 1
        row.lost += lost
        row.lines[line] += 1

    def given(self) -> list[Any]:
        """The rows as `take` takes them, of lists, texts and numbers alone."""
        return [[fault, stage, row.tries, row.lost, dict(row.lines)] for (fault, stage), row in self.rows.items()]

    def take(self, given: list[Any]) -> None:
        """Add the rows of another process."""
        for fault, stage, number, lost, lines in given:
            row = self.rows.setdefault((fault, stage), Row())
            row.tries += number
            row.lost += lost
            row.lines.update(lines)

    def lines(self) -> list[str]:
        head = ["| fault | stage | tries | lost | what was shown |", "|---|---|---|---|---|"]
        return head + [
            f"| {fault} | {stage} | {row.tries} | {len(row.lost)} | {_shown(row.lines)} |"
            for (fault, stage), row in self.rows.items() if row.tries >= OFTEN
        ]


def _shown(lines: Counter[str]) -> str:
    text = next((line for line, _ in lines.most_common() if line), "")
    text = re.sub(r"/\S*/work/", "", text)  # where the tests happen to work
    return (text if len(text) < 120 else text[:117] + "...").replace("|", "/") if text else "nothing"


def write_table(table: Table) -> None:
    """Write the rows into the page, over those of the same fault and stage; only those that `make faults` tried often."""
    if float(os.environ.get("FAULT_TRIES") or 0) < OFTEN or not table.rows:
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    head, new = table.lines()[:2], table.lines()[2:]
    rows = {_place(line): line for line in old.splitlines() if line.startswith("| ") and _place(line) != ("fault", "stage")}
    rows |= {_place(line): line for line in new}
    PAGE.write_text("\n".join([before + BEGIN, "", *head, *rows.values(), "", END + after]))


def _place(line: str) -> tuple[str, str]:
    fault, stage = (each.strip() for each in line.split("|")[1:3])
    return fault, stage
