"""Checks what RLBench needs on this machine, finds the usual mistakes, and says how to fix each."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.cli.doctor.machine import Check
from envs.rlbench.env import PYTHON_VARIABLE, simulator_environment

PYREP = "COPPELIASIM_ROOT=... pip install git+https://github.com/stepjam/PyRep.git"
RLBENCH = "pip install git+https://github.com/stepjam/RLBench.git"
XVFB = "Xvfb :99 -screen 0 1280x1024x24 +extension GLX +render -noreset & export DISPLAY=:99"
OLDEST = (3, 8)
MODULES = ("numpy", "PIL", "cffi", "scipy", "natsort", "pyquaternion", "gymnasium")
"""What PyRep and RLBench import; RLBench imports gymnasium without declaring it."""
PIP_NAMES = {"PIL": "Pillow"}

LOOK = """
import importlib.util, json, sys
try:
    from importlib import metadata
except ImportError:
    metadata = None
facts = {"python": list(sys.version_info[:3]), "modules": {}, "backend": None, "version": {}}
for name in %r + ("pyrep", "rlbench"):
    spec = importlib.util.find_spec(name)
    facts["modules"][name] = None if spec is None else str(spec.origin)
    if spec is not None and name == "pyrep":
        places = list(spec.submodule_search_locations or [])
        import os
        facts["backend"] = any(os.path.isfile(os.path.join(place, "backend", "sim.py")) for place in places)
print(json.dumps(facts))
"""
"""Looks modules up without importing them, so that a broken module does not end it."""

GLX = """
import ctypes, json
facts = {"library": True, "opened": False, "glx": False}
try:
    X = ctypes.CDLL("libX11.so.6")
except OSError:
    facts["library"] = False
else:
    X.XOpenDisplay.restype = ctypes.c_void_p
    display = X.XOpenDisplay(None)
    if display:
        numbers = [ctypes.c_int() for _ in range(3)]
        facts["opened"] = True
        facts["glx"] = bool(X.XQueryExtension(ctypes.c_void_p(display), b"GLX", *[ctypes.byref(n) for n in numbers]))
print(json.dumps(facts))
"""


IMPORT = "import json, pyrep, rlbench; print(json.dumps([pyrep.__version__, rlbench.__version__]))"


def rlbench_checks(python: str, environment: Mapping[str, str]) -> list[Check]:
    """All checks. python: the interpreter that imports rlbench, as a command line; "": the one a run would use."""
    command = shlex.split(python or environment.get(PYTHON_VARIABLE, "")) or [sys.executable]
    found = [root_check(environment)]
    if found[0].status == "ok":
        found += [version_check(environment), library_check(environment)]
    found.append(qt_check(environment))
    facts = probe(command, LOOK % (MODULES,), environment)
    if "failed" in facts:
        advice = "give the interpreter of RLBench's environment: --rlbench.python /path/to/bin/python"
        return [*found, Check("interpreter", "missing", f"{' '.join(command)}: {facts['failed']}", advice)]
    found += [interpreter_check(command, facts), *module_checks(facts), pyrep_check(facts), rlbench_check(facts)]
    found += display_checks(environment, probe(command, GLX, environment))
    if all(check.status == "ok" for check in found if check.name in ("COPPELIASIM_ROOT", "PyRep", "RLBench")):
        found.append(import_check(command, environment))
    return found


def probe(command: list[str], code: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The JSON that code prints in an interpreter with a simulator's environment; ``failed``: why there is none."""
    try:
        done = subprocess.run(
            [*command, "-c", code], env=simulator_environment(environment), capture_output=True, text=True, timeout=120,
            check=False, cwd="/",
        )  # fmt: skip
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"failed": f"{type(error).__name__}: {error}"[:160]}
    except (IndexError, json.JSONDecodeError):
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return {"failed": last[:160]}


def root_check(environment: Mapping[str, str]) -> Check:
    """Whether COPPELIASIM_ROOT is the unpacked simulator."""
    root = environment.get("COPPELIASIM_ROOT", "")
    if not root:
        return Check("COPPELIASIM_ROOT", "missing", "not set", "unpack CoppeliaSim 4.1 and export COPPELIASIM_ROOT=its folder")
    if not Path(root).is_dir():
        return Check("COPPELIASIM_ROOT", "missing", f"{root} is not a folder", "set it to the unpacked CoppeliaSim 4.1")
    if not (Path(root) / "libcoppeliaSim.so").is_file():
        inner = sorted(path.parent for path in Path(root).glob("*/libcoppeliaSim.so"))
        advice = f"export COPPELIASIM_ROOT={inner[0]}" if inner else "set it to the folder that holds libcoppeliaSim.so"
        return Check("COPPELIASIM_ROOT", "missing", f"{root} holds no libcoppeliaSim.so", advice)
    return Check("COPPELIASIM_ROOT", "ok", root)


def version_check(environment: Mapping[str, str]) -> Check:
    """CoppeliaSim's version, from the folder's name, and the setting that lets an old educational release start."""
    name = "CoppeliaSim 4.1"
    root = Path(environment["COPPELIASIM_ROOT"])
    facts = re.search(r"V(\d+)_(\d+)_\d+", root.resolve().name)
    if facts and facts.groups() != ("4", "1"):
        advice = "take CoppeliaSim_Edu_V4_1_0_Ubuntu20_04: PyRep works with 4.1.0 only"
        return Check(name, "missing", f"{root.resolve().name}", advice)
    settings = root / "system" / "usrset.txt"
    allowed = settings.is_file() and "allowOldEduRelease" in settings.read_text(errors="replace")
    if not allowed:
        advice = f"echo allowOldEduRelease=7501 >> {settings} (installing PyRep does it, too), or it stops as expired"
        return Check(name, "optional", "an old educational release is not allowed to start", advice)
    return Check(name, "ok", facts.group() if facts else "the folder's name contains no version")


def library_check(environment: Mapping[str, str]) -> Check:
    """The name under which PyRep's binding looks for the simulator's library."""
    name, root = "libcoppeliaSim.so.1", Path(environment["COPPELIASIM_ROOT"])
    if not (root / name).exists():
        return Check(name, "missing", f"not in {root}", "ln -s libcoppeliaSim.so libcoppeliaSim.so.1 there, as PyRep does")
    return Check(name, "ok", "LD_LIBRARY_PATH is set for the simulators by flow2one")


def qt_check(environment: Mapping[str, str]) -> Check:
    """Which Qt platform plugin is used, and where Qt looks for it."""
    platform, place = environment.get("QT_QPA_PLATFORM", ""), environment.get("QT_QPA_PLATFORM_PLUGIN_PATH", "")
    root = environment.get("COPPELIASIM_ROOT", "")
    if platform not in ("", "xcb"):
        advice = "unset QT_QPA_PLATFORM: a simulator with it dies at the first image; without a screen use Xvfb"
        return Check("Qt", "missing" if platform != "offscreen" else "optional", f"QT_QPA_PLATFORM={platform}", advice)
    if place and root and Path(place).resolve() != Path(root).resolve():
        advice = "export QT_QPA_PLATFORM_PLUGIN_PATH=$COPPELIASIM_ROOT (opencv-python sets it, too: use opencv-python-headless)"
        return Check("Qt", "missing", f"QT_QPA_PLATFORM_PLUGIN_PATH={place}", advice)
    return Check("Qt", "ok", "xcb, with the plugins of CoppeliaSim")


def interpreter_check(command: list[str], facts: Mapping[str, Any]) -> Check:
    """Whether RLBench's Python is new enough."""
    version = ".".join(map(str, facts["python"]))
    if tuple(facts["python"][:2]) < OLDEST:
        return Check("interpreter", "missing", f"Python {version}", "make RLBench's environment with Python 3.8 or newer")
    return Check("interpreter", "ok", f"Python {version}: {' '.join(command)}")


def module_checks(facts: Mapping[str, Any]) -> list[Check]:
    """The modules that PyRep and RLBench import."""
    missing = [PIP_NAMES.get(name, name) for name in MODULES if facts["modules"].get(name) is None]
    if not missing:
        return [Check("modules", "ok", ", ".join(MODULES))]
    return [Check("modules", "missing", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")]


def pyrep_check(facts: Mapping[str, Any]) -> Check:
    """The real PyRep: the package of that name on PyPI is another project."""
    if facts["modules"].get("pyrep") is None:
        return Check("PyRep", "missing", "not installed", f"{PYREP} (never `pip install pyrep`)")
    if not facts["backend"]:
        advice = f"pip uninstall -y pyrep; {PYREP}"
        return Check("PyRep", "missing", f"{facts['modules']['pyrep']} belongs to another project", advice)
    return Check("PyRep", "ok", str(facts["modules"]["pyrep"]))


def rlbench_check(facts: Mapping[str, Any]) -> Check:
    """Whether RLBench is installed."""
    if facts["modules"].get("rlbench") is None:
        return Check("RLBench", "missing", "not installed", f"{RLBENCH} (for non-commercial or academic research only)")
    return Check("RLBench", "ok", str(facts["modules"]["rlbench"]))


def display_checks(environment: Mapping[str, str], facts: Mapping[str, Any]) -> list[Check]:
    """An X display that responds and supports GLX."""
    display = environment.get("DISPLAY", "")
    if not display:
        return [Check("display", "missing", "DISPLAY is not set", f"without a screen: {XVFB}")]
    if "failed" in facts or not facts["library"]:
        return [Check("display", "optional", "libX11.so.6 is not there, so it cannot be checked", "apt-get install libx11-6")]
    if not facts["opened"]:
        return [Check("display", "missing", f"no X server responds at DISPLAY={display}", f"start one there: {XVFB}")]
    if not facts["glx"]:
        advice = f"start it with GLX: {XVFB} (and apt-get install libgl1-mesa-dri)"
        return [Check("display", "ok", display), Check("GLX", "missing", f"the server at {display} has none", advice)]
    return [Check("display", "ok", display), Check("GLX", "ok", f"the server at {display} has it")]


def import_check(command: list[str], environment: Mapping[str, str]) -> Check:
    """Whether both can be imported, in a separate process, as the import may crash it."""
    facts = probe(command, IMPORT, environment)
    if not isinstance(facts, list):
        known = {
            "libcoppeliaSim": "install PyRep again, with the COPPELIASIM_ROOT that is set now",
            "_sim_cffi": "PyRep was not built: pip install it from its git, which needs gcc and python3-dev",
            "numpy": "pip install 'numpy<2' and build PyRep again there",
        }
        advice = next((cure for sign, cure in known.items() if sign in facts["failed"]), "see docs/rlbench.md")
        return Check("import", "missing", str(facts["failed"]), advice)
    return Check("import", "ok", f"PyRep {facts[0]}, RLBench {facts[1]}")
