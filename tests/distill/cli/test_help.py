"""The help of every command: all options with their meaning, none that mean nothing there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from distill.cli.command import flag_names
from distill.cli.help import help_text, meanings_of
from distill.config import Config


@dataclass(frozen=True)
class Inner:
    """What is inside. More about it.

    Attributes:
        speed_m: how fast,
            in two lines [m]
        on: whether it runs
    """

    speed_m: float = 0.5
    on: bool = True


@dataclass(frozen=True)
class Base:
    """Of both.

    Attributes:
        name: what it is called
    """

    name: str = ""


@dataclass(frozen=True)
class Outer(Base):
    """All of it.

    Attributes:
        kind: of two kinds
        steps: several
    """

    kind: Literal["one", "two"] = "one"
    steps: tuple[int, ...] = (3, 4)
    inner: Inner = field(default_factory=Inner)


def test_a_help_is_this(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert help_text("it [OPTIONS]", "Does it.", Outer(), required=("--name",)) == """\
usage: it [OPTIONS]

Does it.

Required
  --name TEXT                         what it is called

Options
  --kind one|two                      of two kinds (default: one)
  --steps N ..                        several (default: 3 4)
  -h, --help                          show this help

Inner: What is inside. More about it.
  --inner.speed-m X                   how fast, in two lines [m] (default: 0.5)
  --inner.[no-]on                     whether it runs (on)
"""
    assert "--inner" not in help_text("it", "", Outer(), ("inner",)) and "--kind" not in help_text("it", "", Outer(), ("kind",))


def _shown(text: str) -> set[str]:
    return {flag.replace("[no-]", "").replace("-", "_") for flag in re.findall(r"^  --(\S+)", text, re.MULTILINE)}


@pytest.mark.parametrize("command", ["", "convert", "compare", "export", "check-data", "doctor"])
def test_every_option_has_a_meaning_and_fits_the_terminal(main, capsys, monkeypatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*([command] if command else []), "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: flow2one {command}".rstrip()) and all(len(line) <= 100 for line in text.splitlines())
    blocks = re.split(r"^(?=  -)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) >= 3
    for block in blocks:
        option, meaning = re.split(r"\n? {2,}", block.strip(), maxsplit=1)  # beside the option, or below a long one
        assert len(re.sub(r"\((default: .*|on|off)\)", "", " ".join(meaning.split())).strip()) > 5, option


def test_the_help_of_a_run_has_every_flag_but_those_of_a_simulator_that_it_does_not_use(main, capsys) -> None:
    every = {*flag_names(), "config", "dry_run", "verify"}
    rlbench, world = ({name for name in every if name.startswith(f"{section}.")} for section in ("rlbench", "world"))
    assert main(["-h"]) == 0
    assert _shown(capsys.readouterr().out) == every - rlbench - world and rlbench and world
    assert main(["--config", "rlbench/open_drawer", "--help"]) == 0
    text = capsys.readouterr().out
    assert _shown(text) == every - world and "rlbench/open_drawer)" in text
    assert main(["--config", "metaworld/reach", "--help"]) == 0
    text = capsys.readouterr().out
    assert _shown(text) == every - rlbench and "metaworld.py)" in text


def test_a_command_leaves_out_what_means_nothing_to_it(main, capsys) -> None:
    assert main(["compare", "-h"]) == 0
    shown = _shown(capsys.readouterr().out)
    assert {"observations", "out", "evaluate.latency_calls"} <= shown
    assert not {"policies", "evaluate.baselines", "evaluate.teacher_steps", "sample.num_hypotheses"} & shown
    assert main(["convert", "-h"]) == 0
    assert "evaluate.baselines" not in _shown(capsys.readouterr().out)


def test_every_field_of_the_config_has_a_meaning() -> None:
    assert set(meanings_of(Config)) == {"task", "name", "runs_dir", "seed", "processes", "wandb", "note"}
