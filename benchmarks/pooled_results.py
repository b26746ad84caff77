"""The rows of benchmarks/results/objectives/*.json, pooled over seeds and compared with their teachers; for results_page.py."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import Config
from distill.evaluation.statistics import mode_share_error, paired_difference, wilson_interval
from distill.objectives.recipes import recipe

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/objectives"
REFERENCE = "teacher_50"
DEFAULT = Config().student.default
MAIN = ("main", "objectives", "baselines")
"""Phases that are one table a task, the section main."""
SAME_TEACHER = ("small", "ablations")
"""Sections whose rows change the student only: compared with the main teacher, which their own runs may roll out otherwise."""

Row = Mapping[str, Any]
Key = tuple[str, str, str]
"""section (main, small, ...), the row's label within it, policy."""
Found = dict[Key, dict[int, Row]]
"""What is there for one task: a row for every key and seed."""


@dataclass(frozen=True)
class Pooled:
    """A policy over the seeds that are there; successes and modes summed, the rest means over seeds (None: not known in one).

    entropy: not known where nothing was solved; rarest: the least share that a mode has of what was solved.
    difference: (points / 100, low, high) to its teacher at 50 steps, episode by episode; None for that teacher itself.
    modes: the fewest that a seed reached; lost: (seed, modes, its teacher's modes) where it lacks most of them, else None.
    share_error, share_ratio: of mode shares, and by its floor (evaluation.statistics); outside_ratio: to its teacher's own.
    train_s: processor seconds; cost: those of sampling (where the recipe needs it) and training, by the teacher's training.
    """

    key: Key
    label: str
    seeds: tuple[int, ...]
    nfe: int
    parameters: int
    episodes: int
    success: float
    interval: tuple[float, float]
    difference: tuple[float, float, float] | None
    modes: int
    modes_total: int
    lost: tuple[int, int, int] | None
    rarest: float | None
    entropy: float | None
    teacher_entropy: float | None
    share_error: float | None
    share_ratio: float | None
    energy: float
    outside: float
    outside_ratio: float | None
    train_s: float | None
    cost: float | None
    switches: float | None

    @property
    def is_teacher(self) -> bool:
        return is_teacher(self.key)

    @property
    def is_default(self) -> bool:
        return self.key == DEFAULT_KEY


DEFAULT_KEY: Key = ("main", "", DEFAULT)
TEACHER_KEY: Key = ("main", "", REFERENCE)


def read(folder: Path) -> tuple[dict[str, Found], list[str]]:
    """What was measured by task, and the hardware in words.

    Of rows that are there twice the newer one is taken. Raises ValueError when there is no file.
    """
    paths = sorted(folder.glob("*-seed*.json"))
    if not paths:
        raise ValueError(f"got no <task>-seed<seed>.json in {folder}, expected one or more: run benchmarks/objectives.py")
    tasks: dict[str, Found] = {}
    hardware = set()
    for path in paths:
        stored = json.loads(path.read_text())
        hardware.add(stored["hardware"])
        found = tasks.setdefault(stored["task"], {})
        for row in stored["rows"]:
            key = ("main" if row["phase"] in MAIN else row["phase"], row["row"], row["policy"])
            found.setdefault(key, {})[stored["seed"]] = row
    return tasks, sorted(hardware)


def at(found: Found, seeds: Iterable[int]) -> Found:
    """What is there of these seeds."""
    chosen = set(seeds)
    return {key: kept for key, rows in found.items() if (kept := {seed: rows[seed] for seed in rows if seed in chosen})}


def keys_of(found: Found, section: str, teachers: bool = True) -> list[Key]:
    """A section's keys: K = 4 before K = 32, teachers before students, many steps before few."""

    def order(key: Key) -> tuple[object, ...]:
        parts = re.split(r"(\d+(?:\.\d+)?)", key[1])
        steps = int(key[2].removeprefix("teacher_")) if is_teacher(key) else 0
        return [(float(part), "") if odd % 2 else (0.0, part) for odd, part in enumerate(parts)], -steps, key[2]

    return sorted((key for key in found if key[0] == section and (teachers or not is_teacher(key))), key=order)


def is_teacher(key: Key) -> bool:
    return key[2].startswith("teacher_")


def label_of(key: Key) -> str:
    section, row, policy = key
    if is_teacher(key):
        steps = policy.removeprefix("teacher_")
        return f"{row or 'teacher'}, {steps} step{'s' if steps != '1' else ''}"
    name = recipe(policy).label
    return name if not row else row if policy == DEFAULT and section in ("small", "ablations") else f"{row}: {name}"


def teachers_of(found: Found, key: Key) -> dict[int, Row]:
    """The teacher at 50 steps that a key is compared with, by seed."""
    own = found.get((key[0], key[1], REFERENCE), {})
    return {**own, **found.get(TEACHER_KEY, {})} if key[0] in SAME_TEACHER else own


def difference(mine: Mapping[int, Row], its: Mapping[int, Row]) -> tuple[float, float, float]:
    """Success of `mine` minus that of `its` with its bootstrap interval, over the seeds of `mine`.

    Raises ValueError when a seed has no counterpart or another number of episodes.
    """
    for seed, row in mine.items():
        other = its.get(seed)
        if other is None or len(other["success"]) != len(row["success"]):
            raise ValueError(
                f"{row['policy']} of seed {seed} has {len(row['success'])} episodes, what it is compared with has "
                f"{len(other['success']) if other else 0}: delete the rows of that seed and run benchmarks/objectives.py again"
            )
    return paired_difference(_successes(mine.values()), _successes(its[seed] for seed in mine))


def pool(found: Found, key: Key) -> Pooled:
    """One policy over the seeds that are there."""
    rows = dict(sorted(found[key].items()))
    teachers = teachers_of(found, key)
    gap = None if key[2] == REFERENCE else difference(rows, teachers)
    its = [teachers[seed] for seed in rows]
    success = _successes(rows.values())
    counts, their_counts = _counts(list(rows.values())), _counts(its)
    modes = {**their_counts, **counts}
    error, ratio = None, None
    if gap is not None and any(counts.values()) and any(their_counts.values()):
        error, floor = mode_share_error([counts.get(mode, 0) for mode in modes], [their_counts.get(mode, 0) for mode in modes])
        ratio = error / floor if floor else 0.0  # the floor is 0 only where both took one and the same mode
    reached = [(seed, _reached(row), _reached(teachers[seed])) for seed, row in rows.items()]
    poorest = min(reached, key=lambda each: each[1] - each[2])
    outside, own = (_mean(row["fidelity"]["off_support_share"] for row in side) for side in (rows.values(), its))
    assert outside is not None and own is not None
    energy = _mean(row["fidelity"]["energy_distance"] for row in rows.values())
    assert energy is not None
    teaches, one = is_teacher(key), next(reversed(rows.values()))
    parts = ["teacher_cpu_s"] if teaches else ["train_cpu_s"]
    sampled = [] if teaches or recipe(key[2]).data != "hypotheses" else ["sample_cpu_s"]
    spent, taught = (total(rows.values(), names) for names in ((*parts, *sampled), ("teacher_cpu_s",)))
    trained = total(rows.values(), parts)
    return Pooled(
        key=key, label=label_of(key), seeds=tuple(rows), nfe=one["nfe"], parameters=one["parameters"],
        episodes=success.size, success=float(success.mean()), interval=wilson_interval(int(success.sum()), success.size),
        difference=gap, modes=min(mine for _, mine, _ in reached), modes_total=one["modes_total"],
        lost=poorest if poorest[1] < poorest[2] else None,
        rarest=min(counts.values()) / sum(counts.values()) if any(counts.values()) else None,
        entropy=_mean(row["entropy"] for row in rows.values()), teacher_entropy=_mean(row["entropy"] for row in its),
        share_error=error, share_ratio=ratio,
        energy=energy, outside=outside, outside_ratio=outside / own if own else None,
        train_s=None if trained is None else trained / len(rows),
        cost=None if teaches or spent is None or taught is None else spent / taught,
        switches=_mean(row.get("switch_rate") for row in rows.values()),
    )  # fmt: skip


def _successes(rows: Iterable[Row]) -> np.ndarray:
    return np.array([sign == "1" for row in rows for sign in row["success"]])


def _reached(row: Row) -> int:
    return sum(count > 0 for count in row["mode_counts"].values())


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    return {mode: sum(row["mode_counts"].get(mode, 0) for row in rows) for row in rows for mode in row["mode_counts"]}


def _mean(values: Iterable[float | None]) -> float | None:
    """None where one is not known; one that is not finite is left out."""
    finite = [value for value in values if value is None or math.isfinite(value)]
    known = [value for value in finite if value is not None]
    return float(np.mean(known)) if known and len(known) == len(finite) else None


def total(rows: Collection[Row], names: Collection[str]) -> float | None:
    """Sum of seconds; None where one is missing, or 0 as in manifests from before they were measured."""
    values = [row[name] for row in rows for name in names]
    return float(sum(values)) if all(values) else None
