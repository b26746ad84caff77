"""Which format lies at a path: recorded observations are opened by the reader of their format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from envs.recorded.formats.demonstrations import FRAMES, RecordedDemonstrations
from envs.recorded.observations import RecordedObservations
from envs.recorded.sources import one_line, refuse_pointer

GROUPS = (".zgroup", "zarr.json", ".zmetadata")


def open_recorded(
    path: str | Path, names: Mapping[str, str] | None = None, features: Sequence[str] | None = None, *,
    dt_s: float = 0.0, leave_out: Sequence[int] = (), instructions: Sequence[str] = (),
) -> RecordedObservations:  # fmt: skip
    """The recorded observations at `path`, in whatever format lies there, opened and looked over.

    names: the data's keys to our feature names, e.g. ``{"img": "observation.images.front"}``, over the defaults of the format
    (docs/data.md); a key that is given "" is left out. features: those that are needed, all others are neither opened nor
    looked over; None: all, and the actions; (): none yet, `RecordedObservations.only` looks them over later. dt_s: the frames'
    period [s], instead of what the data says; leave_out: episodes that are not used; instructions: only frames with these are.
    Raises FileNotFoundError where nothing is, ValueError for data that is malformed or of no known format, and ImportError
    that says what to install.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is nothing; give a folder or file of recorded observations")
    with one_line(path):
        recorded = _opened(path, dict(names or {}), dt_s)
    recorded = recorded.leave_out(leave_out) if leave_out else recorded
    recorded = recorded.instructed(instructions) if instructions else recorded
    if features is not None and not features:
        return recorded
    everything = (*recorded.malformed, *recorded.features)
    return recorded.only(everything if features is None else features, action=features is None)


def _opened(path: Path, names: dict[str, str], dt_s: float) -> RecordedObservations:
    if path.is_file():
        refuse_pointer(path)
    if (path / "meta" / "info.json").is_file():
        from envs.recorded.formats.lerobot import LeRobotRecording

        return LeRobotRecording(path, names, dt_s)
    if (path / FRAMES).is_file() and (path / "info.json").is_file():
        if names:
            raise ValueError(f"{path}: got names {sorted(names)}, expected none: our own demonstrations have our names already")
        return RecordedDemonstrations(path)
    if any((path / name).is_file() for name in GROUPS) or path.name.endswith(".zip"):
        from envs.recorded.formats.zarr_buffer import ZarrRecording

        return ZarrRecording(path, names, dt_s)
    if path.is_file() and (path.suffix in (".hdf5", ".h5") or _begins(path, b"\x89HDF\r\n\x1a\n")):
        from envs.recorded.formats.hdf5 import Hdf5Recording

        return Hdf5Recording(path, names, dt_s)
    from envs.recorded.formats.rlbench_tree import RLBenchRecording, stored_episodes

    if path.is_dir() and stored_episodes(path):
        return RLBenchRecording(path, names, dt_s)
    inside = _inside(path)
    if inside:
        raise ValueError(f"{path}: holds no recording itself, but {', '.join(str(each) for each in inside)} does; give that "
                         f"path")
    holds = sorted(each.name for each in path.iterdir())[:8] if path.is_dir() else "a file"
    raise ValueError(
        f"{path}: got {holds}, expected our demonstrations (info.json, {FRAMES}), a LeRobot data set (meta/info.json), a zarr "
        "group (.zgroup or zarr.json), a robomimic HDF5 file or demonstrations of RLBench"
    )


def _inside(path: Path) -> list[Path]:
    """Recordings one or two folders further in, as an archive that was unpacked has them."""
    if not path.is_dir():
        return []
    found = {each.parent for name in GROUPS for each in (*path.glob(f"*/{name}"), *path.glob(f"*/*/{name}"))}
    found = {each for each in found if not any(other != each and each.is_relative_to(other) for other in found)}
    found |= {each.parent.parent for each in (*path.glob("*/meta/info.json"), *path.glob("*/*/meta/info.json"))}
    return sorted(found | set(path.glob("*.hdf5")) | set(path.glob("*.h5")) | set(path.glob("*.zarr.zip")))[:8]


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
