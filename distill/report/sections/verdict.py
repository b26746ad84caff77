"""Which policy to take at which latency."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.policies import Results, reference_name
from distill.report.section import Section
from distill.report.tables import Cell, Table, number, percent, success_cell
from distill.report.verdict import as_good, frontier, objections, verdict


def verdict_table(results: Results) -> Table | None:
    """The policies worth their time, the fastest first; None where fewer than two were timed."""
    kept = frontier(results)
    if not verdict(results):
        return None
    it, measured = reference_name(results), results["measured_success"]
    columns = [
        ("If a call may take", "median of a policy call, the choice among samples included"), ("Take", ""),
        *([("Success", "share of episodes solved, 95 % Wilson interval")] if measured else []),
        ("Recall", f"share of the {it}'s samples within the policy's support"),
        ("Coverage", f"share of the {it}'s samples whose nearest-neighbour ball holds a sample of the policy"),
        ("Energy distance", f"to the {it}'s sets of samples"),
        ("Off-support", "share of off-support samples"), ("NFE", "network evaluations per policy call"),
        (f"As good as the {it}", "in success, else by the energy distance"),
    ]  # fmt: skip
    rows = []
    for policy in kept:
        sets = policy.get("fidelity") or {}
        rows.append((
            Cell(f"{number(policy['latency']['median_ms'])} ms or more"), Cell(policy["label"]),
            *([success_cell(policy)] if measured else []),
            Cell(percent(sets.get("recall"))), Cell(percent(sets.get("coverage"))), Cell(number(sets.get("energy_distance"))),
            Cell(percent(sets.get("off_support_share"))), Cell(str(policy["nfe"])),
            Cell("yes" if as_good(results, policy) else "no"),
        ))  # fmt: skip
    return Table(tuple(columns), tuple(rows))


def _text(results: Results) -> Sequence[str]:
    against = [each.line for each in objections(results)]
    baselines = any(policy["kind"] == "baseline" for policy in results["policies"])
    left_out = f"The table leaves out policies that a faster one equals{', and baselines' if baselines else ''}."
    return (*verdict(results), *against, left_out)


VERDICT = Section("Which one to take", table=verdict_table, text=_text)
