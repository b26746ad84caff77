"""The table of what policies see in docs/cameras.md, from the stored results. Measures nothing.

    python benchmarks/seeing_page.py

Success and modes: benchmarks/results/seeing.json and, of the state, objectives/<task>-seed<n>.json; times of a call:
perception.json. benchmarks/seeing.py and benchmarks/perception.py call it at their end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import Config
from distill.evaluation.statistics import mode_entropy, paired_difference
from distill.report.tables import NOTHING, number, percent, points

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/cameras.md"
BEGIN, END = "<!-- written by benchmarks/seeing_page.py -->\n", "<!-- end of what it wrote -->\n"
SEEN = {
    "": "state", "_points": "points", "_rgb": "colours", "_rgbd": "colours and depth",
    "_everything": "colours, depth and points",
}  # fmt: skip
"""What the end of a preset's name says of what it sees."""
TASKS = ("detour", "handles")
OTHER = "†"
TEACHER, STUDENT = "teacher_50", Config().student.default
Policies = Mapping[str, Mapping[str, Any]]
"""A seed's result of the teacher and the student, by their names: `success`, a mark an episode, `mode_counts`, `parameters`."""


def reached(results: Path) -> dict[str, dict[int, Policies]]:
    """By preset and seed, what is stored of both policies."""
    found: dict[str, dict[int, Policies]] = {}
    path = results / "seeing.json"
    for row in json.loads(path.read_text())["rows"] if path.is_file() else []:
        found.setdefault(row["preset"], {})[row["seed"]] = row["policies"]
    for path in sorted(results.glob("objectives/*-seed*.json")):
        told = json.loads(path.read_text())
        if told["task"] not in TASKS:
            continue
        main = {row["policy"]: row for row in told["rows"] if row["phase"] == "main" and not row["row"]}
        if {TEACHER, STUDENT} <= set(main):
            found.setdefault(told["task"], {})[told["seed"]] = main
    return found


def called(results: Path) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By preset and policy, what a call takes."""
    path = results / "perception.json"
    times: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in json.loads(path.read_text())["rows"] if path.is_file() else []:
        times.setdefault(row["preset"], {})["teacher" if row["policy"] == TEACHER else "student"] = row
    return times


def section(results: Path) -> str:
    """The table, one row per preset, and how to read it."""
    found, times = reached(results), called(results)
    lines = [
        "| task | observation | seeds | teacher, 50 steps | student | student minus teacher, points | "
        "modes, teacher / student | entropy of the student's | encode [ms] | whole call, teacher / student [ms] | ratio |",
        "|" + "---|" * 11,
    ]
    for task in TASKS:
        for ending, seen in SEEN.items():
            seeds, call = found.get(task + ending, {}), times.get(task + ending)
            if seeds or call:
                cells = (*_success(seeds), *_times(call, _sizes(seeds)))
                lines.append(f"| `{task}` | {seen} | {' | '.join(cells)} |")
    if any(OTHER in line for line in lines):
        lines += ["", f"{OTHER} timed with a student of another size than the one whose success stands there."]
    return "\n".join(lines) + "\n"


def _success(seeds: Mapping[int, Policies]) -> Sequence[str]:
    """Seeds, both successes, their paired difference, modes and entropy; all seeds as one."""
    if not seeds:
        return ["none yet", *[NOTHING] * 5]
    marks = {name: np.array([mark == "1" for each in seeds.values() for mark in each[name]["success"]])
             for name in (TEACHER, STUDENT)}  # fmt: skip
    counts = {name: _summed([each[name]["mode_counts"] for each in seeds.values()]) for name in (TEACHER, STUDENT)}
    gap, low, high = paired_difference(marks[STUDENT], marks[TEACHER])
    return [
        ", ".join(map(str, sorted(seeds))),
        f"{percent(marks[TEACHER].mean())} of {len(marks[TEACHER])}", percent(marks[STUDENT].mean()),
        f"{points(gap)} ({points(low)} to {points(high)})",
        " / ".join(" : ".join(map(str, counts[name].values())) for name in (TEACHER, STUDENT)),
        number(mode_entropy(counts[STUDENT], len(counts[STUDENT]))),
    ]  # fmt: skip


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(each[name] for each in counts) for name in counts[0]}


def _sizes(seeds: Mapping[int, Policies]) -> set[int]:
    """Parameters of the students that were rolled out."""
    return {each[STUDENT]["parameters"] for each in seeds.values()}


def _times(call: Mapping[str, Mapping[str, Any]] | None, sizes: set[int]) -> Sequence[str]:
    """Encoding at the student, both whole calls and their ratio, marked where it is not a student of these `sizes`."""
    if call is None:
        return [NOTHING] * 3
    teacher, student = call["teacher"], call["student"]
    mark = f" {OTHER}" if sizes - {student["parameters"]} else ""
    return [
        number(student["stages"]["encode_ms"], 2), f"{number(teacher['median_ms'])} / {number(student['median_ms'])}",
        number(student["ratio"]) + mark,
    ]  # fmt: skip


def written(page: str, results: Path) -> str:
    """The page with the section as the results are now. Raises ValueError for a page without a place for it."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"got a page without the two lines {BEGIN!r} and {END!r}, expected each once, around the table")
    before, rest = page.split(BEGIN)
    return before + BEGIN + section(results) + END + rest.split(END)[1]


def write() -> None:
    PAGE.write_text(written(PAGE.read_text(), RESULTS))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write()
    print(PAGE)


if __name__ == "__main__":
    main()
