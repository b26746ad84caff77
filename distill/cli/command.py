"""The commands: which one is meant, its config (preset < file < flag), and running it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from distill.checks import check_choice, check_teacher_folder, validate
from distill.cli.help import VERIFY_OPTION, Option, help_text, wants_help
from distill.cli.launch import configure_process, is_launched, launch, wanted_processes
from distill.config import Config
from distill.graphs.run import EXTRA_STAGES, run_graph
from distill.presets import apply_preset, find_preset
from distill.runtime.context import Context
from distill.runtime.execution import in_order, plan
from distill.store.manifest import hash_everything
from distill.worlds import open_world

STAGES = ("demos", "teach", "sample", "distill", "evaluate", "report")
"""In order. Each runs its missing inputs first, and nothing after it. Without one: everything, up to the report."""

EXTERNAL = ("convert", "compare")
"""Commands on existing policies and recorded observations, with their own flags (distill.cli.external_config)."""

COMMANDS = (*EXTERNAL, "check-data", "check-world", "export", "doctor")
VERIFY = "--verify"
SWITCHES = ("--dry-run", VERIFY, "--public", "--rlbench", "-h", "--help")
"""Options without a value that are no fields of a config."""

USAGE = "flow2one [STAGE] [--config PRESET] .. [--dry-run] [OPTIONS]"
SUMMARY = """Distil a slow flow-matching policy into a student that makes an action chunk in one network evaluation, and measure
what that costs and gains.

  flow2one --config avoid              a preset's whole recipe, up to the report
  flow2one --config avoid --dry-run    what that would do, and how long it takes
  flow2one sample --config avoid       up to one stage: demos, teach, sample,
                                       distill, evaluate or report

  flow2one convert -h     distil a policy of your own from recorded observations
  flow2one compare -h     measure several policies on the same observations
  flow2one check-data -h  inspect a recording before converting
  flow2one check-world -h try a simulator of your own before a run
  flow2one export -h      a student as a folder of its own, with ONNX
  flow2one doctor         check this machine and its packages

Finished stages are reused. After Ctrl-C, the same command resumes where it stopped."""
DOCTOR = """usage: flow2one doctor [--rlbench | --speed FOLDER]

Check this machine: Python, packages and their versions, devices, renderers,
disk. Nothing is changed.

  --speed FOLDER          time the student in this folder in every run mode of
                          this machine (PyTorch, compiled, ONNX Runtime, ..),
                          print its parity with PyTorch, and remember the
                          fastest in FOLDER/speed.json; with --modes NAME ..,
                          --calls N and --warmup N
  --rlbench               check RLBench instead: CoppeliaSim, PyRep, the display
  --rlbench.python PATH   the interpreter that RLBench is installed in
  -h, --help              show this help"""
FIRST = (
    Option("--config PRESET", "a preset's name or a YAML file; given several times, later ones win; options win over all"),
    Option("--dry-run", "print every stage with its state and its time in earlier runs; change nothing"),
    VERIFY_OPTION,
)


def split_word(arguments: Sequence[str], words: Sequence[str]) -> tuple[str, list[str]]:
    """The first argument that is one of the words, wherever it stands, and the others; "" without any.

    The value of an option does not count: in `--name sample`, `sample` is a name.
    """
    switches = {*SWITCHES, *_switches(Config())}
    for place, argument in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        value = before.startswith("-") and "=" not in before and before not in switches
        if argument in words and not value:
            return argument, [*arguments[:place], *arguments[place + 1 :]]
    return "", list(arguments)


def _switches(config: object, prefix: str = "") -> set[str]:
    """The options of a config that take no value."""
    found: set[str] = set()
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            found |= _switches(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            found |= {f"--{prefix}{name}", f"--{prefix}no-{name}"}
    return found


def read_command(arguments: Sequence[str]) -> tuple[str, bool, Config]:
    """Stage, dry run, config. Raises ValueError for invalid input; tyro exits with 2 for an unknown flag."""
    known = (*STAGES, *EXTRA_STAGES, *COMMANDS)
    stage, rest = split_word(arguments, known)
    if rest and not rest[0].startswith("-") and (not stage or rest[0] == arguments[0]):
        check_choice("stage", rest[0], known)
    if stage == "doctor" and "--rlbench" in rest:
        rest.remove("--rlbench")
        stage = "doctor --rlbench"
    flags, dry_run, config, presets = _read_presets(rest)
    config = tyro.cli(Config, args=flags, default=config, prog="flow2one", description=SUMMARY)
    config = _named(config, presets)
    validate(config)
    check_teacher_folder(config)
    return stage, dry_run, config


def _read_presets(arguments: Sequence[str]) -> tuple[list[str], bool, Config, list[Path]]:
    """The other flags, whether it is a dry run, the config of all presets, and their files."""
    rest, flags, presets, dry_run, config = list(arguments), list[str](), list[Path](), False, Config()
    while rest:
        flag = rest.pop(0)
        if flag == "--dry-run":
            dry_run = True
        elif flag == "--config" or flag.startswith("--config="):
            value = flag.partition("=")[2] if "=" in flag else (rest.pop(0) if rest else "")
            if not value:
                raise ValueError("--config: got nothing, expected a preset or a YAML file, such as avoid")
            presets.append(find_preset(value))
        else:
            flags.append(flag)
    for preset in presets:
        config = apply_preset(config, preset)
    return flags, dry_run, config, presets


def _named(config: Config, presets: Sequence[Path]) -> Config:
    """The config with a run name. Runs with cameras are named by their last preset; the task's name is that of the state-only
    run.

    (RLBench runs keep the task's name, as all of them use cameras.)
    """
    if config.name or not presets or config.observation.is_plain or not open_world(config).named_by_preset:
        return config
    return dataclasses.replace(config, name=f"{presets[-1].stem}-seed{config.seed}")


def command_help(arguments: Sequence[str]) -> str:
    """The help of a run, with the defaults of the presets that are given."""
    flags, _, config, _ = _read_presets([each for each in arguments if each not in ("-h", "--help")])
    rlbench = config.task.startswith("rlbench/") or any("rlbench" in flag for flag in flags)
    left_out = {"rlbench": not rlbench, "world": not config.world.gym and not any("world" in flag for flag in flags)}
    further = {"rlbench": "tasks of RLBench there are further options: flow2one --config rlbench/open_drawer -h",
               "world": "a simulator of your own: flow2one --world.gym ID -h"}  # fmt: skip
    end = "\n\n".join(f"For {text}" for section, text in further.items() if left_out[section])
    return help_text(USAGE, SUMMARY, config, [section for section, out in left_out.items() if out], FIRST, end)


def describe(config: Config, word: str = "") -> str:
    """What a run would do up to the stages of a word, as text: every stage, its state and its time in earlier runs."""
    graph = run_graph(config, open_world(config))
    stages = in_order(graph.named[word]) if word else graph.stages
    return "\n".join([f"run {config.folder} (task {config.task}, seed {config.seed})", *plan(config.folder, stages)])


def run_command(arguments: Sequence[str], leading: bool) -> int:
    """Run the command that the arguments name; returns the exit status. leading: whether this process prints.

    Raises ValueError for invalid input, KeyboardInterrupt when interrupted.
    """
    configure_process()
    if VERIFY in arguments:
        hash_everything()
        arguments = [each for each in arguments if each != VERIFY]
    word, rest = split_word(arguments, (*STAGES, *EXTRA_STAGES, *COMMANDS))
    if word == "export":
        from distill.cli.export import run_export

        return run_export(rest) if leading else 0
    if word == "check-data":
        from distill.cli.checking import run_check_data

        return run_check_data(rest) if leading else 0
    if word == "check-world":
        from distill.cli.checking import run_check_world

        return run_check_world(rest) if leading else 0
    if word in EXTERNAL:
        from distill.cli.external import run_external

        place = list(arguments).index(word)  # the policies of compare stand right after it
        return run_external(word, [*arguments[place + 1 :], *arguments[:place]], str(Path(sys.argv[0]).resolve()), leading)
    if word == "doctor" and any(each.partition("=")[0] == "--speed" for each in rest) and not wants_help(arguments):
        from distill.cli.doctor.speed import SpeedOptions, run_speed

        options = tyro.cli(SpeedOptions, args=rest, prog="flow2one doctor")
        return run_speed(options) if leading else 0
    if wants_help(arguments):
        if leading:
            print(DOCTOR if word == "doctor" else command_help(rest))
        return 0
    stage, dry_run, config = read_command(arguments)
    if stage == "doctor":
        from distill.cli.doctor.machine import run_doctor

        return run_doctor()
    if stage == "doctor --rlbench":
        from distill.cli.doctor.machine import print_checks
        from distill.cli.doctor.rlbench import rlbench_checks

        return print_checks(rlbench_checks(config.rlbench.python, os.environ))
    if dry_run:
        if leading:
            print(describe(config, stage))
        return 0
    processes = wanted_processes(config.processes)
    if not is_launched() and processes > 1:
        return launch(processes, str(Path(sys.argv[0]).resolve()), arguments)
    return _work(stage, config)


def _work(word: str, config: Config) -> int:
    """Run the stages of a command-line word, and the missing ones that they need."""
    with contextlib.closing(open_world(config)) as world, Context.open(config.folder, config.wandb) as context:
        graph = run_graph(config, world)
        graph.run(context, word)
        if word in ("", "report"):
            graph.say_outcome(context)
    return 0


def flag_names() -> list[str]:
    """All flags, for a test that freezes the set of options."""
    names = []
    for item in dataclasses.fields(Config):
        value = getattr(Config(), item.name)
        if dataclasses.is_dataclass(value):
            names += [f"{item.name}.{inner.name}" for inner in dataclasses.fields(value)]
        else:
            names.append(item.name)
    return names
