"""Formatting of numbers, shares and tables for all parts of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """text: the number; notes: small lines under it; tone: "", "worse", "lower", "better", "teacher" or "student"."""

    text: str
    notes: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """columns: (header, what it means in one line); rows: one cell per column."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]


def is_missing(value: Any) -> bool:
    """Whether a number was not measured: None, NaN or infinite."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return NOTHING if is_missing(share) else f"{100 * float(share):.1f} %"  # type: ignore[arg-type]


def points(share: float | None) -> str:
    """A difference of two shares in percentage points, always with its sign."""
    if is_missing(share):
        return NOTHING
    value = round(100 * float(share), 1)  # type: ignore[arg-type]
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{abs(value):.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent and without cutting whole numbers: 0.0123, 2.10, 80.2, 1250."""
    if is_missing(value):
        return NOTHING
    amount = float(value)  # type: ignore[arg-type]
    places = digits if amount == 0 else max(0, digits - 1 - math.floor(math.log10(abs(amount))))
    return f"{amount:.{min(places, 6)}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value, small ones as p < 0.001."""
    if is_missing(value):
        return f"p {NOTHING}"
    return "p < 0.001" if float(value) < 0.001 else f"p = {float(value):.3f}"  # type: ignore[arg-type]


def duration(seconds: float | None) -> str:
    """Seconds as text with suitable units."""
    if is_missing(seconds):
        return NOTHING
    total = float(seconds)  # type: ignore[arg-type]
    if total < 60:
        return f"{number(total)} s"
    minutes, rest = divmod(round(total), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def interval(low: float | None, high: float | None) -> str:
    """The ends of an interval of shares."""
    return f"{percent(low)} to {percent(high)}"


def success_cell(counted: Mapping[str, Any], *more: str) -> Cell:
    """A success rate with its interval and counts; `more`: lines below these."""
    rate = counted["successes"] / counted["episodes"]
    ends = interval(counted["success_low"], counted["success_high"])
    return Cell(percent(rate), (ends, f"{counted['successes']} of {counted['episodes']}", *more))


def fact_table(rows: Sequence[tuple[str, str]], columns: tuple[str, str]) -> Table:
    """A table of names and what they are."""
    return Table(tuple((title, "") for title in columns), tuple((Cell(name), Cell(value)) for name, value in rows))


def md(text: Any) -> str:
    """Text that neither Markdown nor HTML inside it reads as markup."""
    plain = " ".join(str(text).split())
    for sign, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        plain = plain.replace(sign, safe)
    return plain


def md_table(table: Table) -> str:
    """A table in Markdown, what its columns mean below it."""
    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [row([md(title) for title, _ in table.columns]), row(["---"] * len(table.columns))]
    for cells in table.rows:
        noted = [(md(cell.text), md("; ".join(cell.notes))) for cell in cells]
        lines.append(row([f"{text} ({notes})" if notes else text for text, notes in noted]))
    meanings = [f"{md(title)}: {md(meaning)}" for title, meaning in table.columns if meaning]
    return "\n".join(lines) + (f"\n\n{'. '.join(meanings)}." if meanings else "")


def distilling_line(results: Mapping[str, Any]) -> str:
    """What the default student cost relative to its teacher's training, in a sentence; "" where that was not measured."""
    cost = results.get("distilling") or {}
    names = [policy["name"] for policy in results["policies"] if policy.get("is_default_student")]
    if not names or is_missing(cost.get("share")):
        return ""
    teacher, trained = float(cost["teacher_cpu_s"]), float(cost["students"][names[0]])
    sampling = "" if is_missing(cost.get("sample_cpu_s")) else f"sampling {cost['sample_cpu_s']:.0f} s + "
    return (
        f"distilling cost {100 * cost['share']:.0f} % of the teacher's training "
        f"({sampling}student {trained:.0f} s, teacher {teacher:.0f} s of processor time)"
    )
