"""Which format lies at a path: recorded observations are opened by the reader of their format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envs.recorded.demonstrations import FRAMES, RecordedDemonstrations
from envs.recorded.observations import RecordedObservations


def open_recorded(path: str | Path, names: Mapping[str, str] | None = None) -> RecordedObservations:
    """The recorded observations at `path`, in whatever format lies there, opened and looked over.

    names: the data's keys to our feature names, e.g. ``{"img": "observation.images.front"}``, over the defaults of the format
    (docs/recorded.md); a key that is given "" is left out. Raises FileNotFoundError where nothing is,
    ValueError for data that is malformed or of no known format, and ImportError that names the extra to install.
    """
    path, names = Path(path), dict(names or {})
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is nothing; give a folder or file of recorded observations")
    if (path / "meta" / "info.json").is_file():
        from envs.recorded.lerobot import LeRobotRecording

        return LeRobotRecording(path, names)
    if (path / FRAMES).is_file() and (path / "info.json").is_file():
        if names:
            raise ValueError(f"{path}: got names {sorted(names)}, expected none: our own demonstrations have our names already")
        return RecordedDemonstrations(path)
    if any((path / name).is_file() for name in (".zgroup", "zarr.json")) or path.name.endswith((".zarr.zip", ".zip")):
        from envs.recorded.zarr_buffer import ZarrRecording

        return ZarrRecording(path, names)
    if path.is_file() and (path.suffix in (".hdf5", ".h5") or _begins(path, b"\x89HDF\r\n\x1a\n")):
        from envs.recorded.hdf5 import Hdf5Recording

        return Hdf5Recording(path, names)
    holds = sorted(each.name for each in path.iterdir())[:8] if path.is_dir() else "a file"
    raise ValueError(
        f"{path}: got {holds}, expected our demonstrations (info.json, {FRAMES}), a LeRobot data set (meta/info.json), a zarr "
        "group (.zgroup or zarr.json) or a robomimic HDF5 file"
    )


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
