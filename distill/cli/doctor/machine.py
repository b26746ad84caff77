"""Checks this machine: what is installed, what is missing, and how to fix it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON = (3, 11)

FREE_BYTES = 5_000_000_000
"""The doctor warns below this much free disk. A million hypotheses of 48 steps take about a gigabyte."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    name: what was checked. status: `ok`, `missing` (required) or `optional` (everything else works without it).
    found: what was found. advice: what to do, one line; empty when ok.
    """

    name: str
    status: str
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.status not in ("ok", "missing", "optional"):
            raise ValueError(f"got status {self.status!r}, expected 'ok', 'missing' or 'optional'")


@dataclass(frozen=True)
class Requirement:
    """A package: its name on the index, the versions that work (low <= version < high), and what it is needed for."""

    name: str
    low: str
    high: str = ""
    optional: bool = False
    why: str = ""

    @property
    def wanted(self) -> str:
        return f">={self.low}" + (f",<{self.high}" if self.high else "")


PACKAGES = (
    Requirement("torch", "2.7", "2.14"),
    Requirement("torchcfm", "1.0.7", why="with --no-deps, and POT separately: its requirements break a CPU torch"),
    Requirement("POT", "0.9.4", why="torchcfm imports it"),
    Requirement("accelerate", "1.0"),
    Requirement("safetensors", "0.4.3"),
    Requirement("tyro", "0.9"),
    Requirement("PyYAML", "6.0.1"),
    Requirement("numpy", "2.0"),
    Requirement("scipy", "1.13"),
    Requirement("mujoco", "3.3.3", "3.9"),
    Requirement("gymnasium", "1.0"),
    Requirement("matplotlib", "3.9"),
    Requirement("Jinja2", "3.1"),
    Requirement("pillow", "10.0"),
    Requirement("diffusers", "0.38", optional=True, why="only for diffusion teachers"),
    Requirement("wandb", "0.17", optional=True, why="only for its dashboard; metrics are always written as JSON lines too"),
)


def run_doctor() -> int:
    """Run and print every check. Returns 1 when something required is missing, else 0."""
    return print_checks(checks())


def print_checks(found: Sequence[Check]) -> int:
    """Print checks. Returns 1 when something required is missing, else 0."""
    width = max(len(check.name) for check in found)
    for check in found:
        mark = {"ok": "ok", "missing": "MISSING", "optional": "note"}[check.status]
        print(f"{mark:<8} {check.name:<{width}}  {check.found}")
        if check.advice:
            print(f"{'':<8} {'':<{width}}  -> {check.advice}")
    missing = [check.name for check in found if check.status == "missing"]
    print(f"\nNot ready: {', '.join(missing)}." if missing else "\nReady: everything required is installed.")
    return 1 if missing else 0


def checks() -> list[Check]:
    """All checks, in the order they are printed. Changes nothing and never raises."""
    return [
        python_check(sys.version_info[:3]),
        cores_check(),
        *(package_check(needed) for needed in PACKAGES),
        torchvision_check(),
        faiss_check(),
        torch_devices_check(),
        *renderer_checks(),
        *launcher_checks(),
        simulator_check(),
        disk_check(Path.cwd()),
    ]


def version_of(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers_of(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.13.0+cpu` is (2, 13, 0), `0.9.7.post1` is (0, 9, 7)."""
    lead = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in lead.group().split(".")) if lead else ()


def python_check(version: tuple[int, ...]) -> Check:
    """Whether this Python is new enough."""
    text, wanted = ".".join(map(str, version)), ".".join(map(str, PYTHON))
    if version[:2] < PYTHON:
        return Check("Python", "missing", text, f"make an environment with Python {wanted} or newer")
    return Check("Python", "ok", text)


def cores_check() -> Check:
    """Usable cores, and OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    return Check("cores", "ok", f"{cores} usable" + (f", OMP_NUM_THREADS={threads}" if threads else ""))


def package_check(needed: Requirement) -> Check:
    """A package's version against the versions that work."""
    absent = "optional" if needed.optional else "missing"
    version = version_of(needed.name)
    install = f"pip install '{needed.name}{needed.wanted}'"
    reason = f" ({needed.why})" if needed.why else ""
    if version is None:
        return Check(needed.name, absent, f"not installed, needed {needed.wanted}", install + reason)
    numbers = numbers_of(version)
    if needed.name == "mujoco" and numbers[:1] == (4,):
        advice = f"MuJoCo 4.0 has a known solver bug that changes contacts; {install}"
        return Check("mujoco", "missing", f"{version}, needed {needed.wanted}", advice)
    if numbers < numbers_of(needed.low) or (needed.high and numbers >= numbers_of(needed.high)):
        return Check(needed.name, absent, f"{version}, needed {needed.wanted}", install + reason)
    return Check(needed.name, "ok", version)


def torchvision_check() -> Check:
    """torchvision is not needed. A CUDA build of it next to a CPU torch breaks everything that imports it."""
    vision, torch = version_of("torchvision"), version_of("torch")
    if vision is None:
        return Check("torchvision", "ok", "not installed, not needed")
    if torch is not None and "+cpu" in torch and "+cpu" not in vision:
        advice = "pip uninstall torchvision: built for another torch, it fails with 'torchvision::nms does not exist'"
        return Check("torchvision", "optional", f"{vision} next to torch {torch}", advice)
    return Check("torchvision", "ok", f"{vision}, not needed")


def faiss_check() -> Check:
    """Either FAISS package serves large nearest-neighbour searches; installed together they overwrite each other."""
    cpu, gpu = version_of("faiss-cpu"), version_of("faiss-gpu")
    if cpu and gpu:
        advice = "pip uninstall faiss-cpu faiss-gpu, then install one: both own the module `faiss`"
        return Check("faiss", "optional", f"faiss-cpu {cpu} and faiss-gpu {gpu}", advice)
    try:
        here = importlib.import_module("distill.hypotheses.neighbours").describe_faiss()
    except Exception as error:  # torch absent, or a FAISS that cannot be loaded
        here = f"not usable: {_one_line(error)}"
    package = f"faiss-cpu {cpu}" if cpu else f"faiss-gpu {gpu}" if gpu else ""
    if here.startswith("installed"):
        return Check("faiss", "ok", f"{package}, {here.removeprefix('installed, ')}" if package else here)
    if package:
        return Check("faiss", "optional", f"{package}, but {here}", f"pip install --force-reinstall {package.split()[0]}")
    return Check("faiss", "optional", here, "pip install faiss-cpu (or faiss-gpu)")


def torch_devices_check() -> Check:
    """The devices torch can use. Having no GPU is fine."""
    try:
        torch = importlib.import_module("torch")
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.backends.mps.is_available():
            names.append("Apple GPU (mps)")
    except Exception as error:  # a broken torch raises all kinds of things
        return Check("torch devices", "missing", _one_line(error), "reinstall torch: https://pytorch.org/get-started")
    return Check("torch devices", "ok", ", ".join(["cpu", *names]))


def renderer_checks() -> list[Check]:
    """Every renderer backend. Ray casting always works; the OpenGL backends are faster for large images."""
    try:
        backends = importlib.import_module("envs.cameras.backends").available_backends()
    except Exception as error:  # mujoco absent, or it refuses the MUJOCO_GL that is set
        advice = "install mujoco, and unset MUJOCO_GL: it is not needed here"
        return [Check("renderer", "missing", _one_line(error), advice)]
    cures = {
        "egl": "optional and faster: apt-get install libegl1 libgl1-mesa-dri (or a GPU driver)",
        "osmesa": "optional: apt-get install libosmesa6, only of use where EGL does not work",
    }
    found = []
    for name, reason in backends.items():
        if not reason:
            found.append(Check(f"renderer {name}", "ok", "works"))
        elif name == "osmesa" and backends.get("egl") == "":
            found.append(Check(f"renderer {name}", "ok", f"not needed next to EGL ({reason})"))
        else:
            advice = cures.get(name, "use another backend")
            found.append(Check(f"renderer {name}", "optional", f"not available: {reason}", advice))
    return found


def launcher_checks() -> list[Check]:
    """torchrun and accelerate, on the path or next to this Python."""
    found = []
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for name, package in (("torchrun", "torch"), ("accelerate", "accelerate")):
        where = shutil.which(name, path=places)
        advice = f"only for several processes: reinstall {package}, or use python -m instead"
        found.append(Check(f"launcher {name}", "ok", where) if where else
                     Check(f"launcher {name}", "optional", "not found", advice))  # fmt: skip
    return found


def simulator_check() -> Check:
    """CoppeliaSim for RLBench; everything else runs without it."""
    root, name = os.environ.get("COPPELIASIM_ROOT"), "CoppeliaSim"
    if not root:
        advice = "only for RLBench: CoppeliaSim 4.1, COPPELIASIM_ROOT, PyRep by git (not pip install pyrep): doctor --rlbench"
        return Check(name, "optional", "COPPELIASIM_ROOT is not set", advice)
    if not Path(root).is_dir():
        return Check(name, "optional", f"{root} is not a folder", "set COPPELIASIM_ROOT to the unpacked CoppeliaSim 4.1")
    return Check(name, "ok", root)


def disk_check(folder: Path) -> Check:
    """Free space at the folder's disk."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free under {folder}"
    if free < FREE_BYTES:
        return Check("disk", "optional", found, "free some space, or set --runs-dir to another disk")
    return Check("disk", "ok", found)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
