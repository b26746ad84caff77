"""How a recording was read: units, rate, tasks, split, ranges; and errors in the actions' own units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.report.policies import Results
from distill.report.section import Section
from distill.report.tables import NOTHING, Cell, Table, number, percent
from envs.recorded.splitting import in_words

MOST_ROWS = 64
"""Maximum number of state or action dimensions in a table."""


def recording_table(recording: Mapping[str, Any]) -> Table:
    """How a recording is read: `envs.recorded.inspection.described`."""
    dt_s, recorded_s = recording["dt_s"], recording["recorded_dt_s"]
    rate = "not known" if not dt_s else f"{dt_s:.4g} s a step ({1 / dt_s:.4g} Hz)"
    if recording["stride"] > 1:
        rate += f", one of {recording['stride']} frames recorded every {recorded_s:.4g} s"
    rows = [("Rate", rate)]
    rows += [(f"Keys of {name}", ", ".join(keys)) for name, keys in recording["parts"].items()]
    rows += [(f"Unit: {name}", unit) for name, unit in recording["units"].items()]
    rows += [("Left out", ", ".join(f"{key} ({why})" for key, why in recording["left_out"].items()) or "nothing"),
             ("Tasks", "; ".join(f"{task}: {count} frames" for task, count in recording["tasks"].items()) or "none recorded"),
             ("Split", in_words(recording["split"])),
             ("Frames used", f"{recording['used_frames']} of {recording['frames']}")]  # fmt: skip
    rows += [("Note", note) for note in recording["notes"]]
    return Table((("What", ""), ("How the recording is read", "")), tuple((Cell(name), Cell(value)) for name, value in rows))


def ranges_table(recording: Mapping[str, Any]) -> Table | None:
    """Minimum and maximum of every state and action dimension, in its own unit, and the frames that set them."""
    rows = [(name, row) for name, each in recording["ranges"].items() for row in each[:MOST_ROWS]]
    if not rows:
        return None
    columns = (("Feature", ""), ("Dimension", ""), ("Minimum", "in its own unit, as recorded"), ("in frame", ""),
               ("Maximum", ""), ("in frame", ""), ("", "whether it is constant"))  # fmt: skip
    return Table(columns, tuple(
        (Cell(name), Cell(row["name"]), Cell(f"{row['low']:.6g}"), Cell(str(row["low_frame"])), Cell(f"{row['high']:.6g}"),
         Cell(str(row["high_frame"])), Cell("constant" if row["low"] == row["high"] else "")) for name, row in rows
    ))  # fmt: skip


def dimensions_table(results: Mapping[str, Any]) -> Table | None:
    """Distance of each policy's chunks from the reference's, per action dimension and in its own unit."""
    rows = [(policy["label"], row) for policy in results["policies"] for row in policy.get("dimensions") or ()]
    if not rows:
        return None
    columns = (("Policy", ""), ("Dimension", "of an action, in its recorded unit"), ("Range", "of the reference's chunks"),
               ("Mean error", "of the mean of a set, averaged over observations and steps"), ("of the range", ""),
               ("Spread error", "the same of the standard deviation"))  # fmt: skip
    return Table(columns, tuple(
        (Cell(label), Cell(row["name"]), Cell(f"{row['low']:.6g} to {row['high']:.6g}"), Cell(number(row["mean_error"])),
         Cell(NOTHING if row["mean_error_share"] is None else percent(row["mean_error_share"])),
         Cell(number(row["spread_error"])))
        for label, row in rows
    ))  # fmt: skip


def _recorded(results: Results) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = results["data"].get("recording")
    return found


def _reading(results: Results) -> Table | None:
    recording = _recorded(results)
    return None if recording is None else recording_table(recording)


def _ranges(results: Results) -> Table | None:
    recording = _recorded(results)
    return None if recording is None else ranges_table(recording)


OWN_UNITS = Section("Errors in the actions' own units", table=dimensions_table, kinds=("conversion", "comparison"))
RECORDING = Section("Data", table=_reading, kinds=("conversion", "comparison"))
RANGES = Section("Ranges of the data", table=_ranges, kinds=("conversion", "comparison"))
