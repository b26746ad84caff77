"""Training losses, and the choice among checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.report import figures
from distill.report.policies import Results
from distill.report.section import Picture, Section, data_uri
from distill.report.tables import NOTHING, Cell, Table, number, percent

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


def generalisation_table(results: Results) -> Table | None:
    """Errors of planned poses at training and at held-out observations; None where they were not measured."""
    measured = results.get("generalisation")
    if not measured:
        return None
    columns = [("Policy", "")]
    for what, unit in (("position", "mm"), ("rotation", "degrees")):
        columns += [(f"Training {what} [{unit}]", "mean error at observations that it was trained on"),
                    (f"Held-out {what} [{unit}]", "at demonstrations that nothing was trained on"), ("Ratio", "")]  # fmt: skip
    rows = []
    for row in measured["rows"]:
        cells = [Cell(row["label"])]
        for name, scale in (("position_m", 1000.0), ("rotation_deg", 1.0)):
            train, held_out = (row[split].get(name, {}).get("mean") for split in ("training", "held_out"))
            known = train is not None and held_out is not None
            cells += [Cell(number(scale * value) if value is not None else NOTHING) for value in (train, held_out)]
            cells.append(Cell(f"{held_out / train:.2f}" if known and train > 0 else NOTHING))
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))


def _generalisation_text(results: Results) -> Sequence[str]:
    measured = results.get("generalisation")
    if not measured:
        return ()
    return (f"Distance between the last pose of a plan and the demonstrated one, of the nearest of {measured['samples']} "
            f"samples, at {measured['frames']} observations each, half of them first ones of an episode. A held-out error far "
            "above the training error means that the policy remembers where things were in the demonstrations: use the tool "
            "frame and augmentation, or more demonstrations.",)  # fmt: skip


CURVES = Section(
    "Training", text=_losses_text, pictures=curves, missing="Training curves were not recorded in this run."
)
CHECKPOINTS = Section(
    "Choice of checkpoints", table=checkpoint_table, text=_checkpoints_text,
    missing="Checkpoints were not compared on validation starts in this run.", level=3,
)  # fmt: skip
GENERALISATION = Section(
    "Errors on new scenes", table=generalisation_table, text=_generalisation_text, kinds=("run",), level=3,
)  # fmt: skip
