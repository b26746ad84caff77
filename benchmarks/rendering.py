"""How fast does each renderer see, and how far are they from each other? Images and whole observations a second.

    OMP_NUM_THREADS=1 python benchmarks/rendering.py [--seconds 2] [--target benchmarks/results/rendering.json]

Every renderer that works here draws in a process of its own (one process has one OpenGL), in the middle of an episode of
each task, at several sizes. Images: all five cameras in turn. Observations: five cameras with colours, depth and a fused
cloud, as `envs.make(task, cameras=CameraSettings())` gives them, and the cloud alone. Depth is compared with ray casting,
pixel by pixel, where either sees something within 3 m. Extents: how far, at most, the fused cloud's extents of cube,
pillars and tray are from the model's sizes, at 600 x 600 pixels. Times are processor time, one thread, unless GL has its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

import envs
from distill.store.machine import hardware
from envs.cameras.backends import BACKENDS, available_backends, open_renderer
from envs.cameras.clouds import in_box
from envs.cameras.specs import CAMERAS, CameraSettings
from envs.panda import avoid, detour, handles
from envs.panda.base import PandaEnv
from envs.specs import POINTS

ROOT = Path(__file__).resolve().parents[1]
SIZES = (64, 84, 128, 240)
COMPARED = 128
STARTS = {"avoid": (0.30, 0.0), "detour": (0.36, 0.02, 0.345, -0.02, 0.135), "handles": (0.51, -0.01, 0.48, -0.012, 0.17)}
"""Starts at which what is measured stands on the table and the hand hangs clear of it."""
OBSERVATIONS = {
    "everything": CameraSettings(),
    "cloud": CameraSettings(images=False, depth=False),
    "cloud, random": CameraSettings(images=False, depth=False, sampling="random"),
    "front and wrist, RGB-D": CameraSettings(cameras=("front", "wrist"), num_points=0),
}


def things() -> list[tuple[str, tuple[float, float], tuple[float, float], float]]:
    """What stands on the table: task, its middle [m], its half extents [m], its height [m]."""
    pillars = [
        ("avoid", (x, y), (avoid.PILLAR_RADIUS_M,) * 2, avoid.PILLAR_HEIGHT_M) for x, ys in avoid.ROWS for y in ys
    ]
    tray = (handles.DECK_HALF[0], handles.HANDLE_Y_M + handles.HANDLE_HALF[1])
    return [
        ("detour", (0.36, 0.02), (detour.CUBE_HALF_M,) * 2, 2 * detour.CUBE_HALF_M),
        ("detour", detour.PILLAR_XY, (detour.PILLAR_RADIUS_M,) * 2, detour.PILLAR_HEIGHT_M),
        ("handles", (0.51, -0.01), tray, 2 * handles.HANDLE_HALF[2]), *pillars,
    ]  # fmt: skip


def midway(task: str) -> PandaEnv:
    """The task in the 30th step of an expert's episode."""
    env = envs.make(task)
    env.reset(options={"start": np.array(STARTS[task])})
    for action in env.plan(env.spec_task.modes[0], np.random.default_rng(0))[:30]:
        env.step(action)
    return env


def rate(call: Callable[[], object], seconds: float, each: int) -> dict[str, float]:
    """How often a second, by processor time and by the clock; one call to warm up."""
    call()
    begin, clock, count = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - clock < seconds:
        call()
        count += each
    return {"per_processor_s": count / (time.process_time() - begin), "per_s": count / (time.perf_counter() - clock)}


def measured(backend: str, seconds: float, depth_file: str) -> dict[str, Any]:
    """All figures of one renderer; its depth images go into a file."""
    images: dict[str, dict[str, float]] = {}
    seen: dict[str, dict[str, float]] = {}
    depth: dict[str, np.ndarray] = {}
    share = seconds / len(STARTS)
    for size in SIZES:
        rates = []
        for task in STARTS:
            env = midway(task)
            with open_renderer(env.model, size, size, backend) as renderer:

                def draw(renderer: Any = renderer, data: mujoco.MjData = env.data) -> None:
                    for camera in CAMERAS:
                        renderer.render(data, camera)

                rates.append(rate(draw, share, len(CAMERAS)))
                if size == COMPARED:
                    depth |= {f"{task} {camera}": renderer.render(env.data, camera)[1] for camera in CAMERAS}
        images[str(size)] = {name: float(np.mean([each[name] for each in rates])) for name in rates[0]}
    for name, settings in OBSERVATIONS.items():
        rates = []
        for task in STARTS:
            env = midway(task)
            env.open_cameras(replace(settings, backend=backend))
            rates.append(rate(env.observe_cameras, share, 1))
            env.close()
        seen[name] = {key: float(np.mean([each[key] for each in rates])) for key in rates[0]}
    np.savez(depth_file, **depth)  # type: ignore[arg-type]
    return {"images": images, "observations_64": seen, "extents_mm": extents(backend)}


def extents(backend: str) -> float:
    """The greatest error of any extent of any of `things` [mm]."""
    fine = CameraSettings(
        width=600, height=600, images=False, depth=False, num_points=400_000, sampling="random", backend=backend
    )
    worst = 0.0
    for task, start in STARTS.items():
        env = envs.make(task, cameras=fine)
        points = env.reset(options={"start": np.array(start)})[0][POINTS]
        env.close()
        for of_task, middle, half, height in things():
            if of_task == task:
                low, high = np.array(middle) - half, np.array(middle) + half
                box = (*(low - 0.012), 0.004), (*(high + 0.012), height + 0.012)
                there = points[in_box(points.T, *box)]
                gaps = [*(there.min(0)[:2] - low), *(there.max(0)[:2] - high), there[:, 2].max() - height]
                worst = max(worst, float(np.abs(gaps).max()) * 1e3)
    return worst


def depth_gaps(ours: Path, rays: Path) -> dict[str, float]:
    """Median (worst of tasks and cameras, and over all) and 95th percentile of the difference in depth [mm]."""
    with np.load(ours) as one, np.load(rays) as other:
        gaps = {name: np.abs(one[name] - other[name])[(one[name] < 3) | (other[name] < 3)] * 1e3 for name in other.files}
    every = np.concatenate(list(gaps.values()))
    return {"median_mm": float(np.median(every)), "worst_median_mm": max(float(np.median(gap)) for gap in gaps.values()),
            "p95_mm": float(np.percentile(every, 95)), "within_2_mm": float((every < 2).mean())}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--target", type=Path, default=ROOT / "benchmarks/results/rendering.json")
    parser.add_argument("--one", nargs=2, metavar=("BACKEND", "DEPTH_FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one[0], arguments.seconds, arguments.one[1])))
        return
    result: dict[str, Any] = {"hardware": hardware(None), "threads": 1, "mujoco": mujoco.__version__,
                              "load_average": os.getloadavg(), "backends": {}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for backend in reversed(BACKENDS):  # rays first: the others are compared with them
            reason = available_backends()[backend]
            if reason:
                result["backends"][backend] = {"missing": reason}
                continue
            files = [Path(folder) / f"{name}.npz" for name in (backend, "raycast")]
            command = [sys.executable, __file__, "--seconds", str(arguments.seconds), "--one", backend, str(files[0])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout)
            row["depth_against_rays"] = depth_gaps(files[0], files[1])
            result["backends"][backend] = row
    arguments.target.parent.mkdir(exist_ok=True)
    arguments.target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['hardware']}; images a second of processor time, observations at 64 x 64 the same way\n")
    sizes, names = [str(size) for size in SIZES], list(OBSERVATIONS)
    columns = [*(f"{size} x {size}" for size in sizes), *names, "depth, median mm", "extents, mm"]
    print(f"| renderer | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for backend, row in result["backends"].items():
        if "missing" in row:
            print(f"| {backend} | {row['missing']} |")
            continue
        figures = [f"{row['images'][size]['per_processor_s']:.0f}" for size in sizes]
        figures += [f"{row['observations_64'][name]['per_processor_s']:.0f}" for name in names]
        figures += [f"{row['depth_against_rays']['median_mm']:.3f}", f"{row['extents_mm']:.2f}"]
        print(f"| {backend} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
