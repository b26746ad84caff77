"""What the page explains before its numbers: its terms, and the four most important numbers."""

from __future__ import annotations

from dataclasses import dataclass

from distill.report.policies import Policy, Results, default_student, reference_policy
from distill.report.tables import NOTHING, number, percent


@dataclass(frozen=True)
class Tile:
    """A number of the teacher and of the student, side by side."""

    name: str
    teacher: str
    student: str
    what: str


def terms(results: Results) -> list[tuple[str, str]]:
    """(term, meaning) for the terms that these results use."""
    kind, modes = results["kind"], len(results["task"]["modes"])
    words = []
    if kind == "run":
        words.append(("Teacher", "a policy trained on demonstrations that makes an action chunk slowly, refining random noise "
                      "in many steps."))  # fmt: skip
    elif kind == "conversion":
        words.append(("Teacher", "the policy that was given, which makes an action chunk in several network evaluations."))
    if kind != "comparison":
        words.append(("Student", "a policy trained on the teacher's samples to make a whole action chunk in one network "
                      "evaluation."))  # fmt: skip
    baselines = [policy["label"] for policy in results["policies"] if policy["kind"] == "baseline"]
    if baselines:
        words.append(("Baseline", f"a policy without training, for comparison: {', '.join(baselines).lower()}."))
    words.append(("Action chunk", "the next actions of the robot, planned in one policy call."))
    if results["measured_success"] or kind == "run":
        words.append(("Mode", "one of the distinct ways to solve this task, such as passing an obstacle on one side; there "
                      f"{'is' if modes == 1 else 'are'} {modes}."))  # fmt: skip
    words += [
        ("NFE", "number of function evaluations: how often the network runs for one policy call."),
        ("Hz", "policy calls per second: 1 divided by the median latency."),
    ]
    if results["measured_success"]:
        words.append(("Interval", "where the true value lies with 95 % confidence; more episodes make it narrower."))
    return words


def tiles(results: Results) -> list[Tile]:
    """The most important numbers; none without a teacher and a student."""
    teacher, student = reference_policy(results), default_student(results)
    if teacher is None or student is None:
        return []

    def latency(policy: Policy) -> str:
        return f"{number(policy['latency']['median_ms'])} ms" if policy.get("latency") else NOTHING

    def modes(policy: Policy) -> str:
        return f"{policy['modes_reached']}/{policy['modes_total']}"

    def rate(policy: Policy) -> str:
        return percent(policy["success_rate"])

    success = [
        Tile("Success", rate(teacher), rate(student), "episodes solved"),
        Tile("Modes", modes(teacher), modes(student), "modes reached"),
    ] if results["measured_success"] else []  # fmt: skip
    return [
        *success,
        Tile("Latency", latency(teacher), latency(student), "median of a policy call, less is better"),
        Tile("Network evaluations", str(teacher["nfe"]), str(student["nfe"]), "per policy call (NFE)"),
    ]
