"""A recording as a page: what it is, its units, ranges, time, tasks and split, and one frame as policies would see it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.report.page import template
from distill.report.tables import NOTHING, Cell, Table, number, percent
from distill.store.manifest import write_bytes
from envs.recorded.observations import RecordedObservations
from envs.recorded.splitting import in_words
from envs.specs import DEPTH, IMAGES, POINTS

MOST_ROWS = 64
"""Numbers of a state or action that are shown."""
PICTURE = 160
"""Height of a picture [px], larger ones are drawn smaller."""


def recording_table(recording: Mapping[str, Any]) -> Table:
    """How a recording is read: `envs.recorded.inspection.described`."""
    dt_s, recorded_s = recording["dt_s"], recording["recorded_dt_s"]
    rate = "not known" if not dt_s else f"{dt_s:.4g} s a step ({1 / dt_s:.4g} Hz)"
    if recording["stride"] > 1:
        rate += f", one of {recording['stride']} frames recorded every {recorded_s:.4g} s"
    rows = [("Rate", rate)]
    rows += [(f"Made of: {name}", ", ".join(keys)) for name, keys in recording["parts"].items()]
    rows += [(f"Unit: {name}", unit) for name, unit in recording["units"].items()]
    rows += [("Left out", ", ".join(f"{key} ({why})" for key, why in recording["left_out"].items()) or "nothing"),
             ("Tasks", "; ".join(f"{task}: {count} frames" for task, count in recording["tasks"].items()) or "none is told"),
             ("Split", in_words(recording["split"])),
             ("Frames used", f"{recording['used_frames']} of {recording['frames']}")]  # fmt: skip
    rows += [("Note", note) for note in recording["notes"]]
    return Table((("What", ""), ("How the recording is read", "")), tuple((Cell(name), Cell(value)) for name, value in rows))


def ranges_table(recording: Mapping[str, Any]) -> Table | None:
    """Least and most of every number of states and actions, in its own unit, and the frames that set them."""
    rows = [(name, row) for name, each in recording["ranges"].items() for row in each[:MOST_ROWS]]
    if not rows:
        return None
    columns = (("Feature", ""), ("Number", ""), ("Least", "in its own unit, as recorded"), ("in frame", ""),
               ("Most", ""), ("in frame", ""), ("", "whether it moves"))  # fmt: skip
    return Table(columns, tuple(
        (Cell(name), Cell(row["name"]), Cell(f"{row['low']:.6g}"), Cell(str(row["low_frame"])), Cell(f"{row['high']:.6g}"),
         Cell(str(row["high_frame"])), Cell("never moves" if row["low"] == row["high"] else "")) for name, row in rows
    ))  # fmt: skip


def dimensions_table(results: Mapping[str, Any]) -> Table | None:
    """How far each policy's chunks are from the reference's, number by number, in its own unit."""
    rows = [(policy["label"], row) for policy in results["policies"] for row in policy.get("dimensions") or ()]
    if not rows:
        return None
    columns = (("Policy", ""), ("Number", "of an action, in its own unit, as recorded"), ("Range", "of the reference's chunks"),
               ("Mean error", "of the mean of a set, averaged over observations and steps"), ("of the range", ""),
               ("Spread error", "the same of the standard deviation"))  # fmt: skip
    return Table(columns, tuple(
        (Cell(label), Cell(row["name"]), Cell(f"{row['low']:.6g} to {row['high']:.6g}"), Cell(number(row["mean_error"])),
         Cell(NOTHING if row["mean_error_share"] is None else percent(row["mean_error_share"])),
         Cell(number(row["spread_error"])))
        for label, row in rows
    ))  # fmt: skip


def write_data_page(file: Path, recorded: RecordedObservations, told: Mapping[str, Any]) -> None:
    """One HTML page that opens offline. told: `envs.recorded.inspection.inspect` of the recording."""
    frame = told["frame"]["index"]
    seen = recorded.read([frame], 1)
    pictures = [(name, picture_of(name, value[0, 0])) for name, value in seen.items()
                if name.startswith((IMAGES, DEPTH)) or name == POINTS]  # fmt: skip
    sections = [("How it is read", recording_table(told)), ("Ranges", ranges_table(told))]
    text = template("data.html.j2").render(told=told, pictures=pictures, sections=sections)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, text.encode())


def picture_of(name: str, value: np.ndarray) -> str:
    """A PNG as a data URI: an image `[3, H, W]`; depth `[1, H, W]`, near is bright; points `[N, 3+C]` from above."""
    if name.startswith(IMAGES):
        pixels = (255 * value.clip(0, 1)).round().astype(np.uint8).transpose(1, 2, 0)
    elif name.startswith(DEPTH):
        depth, known = value[0], ~np.isnan(value[0])
        far = float(np.nanquantile(depth, 0.98)) if known.any() else 1.0
        grey = np.where(known, 255 * (1 - np.nan_to_num(depth).clip(0, far) / max(far, 1e-9)), 0).astype(np.uint8)
        pixels = np.stack([np.where(known, grey, 160), grey, grey], axis=-1)
    else:
        pixels = _from_above(value)
    return _png(pixels)


def _from_above(points: np.ndarray) -> np.ndarray:
    pixels = np.full((PICTURE, PICTURE, 3), 245, np.uint8)
    low, high = np.quantile(points[:, :2], 0.01, axis=0), np.quantile(points[:, :2], 0.99, axis=0)
    size = max(float((high - low).max()), 1e-9)
    at = ((points[:, :2] - (low + high) / 2) / size * (PICTURE - 1) * 0.9 + PICTURE / 2).round().astype(int)
    inside = ((at >= 0) & (at < PICTURE)).all(1)
    colours = np.full((len(points), 3), 40, np.uint8)
    if points.shape[1] >= 6:
        colours = (255 * points[:, 3:6].clip(0, 1)).astype(np.uint8)
    pixels[PICTURE - 1 - at[inside, 1], at[inside, 0]] = colours[inside]
    return pixels


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    if image.height > PICTURE:
        image = image.resize((max(round(image.width * PICTURE / image.height), 1), PICTURE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
