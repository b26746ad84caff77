"""The commands as Python functions: they return the figures of the report as frozen objects.

Every keyword argument is a key of a preset: `student={"training_steps": 400}` is `--student.training-steps 400`. The work is
that of the commands, in this process and with one thread; finished stages are reused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from distill.checks import check_teacher_folder, validate
from distill.cli import external
from distill.cli.external_config import CompareConfig, ConvertConfig, check_external
from distill.config import Config
from distill.graphs.run import run_graph
from distill.presets import apply_preset, with_settings
from distill.runtime.context import Context
from distill.worlds import open_world
from students import load_student

__all__ = ["PolicyResult", "Result", "compare", "convert", "load_student", "run"]


@dataclass(frozen=True)
class PolicyResult:
    """What was measured of one policy. None: not measured; without a task there is no success.

    name, label: in the folders and in the report. kind: teacher, student or baseline. nfe: network evaluations per policy call.
    latency_ms: median of a policy call, batch 1. speedup: the reference's latency over it. energy_distance, recall, coverage,
    off_support_share: fidelity of its sets of chunks to the reference's. success_rate: of `episodes` rollouts, with its 95 %
    Wilson interval. difference: to the reference's success rate on the same starts. entropy: of the mode frequencies, 1 is
    uniform.
    """

    name: str
    label: str
    kind: str
    nfe: int
    latency_ms: float
    speedup: float
    energy_distance: float
    recall: float
    coverage: float
    off_support_share: float
    success_rate: float | None = None
    success_low: float | None = None
    success_high: float | None = None
    episodes: int | None = None
    difference: float | None = None
    modes_reached: int | None = None
    modes_total: int | None = None
    entropy: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> PolicyResult:
        """From a row of `policies` in ``report.json``."""
        flat: dict[str, Any] = {**row, **row["fidelity"], "latency_ms": row["latency"]["median_ms"]}
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in flat.items() if name in known})


@dataclass(frozen=True)
class Result:
    """A finished run, conversion or comparison.

    folder: of the run. report: its HTML page. policies: in the report's order. reference: the teacher at its full steps, or the
    first policy of a comparison. student: the default student; None in a comparison. student_folder: its folder, for
    `load_student` and `flow2one export`.
    """

    folder: Path
    report: Path
    policies: tuple[PolicyResult, ...]
    reference: PolicyResult
    student: PolicyResult | None
    student_folder: Path | None

    @classmethod
    def read(cls, report: Path) -> Result:
        """From the folder of a report."""
        rows, run = json.loads((report / "report.json").read_text())["policies"], report.parent
        policies = tuple(PolicyResult.of(row) for row in rows)
        reference = next(each for each, row in zip(policies, rows, strict=True) if row["is_reference_teacher"])
        student = next((each for each, row in zip(policies, rows, strict=True) if row["is_default_student"]), None)
        folder = None if student is None else run / "distill" / student.name
        return cls(run, report / "report.html", policies, reference, student, folder)


def run(preset: str | Path | Config = "", /, **settings: Any) -> Result:
    """Demonstrations to report, as `flow2one --config <preset>`. preset: a name, a YAML file or a `Config`; "": the defaults.

    Raises ValueError for a wrong setting, before any work, and for a locked or changed folder.
    """
    config = preset if isinstance(preset, Config) else apply_preset(Config(), Path(preset)) if preset else Config()
    config = with_settings(config, settings)
    validate(config)
    check_teacher_folder(config)
    with _one_thread(), contextlib.closing(open_world(config)) as world, Context.open(config.folder, config.wandb) as context:
        graph = run_graph(config, world)
        graph.run(context)
        return Result.read(graph.last.folder(context))


def convert(**settings: Any) -> Result:
    """An existing policy to a one-step student, as `flow2one convert`; needs `teacher`, `observations` and `out`.

    Raises ValueError for a wrong setting, before any work, and for a locked or changed folder.
    """
    return _external(with_settings(ConvertConfig(), _as_text(settings)))


def compare(*policies: str | Path, **settings: Any) -> Result:
    """Existing policies on the same observations, as `flow2one compare`; needs `observations` and `out`.

    Raises ValueError for a wrong setting, before any work, and for a locked or changed folder.
    """
    return _external(with_settings(CompareConfig(policies=tuple(map(str, policies))), _as_text(settings)))


def _external(config: ConvertConfig | CompareConfig) -> Result:
    check_external(config)
    with _one_thread(), external.prepared(config) as prepared:
        external.work(prepared)
        return Result.read(prepared.config.folder / prepared.graph.last.name)


def _as_text(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Paths among the settings as text, which is what the flags of these commands hold."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as in the commands: small networks gain nothing from more, and the measured times are of one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
