"""Damage led by coverage, for the readers that are Python alone; needs ``pip install atheris``, which the tests do not.

    python tests/faults/coverage_guided.py "RLBench pickle" -max_total_time=600

Every option after the reader's name is libFuzzer's. What it finds besides ValueError ends it, and is written to crash-*.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["envs", "flow2one_runtime", "distill", "yaml"]):
    from distill.config import Config
    from distill.presets import apply_preset
    from distill.store.manifest import read_manifest
    from envs.process.wire import receive
    from envs.rlbench.plain_pickle import read as read_pickle
    from flow2one_runtime.exported import read_exported


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """The reader of a folder that holds one file of this name."""

    def reads(data: bytes) -> object:
        (FOLDER / name).write_bytes(data)
        return read(FOLDER)

    return reads


FOLDER = Path(tempfile.mkdtemp())
READERS: dict[str, Callable[[bytes], object]] = {
    "RLBench pickle": read_pickle,
    "wire message": lambda data: receive(io.BytesIO(data)),
    "YAML preset": _file("mine.yaml", lambda folder: apply_preset(Config(), folder / "mine.yaml")),
    "manifest": _file("manifest.json", read_manifest),
    "exported student (export.json)": _file("export.json", read_exported),
}


def main() -> None:
    read = READERS[sys.argv.pop(1)]

    def once(data: bytes) -> None:
        try:
            read(data)
        except ValueError as told:
            if "\n" in str(told):
                raise RuntimeError("a message of more than one line") from told
        except (FileNotFoundError, EOFError):
            return

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
