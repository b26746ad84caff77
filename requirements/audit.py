"""Looks for known holes in the locked versions with pip-audit, in an environment of its own that is removed at the end.

Called by `make audit`. Exit status 1 for a known hole. Without a network, or with a mirror that knows of no holes, it says that
nothing was looked up, and passes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOCKS = ("cpu.lock", "test.lock")
ACCEPTED: dict[str, str] = {}
"""Known holes that do not matter here, by their number, and why."""
LIMIT_S = 300


def main() -> int:
    """Prints the verdict; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            venv.create(folder, with_pip=True)
            python = Path(folder) / "bin" / "python"
            _run([str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "pip-audit"])
            locks = [part for lock in LOCKS for part in ("-r", str(HERE / lock))]
            found = _run([str(python), "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", *locks])
        except (OSError, subprocess.SubprocessError) as error:
            return say(None, type(error).__name__)
    try:
        return say(json.loads(found.stdout), "no answer")
    except json.JSONDecodeError:
        return say(None, (found.stderr.strip().splitlines() or ["no answer"])[-1][:200])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def say(answer: Any, why: str) -> int:
    """Prints what pip-audit found and returns the exit status. answer: its JSON, None without any; why: then the reason."""
    packages = [] if answer is None else answer["dependencies"]
    looked_up = [each for each in packages if "skip_reason" not in each]
    if not looked_up:
        reason = why if answer is None else "the index knows of no holes of any package"
        print(f"audit: nothing was looked up ({reason}); the locks were not checked for known holes")
        return 0
    holes = [(each, hole) for each in looked_up for hole in each["vulns"] if hole["id"] not in ACCEPTED]
    for package, hole in holes:
        fixed = ", ".join(hole["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']} has the known hole {hole['id']}, mended in {fixed}")
    skipped = len(packages) - len(looked_up)
    print(f"audit: {len(looked_up)} packages looked up, {skipped} not known to the index, {len(holes)} known holes")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
