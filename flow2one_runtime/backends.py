"""The programs that can run an exported graph, each imported only when it is used."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from flow2one_runtime.exported import Exported

Graph = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Inputs by name, with the batch axis, to raw chunks `[M, T, A]`."""

WholeCall = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]
"""Inputs by name, with the batch axis, to the outputs of a whole call: chunk, candidates and index, with the batch axis."""


def _onnxruntime(path: Path, threads: int) -> WholeCall:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, dict(feed))


def _openvino(path: Path, threads: int) -> WholeCall:
    import openvino

    # without the hint some processors silently compute in bfloat16
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda feed: [np.array(each) for each in request.infer(dict(feed)).values()]  # it uses its memory again


def _torch(path: Path, threads: int) -> WholeCall:
    import torch

    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # torch 2.11 reads its own file so
        module = torch.export.load(path).module()

    def call(feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
        latents = tensors.pop("latents")
        with torch.inference_mode():
            return [np.asarray(module(tensors, latents))]

    return call


BACKENDS: dict[str, tuple[str, Callable[[Path, int], WholeCall]]] = {
    "onnxruntime": ("onnx", _onnxruntime), "openvino": ("onnx", _openvino), "torch": ("torch", _torch),
}  # fmt: skip
"""By the name of the module: the format that it reads, and what opens a file of that format. In the order of preference, unless
`flow2one doctor --speed` measured on this machine which is faster."""


def hardware() -> str:
    """This machine's processor and number of cores, as `flow2one doctor --speed` writes it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def measured_ms(folder: Path) -> dict[str, float]:
    """Median milliseconds of a call by backend, as measured on this machine; {} where ``speed.json`` is not of this machine."""
    try:
        found = json.loads((folder / "speed.json").read_text())
        if found["schema_version"] != 1 or found["hardware"] != hardware():
            return {}
        modes = found["latency"]["modes"]
        return {name: float(modes[name]["median_ms"]) for name in BACKENDS if name in modes and modes[name]["parity"]["holds"]}
    except (OSError, ValueError, KeyError, TypeError):  # only a hint: without it the order of preference counts
        return {}


def open_graphs(exported: Exported, backend: str, threads: int) -> tuple[Graph, WholeCall | None]:
    """The graph of any number of samples, and that of the whole call where the folder has one that the backend reads.

    backend: one of `BACKENDS`, or auto: the fastest one measured here, else the first, that is installed and has a file.

    Raises ValueError, in one line, for an unknown backend, one that is not installed or has no file, and a broken file.
    """
    if backend not in (*BACKENDS, "auto"):
        raise ValueError(f"backend: got {backend!r}, expected auto or one of {list(BACKENDS)}")
    times = measured_ms(exported.folder)
    order = sorted(BACKENDS, key=lambda name: times.get(name, float("inf")))  # stable: others stay in order
    candidates = [name for name in order if backend in (name, "auto")]
    fitting = [name for name in candidates if BACKENDS[name][0] in exported.files]
    if not fitting:
        wanted = sorted({BACKENDS[name][0] for name in candidates})
        raise ValueError(f"{exported.folder} holds the formats {sorted(exported.files)}, {backend} needs one of {wanted}: "
                         f"flow2one export --formats {wanted[0]}")  # fmt: skip
    name = next((each for each in fitting if importlib.util.find_spec(each) is not None), None)
    if name is None:
        raise ValueError(f"none of {fitting} is installed; pip install {fitting[0]}")
    form = BACKENDS[name][0]
    graph = _opened(exported, name, form, threads)
    whole = _opened(exported, name, "call", threads) if form == "onnx" and exported.call is not None else None
    return lambda feed: graph(feed)[0][0], whole


def _opened(exported: Exported, name: str, form: str, threads: int) -> WholeCall:
    path = exported.folder / exported.files[form]
    try:
        return BACKENDS[name][1](path, threads)
    except Exception as error:  # each backend has exceptions of its own
        raise ValueError(f"{path} cannot be opened by {name}: {' '.join(str(error).split())[:300]}") from error
