"""Training losses, and the choice among checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.report import figures
from distill.report.policies import Results
from distill.report.section import Picture, Section, data_uri
from distill.report.tables import Cell, Table, number, percent

SHARES = ("success_rate", "off_support_share")
TITLES = {"success_rate": "Success", "off_support_share": "Off-support"}
MEANINGS = {
    "success_rate": "on the validation starts",
    "entropy": "entropy of the mode frequencies on the validation starts: 1 is uniform, 0 a single mode",
    "energy_distance": "to the teacher's samples, for validation observations",
    "off_support_share": "share of off-support samples, for validation observations",
}


def curves(results: Results, folder: Path) -> Sequence[Picture]:
    """The training losses."""
    losses = results.get("curves") or {}
    return [Picture(data_uri(figures.training_curves(losses)), "training losses")] if any(losses.values()) else []


def _losses_text(results: Results) -> Sequence[str]:
    chosen = " A falling loss does not mean more success: checkpoints are chosen by rollouts."
    if not results["measured_success"]:
        chosen = " Checkpoints are chosen by the distance of sets of samples on validation observations."
    return (f"Losses of different objectives are not comparable with each other.{chosen}",)


def checkpoint_table(results: Results) -> Table | None:
    """Every checkpoint that was measured on validation starts or observations, and which was chosen; None without any."""
    rows = [(policy["label"], each) for policy in results["policies"] for each in policy.get("validation") or ()]
    if not rows:
        return None
    names = list(dict.fromkeys(name for _, each in rows for name in each if name not in ("step", "chosen")))
    show = {name: percent if name in SHARES else number for name in names}
    columns = (
        ("Policy", ""), ("Step", "training step of the checkpoint"),
        *((TITLES.get(name, name.replace("_", " ").capitalize()), MEANINGS.get(name, "on validation data")) for name in names),
        ("Chosen", "the checkpoint that was measured for this report"),
    )  # fmt: skip
    return Table(columns, tuple(
        (Cell(label), Cell(str(each["step"])), *(Cell(show[name](each.get(name))) for name in names),
         Cell("chosen" if each.get("chosen") else "")) for label, each in rows
    ))  # fmt: skip


def _checkpoints_text(results: Results) -> Sequence[str]:
    if results["measured_success"]:
        return ("Rolled out from validation starts; the results above are from other, test starts.",)
    return ("Measured on validation observations, which are used for nothing else.",)


CURVES = Section(
    "Training", text=_losses_text, pictures=curves, missing="Training curves were not recorded in this run."
)
CHECKPOINTS = Section(
    "Choice of checkpoints", table=checkpoint_table, text=_checkpoints_text,
    missing="Checkpoints were not compared on validation starts in this run.", level=3,
)  # fmt: skip
