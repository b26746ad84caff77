"""Presets: YAML files over a config; they may extend each other, and every key and value is checked."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from distill.config import Config
from envs import plain_yaml
from envs.specs import nearest_name

C = TypeVar("C")


def shipped() -> dict[str, Path]:
    """The presets that come with flow2one by name, such as ``avoid`` or ``rlbench/reach_target``."""
    checkout = Path(__file__).resolve().parents[1] / "configs"
    folders = [checkout] if checkout.is_dir() else [Path(str(each)) for each in _installed_folders()]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for folder in folders for path in folder.rglob("*.yaml")}


def _installed_folders() -> list[str]:
    found = importlib.util.find_spec("flow2one_presets")
    return [] if found is None else list(found.submodule_search_locations or ())


def find_preset(text: str) -> Path:
    """The YAML file at this path, else the preset of this name. Raises ValueError with the nearest name for neither."""
    presets = shipped()
    if os.path.isfile(text):  # unlike Path.is_file it is False, too, for a text that no path can be
        return Path(text)
    name = text.removeprefix("configs/").removesuffix(".yaml")
    if name in presets:
        return presets[name]
    hint = nearest_name(name, presets) or "."
    shown = " ".join(text[:200].split())
    raise ValueError(f"no config at {shown}, and no preset of this name{hint} Presets: {', '.join(sorted(presets)) or 'none'}")


def apply_preset(config: Config, path: Path, below: tuple[Path, ...] = ()) -> Config:
    """`config` with the values of a YAML file applied over it.

    Files that it ``extends`` (paths relative to it) are applied first, later ones over earlier ones. below: the files that
    extend this one. Raises ValueError for a missing file, a file that extends itself, text that is not a YAML mapping, an
    unknown key (with the nearest known one) or a value of the wrong type.
    """
    path = find_preset(str(path))
    try:
        values = plain_yaml.read(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if values is None:
        return config
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}, expected `key: value` lines")
    extended, below = values.pop("extends", []), (*below, Path(os.path.realpath(path)))
    for name in extended if isinstance(extended, list) else [extended]:
        if not isinstance(name, str) or "\0" in name:
            raise ValueError(f"{path} extends {str(name)[:60]!r}, expected the name of a preset or file")
        parent = path.parent / name
        if Path(os.path.realpath(parent)) in below:
            raise ValueError(f"{path} extends {parent}, which extends it in turn; name another file, or none")
        config = apply_preset(config, parent, below)
    return _replace(config, values, str(path), "")


def with_settings(config: C, settings: Mapping[str, Any]) -> C:
    """`config` with settings as a preset holds them, such as ``{"seed": 1, "student": {"training_steps": 400}}``.

    Raises ValueError as `apply_preset`.
    """
    made: C = _replace(config, settings, "settings", "")
    return made


def _replace(config: Any, values: Mapping[str, Any], where: str, prefix: str) -> Any:
    known = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise ValueError(f"{where}: unknown key {name!r}{nearest_name(str(key), known)}; known: {sorted(known)}")
        old = known[key]
        if dataclasses.is_dataclass(old):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name} is a section, expected `key: value` lines below it, got {value!r}")
            changes[key] = _replace(old, value, where, f"{name}.")
            continue
        if isinstance(old, tuple) and isinstance(value, list):
            value = tuple(value)
        elif isinstance(old, float) and type(value) is int:
            value = float(value)
        elif (isinstance(old, Path) or (key == "path" and old is None)) and isinstance(value, str):
            value = Path(value)
        wanted = Path if isinstance(old, Path) or old is None else type(old)
        fits = isinstance(value, wanted) and isinstance(value, bool) == isinstance(old, bool)
        if isinstance(old, tuple) and old and fits:
            fits = all(type(item) is type(old[0]) for item in value)
        if not fits and not (value is None and key == "path"):
            raise ValueError(f"{where}: {name} is {value!r}, expected a {wanted.__name__} like {old!r}")
        changes[key] = value
    return dataclasses.replace(config, **changes)
