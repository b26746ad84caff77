"""The page of a recording: format, units, ranges, time, tasks and split, and one frame as policies observe it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.report.page import template
from distill.report.sections.recording import ranges_table, recording_table
from distill.store.manifest import write_bytes
from envs.recorded.observations import RecordedObservations
from envs.specs import DEPTH, IMAGES, POINTS

PICTURE = 160
"""Maximum height of an image [px]; larger ones are scaled down."""


def write_data_page(file: Path, recorded: RecordedObservations, inspection: Mapping[str, Any]) -> None:
    """One HTML page that opens offline. inspection: `envs.recorded.inspection.inspect` of the recording."""
    frame = inspection["frame"]["index"]
    seen = recorded.read([frame], 1)
    pictures = [(name, picture_of(name, value[0, 0])) for name, value in seen.items()
                if name.startswith((IMAGES, DEPTH)) or name == POINTS]  # fmt: skip
    sections = [("How it is read", recording_table(inspection)), ("Ranges", ranges_table(inspection))]
    text = template("data.html.j2").render(inspection=inspection, pictures=pictures, sections=sections)
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
