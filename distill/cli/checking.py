"""`flow2one check-data` and `flow2one check-world`: what a recording or a simulator is like, before a long training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from distill.checks import check_writable
from distill.cli.help import Option, help_text, wants_help
from distill.config import Config
from distill.presets import apply_preset
from envs.gym.checks import check_world
from envs.gym.settings import GymSettings
from envs.recorded import open_recorded
from envs.recorded.inspection import inspect
from envs.recorded.splitting import SplitRule, in_words

DESCRIPTION = """Inspect a recording before you convert a policy with it: format, features, units, rate, ranges with the frames
that set them, gaps, tasks, split, and one frame as policies would observe it.

  flow2one check-data data.zarr --out data.html"""


@dataclass(frozen=True)
class CheckDataOptions:
    """What to inspect, and how.

    Attributes:
        path: folder or file of recorded observations, in any format that convert reads
        names: key=feature renames a key of the recording to one of our feature names; key= leaves it out
        features: features to read; no other is opened. Empty: all
        out: an HTML page to write, with a JSON file of the same name; "": none
        observation_steps: O of the policy
        dt_s: the policy's control period [s]; 0: the recording's
        recorded_dt_s: period of the recorded frames [s]; 0: from their time stamps
        leave_out: episodes to exclude
        instructions: use only frames with these instructions
        split: training and held-out frames
    """

    path: tyro.conf.Positional[Path]
    names: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    out: str = ""
    observation_steps: int = 1
    dt_s: float = 0.0
    recorded_dt_s: float = 0.0
    leave_out: tuple[int, ...] = ()
    instructions: tuple[str, ...] = ()
    split: SplitRule = field(default_factory=SplitRule)


def run_check_data(arguments: Sequence[str]) -> int:
    """Run the command; returns 0. Raises ValueError, one line, for malformed data; tyro exits with 2 for unknown flags."""
    if wants_help(arguments):
        usage = "flow2one check-data PATH [--out PAGE.html] [OPTIONS]"
        print(help_text(usage, DESCRIPTION, CheckDataOptions(Path()), ("path",)), end="")
        return 0
    options = tyro.cli(CheckDataOptions, args=list(arguments), prog="flow2one check-data", description=DESCRIPTION)
    pairs = [name.partition("=") for name in options.names]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError(f"names: got {list(options.names)}, expected key=feature, such as img=observation.images.front")
    if options.out and not options.out.endswith(".html"):
        raise ValueError(f"out: got {options.out}, expected an HTML file such as data.html")
    if options.out:
        check_writable(Path(options.out).parent, "--out")
    try:
        recorded = open_recorded(
            options.path, {key: feature for key, _, feature in pairs}, options.features or None, dt_s=options.recorded_dt_s,
            leave_out=options.leave_out, instructions=options.instructions,
        ).divided(options.split)  # fmt: skip
    except (OSError, ImportError) as error:
        raise ValueError(str(error)) from error
    if options.dt_s:
        recorded = recorded.at_period(options.dt_s)
    found = inspect(recorded, options.observation_steps)
    rate = "rate not known" if not recorded.dt_s else f"{1 / recorded.dt_s:.4g} Hz"
    print(f"{found['path']}: {found['format']}, {found['frames']} frames in {found['episodes']} episodes, {rate}")
    for name, shape in found["features"].items():
        print(f"  {name} {shape}: {found['units'].get(name, 'as recorded')}")
    for line in recorded.opened_as():
        print(f"  {line}")
    for name, rows in found["ranges"].items():
        for row in rows:
            still = " (constant)" if row["low"] == row["high"] else ""
            print(f"  {name} {row['name']}: {row['low']:.6g} (frame {row['low_frame']}) .. {row['high']:.6g} (frame "
                  f"{row['high_frame']}){still}")  # fmt: skip
    print(f"  {in_words(found['split'])}")
    for line in found["warnings"]:
        print(f"  warning: {line}")
    if options.out:
        from distill.report.data import write_data_page
        from distill.store.manifest import write_bytes

        data = (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode()
        try:
            write_data_page(Path(options.out), recorded, found)
            write_bytes(Path(options.out).with_suffix(".json"), data)
        except OSError as error:
            raise ValueError(f"--out: {options.out} cannot be written ({error.strerror}); name another place") from error
        print(f"page: {Path(options.out).resolve()}")
    return 0


# -- worlds ------------------------------------------------------------------------------------------------------------

WORLD_DESCRIPTION = """Try a gymnasium environment and its mapping file before a run: spaces, seeds, repeatability, success,
rendering, the expert. Everything that is wrong is said in one go; nothing is written.

  flow2one check-world --world.gym PandaReach-v3 --world.mapping reach.yaml"""
WORLD_FIRST = (Option("--config PRESET", "a preset's name or a YAML file, whose section world is checked"),)


@dataclass(frozen=True)
class CheckWorldOptions:
    """What to check.

    Attributes:
        starts: seeds at which the expert is tried
        world: the environment
    """

    starts: int = 5
    world: GymSettings = field(default_factory=GymSettings)


def run_check_world(arguments: Sequence[str]) -> int:
    """Run the command; returns 0, or 1 where something is wrong. Raises ValueError for invalid flags, in one line."""
    if wants_help(arguments):
        usage = "flow2one check-world --world.gym ID [OPTIONS]"
        print(help_text(usage, WORLD_DESCRIPTION, CheckWorldOptions(), (), WORLD_FIRST), end="")
        return 0
    rest, flags, config = list(arguments), list[str](), Config()
    while rest:
        flag = rest.pop(0)
        if flag == "--config" and rest:
            config = apply_preset(config, Path(rest.pop(0)))
        else:
            flags.append(flag)
    default = CheckWorldOptions(world=config.world)
    options = tyro.cli(CheckWorldOptions, args=flags, default=default, prog="flow2one check-world")
    if not options.world.gym:
        raise ValueError("world.gym: got none, expected the environment to check, such as --world.gym PandaReach-v3")
    if options.starts < 1:
        raise ValueError(f"starts: got {options.starts}, expected at least 1")
    options.world.check()
    found = check_world(options.world, starts=options.starts)
    print("\n".join([*found.facts, *(f"wrong: {line}" for line in found.problems)]))
    print("nothing is wrong" if not found.problems else f"{len(found.problems)} to put right")
    return int(bool(found.problems))
