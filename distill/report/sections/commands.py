"""The command that wrote the report."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.policies import Results
from distill.report.section import Section


def commands(results: Results) -> Sequence[str]:
    """The command lines of the run."""
    return [str(line) for line in results["made"].get("commands") or []]


COMMANDS = Section("Command", lines=commands, code=True, level=3)
