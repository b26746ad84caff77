"""The sections of every report, in order. A new one is a file in distill.report.sections, and its name here."""

from __future__ import annotations

from distill.report.section import Section
from distill.report.sections.by_task import BY_TASK
from distill.report.sections.clips import CLIPS
from distill.report.sections.explore import EXPLORE
from distill.report.sections.fidelity import FIDELITY
from distill.report.sections.from_above import ACTION_CHUNKS, PATHS
from distill.report.sections.latency import FRONTIER, LATENCY, RUN_MODES, STAGES
from distill.report.sections.made import COMMANDS, CONFIG, MADE
from distill.report.sections.reading import READING, TERMS
from distill.report.sections.real_time import REAL_TIME
from distill.report.sections.recording import OWN_UNITS, RANGES, RECORDING
from distill.report.sections.results import FURTHER, RESULTS
from distill.report.sections.success import MODES, SPEED
from distill.report.sections.training import CHECKPOINTS, CURVES, GENERALISATION
from distill.report.sections.verdict import VERDICT
from distill.report.sections.wall_time import WALL_TIME

SECTIONS: list[Section] = [
    RESULTS, VERDICT, BY_TASK,
    PATHS, ACTION_CHUNKS, EXPLORE,
    SPEED, MODES,
    CLIPS,
    LATENCY, RUN_MODES, FRONTIER, STAGES,
    FIDELITY, OWN_UNITS, FURTHER,
    REAL_TIME,
    CURVES, GENERALISATION, CHECKPOINTS,
    READING, TERMS,
    RECORDING, RANGES, MADE, WALL_TIME, COMMANDS, CONFIG,
]  # fmt: skip
