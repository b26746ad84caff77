"""What a crash leaves: one file with versions, command, stage, traceback and the last lines of output, without personal paths.

It imports nothing heavy, so that it works while packages are still loading.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path

LAST_LINES = 40
PACKAGES = ("flow2one", "torch", "numpy", "mujoco", "gymnasium", "accelerate", "torchcfm", "safetensors", "diffusers")

class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


_lines: deque[str] = deque(maxlen=LAST_LINES)
_at: dict[str, str] = {}


def note_line(text: str) -> None:
    """Remember a line of output."""
    _lines.extend(text.splitlines())


def note_place(*, folder: Path | None = None, stage: str | None = None) -> None:
    """Remember the run's folder and the stage that is running, from now on."""
    if folder is not None:
        _at["folder"] = str(folder.absolute())
    if stage is not None:
        _at["stage"] = stage


def write_crash(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write the file into the run's folder, else into the one for temporary files; None where neither can be written."""
    text = described(error, arguments)
    rank = os.environ.get("RANK", "")
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}{'-rank' + rank if rank else ''}.txt"
    places = [Path(_at["folder"])] if "folder" in _at else []
    with contextlib.suppress(OSError):
        places.append(Path(tempfile.gettempdir()))
    for folder in places:
        with contextlib.suppress(OSError):
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return folder / name
    return None


def described(error: BaseException, arguments: Sequence[str]) -> str:
    """The text of the file."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    text = "\n".join([
        "flow2one stopped on an error that it does not know. To report it, send this file; read it first.", "",
        f"time      {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC",
        f"command   flow2one {shlex.join(arguments)}",
        f"stage     {_at.get('stage', 'none')}",
        f"process   {rank} of {world}",
        f"python    {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}",
        f"packages  {', '.join(f'{name} {version}' for name, version in found.items())}", "",
        "".join(traceback.format_exception(error)).rstrip(), "",
        "last lines of output:", *(_lines or ["(none)"]), "",
    ])  # fmt: skip
    return without_paths(text)


def without_paths(text: str) -> str:
    """The text with every absolute path shortened to where it is below a known folder, or to its last part."""
    source = Path(__file__).resolve().parents[2]
    known = [(sys.prefix, "<python>"), (sys.base_prefix, "<python>"), (str(source), "<flow2one>")]
    with contextlib.suppress(OSError):
        known.append((os.getcwd(), "."))
    for folder, short in sorted(known, key=lambda pair: -len(pair[0])):
        if len(folder) > 1:
            text = text.replace(folder + os.sep, short + "/")
    text = re.sub(r"(?<![\w.~>/-])/(?:[^\s/'\"`:,;()\[\]]+/)+", "<...>/", text)
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text
