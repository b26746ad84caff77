"""`flow2one check-data PATH`: what a recording holds and what policies would observe of it, before a long training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from distill.checks import check_writable
from distill.cli.help import help_text, wants_help
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
