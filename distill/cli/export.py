"""`flow2one export`: a student as a self-contained folder: model card, ONNX, torch.export, AOTInductor."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from distill.checks import check_writable
from distill.cli.export_in_place import write_in_place
from distill.cli.help import help_text, wants_help
from distill.cli.in_place import is_in_place
from distill.cli.measured import figures_of, inference_settings_of
from distill.store.machine import hardware
from distill.store.manifest import installed_packages, publish, read_manifest, sha256_file, verify, write_bytes, write_json
from envs.specs import STATE
from students import Student, load_student
from students.export import SCHEMA_VERSION
from students.export.card import InferenceSettings, model_card
from students.export.graph import ACTIONS, FILES, LATENTS, SAMPLES, check_format, export_program, write_format
from students.export.hub import check_upload, upload
from students.export.parity import TOLERANCE, Parity, measure_parity, random_observation
from students.export.whole_call import WholeCall
from students.selection import MODE_DUPLICATES, OUTLIER_RATIO, SAME_PLAN
from teachers.networks.observations import feature_shape, sources_of

CHOICES, MOST_OTHER = 200, 0.02
"""Observations at which selections are compared, and the share at which rounding may decide otherwise."""

DESCRIPTION = """Export a student as a folder of its own: its weights, a model card with what its run measured, and a graph per
format, each compared with PyTorch.

  flow2one export --student runs/avoid-seed0/distill/chamfer --out exported"""


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and where to.

    Attributes:
        student: a student's folder; inside its run, so that the model card can quote its measurements
        out: the folder to create
        formats: any of onnx, call (ONNX with the selection inside), torch (torch.export) and aoti (AOTInductor, needs a C++
            compiler)
        push_to_hub: user/name of a new repository on the Hugging Face Hub, private unless --public
        public: make that repository public
    """

    student: Path
    out: Path
    formats: tuple[str, ...] = ("onnx", "call")
    push_to_hub: str = ""
    public: bool = False


def run_export(arguments: Sequence[str]) -> int:
    """Run the command; returns 0. Raises ValueError for invalid input; tyro exits with 2 for an unknown flag."""
    if wants_help(arguments):
        usage = "flow2one export --student FOLDER --out FOLDER [OPTIONS]"
        print(help_text(usage, DESCRIPTION, ExportOptions(Path(), Path()), required=("--student", "--out")), end="")
        return 0
    options = tyro.cli(ExportOptions, args=list(arguments), prog="flow2one export", description=DESCRIPTION)
    export_student(options, print)
    return 0


def check_options(options: ExportOptions) -> None:
    """Raise ValueError for every option that is wrong before any work."""
    for name in options.formats:
        check_format(name)
    if len(set(options.formats)) != len(options.formats):
        raise ValueError(f"formats: got a name twice in {list(options.formats)}; name each once")
    if options.out.exists() or options.out.is_symlink():
        raise ValueError(f"{options.out} already exists and is not overwritten; choose another --out, or move it away")
    check_writable(options.out, "--out")
    if options.push_to_hub:
        check_upload(options.push_to_hub)
    elif options.public:
        raise ValueError("public: got --public without --push-to-hub user/name")


def export_student(options: ExportOptions, say: Callable[[str], object]) -> Path:
    """Write the folder `options.out`, upload it if requested, and return it. say: prints a progress line.

    Raises ValueError for a student that cannot be read, and for a graph that differs from it by more than `TOLERANCE`. Nothing
    is left at `options.out` then.
    """
    check_options(options)
    in_place = is_in_place(options.student)
    student = None if in_place else _open(options.student)
    told = "fine-tuned in place" if student is None else f"{student.KIND} for {student.shape.task}"
    say(f"student {options.student}: {told}")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{options.out.name}.", suffix=".partial", dir=options.out.parent))
    except OSError as error:
        raise ValueError(f"--out: {options.out} cannot be written ({error.strerror}); name another place") from error
    try:
        if student is None:
            write_in_place(options.student, options.formats, partial, say)
        else:
            _write(options, student, partial, say)
        partial.chmod(0o755)  # mkdtemp creates it for its owner only
        publish(partial, options.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"exported to {options.out}")
    if options.push_to_hub:
        say(f"uploaded to {upload(options.out, options.push_to_hub, options.public, say)}")
    return options.out


def _open(folder: Path) -> Student:
    """The student; errors in one line. Its files are checked against its stage's manifest when it has one."""
    try:
        student = load_student(folder)
        if read_manifest(folder) is not None:
            verify(folder)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return student.cpu().eval()


def _write(options: ExportOptions, student: Student, folder: Path, say: Callable[[str], object]) -> None:
    run_time, figures = inference_settings_of(options.student, student.shape.horizon), figures_of(options.student)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as ONNX Runtime here; small networks gain nothing from more
    try:
        graphs = [name for name in options.formats if name != "call"]
        program = export_program(student) if graphs else None
        calls = {name: write_format(name, student, program, folder) for name in graphs if program is not None}
        whole = None
        if "call" in options.formats:
            whole = WholeCall(student, run_time.selection, run_time.execution_horizon, folder / FILES["call"])
            calls["call"] = whole.candidates()
        parities = measure_parity(student, calls)
        other = 0 if whole is None else _other_choices(student, whole, say)
    finally:
        torch.set_num_threads(threads)
    for name, parity in parities.items():
        say(
            f"{name}: differs from PyTorch by at most {parity.largest:.2e} in raw units, {parity.largest_normalised:.2e} half "
            f"ranges, on {parity.inputs} random observations ({parity.chunks} chunks)"
        )
        if not parity.holds:
            raise ValueError(f"{name}: the graph differs by more than {TOLERANCE:g} half ranges; nothing was written")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(options.student / name, folder / name)
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    described = describe(student, run_time, folder, parities) | {
        "made": {"date": today, "hardware": hardware(None), "packages": installed_packages()}
    }
    if whole is not None:
        described["formats"]["call"] |= {"inputs": whole.inputs, "outputs": whole.outputs, "samples": whole.samples,
                                         "other_choices": other, "choices": CHOICES}  # fmt: skip
    card = model_card(
        student, described["formats"], run_time, figures.student, figures.teacher, figures.provenance, today
    )
    write_bytes(folder / "README.md", card.encode())
    files = sorted(path.name for path in folder.iterdir())
    described["files"] = {name: sha256_file(folder / name) for name in files}
    write_json(folder / "export.json", described)


def _other_choices(student: Student, whole: WholeCall, say: Callable[[str], object]) -> int:
    """How often the graph's selection differs from PyTorch's. Raises ValueError where rounding does not explain it."""
    other = whole.other_choices(random_observation(student, CHOICES, torch.Generator().manual_seed(1)))
    say(f"call: selects another candidate than PyTorch at {other} of {CHOICES} observations")
    if other > MOST_OTHER * CHOICES:
        raise ValueError(f"call: the graph selects another candidate at {other} of {CHOICES} observations, expected at most "
                         f"{MOST_OTHER:.0%}; nothing was written")  # fmt: skip
    return other


def describe(student: Student, run_time: InferenceSettings, folder: Path, parities: dict[str, Parity]) -> dict[str, Any]:
    """The content of ``export.json``: all that a program needs to call the graph and select a chunk, without flow2one."""
    shape = student.shape
    inputs: list[dict[str, Any]] = [
        {"name": name, "shape": [1, *feature_shape(shape, name)], "dtype": "float32"} for name in sources_of(shape)
    ]
    for each in inputs:
        if each["name"] == STATE:
            each["names"] = list(shape.state_names)
    inputs.append({"name": LATENTS, "shape": [1, SAMPLES, *student.latent_shape], "dtype": "float32",
                   "drawn_from": "standard normal"})  # fmt: skip
    centre_A, scale_A = student.normaliser.centre_scale("action")
    selection = run_time.selection
    return {
        "schema_version": SCHEMA_VERSION, "kind": student.KIND, "task": shape.task, "dt_s": shape.dt_s, "inputs": inputs,
        "output": {"name": ACTIONS, "shape": [1, SAMPLES, shape.horizon, shape.action_size], "dtype": "float32",
                   "names": list(shape.action_names)},
        # distances between chunks are computed on (action - centre) / scale, with these weights
        "action": {"centre": centre_A.tolist(), "scale": scale_A.tolist(), "weights": list(shape.action_weights)},
        "selection": {
            **asdict(selection), "execution_horizon": run_time.execution_horizon,
            "outlier_ratio": OUTLIER_RATIO, "mode_duplicates": MODE_DUPLICATES,
            "same_plan_distance": SAME_PLAN, "source": run_time.source,
        },
        "formats": {
            name: {"file": FILES[name], "bytes": os.path.getsize(folder / FILES[name]),
                   "parity": {**asdict(parity), "tolerance_normalised": TOLERANCE}}
            for name, parity in parities.items()
        },
    }  # fmt: skip
