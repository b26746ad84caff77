"""Camera frames of demonstrations, compressed: deflated images and depth, clouds in float16; in memory and on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from envs.cameras.specs import CamerasSpec, check_camera_features
from envs.specs import IMAGES, POINTS

SCHEMA_VERSION = 1
DEPTH_UNIT_M, UNKNOWN_DEPTH, BEYOND_RANGE = 0.00025, 0, 2**16 - 1
"""Stored depth is a multiple of the unit in 16 bits, except for two codes: unknown, read as NaN, and beyond `range_m`, read
as `range_m`."""
ZLIB_LEVEL = 6
"""Level 1 makes files a quarter larger, 9 hardly smaller. PNG is no smaller and four times slower to read, WebP a fifth
smaller and five times slower, JPEG is lossy (benchmarks/packing.py)."""


class StoredArray:
    """An array in a safetensors file, of which only the requested slices are read. It can be sent to another process."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._slice: Any = None

    def __getitem__(self, part: slice) -> np.ndarray:
        if self._slice is None:
            self._slice = safe_open(str(self._path), framework="np").get_slice(self._name)
        found: np.ndarray = self._slice[part]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_name": self._name, "_slice": None}


@dataclass(frozen=True)
class Packed:
    """F arrays of one shape and dtype, each deflated, concatenated.

    data: `[bytes]` uint8; ends: `[F]` int64, the offset where each ends.
    """

    data: np.ndarray | StoredArray
    ends: np.ndarray

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray]) -> Packed:
        """Deflates arrays of one shape and dtype."""
        deflated = [zlib.compress(array.tobytes(), ZLIB_LEVEL) for array in arrays]
        return cls(np.frombuffer(b"".join(deflated), np.uint8), np.cumsum([len(each) for each in deflated], dtype=np.int64))

    def unpack(self, frame: int, out: np.ndarray) -> None:
        """Inflates array number `frame` into `out`. Raises ValueError for damaged bytes or another size."""
        begin = int(self.ends[frame - 1]) if frame else 0
        try:
            raw = zlib.decompress(self.data[begin : int(self.ends[frame])].tobytes(), bufsize=out.nbytes)
        except zlib.error as error:
            raise ValueError(f"the stored bytes are damaged: {error}") from error
        if len(raw) != out.nbytes:
            raise ValueError(f"{len(raw)} bytes are stored where {out.nbytes} are expected")
        out[...] = np.frombuffer(raw, out.dtype).reshape(out.shape)


@dataclass(frozen=True)
class CameraFrames:
    """F camera frames of demonstrations.

    spec: the cameras. packed: each image feature as uint8 `[H, W, 3]`, each depth feature as uint16 `[H, W]`.
    points: `[F, N, 3]` float16 [m] and colours: `[F, N, 3]` uint8, or None.
    poses: `[F, 4, 4]` float32 base_from_camera of every camera that moves.
    unknown_pixels, repeated_points: `[F]` int64, see `CameraRig.observe`.

    Raises ValueError for parts of different lengths, or other features than the spec names.
    """

    spec: CamerasSpec
    packed: dict[str, Packed]
    points: np.ndarray | None
    colours: np.ndarray | None
    poses: dict[str, np.ndarray]
    unknown_pixels: np.ndarray
    repeated_points: np.ndarray

    def __post_init__(self) -> None:
        frames, settings = self.num_frames, self.spec.settings
        lengths = {name: len(packed.ends) for name, packed in self.packed.items()}
        lengths |= {name: len(pose) for name, pose in self.poses.items()}
        if self.points is not None:
            lengths[POINTS] = len(self.points)
        wrong = {name: length for name, length in lengths.items() if length != frames}
        if wrong or len(self.repeated_points) != frames:
            raise ValueError(f"all features must have {frames} frames, got {wrong}")
        held = {*self.packed, *([] if self.points is None else [POINTS])}
        if held != set(self.spec.shapes()) or (self.points is not None and (self.colours is not None) != settings.colours):
            raise ValueError(f"the cameras' spec names {sorted(self.spec.shapes())}, there are {sorted(held)}")

    @property
    def num_frames(self) -> int:
        return len(self.unknown_pixels)

    def raw(self, feature: str, frames: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The stored values of an image (uint8 `[M, H, W, 3]`) or depth (uint16 `[M, H, W]`) feature in M frames.

        out: array to read into. Raises ValueError for an unknown feature or damaged bytes.
        """
        self.spec.require([feature])
        size = (self.spec.settings.height, self.spec.settings.width)
        shape, dtype = ((*size, 3), np.uint8) if feature.startswith(IMAGES) else (size, np.uint16)
        found = np.empty((len(frames), *shape), dtype) if out is None else out
        for row, frame in enumerate(frames):
            try:
                self.packed[feature].unpack(int(frame), found[row])
            except ValueError as error:
                raise ValueError(f"{feature}, frame {int(frame)}: {error}") from error
        return found

    def read(self, feature: str, frames: Sequence[int] | np.ndarray) -> np.ndarray:
        """A feature in M frames, `[M, *shape]` float32 (`CamerasSpec.shapes`); unknown depth is NaN. Raises as `raw`."""
        self.spec.require([feature])
        if feature != POINTS:
            return dequantise(feature, self.raw(feature, frames), self.spec)
        assert self.points is not None
        parts = [self.points[frames].astype(np.float32)]
        if self.colours is not None:
            parts.append(self.colours[frames].astype(np.float32) / np.float32(255))
        return np.concatenate(parts, axis=-1)

    def save(self, folder: Path) -> None:
        """Writes ``info.json``, ``frames.safetensors`` and a file per feature into `folder` (created if needed)."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, packed in self.packed.items():
            save_file({"data": packed.data[:], "ends": packed.ends}, str(folder / f"{name}.safetensors"))
        if self.points is not None:
            arrays = {"points": self.points} | ({} if self.colours is None else {"colours": self.colours})
            save_file(arrays, str(folder / f"{POINTS}.safetensors"))
        counts = {"unknown_pixels": self.unknown_pixels, "repeated_points": self.repeated_points}
        save_file({**counts, **{f"pose.{name}": pose for name, pose in self.poses.items()}}, str(folder / "frames.safetensors"))
        info = {
            "schema_version": SCHEMA_VERSION, "num_frames": self.num_frames, "depth_unit_m": DEPTH_UNIT_M,
            "unknown_pixels": int(self.unknown_pixels.sum()), "repeated_points": int(self.repeated_points.sum()),
            "spec": self.spec.to_json(),
        }  # fmt: skip
        (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> CameraFrames:
        """Reads what `save` wrote; images and depth stay on disk until they are used.

        Raises FileNotFoundError for a missing file; ValueError for another schema and for inconsistent files.
        """
        info = json.loads((folder / "info.json").read_text())
        if (info.get("schema_version"), info.get("depth_unit_m")) != (SCHEMA_VERSION, DEPTH_UNIT_M):
            raise ValueError(f"{folder}: schema_version is {info.get('schema_version')}, expected {SCHEMA_VERSION}")
        spec = CamerasSpec.from_json(info["spec"])
        arrays = load_file(str(folder / "frames.safetensors"))
        packed, cloud = {}, {}
        for name in spec.shapes():
            path = folder / f"{name}.safetensors"
            if name == POINTS:
                cloud = load_file(str(path))
                continue
            with safe_open(str(path), framework="np") as opened:
                packed[name] = Packed(StoredArray(path, "data"), opened.get_tensor("ends"))
                stored = opened.get_slice("data").get_shape()
            if not len(packed[name].ends) or stored != [int(packed[name].ends[-1])]:
                raise ValueError(f"{path}: {stored} bytes are stored, the frames end at {packed[name].ends[-1:]}")
        loaded = cls(
            spec, packed, cloud.get("points"), cloud.get("colours"),
            {name[5:]: pose for name, pose in arrays.items() if name.startswith("pose.")},
            arrays["unknown_pixels"], arrays["repeated_points"],
        )  # fmt: skip
        if loaded.num_frames != info["num_frames"]:
            raise ValueError(f"{folder}: info.json counts {info['num_frames']} frames, got {loaded.num_frames}")
        return loaded

    @classmethod
    def join(cls, parts: Sequence[CameraFrames]) -> CameraFrames:
        """Concatenates frames. Raises ValueError when their cameras differ, and without any."""
        if not parts or any(part.spec != parts[0].spec for part in parts):
            raise ValueError("frames of different cameras, or none, cannot be joined: record all with the same settings")
        first, packed = parts[0], {}
        for name in first.packed:
            each = [part.packed[name] for part in parts]
            before = np.cumsum([0, *(int(one.ends[-1]) for one in each[:-1])])
            ends = [one.ends + offset for one, offset in zip(each, before, strict=True)]
            packed[name] = Packed(np.concatenate([one.data[:] for one in each]), np.concatenate(ends))
        return cls(
            first.spec, packed,
            None if first.points is None else np.concatenate([part.points for part in parts if part.points is not None]),
            None if first.colours is None else np.concatenate([part.colours for part in parts if part.colours is not None]),
            {name: np.concatenate([part.poses[name] for part in parts]) for name in first.poses},
            np.concatenate([part.unknown_pixels for part in parts]),
            np.concatenate([part.repeated_points for part in parts]),
        )  # fmt: skip


def pack(
    spec: CamerasSpec, observations: Sequence[Mapping[str, np.ndarray]], counts: Sequence[Mapping[str, int]],
    poses: Sequence[Mapping[str, np.ndarray]],
) -> CameraFrames:  # fmt: skip
    """Compresses F frames: one observation, its defect counts and its camera poses `[4, 4]` each.

    Raises ValueError for an observation that does not match the spec (`check_camera_features`), and without any.
    """
    if not observations:
        raise ValueError("there is no frame to pack")
    most_m = (BEYOND_RANGE - 1) * DEPTH_UNIT_M
    if spec.settings.range_m > most_m:
        raise ValueError(f"range_m is {spec.settings.range_m}, depth is stored up to {most_m} m: record with less")
    settings = spec.settings
    raw: dict[str, list[np.ndarray]] = {name: [] for name in spec.shapes() if name != POINTS}
    for observation in observations:
        check_camera_features(observation, spec)
        for name, rows in raw.items():
            rows.append(quantise(name, observation[name], spec))
    cloud = np.stack([each[POINTS] for each in observations]) if settings.num_points else None
    return CameraFrames(
        spec, {name: Packed.of(rows) for name, rows in raw.items()},
        None if cloud is None else cloud[..., :3].astype(np.float16),
        np.round(cloud[..., 3:] * 255).astype(np.uint8) if cloud is not None and settings.colours else None,
        {camera.name: np.stack([pose[camera.name] for pose in poses]).astype(np.float32)
         for camera in spec.cameras if camera.moves},
        np.array([each["unknown_pixels"] for each in counts], dtype=np.int64),
        np.array([each["repeated_points"] for each in counts], dtype=np.int64),
    )  # fmt: skip


def quantise(feature: str, values: np.ndarray, spec: CamerasSpec) -> np.ndarray:
    """One frame as stored: an image `[3, H, W]` in 0..1 as uint8 `[H, W, 3]`, depth `[1, H, W]` [m] as uint16 `[H, W]`."""
    if feature.startswith(IMAGES):
        return np.round(values.transpose(1, 2, 0) * 255).astype(np.uint8)
    unknown = np.isnan(values[0])
    code = np.clip(np.round(np.where(unknown, 0.0, values[0]) / DEPTH_UNIT_M), UNKNOWN_DEPTH + 1, BEYOND_RANGE - 1)
    code[values[0] >= np.float32(spec.settings.range_m)] = BEYOND_RANGE
    code[unknown] = UNKNOWN_DEPTH
    return code.astype(np.uint16)


def dequantise(feature: str, stored: np.ndarray, spec: CamerasSpec) -> np.ndarray:
    """The inverse of `quantise`, for M frames: `[M, 3, H, W]` in 0..1 or `[M, 1, H, W]` [m], float32; unknown depth is NaN."""
    if feature.startswith(IMAGES):
        channels_first = stored.transpose(0, 3, 1, 2)
        return np.divide(channels_first, np.float32(255), out=np.empty(channels_first.shape, np.float32))
    depth = stored * np.float32(DEPTH_UNIT_M)
    depth[stored == BEYOND_RANGE] = spec.settings.range_m
    depth[stored == UNKNOWN_DEPTH] = np.nan
    return depth[:, None]
