"""The readers of files and messages that others may send: a valid example of each, and how it is read."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distill.config import Config
from distill.hypotheses.cache import HypothesisDataset, write_index
from distill.presets import apply_preset
from distill.store.manifest import commit, finished, make_key, partial_folder, read_manifest, write_json
from envs.demonstrations import Demonstrations
from envs.process.wire import receive, send
from envs.recorded import open_recorded
from envs.recorded.inspection import inspect
from envs.rlbench.plain_pickle import read as read_pickle
from flow2one_runtime.exported import read_exported


@dataclass(frozen=True)
class Reader:
    """make: writes an example to a path that does not exist. read: reads it; raises ValueError for what is wrong.

    folder: whether the example is a folder. suffix: of its name.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    folder: bool = True
    suffix: str = ""


def _manifest(path: Path) -> None:
    partial = partial_folder(path, make_key({}))
    partial.mkdir(parents=True)
    (partial / "a.txt").write_text("a")
    commit(path, make_key({}), {}, 1.0)


def _cache(path: Path) -> None:
    from safetensors.numpy import save_file

    from distill.hypotheses.cache import CachePlan, shard_name

    path.mkdir()
    plan = CachePlan(np.arange(6), 2, 1, 3, 3, 0)
    for shard in range(2):
        save_file({"observation.state": np.zeros((3, 1, 2), np.float32), "hypotheses": np.zeros((3, 2, 4, 2), np.float16),
                   "seed": np.zeros((3, 2), np.int64)}, str(path / shard_name(shard)))  # fmt: skip
    write_index(path, plan, "example")


def _read_cache(path: Path) -> None:
    dataset = HypothesisDataset(path)
    for row in range(min(len(dataset), 8)):
        dataset[row]


def _policy(path: Path) -> None:
    import torch

    import teachers
    from tests.conftest import SMALL, STATISTICS

    torch.manual_seed(0)
    teacher = teachers.make_teacher("flow", replace(SMALL, encoder=None), "euler")
    teacher.normaliser.fit(STATISTICS)
    teacher.save_pretrained(path)


def _read_policy(path: Path) -> None:
    from teachers import load_teacher

    load_teacher(path)


def _preset(path: Path) -> None:
    path.mkdir()
    text = "extends: [below.yaml]\nseed: 1\nteacher: {training_steps: 5, learning_rate: 1}\nname: &a x\n"
    (path / "mine.yaml").write_text(text)
    (path / "below.yaml").write_text("task: avoid\nstudent:\n  objectives: [chamfer]\n")


def _wire(path: Path) -> None:
    stream = io.BytesIO()
    send(stream, {"a": [1, "x"]}, {"x": np.arange(6.0).reshape(2, 3), "y": np.ones(3, np.uint8)})
    path.write_bytes(stream.getvalue())


PICKLED = (
    "gASVGQEAAAAAAAB9lCiMAWGUXZQoSwFHwAQAAAAAAABOjAF4lGWMAWKUjBZudW1weS5fY29yZS5tdWx0aWFycmF5lIwMX3JlY29uc3RydWN0lJ"
    "OUjAVudW1weZSMB25kYXJyYXmUk5RLAIWUQwFilIeUUpQoSwFLAksDhpRoCIwFZHR5cGWUk5SMAmY4lImIh5RSlChLA4wBPJROTk5K/////0r/"
    "////SwB0lGKJQzAAAAAAAAAAAAAAAAAAAPA/AAAAAAAAAEAAAAAAAAAIQAAAAAAAABBAAAAAAAAAFECUdJRiaAWMBnNjYWxhcpSTlGgRjAJmNJ"
    "SJiIeUUpQoSwNoFU5OTkr/////Sv////9LAHSUYkMEAAAAP5SGlFKUhpR1Lg=="
)
"""What pickle writes of ``{"a": [1, -2.5, None, "x"], "b": (np.arange(6.0).reshape(2, 3), np.float32(0.5))}``, in base 64."""


def _pickle(path: Path) -> None:
    path.write_bytes(base64.b64decode(PICKLED))


def _exported(path: Path) -> None:
    path.mkdir()
    (path / "student.onnx").write_bytes(b"no graph")
    write_json(path / "export.json", {
        "schema_version": 1, "kind": "one_step", "task": "avoid", "dt_s": 0.05,
        "inputs": [{"name": "observation.state", "shape": [1, 2, 2], "dtype": "float32"},
                   {"name": "latents", "shape": [1, "samples", 5], "dtype": "float32"}],
        "output": {"name": "actions", "shape": [1, "samples", 8, 2], "dtype": "float32", "names": ["x", "y"]},
        "action": {"centre": [0.0, 0.0], "scale": [1.0, 1.0], "weights": [1.0, 1.0]},
        "selection": {"kind": "outlier_rejection", "candidates": 4, "forget_every": 4, "execution_horizon": 8,
                      "outlier_ratio": 2.0, "mode_duplicates": 2, "same_plan_distance": 0.1},
        "formats": {"onnx": {"file": "student.onnx"}}, "starting_noises": {"noises": [[0.0] * 5], "shares": [1.0]},
        "files": {},
    })  # fmt: skip


def _recorded(name: str) -> Reader:
    def make(path: Path) -> None:
        from tests.envs.recorded.writers import FORMATS, walk

        images = tuple(np.random.default_rng(each).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8) for each in range(3))
        made = FORMATS[name](path.with_name("made"), walk(3, 8, images=images))
        shutil.move(made, path)

    def read(path: Path) -> None:
        recorded = open_recorded(path)
        inspect(recorded)
        for feature in recorded.features:
            recorded.frames(feature, np.arange(2))

    suffix = ".hdf5" if name == "HDF5" else ".zip" if "zip" in name else ""
    return Reader(make, read, not suffix, suffix)


def _demonstrations(path: Path) -> None:
    import envs
    from envs.demonstrations import Demonstration
    from envs.panda.recording import stored_starts

    spec, starts = envs.task_spec("avoid"), stored_starts("avoid", 0, "train", 1)
    state = np.full((3, 2), 0.5, np.float32)
    each = Demonstration(state, state, np.full((3, 3), 0.5, np.float32), starts[0], spec.modes[0])
    Demonstrations.from_episodes(spec, [each], [0]).save(path)


def readers() -> dict[str, Reader]:
    """All readers by name."""
    from tests.envs.recorded.writers import FORMATS

    found = {
        "manifest": Reader(_manifest, lambda path: (read_manifest(path), finished(path, make_key({})))),
        "hypothesis cache": Reader(_cache, _read_cache),
        "policy folder (config, safetensors)": Reader(_policy, _read_policy),
        "YAML preset": Reader(_preset, lambda path: apply_preset(Config(), path / "mine.yaml")),
        "wire message": Reader(_wire, lambda path: receive(io.BytesIO(path.read_bytes())), folder=False),
        "RLBench pickle": Reader(_pickle, lambda path: read_pickle(path.read_bytes()), folder=False),
        "exported student (export.json)": Reader(_exported, read_exported),
        "demonstrations": Reader(_demonstrations, Demonstrations.load),
    }
    return found | {f"recording: {name}": _recorded(name) for name in FORMATS if name != "our demonstrations"}
