"""The outcome of a run in a few lines, for the end of a command."""

from __future__ import annotations

from distill.report.headline import headline
from distill.report.policies import Policy, Results, default_student, reference_policy
from distill.report.sections.latency import busy_line
from distill.report.tables import NOTHING, distilling_line, number, percent
from distill.report.tiles import speed_up
from distill.report.verdict import verdict


def ending(results: Results) -> list[str]:
    """The verdict, then a line each for the policies that count: success and modes, or fidelity, and time and speed-up.

    results: content of ``report.json``. The policies are the reference and the default student; in a comparison all.
    """
    reference, student = reference_policy(results), default_student(results)
    shown = results["policies"] if results["kind"] == "comparison" else [each for each in (reference, student) if each]
    width = max((len(each["label"]) for each in shown), default=0)
    cost, busy = distilling_line(results), busy_line(results)
    return [
        f"{headline(results).title}.",
        *(f"  {each['label']:<{width}}  {_figures(results, each)}" for each in shown),
        *verdict(results),
        *([f"{cost[0].upper()}{cost[1:]}."] if cost else []),
        *([busy] if busy else []),
    ]  # fmt: skip


def _figures(results: Results, policy: Policy) -> str:
    told = []
    if results["measured_success"]:
        told += [f"success {percent(policy['success_rate'])}", f"modes {policy['modes_reached']}/{policy['modes_total']}"]
    sets = policy.get("fidelity")
    if sets:
        told.append(f"recall {percent(sets.get('recall'))}, coverage {percent(sets.get('coverage'))}")
        if not results["measured_success"]:
            told.append(f"energy distance {number(sets.get('energy_distance'))}")
    latency = policy.get("latency")
    told.append(f"{number(latency['median_ms'])} ms ({number(latency['hz'])} Hz)" if latency else f"latency {NOTHING}")
    return ", ".join([*told, f"speed-up {speed_up(policy)}"])
