"""Writes the table part of docs/results.md from benchmarks/results/objectives/*.json. Measures nothing.

    python benchmarks/results_page.py

Every number and every sentence that judges is computed from the files. benchmarks/objectives.py calls it at its end.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pooled_results import (
    DEFAULT,
    DEFAULT_KEY,
    REFERENCE,
    RESULTS,
    ROOT,
    TEACHER_KEY,
    Found,
    Key,
    Pooled,
    at,
    difference,
    is_teacher,
    keys_of,
    label_of,
    pool,
    read,
    total,
)  # fmt: skip

from distill.config import Config
from distill.presets import apply_preset
from distill.report.tables import NOTHING, number, percent, points
from teachers import TEACHERS

PAGE = ROOT / "docs/results.md"
BEGIN, END = "<!-- written by benchmarks/results_page.py -->\n", "<!-- end of what it wrote -->\n"
BELOW = 0.05
"""Further below the teacher than this, in share of episodes, a student is listed among what did not work."""
Target = tuple[str, bool | None, str]
"""What the target is, whether it is met (None: unknown), the figure that shows it."""


# -- tables and sentences ------------------------------------------------------------------------------------------------


def table(rows: Sequence[Pooled], against: Mapping[Key, str] | None = None, ahead: Sequence[Pooled] = ()) -> str:
    """Markdown; against: a column of differences to the default, and one of switches; ahead: rows to mark."""
    most = max(len(row.seeds) for row in rows)
    marked = {row.key for row in ahead}
    columns = ["policy", "seeds", "rollouts", "NFE", "parameters", "success", "against its teacher", "modes", "entropy",
               "mode shares", "energy distance", "off-support", "training [CPU s]", "share of the teacher's training",
               *(["against the default", "switches"] if against is not None else [])]  # fmt: skip
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in rows:
        name = f"**{row.label}**" if row.is_default else row.label
        seeds = str(len(row.seeds)) if len(row.seeds) == most else f"**{len(row.seeds)} of {most}**"
        ratio = "" if row.outside_ratio is None or row.difference is None else f" ({number(row.outside_ratio, 2)} ×)"
        shares = "reference" if row.difference is None else _fixed(row.share_ratio, 1)
        lines.append(_line([
            f"{name} ▲" if row.key in marked else name, seeds, str(row.episodes), str(row.nfe), f"{row.parameters:,}",
            _rate(row), _gap(row.difference),
            f"{row.modes}/{row.modes_total}", _fixed(row.entropy), shares, number(row.energy),
            f"{percent(row.outside)}{ratio}", _fixed(row.train_s, 0), _share(row.cost),
            *([against.get(row.key, NOTHING), percent(row.switches)] if against is not None else []),
        ]))  # fmt: skip
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gap(gap: tuple[float, float, float] | None) -> str:
    return "reference" if gap is None else f"{points(gap[0])} ({points(gap[1])} to {points(gap[2])})"


def _fixed(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def _rate(row: Pooled) -> str:
    return f"{percent(row.success)} ({100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f})"


def _ordered(rows: Iterable[Pooled]) -> list[Pooled]:
    """Teachers by their steps, then students by success."""
    return sorted(rows, key=lambda row: (not row.is_teacher, -row.nfe if row.is_teacher else -row.success, row.label))


def to_default(found: Found, key: Key) -> tuple[float, float, float] | None:
    """Difference to its default student of the same seeds and starts, None for itself or where that is not there."""
    default = found.get(DEFAULT_KEY, {})
    rows = {seed: row for seed, row in found[key].items() if seed in default}
    return difference(rows, default) if rows and key != DEFAULT_KEY else None


def ahead_of_default(found: Found, rows: Sequence[Pooled]) -> list[Pooled]:
    """The students that solve more episodes than the default one does from the same starts."""
    gaps = {row.key: to_default(found, row.key) for row in rows if not row.is_teacher}
    return [row for row in rows if (gaps.get(row.key) or (0.0,))[0] > 0]


def comparison(found: Found, rows: Sequence[Pooled]) -> str:
    """Sentences on where the default student is beaten, by success and by the three distances to the teacher."""
    others = [row for row in rows if not row.is_teacher and not row.is_default]
    if not others or DEFAULT_KEY not in found:
        return "The default student, or another one to compare it with, was not measured yet."
    ahead = ahead_of_default(found, others)
    said = []
    for row in ahead:
        gap = to_default(found, row.key)
        assert gap is not None
        said.append(f"{row.label} by {_gap(gap)} points{'' if gap[1] > 0 else ', which may be chance'}")
    text = f"▲ More episodes solved than by the default from the same starts: {'; '.join(said)}." if said else (
        "No other student here solves more episodes than the default from the same starts.")  # fmt: skip
    pairs = [both for row in others if (both := with_default(found, row.key))]
    for what, field in (("energy distance", "energy"), ("off-support share", "outside"), ("mode-share error", "share_error")):
        each = [(one.label, getattr(one, field), getattr(default, field)) for one, default in pairs]
        nearer = [label for label, mine, its in each if mine is not None and its is not None and mine < its]
        text += f" Lower {what} than the default's: {', '.join(nearer) or 'none'}."
    return f"{text} These three have no interval; a small lead may be chance."


def with_default(found: Found, key: Key) -> tuple[Pooled, Pooled] | None:
    """A key and the default student on the seeds that both have; None where there is no such seed."""
    common = at(found, set(found[key]) & set(found[DEFAULT_KEY]))
    return (pool(common, key), pool(common, DEFAULT_KEY)) if common.get(key) else None


# -- the sections --------------------------------------------------------------------------------------------------------


def targets(found: Found, key: Key) -> str:
    """The project's targets for the default student, or for one with fewer parameters, on its seeds."""
    row = pool(found, key)
    assert row.difference is not None
    gap, low, _ = (f"{100 * value:+.2f}".replace("-", "−") for value in row.difference)
    its, all_modes, modes = row.teacher_entropy or 0.0, row.modes == row.modes_total, f"{row.modes}/{row.modes_total}"
    entropies = f"{_fixed(row.entropy)}, teacher {_fixed(row.teacher_entropy)}"
    over = f"seeds: {len(row.seeds)}, episodes: {row.episodes:,}"
    made: list[Target] = [
        ("success at most 1 point below the teacher's by the 95 % interval", row.difference[1] >= -0.01,
         f"{gap} points, lower end {low}; {over}"),
        ("all modes in every seed, and where there are two, each in 35 to 65 % of the successes",
         all_modes and (row.modes_total != 2 or (row.rarest or 0.0) >= 0.35),
         f"{modes}, the rarest {percent(row.rarest)}"),
        ("entropy at most 0.02 below the teacher's", _evenness(row) >= its - 0.02, entropies),
        ("mode-share error at most 1.2 × that of sampling alone", row.share_ratio is not None and row.share_ratio <= 1.2,
         _fixed(row.share_ratio, 2)),
        ("off-support share at most 1.5 × the teacher's own", not row.outside or (row.outside_ratio or math.inf) <= 1.5,
         f"{percent(row.outside)}, {_fixed(row.outside_ratio, 2)} ×"),
        ("distilling at most 25 % of the teacher's training", None if row.cost is None else row.cost <= 0.25,
         percent(row.cost)),
        _ahead_of_baselines(found),
    ] if key == DEFAULT_KEY else [
        ("success at least 95 %", row.success >= 0.95, f"{percent(row.success)}; {over}"),
        ("all modes in every seed", all_modes, modes),
        ("entropy at least 0.9 × the teacher's", _evenness(row) >= 0.9 * its, entropies),
    ]  # fmt: skip
    words = {True: "met", False: "missed", None: "unknown"}
    each = "; ".join(f"{what}: **{words[holds]}** ({figure})" for what, holds, figure in made)
    return f"Of the targets {sum(holds is True for _, holds, _ in made)} of {len(made)} are met: {each}."


def _ahead_of_baselines(found: Found) -> Target:
    """On the seeds that each has in common with the default."""
    what, holds, figures = "ahead of every one-step baseline in success and entropy", [], []
    for key in keys_of(found, "main", teachers=False):
        # by the files: beside a script there is no package benchmarks to import objectives.ONE_STEP_BASELINES from
        if any(row["phase"] == "baselines" for row in found[key].values()) and (both := with_default(found, key)):
            gap, (its, mine) = to_default(found, key), both
            assert gap is not None
            holds.append(gap[0] < 0 and _evenness(mine) > _evenness(its))
            figures.append(f"{its.label} {_gap(gap)} points, entropy {_fixed(its.entropy)} to {_fixed(mine.entropy)}")
    return what, all(holds) if holds else None, ", ".join(figures) or "none was measured on its seeds"


def _evenness(row: Pooled) -> float:
    """Entropy; a policy that solves nothing has none and is behind all."""
    return -1.0 if row.entropy is None else row.entropy


def summary(tasks: Mapping[str, Found]) -> str:
    """One line a task: the teacher, the default student, the best of the others."""
    lines = [_line(["task", "teacher, 50 steps", "default student, 1 NFE", "difference, points", "modes", "entropy, teacher / "
                    "student", "off-support share, × the teacher's own", "share of the teacher's training",
                    "best of the others, points against the default"]),
             _line(["---"] * 9)]  # fmt: skip
    for task, found in tasks.items():
        if DEFAULT_KEY not in found:
            continue
        default = pool(found, DEFAULT_KEY)
        teacher = pool(at(found, default.seeds), TEACHER_KEY)
        others = {key: gap for key in keys_of(found, "main", teachers=False) if (gap := to_default(found, key))}
        best = max(others, key=lambda key: others[key][0], default=None)
        lines.append(_line([
            f"`{task}`", percent(teacher.success), percent(default.success), _gap(default.difference),
            f"{default.modes}/{default.modes_total}", f"{_fixed(teacher.entropy)} / {_fixed(default.entropy)}",
            NOTHING if default.outside_ratio is None else f"{number(default.outside_ratio, 2)} ×", _share(default.cost),
            f"{label_of(best)}, {points(others[best][0])}" if best else NOTHING,
        ]))  # fmt: skip
    return "\n\n".join(["## In short", "\n".join(lines)]) if len(lines) > 2 else ""


def main_section(task: str, found: Found, students: Iterable[Key]) -> str:
    """All policies of one task, the default's targets, and students that only other tasks have."""
    rows = _ordered(pool(found, key) for key in keys_of(found, "main"))
    if not rows:
        return ""
    parts = [f"## `{task}`", preset_line(task), *([targets(found, DEFAULT_KEY)] if DEFAULT_KEY in found else []),
             table(rows, ahead=ahead_of_default(found, rows)), comparison(found, rows)]  # fmt: skip
    absent = sorted({label_of(key) for key in students if key not in found})
    return "\n\n".join([*parts, *([f"Measured on another task but not on this one: {', '.join(absent)}."] if absent else [])])


def changed_section(tasks: Mapping[str, Found], section: str, title: str, text: str) -> str:
    """The student changed, everything else kept: beside the default student and the teacher of the same seeds."""
    parts = [f"## {title}", text]
    for task, everything in tasks.items():
        keys = keys_of(everything, section, teachers=False)
        if not keys:
            continue
        found = at(everything, {seed for key in keys for seed in everything[key]})
        references = [key for key in (TEACHER_KEY, DEFAULT_KEY) if key in found]
        rows = [pool(found, key) for key in (*references, *keys)]
        against = {row.key: _gap(gap) for row in rows if not row.is_teacher and (gap := to_default(found, row.key))}
        parts += [f"**`{task}`.** {preset_line(task)}",
                  *(targets(found, key) for key in keys if section == "small"),
                  table(rows, against, ahead_of_default(found, rows)), comparison(found, rows)]  # fmt: skip
    return "\n\n".join(parts) if len(parts) > 2 else ""


def preset_line(task: str) -> str:
    """The default recipe's settings of a task, from its preset."""
    config = apply_preset(Config(), ROOT / f"configs/{task}.yaml")
    steps = config.sample.num_steps or TEACHERS[config.teacher.kind].CACHE_STEPS
    several = f" of {config.evaluate.selection_candidates}" if config.evaluate.student_selection.uses_candidates else ""
    return (
        f"By `configs/{task}.yaml`, when this page was written, the default has K = {config.sample.num_hypotheses}, "
        f"M = {config.student.num_latents}, codes = {config.student.codes}, latent size = {config.student.latent_size}, "
        f"teacher steps = {steps}, width = {config.student.width or config.teacher.width}, "
        f"selection: {config.evaluate.selection}{several}."
    )


def teachers_section(tasks: Mapping[str, Found]) -> str:
    parts = [
        "## Teachers of other kinds",
        "How good each teacher is at how many solver steps, and how much of it its student keeps. Every row is compared "
        "with its own teacher at 50 steps; rows without a prefix are the flow teacher of the main table and its "
        "default student, on the same seeds.",
    ]
    for task, everything in tasks.items():
        keys = keys_of(everything, "teachers")
        if not keys:
            continue
        found = at(everything, {seed for key in keys for seed in everything[key]})
        flow = [key for key in keys_of(found, "main") if is_teacher(key) or key == DEFAULT_KEY]
        parts += [f"**`{task}`**", table([pool(found, key) for key in (*flow, *keys)])]
        said = []
        for key in keys:
            of_flow = found.get(("main", "", key[2]), {})
            common = {seed: row for seed, row in found[key].items() if seed in of_flow}
            said += [f"{label_of(key)}: {_gap(difference(common, of_flow))}"] if common else []
        if said:
            parts.append(f"Points against the flow teacher at the same number of steps, or its student: {'; '.join(said)}.")
    return "\n\n".join(parts) if len(parts) > 2 else ""


def demonstrations_section(tasks: Mapping[str, Found]) -> str:
    """Distilled from a teacher, or trained on the demonstrations alone by IMLE Policy."""
    columns = ["task", "demonstrations", "rollouts", "teacher, 50 steps", "distilled", "IMLE Policy",
               "distilled minus IMLE Policy, points", "modes: teacher, distilled, IMLE Policy",
               "training [CPU s]: teacher, sampling and student, IMLE Policy"]  # fmt: skip
    lines = [_line(columns), _line(["---"] * len(columns))]
    verdicts: dict[str, list[str]] = {"ahead": [], "behind": [], "neither, within the interval": []}
    for task, everything in tasks.items():
        for row in dict.fromkeys(key[1] for key in keys_of(everything, "demonstrations")):
            keys: list[Key] = [("demonstrations", row, policy) for policy in (REFERENCE, DEFAULT, "imle_policy")]
            seeds = set.intersection(*(set(everything.get(key, {})) for key in keys))
            if not seeds:
                continue
            found = at(everything, seeds)
            teacher, distilled, baseline = (pool(found, key) for key in keys)
            gap = difference(found[keys[1]], found[keys[2]])
            word = "ahead" if gap[1] > 0 else "behind" if gap[2] < 0 else "neither, within the interval"
            verdicts[word].append(f"`{task}` with {row}")
            sampling = total(found[keys[1]].values(), ("sample_cpu_s", "train_cpu_s"))
            seconds = (teacher.train_s, sampling and sampling / len(seeds), baseline.train_s)
            lines.append(_line([
                f"`{task}`", row.removesuffix(" demonstrations"), str(distilled.episodes), percent(teacher.success),
                _rate(distilled), _rate(baseline), f"{_gap(gap)}{' ▲' if gap[0] < 0 else ''}",
                ", ".join(f"{one.modes}/{one.modes_total}" for one in (teacher, distilled, baseline)),
                ", ".join(_fixed(each, 0) for each in seconds),
            ]))  # fmt: skip
    if len(lines) == 2:
        return ""
    return "\n\n".join([
        "## Few demonstrations",
        "Whether distilling from a teacher is worth it, compared with IMLE Policy, which trains its one-step policy on the "
        "demonstrations alone, for as many steps as the teacher. ▲: IMLE Policy solves more.",
        "\n".join(lines),
        "By the 95 % interval of the difference, the distilled student is " + "; ".join(
            f"{word}: {', '.join(where) or 'nowhere'}" for word, where in verdicts.items()) + ".",
    ])  # fmt: skip


def failed_section(tasks: Mapping[str, Found]) -> str:
    """Students far below their teacher, or with a mode less than it in some seed."""
    lines = []
    for task, found in tasks.items():
        rows = [pool(found, key) for key in found if not is_teacher(key)]
        for row in sorted(rows, key=lambda row: row.success):
            assert row.difference is not None
            why = [f"{_gap(row.difference)} points to its teacher"] if row.difference[0] < -BELOW else []
            if row.lost is not None:
                seed, mine, its = row.lost
                why.append(f"{mine} of {row.modes_total} modes in seed {seed}, its teacher {its}")
            if why:
                section = "" if row.key[0] == "main" else f" ({row.key[0]})"
                lines.append(f"- `{task}`, {row.label}{section}: {percent(row.success)} solved, {'; '.join(why)}.")
    return "\n\n".join([
        "## What did not work",
        f"Every student more than {100 * BELOW:.0f} points below its teacher, or that in some seed reached fewer modes than "
        "its teacher (a rare mode can be missed by chance), the worst first.",
        "\n".join(lines) or "None of those measured.",
    ])  # fmt: skip


def page(folder: Path) -> str:
    """The whole page. Raises ValueError when nothing was measured yet."""
    tasks, hardware = read(folder)
    students = {key for found in tasks.values() for key in keys_of(found, "main", teachers=False)}
    sections = [
        "# Which objective keeps success and every mode",
        "This part is written by `benchmarks/results_page.py` from `benchmarks/results/objectives/*.json`, which hold "
        "every episode's outcome. `python benchmarks/objectives.py` writes the files and this part again. Hardware: "
        f"{'; '.join(hardware)}.",
        "- **success**: share of episodes from stored starts, the same for every policy of a seed; 95 % Wilson interval over "
        "the episodes of all seeds. It covers the randomness of the episodes, not that of training.\n"
        "- **against its teacher**: paired difference in percentage points to the teacher at 50 steps of the same seed, 95 % "
        "bootstrap interval.\n"
        "- **modes**: modes reached in the seed with the fewest, of all modes; **entropy**: of the mode frequencies, 1 is "
        "uniform, mean over seeds, – where a seed solved nothing.\n"
        "- **mode shares**: total variation between the policy's mode shares and the teacher's, over its expected value "
        "between two runs of one policy: about 1 means no visible difference.\n"
        "- **energy distance**, **off-support**: per observation, to fresh teacher samples; off-support is the share of chunks "
        "farther from every teacher chunk than these are from each other, in brackets over the teacher's own share.\n"
        "- **training**: processor seconds, mean over seeds; **share of the teacher's training**: sampling (for recipes "
        "that use hypotheses) and training, over the training of the teacher.\n"
        "- **bold** policy: the default recipe; **▲**: solves more episodes than it; **bold** seeds: fewer than other rows of "
        "the table have. Such a row is compared with its teacher and with the default on its own seeds, and every sentence on "
        "common seeds. Students execute the chunk chosen by the task's selection, unless a row names another; "
        "teachers execute the one sample they draw.",
        summary(tasks),
        *(main_section(task, found, students) for task, found in tasks.items()),
        changed_section(tasks, "small", "A smaller student", "What is lost when the student has fewer parameters than its "
                        "teacher and so cannot start from its weights."),
        changed_section(tasks, "ablations", "Ablations", "What each choice of the default recipe contributes. Each row "
                        "changes one setting; the last columns compare it with the default."),
        teachers_section(tasks), demonstrations_section(tasks), failed_section(tasks),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text(before + page(RESULTS) + after)
    print(PAGE)


if __name__ == "__main__":
    main()
