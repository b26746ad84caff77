"""Which way of packing camera frames is small and quick to read? Images and depth of an episode, one thread.

    OMP_NUM_THREADS=1 python benchmarks/packing.py [--size 64] [--target benchmarks/results/packing.json]

Packs what the five cameras see in an expert's episode of each task and unpacks it again: bytes a frame of one camera, and
milliseconds of processor time to write and to read it. envs/cameras/frames.py does what stands in the rows marked with a star.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import envs
from distill.store.machine import hardware
from envs.cameras.frames import ZLIB_LEVEL, quantise
from envs.cameras.specs import CAMERAS, CameraSettings
from envs.specs import DEPTH, IMAGES

ROOT = Path(__file__).resolve().parents[1]
Pack = tuple[Callable[[np.ndarray], bytes], Callable[[bytes, np.ndarray], np.ndarray]]


def by_pillow(kind: str, **options: Any) -> Pack:
    def write(array: np.ndarray) -> bytes:
        target = io.BytesIO()
        Image.fromarray(array).save(target, kind, **options)
        return target.getvalue()

    return write, lambda packed, _: np.asarray(Image.open(io.BytesIO(packed), formats=(kind,)))


def by_zlib(level: int) -> Pack:
    return (
        lambda array: zlib.compress(array.tobytes(), level),
        lambda packed, like: np.frombuffer(zlib.decompress(packed), like.dtype).reshape(like.shape),
    )


def by_zlib_of_differences(level: int) -> Pack:
    """Each row less the one above it, as PNG's filter does."""
    write, read = by_zlib(level)
    return (
        lambda array: write(np.diff(array, axis=0, prepend=array.dtype.type(0))),
        lambda packed, like: np.add.accumulate(read(packed, like), axis=0, dtype=like.dtype),
    )


PACKINGS: dict[str, dict[str, Pack]] = {
    IMAGES: {
        f"zlib, level {ZLIB_LEVEL} *": by_zlib(ZLIB_LEVEL), "zlib, level 1": by_zlib(1), "zlib, level 9": by_zlib(9),
        "zlib of differences": by_zlib_of_differences(ZLIB_LEVEL), "PNG": by_pillow("PNG"),
        "WebP, lossless": by_pillow("WEBP", lossless=True, method=2), "JPEG, quality 95 (lossy)": by_pillow("JPEG", quality=95),
    },
    DEPTH: {
        f"zlib, level {ZLIB_LEVEL} *": by_zlib(ZLIB_LEVEL), "zlib of differences": by_zlib_of_differences(ZLIB_LEVEL),
        "PNG, 16 bit": by_pillow("PNG"),
    },
}  # fmt: skip


def seen(size: int) -> dict[str, list[np.ndarray]]:
    """Every second frame of every camera in an episode of each task, as it is stored."""
    found: dict[str, list[np.ndarray]] = {IMAGES: [], DEPTH: []}
    for task in sorted(envs.TASKS):
        env = envs.make(task, cameras=CameraSettings(width=size, height=size, num_points=0))
        env.reset(seed=0)
        for number, action in enumerate(env.plan(env.spec_task.modes[0], np.random.default_rng(0))):
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
            if number % 2 == 0 and env.camera_rig is not None:
                for kind, frames in found.items():
                    names = [f"{kind}.{camera}" for camera in CAMERAS]
                    frames += [quantise(name, observation[name], env.camera_rig.spec) for name in names]
        env.close()
    return found


def measured(frames: list[np.ndarray], pack: Pack) -> dict[str, float]:
    write, read = pack
    begin = time.process_time()
    packed = [write(frame) for frame in frames]
    between = time.process_time()
    back = [read(each, frame) for each, frame in zip(packed, frames, strict=True)]
    end = time.process_time()
    return {
        "bytes": float(np.mean([len(each) for each in packed])), "write_ms": (between - begin) * 1e3 / len(frames),
        "read_ms": (end - between) * 1e3 / len(frames),
        "lossless": all(np.array_equal(one, other) for one, other in zip(back, frames, strict=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--target", type=Path, default=ROOT / "benchmarks/results/packing.json")
    arguments = parser.parse_args()
    rows = []
    print("| | packed by | bytes | writing, ms | reading, ms | lossless |\n|---|---|---|---|---|---|")
    for kind, frames in seen(arguments.size).items():
        for name, pack in PACKINGS[kind].items():
            measured(frames[:5], pack)  # the first call loads what it needs
            row = {"kind": kind, "packing": name, "frames": len(frames), **measured(frames, pack)}
            rows.append(row)
            figures = [f"{row['bytes']:.0f}", f"{row['write_ms']:.3f}", f"{row['read_ms']:.3f}"]
            print(f"| {kind} | {name} | {' | '.join(figures)} | {'yes' if row['lossless'] else 'no'} |", flush=True)
    arguments.target.parent.mkdir(exist_ok=True)
    result = {"hardware": hardware(None), "threads": 1, "size": arguments.size, "rows": rows}
    arguments.target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
