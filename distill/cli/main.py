"""The command line: `distill.py [stage] [--config FILE]... [--flags]`; preset < file < flag."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from distill.checks import check_choice, check_teacher_folder, validate
from distill.cli.launch import configure_process, is_launched, launch, wanted_processes
from distill.config import Config
from distill.graphs.run import EXTRA_STAGES, run_graph
from distill.presets import apply_preset, find_preset
from distill.report.tables import distilling_line
from distill.runtime.context import Context
from distill.runtime.execution import state_of
from distill.worlds import open_world

STAGES = ("demos", "teach", "sample", "distill", "evaluate", "report")
"""In order. Each runs its missing inputs first, and nothing after it. Without one: everything, up to the report."""

EXTERNAL = ("convert", "compare")
"""Commands on existing policies and recorded observations, with their own flags (distill.cli.external_config)."""

DESCRIPTION = """Distil a slow flow-matching policy into a one-step student, and measure what it costs and gains.

usage: distill.py [demos | teach | sample | distill | evaluate | report | doctor [--rlbench]] [--config FILE]... [--dry-run]
       [flags]
       distill.py [convert --teacher T | compare A B ..] --observations DIR --out DIR     (each has its own --help)
       distill.py check-data DIR [--out PAGE.html]      (inspect a recording before training on it)
       distill.py export --student FOLDER --out FOLDER [--formats onnx torch aoti] [--push-to-hub USER/NAME]

Without a stage, everything up to the report is done; finished stages are reused. --config may be given several times: later
files win, flags win over all. After Ctrl-C the same command resumes where it stopped."""


def read_command(arguments: Sequence[str]) -> tuple[str, bool, Config]:
    """Stage, dry run, config. Raises ValueError for invalid input; tyro exits with 2 for an unknown flag."""
    rest, stage, presets, dry_run = list(arguments), "", [], False
    if rest and not rest[0].startswith("-"):
        stage = rest.pop(0)
        check_choice("stage", stage, (*STAGES, *EXTRA_STAGES, "doctor", "export", "check-data", *EXTERNAL))
    if stage == "doctor" and "--rlbench" in rest:
        rest.remove("--rlbench")
        stage = "doctor --rlbench"
    flags: list[str] = []
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
    config = Config()
    for preset in presets:
        config = apply_preset(config, preset)
    config = tyro.cli(Config, args=flags, default=config, prog="distill.py", description=DESCRIPTION)
    config = _named(config, presets)
    validate(config)
    check_teacher_folder(config)
    return stage, dry_run, config


def _named(config: Config, presets: Sequence[Path]) -> Config:
    """The config with a run name. Runs with cameras are named by their last preset; the task's name is that of the state-only
    run.

    (RLBench runs keep the task's name, as all of them use cameras.)
    """
    if config.name or not presets or config.observation.is_plain or not open_world(config).named_by_preset:
        return config
    return dataclasses.replace(config, name=f"{presets[-1].stem}-seed{config.seed}")


def describe(config: Config) -> str:
    """What a run would do, as text: every stage and its state."""
    lines = [f"run {config.folder} (task {config.task}, seed {config.seed})"]
    for stage in run_graph(config, open_world(config)).stages:
        lines.append(f"  {stage.name:28} {state_of(config.folder, stage)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 invalid command or file, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    leading = os.environ.get("RANK", "0") == "0"
    configure_process()
    try:
        if arguments[:1] == ["export"]:
            from distill.cli.export import run_export

            return run_export(arguments[1:]) if leading else 0
        if arguments[:1] == ["check-data"]:
            from distill.cli.check_data import run_check_data

            return run_check_data(arguments[1:]) if leading else 0
        if arguments and arguments[0] in EXTERNAL:
            from distill.cli.external import run_external

            return run_external(arguments[0], arguments[1:], str(Path(sys.argv[0]).resolve()), leading)
        stage, dry_run, config = read_command(arguments)
        if stage == "doctor":
            from distill.cli.doctor import run_doctor

            return run_doctor()
        if stage == "doctor --rlbench":
            from distill.cli.doctor import print_checks
            from distill.cli.rlbench_doctor import rlbench_checks

            return print_checks(rlbench_checks(config.rlbench.python, os.environ))
        if dry_run:
            if leading:
                print(describe(config))
            return 0
        processes = wanted_processes(config.processes)
        if not is_launched() and processes > 1:
            return launch(processes, str(Path(sys.argv[0]).resolve()), arguments)
        return _work(stage, config)
    except ValueError as error:
        if leading:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if leading:
            print("\ninterrupted; the same command resumes from here", file=sys.stderr)
        return 130


def _work(word: str, config: Config) -> int:
    """Run the stages of a command-line word, and the missing ones that they need."""
    with contextlib.closing(open_world(config)) as world, Context.open(config.folder, config.wandb) as context:
        graph = run_graph(config, world)
        graph.run(context, word)
        if word in ("", "report"):
            folder = graph.last.folder(context)
            cost = distilling_line(json.loads((folder / "report.json").read_text())) if context.is_main else ""
            if cost:
                context.say(cost)
            context.say(f"report: {(folder / 'report.html').resolve()}")
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
