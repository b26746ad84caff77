"""The results in one sentence and a few supporting ones."""

from __future__ import annotations

from dataclasses import dataclass

from distill.report.policies import Policy, Results, comparison, default_student, reference_name, reference_policy
from distill.report.tables import is_missing, number, p_value, percent, points
from distill.report.verdict import Objection, baseline_line, objections, taken, verdict


@dataclass(frozen=True)
class Headline:
    """tone: "worse", "lower", "same", "higher", "better" or "none". title: one sentence. lead: the lines under it."""

    tone: str
    title: str
    lead: tuple[str, ...]


def headline(results: Results) -> Headline:
    """The outcome in a sentence, and the facts needed to judge it."""
    return _of_run(results) if results["kind"] == "run" else _of_existing(results)


def _with_objections(title: str, tone: str, found: tuple[Objection, ...]) -> tuple[str, str]:
    """The weightiest objection in the title, which names slowness anyway. A rival or no gain in speed sets the tone."""
    named = [each for each in found if each.kind != "slow"]
    if named:
        title += f". But {named[0].clause}"
    if any(each.kind in ("rival", "slow") for each in found):
        return title, "worse"
    return title, "lower" if named and tone != "worse" else tone


# -- a run ----------------------------------------------------------------------------------------------------------------


def _of_run(results: Results) -> Headline:
    teacher, student = reference_policy(results), default_student(results)
    if teacher is None or student is None:
        missing = "reference teacher" if teacher is None else "default student"
        return Headline("none", f"This run has no {missing}, so there is nothing to compare", ())
    tone = comparison(student)
    mine, its = percent(student["success_rate"]), percent(teacher["success_rate"])
    title = {
        "worse": f"The student is worse than its teacher: it solves {mine} of the episodes, the teacher {its}",
        "lower": f"The student solves {mine} of the episodes, its teacher {its}: fewer, though chance could explain it",
        "same": f"The student solves {mine} of the episodes, exactly as its teacher",
        "higher": f"The student solves {mine} of the episodes, its teacher {its}: more, though chance could explain it",
        "better": f"The student is better than its teacher: it solves {mine} of the episodes, the teacher {its}",
        "none": f"The student solves {mine} of the episodes, its teacher {its} (not compared episode by episode)",
    }[tone]
    title += _speed_clause(student, ", but" if tone == "worse" else ";")
    if 0 < student["modes_reached"] < teacher["modes_reached"]:
        title += f"; it reaches {student['modes_reached']} of {student['modes_total']} modes, "
        title += f"the teacher {teacher['modes_reached']}"
    found = objections(results)
    title, tone = _with_objections(title, tone, found)
    lead = (
        *(each.line for each in found), *verdict(results),
        _success_line(teacher, student), _speed_line(teacher, student), _modes_line(results, teacher, student),
        *((baseline_line(results),) if baseline_line(results) else ()),
    )  # fmt: skip
    return Headline(tone, title, lead)


def _speed_clause(student: Policy, joint: str) -> str:
    speedup = student.get("speedup")
    if speedup is None or is_missing(speedup):
        return "; their speed was not compared"
    if speedup >= 1.05:
        return f"{joint} it is {number(speedup)} times as fast"
    if speedup <= 0.95:
        return f"; it is slower: one call takes {number(1 / speedup)} times as long"
    return "; it is about as fast"


def _success_line(teacher: Policy, student: Policy) -> str:
    def one(policy: Policy) -> str:
        return (
            f"{policy['successes']} of {policy['episodes']} ({percent(policy['success_rate'])}, 95 % interval "
            f"{percent(policy['success_low'])} to {percent(policy['success_high'])})"
        )

    line = f"Success: teacher {one(teacher)}, student {one(student)}."
    if comparison(student) == "none":
        return line
    return (
        f"{line} On the same starts the student differs by {points(student['difference'])} percentage points "
        f"(95 % interval {points(student.get('difference_low'))} to {points(student.get('difference_high'))}, "
        f"exact McNemar test {p_value(student.get('mcnemar_p'))})."
    )


def _speed_line(teacher: Policy, student: Policy) -> str:
    work = f"network evaluations (NFE) per policy call: teacher {teacher['nfe']}, student {student['nfe']}"
    if not teacher.get("latency") or not student.get("latency"):
        return f"Speed: {work}. The latency of a call was not measured."
    mine, its = student["latency"], teacher["latency"]
    return (
        f"Speed: {work}. Median latency of a call: teacher {number(its['median_ms'])} ms "
        f"({number(its['hz'])} per second), student {number(mine['median_ms'])} ms ({number(mine['hz'])} per second)."
    )


def _modes_line(results: Results, teacher: Policy, student: Policy) -> str:
    mine, its, total = student["modes_reached"], teacher["modes_reached"], student["modes_total"]
    counted = "the same number" if mine == its else f"{abs(its - mine)} {'fewer' if mine < its else 'more'}"
    sets, floor = student.get("fidelity") or {}, results.get("fidelity_floor") or {}
    told = (
        f" For one observation, its samples have recall {percent(sets.get('recall'))} and coverage "
        f"{percent(sets.get('coverage'))} of the teacher's (a second set of the teacher's: {percent(floor.get('recall'))}, "
        f"{percent(floor.get('coverage'))})."
    ) if sets else ""  # fmt: skip
    return (
        f"Diversity: of the task's {total} mode{'' if total == 1 else 's'} the teacher reached {its} and the student {mine}, "
        f"{counted}. Entropy of the mode frequencies (1 is uniform): teacher {number(teacher['entropy'])}, student "
        f"{number(student['entropy'])}.{told}"
    )


# -- existing policies ----------------------------------------------------------------------------------------------------


def _of_existing(results: Results) -> Headline:
    """Of existing policies, whose success may not be known."""
    reference, student = reference_policy(results), default_student(results)
    assert reference is not None
    found = objections(results)
    lead = [*(each.line for each in found), *verdict(results), *(_set_lines(results, student) if student is not None else ())]
    if not results["measured_success"]:
        lead.append(f"Success was not measured: that needs a task to roll out in (--task). Action chunks that are like the "
                    f"{reference_name(results)}'s are no proof of success.")  # fmt: skip
    for each in results["external"]:
        where = "encoder and head timed separately" if each["separable"] else "timed as a whole"
        program = f"Python {each['python']}, torch {each['torch']}, {each['device']}"
        lead.append(f"{each['label']}: external policy ({each['kind']}) in a process of its own ({program}), {where} there; "
                    "the transfer to that process is not counted.")  # fmt: skip
    if student is None:
        title = f"{len(results['policies'])} policies on the same observations, compared with {reference['label']}"
        return Headline("none", title, tuple(lead))
    speed, tone = student["speedup"], "none"
    faster = f"{number(speed)} times as fast as" if speed >= 1 else f"{number(1 / speed)} times as slow as"
    title = f"One network evaluation instead of {reference['nfe']}, {faster} the teacher"
    if results["measured_success"]:
        mine, its = percent(student["success_rate"]), percent(reference["success_rate"])
        title, tone = f"{title}; it solves {mine} of the episodes, the teacher {its}", comparison(student)
    title, tone = _with_objections(title, tone, found)
    best = taken(results)
    if not found and best is not None and not results["measured_success"] and best is not student:
        title, tone = f"{title}. But its samples are not as close to the teacher's as the teacher's own", "lower"
    return Headline(tone, title, tuple(lead))


def _set_lines(results: Results, student: Policy) -> tuple[str, ...]:
    """The student's sets of samples against the teacher's, and what it was distilled from."""
    floor, data = results["fidelity_floor"], results["data"]
    distance, share = (student["fidelity"][name] for name in ("energy_distance", "off_support_share"))
    start = "the teacher's weights." if student["warm_start"] else "random weights"
    if not student["warm_start"]:
        start += ": those of an external policy are not taken over." if results["external"] else "."
    samples = f"{data['hypotheses_per_observation']} samples for each of {data['observations']} observations"
    lines = (
        f"Sets of samples: the student's energy distance to the teacher's is {number(distance)}; the teacher's own, drawn "
        f"again, is {number(floor['energy_distance'])}. {percent(share)} of its samples are off the teacher's support; of the "
        f"teacher's own {percent(floor['off_support_share'])}.",
        f"It was distilled from {samples}, starting from {start}",
    )
    return lines if data.get("observations") is not None else lines[:1]
