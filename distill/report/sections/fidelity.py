"""How alike the sets of action chunks are that a policy and the reference sample for the same observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distill.report.policies import Results, reference_name, reference_policy
from distill.report.section import Section
from distill.report.tables import Cell, Table, is_missing, number, percent

COLUMNS: tuple[tuple[str, str, str, Callable[[float | None], str]], ...] = (
    ("chamfer_student_to_teacher", "Chamfer, to {it}",
     "mean distance of a sample to the nearest sample of the {it}; grows with off-support samples", number),
    ("chamfer_teacher_to_student", "Chamfer, from {it}",
     "mean distance of a sample of the {it} to the policy's nearest one; grows with missed modes", number),
    ("energy_distance", "Energy distance",
     "between the two distributions, mode frequencies included; 0 is equal, the unbiased estimate may fall just below",
     number),
    ("precision", "Precision", "share of the policy's samples within the {it}'s support, by nearest-neighbour balls", percent),
    ("recall", "Recall", "share of the {it}'s samples within the policy's support, by nearest-neighbour balls", percent),
    ("coverage", "Coverage", "share of the {it}'s samples whose nearest-neighbour ball holds a sample of the policy", percent),
    ("off_support_share", "Off-support",
     "share of samples farther from every sample of the {it} than those are from each other, and than 1 % of half an "
     "action's range", percent),
)  # fmt: skip
"""Key, title, meaning and format of every column; {it} is the reference."""


def fidelity_table(results: Results) -> Table | None:
    """Distances of sets, or None when no policy has any. The floor is the reference against itself."""
    rows = [(policy["label"], policy["fidelity"]) for policy in results["policies"] if policy.get("fidelity")]
    if not rows:
        return None
    floor, it = results.get("fidelity_floor") or {}, reference_name(results)
    if floor:
        rows.insert(0, (f"Floor: {it} against itself", floor))
    columns = (("Policy", ""), *((title.format(it=it), meaning.format(it=it)) for _, title, meaning, _ in COLUMNS))
    own = ((reference_policy(results) or {}).get("fidelity") or floor).get("off_support_share")

    def cell(key: str, value: float | None, show: Callable[[float | None], str]) -> Cell:
        if key != "off_support_share" or value is None or is_missing(value) or not own:
            return Cell(show(value))
        return Cell(show(value), (f"{number(value / own, 2)} × the {it}'s own",))

    cells = tuple((Cell(label), *(cell(key, each.get(key), show) for key, _, _, show in COLUMNS)) for label, each in rows)
    return Table(columns, cells)


def _text(results: Results) -> Sequence[str]:
    it = reference_name(results)
    at = next(policy["fidelity"] for policy in results["policies"] if policy.get("fidelity"))
    size = f" ({at['observations']} observations × {at['samples']} samples)" if {"observations", "samples"} <= set(at) else ""
    text = (
        f"How alike are the sets of action chunks that a policy and the {it} sample for the same observation? Compared with "
        f"fresh samples of the {it}{size}, per observation, in normalised action space."
    )
    if results.get("fidelity_floor"):
        text += f" The floor is what the {it} scores against itself: chance aside, no policy can be expected to come closer."
    return (text,)


FIDELITY = Section(
    "Fidelity of the sets", table=fidelity_table, text=_text,
    missing="Distances to fresh teacher samples were not measured in this run.",
)  # fmt: skip
