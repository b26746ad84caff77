"""What the readers of foreign recordings share: keys to our names, shapes of frames, numbers in our units."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from envs.recorded.units import AS_IT_IS, Unit
from envs.specs import ACTION, DEPTH, IMAGES, POINTS, STATE, nearest_name


def optional(module: str, path: Path) -> ModuleType:
    """Import a library that only this format needs. Raises ImportError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{path}: reading it needs {module} ({error}): pip install {package}") from error


def named(path: Path, keys: Iterable[str], defaults: Mapping[str, str], names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Our feature name (or ``action``) to the data's keys, from a format's defaults with the user's `names` over them.

    Several keys may be the state, or the action: it is their numbers one after the other. A key that is named the state is
    added to the state of the defaults (leave that one out with ""); with all of them named, their order is that of `names`.
    Raises ValueError for a key that is not there, for two keys of any other name, and for a name that is none of ours.
    """
    there = list(keys)
    for key in names:
        if key not in there:
            raise ValueError(f"{path}: names speaks of {key!r}, the data has {sorted(there)}{nearest_name(key, there)}")
    taken = set(names.values()) - {STATE}
    kept = {key: name for key, name in defaults.items() if key in there and key not in names and name not in taken}
    found: dict[str, tuple[str, ...]] = {}
    for key, name in {**kept, **{key: name for key, name in names.items() if name}}.items():
        if name != ACTION and not name.startswith("observation."):
            raise ValueError(
                f"{path}: names gives {key!r} the name {name!r}, expected action, {STATE}, {IMAGES}.<camera>, {DEPTH}.<camera> "
                "or another that begins with observation."
            )
        if name in found and name not in (STATE, ACTION):
            raise ValueError(f"{path}: {found[name][0]!r} and {key!r} would both be {name}; say by `names` which one is")
        found[name] = (*found.get(name, ()), key)
    if not set(found) - {ACTION}:
        raise ValueError(f"{path}: got the keys {sorted(there)}, and none is known; say what they are, e.g. --names "
                         f"img={IMAGES}.front")
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


def in_our_units(
    name: str, stored: np.ndarray, shape: tuple[int, ...], unit: Unit = AS_IT_IS, where: str = "", cast: bool = True
) -> np.ndarray:
    """What is stored of M frames, as `[M, *shape]` float32, images in 0..1, depth and points in metres.

    unit: as `envs.recorded.units.judge` found it. A depth of 0 is unknown, and becomes NaN. All else keeps its numbers; with
    `cast` false 64-bit ones stay so. Raises ValueError for a colour that is more than its unit allows.
    """
    count, colours = len(stored), name.startswith(IMAGES + ".")
    if colours or name == POINTS and unit.most < np.inf:
        brightest = stored if colours or stored.shape[-1] == 3 else stored[..., 3:]
        if brightest.size and float(brightest.max()) > unit.most:
            raise ValueError(f"{where}: reaches {float(brightest.max()):g}, judged to be {unit.said} by the frames that were "
                             f"looked at: "
                             "two units in one recording; write all of them as 0 to 255")  # fmt: skip
    if colours:
        if stored.shape[1:] != shape:
            stored = stored.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(stored, dtype=np.float32) / np.float32(unit.divisor)
    wide = not cast and stored.dtype.itemsize == 8 and name in (STATE, ACTION)
    values: np.ndarray[Any, np.dtype[np.floating[Any]]]
    values = stored.reshape(count, *shape).astype(np.float64 if wide else np.float32)
    if name.startswith(DEPTH + "."):
        unknown = stored == 0
        if stored.dtype.kind in "iu" and stored.dtype.itemsize > 1:
            unknown |= stored == np.iinfo(stored.dtype).max  # a sensor's mark
        return np.where(unknown.reshape(values.shape), np.float32(np.nan), values / np.float32(unit.divisor))
    if name == POINTS:
        values[..., :3] /= np.float32(unit.divisor)
        values[..., 3:] /= np.float32(unit.colour_divisor)
    return values


def join(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of one frame of several keys, one after the other in the last dimension."""
    return shapes[0] if len(shapes) == 1 else (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


def flat_names(told: object) -> list[str]:
    """The names of numbers, however a format nests them: a list, lists in a dict or in a list, or a dict of name to place."""
    if isinstance(told, str):
        return [told]
    if isinstance(told, dict):
        if told and all(isinstance(value, int) and not isinstance(value, bool) for value in told.values()):
            return [str(name) for name, _ in sorted(told.items(), key=lambda pair: pair[1])]
        told = list(told.values())
    return [name for each in told for name in flat_names(each)] if isinstance(told, (list, tuple)) else []
