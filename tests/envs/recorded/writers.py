"""Writes small recordings in every format that is read, as the formats' own tools lay them out; used by the tests beside it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from envs.specs import DEPTH, IMAGES, STATE

FRONT = f"{IMAGES}.front"
STANDARD = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


@dataclass(frozen=True)
class Recording:
    """What is written: of each episode `[L, S]` states, `[L, A]` actions, `[L, H, W, 3]` uint8 images and `[L, H, W]` depth in
    whole millimetres, the latter two where there are any; every frame 1 / fps after the last; the task of each episode."""

    states: tuple[np.ndarray, ...]
    actions: tuple[np.ndarray, ...]
    fps: int = 10
    images: tuple[np.ndarray, ...] = ()
    depth: tuple[np.ndarray, ...] = ()
    tasks: tuple[int, ...] = ()
    words: tuple[str, ...] = ("do it",)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(each) for each in self.states)


def walk(episodes: int = 4, length: int = 12, size: int = 2, seed: int = 0, **more: Any) -> Recording:
    """Smooth states, and actions that are half of them."""
    rng = np.random.default_rng(seed)
    steps = np.arange(length)[:, None]
    states = tuple((np.sin(steps / 4 + rng.uniform(0, 6, size)) + 0.01 * rng.normal(size=(length, size))).astype(np.float32)
                   for _ in range(episodes))  # fmt: skip
    return Recording(states, tuple(each / 2 for each in states), **more)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def film(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Frames `[H, W, 3]` as a video in which flat areas keep their grey levels."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1", "g": "4"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv444p"
        stream.time_base = Fraction(1, fps)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def lerobot(
    path: Path, made: Recording, version: str = "v3.0", per_file: int = 2, *,
    columns: Mapping[str, tuple[dict[str, Any], list[Any]]] | None = None,
    rows: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda episode, columns: columns,
    meta: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda rows: rows, info: Mapping[str, Any] | None = None,
    video: bool = False, names: Any = None,
) -> Path:  # fmt: skip
    """A data set. columns: further ones, key to (feature, cells of each episode); rows, meta: change a file's columns, and the
    list of episodes; info: over ``info.json``; video: images lie in a video of each file, else in the parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    third = version == "v3.0"
    features: dict[str, Any] = {
        STATE: {"dtype": "float32", "shape": [made.states[0].shape[1]], "names": names},
        "action": {"dtype": "float32", "shape": [made.actions[0].shape[1]], "names": None},
        **{key: {"dtype": kind, "shape": [1], "names": None} for key, kind in STANDARD.items()},
        **{key: told for key, (told, _) in (columns or {}).items()},
    }  # fmt: skip
    if made.images:
        kind = "video" if video else "image"
        features[FRONT] = {"dtype": kind, "shape": list(made.images[0].shape[1:]), "names": ["height", "width", "channels"]}
    listed, files, begin = [], {}, 0
    shown_at: dict[int, int] = {}
    for episode, length in enumerate(made.lengths):
        steps, file = np.arange(length), episode // per_file if third else episode
        held: dict[str, Any] = {
            STATE: made.states[episode].tolist(), "action": made.actions[episode].tolist(),
            "timestamp": (steps / made.fps).astype(np.float32), "frame_index": steps, "episode_index": np.full(length, episode),
            "index": begin + steps, "task_index": np.full(length, made.tasks[episode] if made.tasks else 0),
            **{key: cells[episode] for key, (_, cells) in (columns or {}).items()},
        }  # fmt: skip
        if made.images and not video:
            held[FRONT] = [{"bytes": png(each), "path": None} for each in made.images[episode]]
        files.setdefault(file, []).append(pa.table(rows(episode, held)))
        task = made.tasks[episode] if made.tasks else 0
        told: dict[str, Any] = {"episode_index": episode, "length": length, "tasks": [made.words[task]],
                                "data/chunk_index": 0, "data/file_index": file, "dataset_from_index": begin,
                                "dataset_to_index": begin + length}  # fmt: skip
        if video:
            at = shown_at.get(file, 0)
            told |= {f"videos/{FRONT}/chunk_index": 0, f"videos/{FRONT}/file_index": file,
                     f"videos/{FRONT}/from_timestamp": at / made.fps,
                     f"videos/{FRONT}/to_timestamp": (at + length) / made.fps}  # fmt: skip
            shown_at[file] = at + length
        listed.append(told)
        begin += length
    places = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
              "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"} if third else {
              "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
              "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}  # fmt: skip
    (path / "data/chunk-000").mkdir(parents=True)
    (path / "meta").mkdir()
    for file, tables in files.items():
        name = f"file-{file:03d}" if third else f"episode_{file:06d}"
        pq.write_table(pa.concat_tables(tables), path / f"data/chunk-000/{name}.parquet", row_group_size=7)
        if video:
            of_file = [each for each in range(len(made.lengths)) if (each // per_file if third else each) == file]
            place = f"videos/{FRONT}/chunk-000/{name}.mp4" if third else f"videos/chunk-000/{FRONT}/{name}.mp4"
            film(path / place, [image for each in of_file for image in made.images[each]], made.fps)
    listed = meta(listed)
    if third:
        (path / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(listed), path / "meta/episodes/chunk-000/file-000.parquet")
        tasks = pa.table({"task_index": list(range(len(made.words))), "task": list(made.words)})
        pq.write_table(tasks, path / "meta/tasks.parquet")
    else:
        shown = [{key: each[key] for key in ("episode_index", "tasks", "length")} for each in listed]
        (path / "meta/episodes.jsonl").write_text("".join(json.dumps(each) + "\n" for each in shown))
        told_tasks = [{"task_index": index, "task": word} for index, word in enumerate(made.words)]
        (path / "meta/tasks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told_tasks))
    (path / "meta/info.json").write_text(json.dumps({
        "codebase_version": version, "fps": made.fps, "features": features, "total_episodes": len(made.lengths),
        "total_frames": sum(made.lengths), "chunks_size": 1000, **places, **(info or {}),
    }))  # fmt: skip
    return path


def zarr_buffer(path: Path, arrays: Mapping[str, np.ndarray], lengths: Sequence[int], zarr_format: int = 2) -> Path:
    """Diffusion Policy's layout."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    ends = np.cumsum(lengths)
    for name, values in ({f"data/{key}": values for key, values in arrays.items()} | {"meta/episode_ends": ends}).items():
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(4, *values.shape[1:]),
                                   config={"write_empty_chunks": True})  # fmt: skip
        array[:] = values
    return path


def as_zarr(path: Path, made: Recording, zarr_format: int = 2, zipped: bool = False) -> Path:
    arrays = {"state": np.concatenate(made.states), "action": np.concatenate(made.actions)}
    arrays["timestamp"] = np.arange(sum(made.lengths)) / made.fps
    if made.images:
        arrays["img"] = np.concatenate(made.images)
    if made.depth:
        arrays["depth"] = np.concatenate(made.depth)
    zarr_buffer(path, arrays, made.lengths, zarr_format)
    return Path(shutil.make_archive(str(path), "zip", path)) if zipped else path


def as_hdf5(path: Path, made: Recording) -> Path:
    """robomimic's layout."""
    import h5py

    with h5py.File(path, "w") as file:
        told = {"env_kwargs": {"control_freq": made.fps}}
        file.create_group("data").attrs["env_args"] = json.dumps(told)
        for episode, length in enumerate(made.lengths):
            group = file.create_group(f"data/demo_{episode}")
            group.attrs["num_samples"] = length
            group["actions"], group["obs/robot0_eef_pos"] = made.actions[episode], made.states[episode]
            if made.images:
                group["obs/front_image"] = made.images[episode]
            if made.depth:
                group["obs/front_depth"] = made.depth[episode]
    return path


def as_ours(path: Path, made: Recording) -> Path:
    """Our own demonstrations, of a task with two numbers in its state and two in its actions."""
    import envs
    from envs.demonstrations import Demonstration, Demonstrations

    spec = envs.task_spec("avoid")
    tool = np.zeros(3, np.float32)
    start = np.zeros(len(spec.start_names))
    episodes = [Demonstration(state, action, np.tile(tool, (len(state), 1)), start, spec.modes[0])
                for state, action in zip(made.states, made.actions, strict=True)]  # fmt: skip
    Demonstrations.from_episodes(spec, episodes, [0] * len(episodes)).save(path)
    return path


FORMATS: dict[str, Callable[[Path, Recording], Path]] = {
    "LeRobot v2.1": lambda path, made: lerobot(path, made, "v2.1"), "LeRobot v3.0": lerobot,
    "zarr 2": as_zarr, "zarr 3": lambda path, made: as_zarr(path, made, 3),
    "zip of zarr 2": lambda path, made: as_zarr(path, made, 2, True),
    "HDF5": lambda path, made: as_hdf5(path.with_suffix(".hdf5"), made),

    "our demonstrations": as_ours,
}  # fmt: skip
DEPTH_FRONT = f"{DEPTH}.front"
