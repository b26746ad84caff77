"""How to read the report, for first-time readers."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.glossary import terms
from distill.report.policies import Results, reference_name
from distill.report.section import Section


def reading(results: Results) -> Sequence[str]:
    """Sentences that explain how to read these results."""
    success = (
        "Look at the interval, not only at the rate: when two intervals overlap widely, it takes more episodes to tell the "
        "policies apart.",
        f"“Against the {reference_name(results)}” compares episode by episode from the same starts, so it detects smaller "
        "differences than the two rates alone. Only episodes in which the two policies fare differently count.",
    )
    collapse = (
        "Success alone can hide mode collapse, a student that always takes the same mode. Modes and entropy show it; a "
        "regression student, which averages the teacher's samples, is the usual warning.",
    )
    return (
        *(success if results["measured_success"] else ()),
        *(collapse if results["measured_success"] and results["kind"] != "comparison" else ()),
        "Hz counts policy calls. Each call yields several actions, so actions per second is a larger number with a column of "
        "its own.",
        "Times hold for the hardware named below, one observation at a time. On another machine, measure again.",
        "All numbers of this page, and every episode's outcome, are in report.json in the same folder.",
    )


READING = Section("How to read this", lines=reading)
TERMS = Section("Terms", terms=terms, level=3)
