"""Stages on disk: a folder is complete or absent, records what it was made from, and is verified when opened."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
HASH_EVERYTHING = "FLOW2ONE_HASH_EVERYTHING"
"""Environment variable that `hash_everything` sets."""
COST_FOLDER = ".cost"
"""Subfolder of an unfinished stage in which every attempt of each process records its time (distill.store.cost)."""
_written: set[Path] = set()
"""Files that this process wrote and that a stage must still hold when it is committed."""
_PACKAGES = ("torch", "numpy", "mujoco", "gymnasium", "accelerate", "torchcfm", "safetensors")


def make_key(made_from: Mapping[str, Any]) -> str:
    """sha256 of everything a stage was made from, as canonical JSON; equal inputs give equal keys."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **made_from}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write atomically: a temporary file in the same folder, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _fsync_folder(path.parent)
    _written.add(path)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (NaN refused), written atomically."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, None without one; ValueError when it cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = dict(json.loads(path.read_text()))
        if not isinstance(manifest["key"], str) or not all(isinstance(each, str) for each in manifest["files"].values()):
            raise ValueError("its key and its sums are no text")
        outside = [name for name in manifest["files"] if Path(name).is_absolute() or ".." in Path(name).parts]
        if outside:
            raise ValueError(f"it names files outside of its folder: {outside[:3]}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error!s:.200}). Delete {folder} to run this stage again") from error
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Compare every file of a finished stage with its manifest and return the manifest.

    A file that has the size and the times (last change of content and of attributes) of when it was hashed last is not hashed
    again, unless `hash_everything` was called. Raises ValueError naming the file that is missing or differs.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder} holds no finished stage (no {MANIFEST}); run that stage")
    known = {} if HASH_EVERYTHING in os.environ else _read_hashed(folder)
    hashed: dict[str, list[Any]] = {}
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            state = _state_of(path)
        except OSError:
            state = None
        if state is None:
            raise ValueError(f"{path} is missing, {MANIFEST} lists it. Delete {folder} to run this stage again")
        hashed[name] = [*state, expected]
        if known.get(name) == hashed[name]:
            continue
        got = sha256_file(path)
        if got != expected:
            raise ValueError(
                f"{path} was changed since it was written: sha256 is {got[:12]}, {MANIFEST} says {expected[:12]}. "
                f"Delete {folder} to run this stage again"
            )
    if hashed != known:
        _write_hashed(folder, hashed)
    return manifest


def hash_everything() -> None:
    """Let `verify` hash every file in this process and in those that it starts, whatever was hashed before."""
    os.environ[HASH_EVERYTHING] = "1"


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Size and times of a file; None where there is something else. Raises OSError where there is nothing."""
    told = path.stat()
    return (told.st_size, told.st_mtime_ns, told.st_ctime_ns) if stat.S_ISREG(told.st_mode) else None


def _hashed_path(folder: Path) -> Path:
    """Beside a stage: the states in which its files were hashed last. It is no part of the stage."""
    return folder.with_name(f".{folder.name}.hashed.json")


def _write_hashed(folder: Path, hashed: dict[str, list[Any]]) -> None:
    """Not by a temporary file, half of it is as good as none. What cannot be written is hashed every time."""
    path = _hashed_path(folder)
    with contextlib.suppress(OSError):
        if path.is_file() or not path.exists():
            path.write_text(json.dumps(hashed))


def _read_hashed(folder: Path) -> dict[str, list[Any]]:
    try:
        path = _hashed_path(folder)
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def finished(folder: Path, key: str) -> bool:
    """Whether the stage of this key is done and its files are intact.

    An archived stage of this key is restored. Raises ValueError as `verify` does when files do not match their manifest.
    """
    place = place_of(folder, key)
    if place is None:
        return False
    if place != folder:
        _archive(folder)
        os.rename(place, folder)
    verify(folder)
    return True


def place_of(folder: Path, key: str) -> Path | None:
    """Where the finished stage of this key is: in its folder or archived; None: nowhere."""
    for place in (folder, _archived(folder, key)):
        manifest = read_manifest(place)
        if manifest is not None and manifest["key"] == key:
            return place
    return None


def check_place(folder: Path) -> None:
    """Raise ValueError where something that is no finished stage stands in a stage's place, before work is done for it."""
    if read_manifest(folder) is None and (folder.exists() or folder.is_symlink()):
        raise ValueError(f"{folder} exists but is no finished stage of flow2one; move it away, then start again")


def partial_folder(folder: Path, key: str) -> Path:
    """The folder in which an unfinished stage of this key collects its files, to resume where it stopped."""
    return folder.with_name(f"{folder.name}.{key[:8]}.partial")


def commit(folder: Path, key: str, made_from: Mapping[str, Any], seconds: float, cpu_seconds: float = 0.0) -> None:
    """Turn the partial folder into the finished stage: manifest, fsync, rename.

    A finished stage of another key is archived as `<stage>.<its key>`, never deleted.
    seconds: wall time. cpu_seconds: of all processes together, which other work on the machine does not change.
    Raises ValueError for a file that was written and is not there any more.
    """
    partial = partial_folder(folder, key)
    for left in list(partial.rglob(".*.tmp")):  # of a killed write, see write_bytes and write_folder
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.rmtree(partial / COST_FOLDER, ignore_errors=True)
    files = {
        str(path.relative_to(partial)): sha256_file(path)
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    written = {path for path in _written if partial in path.parents}
    _written.difference_update(written)
    for path in sorted(written):
        if COST_FOLDER not in path.parts and path.name != MANIFEST and str(path.relative_to(partial)) not in files:
            raise ValueError(f"{path} was written and is not there any more; the same command writes it again")
    manifest = {
        "schema_version": SCHEMA_VERSION, "key": key, "made_from": json.loads(json.dumps(made_from, default=str)),
        "packages": installed_packages(), "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3), "files": files,
    }  # fmt: skip
    _fsync_all(partial)
    write_json(partial / MANIFEST, manifest)
    _archive(folder)
    os.rename(partial, folder)
    _fsync_folder(folder.parent)
    with contextlib.suppress(OSError):
        _write_hashed(folder, {name: [*(_state_of(folder / name) or ()), files[name]] for name in files})


def publish(partial: Path, folder: Path) -> None:
    """Turn a fully written folder into `folder`, which must not exist: fsync, rename."""
    _fsync_all(partial)
    os.rename(partial, folder)
    _fsync_folder(folder.parent)


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder, which is then on disk as a whole; an earlier one of this name is replaced."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    _forget(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    publish(temporary, folder)
    _written.update(path for path in folder.rglob("*") if path.is_file())


def remove(path: Path) -> None:
    """Delete a file that `write_bytes` wrote, or a folder of such files, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    _forget(path)


def _forget(place: Path) -> None:
    """No longer expect a file, or those below a folder, at the commit of a stage."""
    _written.difference_update([path for path in _written if path == place or place in path.parents])


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, which are then on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _fsync_folder(path.parent)


def discard(folder: Path, key: str) -> None:
    """Remove the files of an unfinished stage."""
    shutil.rmtree(partial_folder(folder, key), ignore_errors=True)


def installed_packages() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def version() -> str:
    """The installed version of flow2one, with the git revision of its source folder where there is one."""
    try:
        number = importlib.metadata.version("flow2one")
    except importlib.metadata.PackageNotFoundError:
        number = "not installed"
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return number
    asked = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        revision = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return number
    return f"{number}, git {revision}"


def _archived(folder: Path, key: str) -> Path:
    return folder.with_name(f"{folder.name}.{key[:8]}")


def _archive(folder: Path) -> None:
    check_place(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        return
    target = _archived(folder, manifest["key"])
    if target.exists():  # same key, same content
        shutil.rmtree(target)
    os.rename(folder, target)


def _fsync_all(folder: Path) -> None:
    """All files and folders below, and the folder itself."""
    for path in [folder, *sorted(folder.rglob("*"))]:
        _fsync_file(path)


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_fsync_folder = _fsync_file  # works for folders too
