"""`flow2one export` of a policy that was fine-tuned in place: its own format, and its head as ONNX where it traces."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from distill.cli.in_place import open_in_place
from distill.cli.measured import inference_settings_of
from distill.stages.in_place.choose import OWN_FORMAT, read_student
from distill.store.manifest import read_manifest, sha256_file, verify, write_json
from students.export import SCHEMA_VERSION
from students.export.graph import check_format
from students.export.parity import TOLERANCE
from teachers.adapters.graph import ACTIONS, NOISE
from teachers.networks.observations import fake_observation

GRAPH = "head.onnx"


def write_in_place(student: Path, formats: tuple[str, ...], folder: Path, say: Any) -> None:
    """Write what travels of the student into `folder`. Raises ValueError for a format there is none of, a changed student, and
    a graph that cannot be made or differs from the policy by more than the tolerance."""
    formats = tuple(name for name in formats if name != "call")  # it executes one sample: there is nothing to select
    wrong = [name for name in formats if name != "onnx"]
    if wrong:
        raise ValueError(f"formats: got {wrong}, expected onnx alone: a policy fine-tuned in place has no others")
    told = read_student(student)
    if read_manifest(student) is not None:
        verify(student)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(student / name, folder / name)
    if (student / OWN_FORMAT).is_dir():
        shutil.copytree(student / OWN_FORMAT, folder / OWN_FORMAT)
    shape, run_time = told["shape"], inference_settings_of(student, told["shape"]["horizon"])
    described: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "kind": told["kind"], "adapter": told["adapter"], "task": shape["task"],
        "dt_s": shape["dt_s"], "inputs": [], "formats": {},
        # the ranges of the actions stay in the run, and without them no two chunks can be compared
        "selection": {"kind": "single", "execution_horizon": run_time.execution_horizon},
    }  # fmt: skip
    if formats:
        check_format("onnx")
        described |= _write_onnx(student, folder, list(shape["action_names"]), say)
        described |= _starting_noises(student)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    described["files"] = {str(path.relative_to(folder)): sha256_file(path) for path in files}
    write_json(folder / "export.json", described)


def _starting_noises(student: Path) -> dict[str, Any]:
    """The noises that its chunks start from, and their shares, where they were learned."""
    weights = load_file(student / "model.safetensors")
    if "starting_noises" not in weights:
        return {}
    shares = np.exp(weights["starting_log_shares"].astype(np.float64)).tolist()
    return {"starting_noises": {"noises": weights["starting_noises"].tolist(), "shares": shares}}


def _write_onnx(student: Path, folder: Path, action_names: list[str], say: Any) -> dict[str, Any]:
    """The graph of the head, compared with the policy itself at one observation and 16 noises."""
    import onnxruntime

    opened = open_in_place(str(student), 600.0)
    try:
        observation = fake_observation(opened.shape, 1)
        policy: Any = opened.policy
        told, arrays = policy.request("export", policy.arrays(observation), path=str((folder / GRAPH).resolve()))
    finally:
        opened.close()
    session = onnxruntime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}  # an input that is not used is left out of a graph
    (got,) = session.run([ACTIONS], {name: arrays[name] for name in wanted})
    spread = max(float(np.abs(arrays[ACTIONS]).max()), 1.0)
    largest = float(np.abs(got - arrays[ACTIONS]).max())
    if not largest <= TOLERANCE * spread:
        raise ValueError(f"onnx: the graph differs from the policy by {largest:g}, expected at most {TOLERANCE * spread:g}; "
                         "nothing was written")  # fmt: skip
    say(f"onnx: differs from the policy by at most {largest:.1e} in raw units, at 16 noises")
    inputs = [
        {"name": name, "shape": shape, "dtype": str(arrays[name].dtype)} for name, shape in told["inputs"] if name in wanted
    ]  # fmt: skip
    samples = inputs[-1]["shape"][1]
    return {"inputs": inputs, "output": {"name": ACTIONS, "shape": [1, samples, *got.shape[2:]], "names": action_names},
            "noise": NOISE,
            "formats": {"onnx": {"file": GRAPH, "largest_difference": largest}}}  # fmt: skip
