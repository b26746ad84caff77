"""The help of every command: each option with its meaning and default beside it, in sections, without irrelevant ones."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

FLAG_WIDTH = 38
"""Columns for the options; meanings begin beside them."""


@dataclass(frozen=True)
class Option:
    """flag: as it is typed, with its value. meaning: what it does, the default at its end."""

    flag: str
    meaning: str


VERIFY_OPTION = Option("--verify", "hash all files of finished stages, also those that have not changed since they were hashed")


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether help was asked for."""
    return "-h" in arguments or "--help" in arguments


def help_text(
    usage: str, summary: str, config: Any, leave_out: Sequence[str] = (), first: Sequence[Option] = (), end: str = "",
    required: Sequence[str] = (),
) -> str:  # fmt: skip
    """The help of a command whose options are the fields of a dataclass and of the dataclasses in it.

    leave_out: names of options or sections, such as "student.codes" or "rlbench", that mean nothing for this command. first:
    options that are no fields. end: paragraphs after all options. required: options that must be given, which come first.
    """
    width = max(80, min(shutil.get_terminal_size().columns, 120))
    own = {each.flag.split()[0]: each for each in options_of(config, "", leave_out)}
    needed = [own.pop(name) for name in required]
    needed = [replace(each, meaning=each.meaning.removesuffix(" (default: none)")) for each in needed]
    parts = [
        f"usage: {usage}", _filled(summary, width), *([_section("Required", needed, width)] if needed else []),
        _section("Options", [*first, *own.values(), Option("-h, --help", "show this help")], width),
    ]  # fmt: skip
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if dataclasses.is_dataclass(section) and field.name not in leave_out:
            title = f"{field.name.replace('_', ' ').capitalize()}: {_first_sentence(type(section))}"
            parts.append(_section(title, list(options_of(section, f"{field.name}.", leave_out)), width))
    return "\n\n".join(part for part in (*parts, _filled(end, width)) if part) + "\n"


def options_of(config: Any, prefix: str, leave_out: Sequence[str] = ()) -> Iterator[Option]:
    """An option per field that is no section, with the meaning that the class's docstring gives it."""
    meanings, hints = meanings_of(type(config)), get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value) or name in leave_out:
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            before, dot, last = flag.removeprefix("--").rpartition(".")
            flag = f"--{before}{dot}[no-]{last}"
        else:
            flag = f"{flag} {_value_name(hints[field.name], value)}"
        yield Option(flag, f"{meanings.get(field.name, '')} ({_shown(value)})".strip())


def meanings_of(kind: type) -> dict[str, str]:
    """What the section `Attributes` of a class's docstring, and of those it derives from, says about each field."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")[2]
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", text, re.MULTILINE):
            found[name] = " ".join(meaning.split())
    return found


def _first_sentence(kind: type) -> str:
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
    return re.sub(r"`([^`]*)`", r"\1", text)


def _value_name(hint: Any, value: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        names = [{int: "N", float: "X"}.get(each, "NAME") for each in inner if each is not Ellipsis]
        return f"{names[0]} .." if Ellipsis in inner else " ".join(names)
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def _shown(value: Any) -> str:
    """A default, in words where it is nothing."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value in ("", ()) or isinstance(value, Path) and value == Path():
        return "default: none"
    if isinstance(value, tuple):
        return f"default: {' '.join(map(str, value))}"
    return f"default: {value}"


def _section(title: str, options: Sequence[Option], width: int) -> str:
    lines = [_filled(title, width)]
    for option in options:
        meaning = textwrap.wrap(option.meaning, width - FLAG_WIDTH) or [""]
        flag = f"  {option.flag}"
        if len(flag) > FLAG_WIDTH - 2:
            lines.append(flag)
            flag = ""
        lines += [f"{flag:<{FLAG_WIDTH}}{meaning[0]}".rstrip(), *(f"{'':<{FLAG_WIDTH}}{line}" for line in meaning[1:])]
    return "\n".join(lines)


def _filled(text: str, width: int) -> str:
    """Paragraphs filled to the width; lines that begin with a space are kept as they are."""
    filled = []
    for paragraph in text.split("\n\n"):
        kept = any(line.startswith(" ") for line in paragraph.splitlines())
        filled.append(paragraph if kept else textwrap.fill(" ".join(paragraph.split()), width))
    return "\n\n".join(each for each in filled if each)
