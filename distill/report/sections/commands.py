"""The commands that made the run."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.policies import Results
from distill.report.section import Section


def commands(results: Results) -> Sequence[str]:
    """The command lines of the run."""
    return [" ".join(str(line).split()) for line in results["made"].get("commands") or []]


COMMANDS = Section("Commands", lines=commands, code=True, level=3)
