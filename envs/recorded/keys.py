"""What the readers of foreign recordings share: keys to our names, shapes of frames, numbers in our units."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from envs.specs import DEPTH, IMAGES, POINTS, STATE, nearest_name

ACTION = "action"


def optional(module: str, extra: str, path: Path) -> ModuleType:
    """Import a library that only this format needs. Raises ImportError with the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{path}: reading it needs {module} ({error}): pip install "flow2one[{extra}]"') from error


def named(path: Path, keys: Iterable[str], defaults: Mapping[str, str], names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Our feature name (or ``action``) to the data's keys, from a format's defaults with the user's `names` over them.

    Several keys may be the state: it is their numbers one after the other. Raises ValueError for a key that is not there,
    for two keys of any other name, and for a name that is none of ours.
    """
    there = list(keys)
    for key in names:
        if key not in there:
            raise ValueError(f"{path}: names speaks of {key!r}, the data has {sorted(there)}{nearest_name(key, there)}")
    taken = set(names.values())
    kept = {key: name for key, name in defaults.items() if key in there and key not in names and name not in taken}
    found: dict[str, tuple[str, ...]] = {}
    for key, name in {**kept, **{key: name for key, name in names.items() if name}}.items():
        if name != ACTION and not name.startswith("observation."):
            raise ValueError(
                f"{path}: names gives {key!r} the name {name!r}, expected action, {STATE}, {IMAGES}.<camera>, {DEPTH}.<camera> "
                "or another that begins with observation."
            )
        if name in found and name != STATE:
            raise ValueError(f"{path}: {found[name][0]!r} and {key!r} would both be {name}; say by `names` which one is")
        found[name] = (*found.get(name, ()), key)
    if not set(found) - {ACTION}:
        raise ValueError(f"{path}: got the keys {sorted(there)}, and none is known; say what they are, e.g. names: {{img: "
                         f"{IMAGES}.front}}")  # fmt: skip
    return found


def frame_shape(path: Path, key: str, name: str, stored: Sequence[int], kind: np.dtype) -> tuple[int, ...]:
    """Our shape of one frame of which `stored` is the data's. ValueError where it is not what the name says."""
    shape = tuple(int(size) for size in stored)
    if kind.kind not in "fiub":
        raise ValueError(f"{path}: {key} holds {kind}, expected numbers; objects and strings are not read")
    wanted = ""
    if name.startswith(IMAGES + "."):
        if len(shape) == 3 and shape[-1] == 3:
            return 3, *shape[:2]
        wanted = "" if len(shape) == 3 and shape[0] == 3 else "(height, width, 3) or (3, height, width)"
    elif name.startswith(DEPTH + "."):
        inner = shape[:-1] if len(shape) == 3 and shape[-1] == 1 else shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
        shape, wanted = (1, *inner), "" if len(inner) == 2 else "(height, width), (height, width, 1) or (1, height, width)"
    elif name == POINTS:
        wanted = "" if len(shape) == 2 and shape[1] in (3, 6) else "(points, 3) or (points, 6)"
    elif name in (STATE, ACTION):
        shape, wanted = shape or (1,), "" if len(shape) < 2 else "numbers in a row"
    if wanted or 0 in shape:
        raise ValueError(f"{path}: {key} is {tuple(stored)} in each frame, expected {wanted or 'no size of 0'} to be {name}")
    return shape


def in_our_units(name: str, stored: np.ndarray, shape: tuple[int, ...], bright: bool = False) -> np.ndarray:
    """What is stored of M frames, as `[M, *shape]` float32.

    Images become 0..1: whole numbers are divided by 255, and floats where they are `bright` (0..255). Depth of whole numbers
    is in millimetres, of floats in metres, 0 in both is unknown and becomes NaN. All else keeps its numbers.
    """
    count = len(stored)
    if name.startswith(IMAGES + "."):
        if stored.shape[1:] != shape:
            stored = stored.transpose(0, 3, 1, 2)
        scale = np.float32(255 if bright or stored.dtype.kind in "iu" else 1)
        return np.ascontiguousarray(stored, dtype=np.float32) / scale
    values = stored.reshape(count, *shape).astype(np.float32)
    if name.startswith(DEPTH + "."):
        values = np.where(values == 0, np.float32(np.nan), values * np.float32(1e-3 if stored.dtype.kind in "iu" else 1))
    return values


def is_bright(name: str, stored: np.ndarray) -> bool:
    """Whether an image that is stored in floats goes to 255, by a look at one frame."""
    return name.startswith(IMAGES + ".") and stored.dtype.kind == "f" and float(np.nanmax(stored)) > 1.5
