"""YAML as settings need it: plain values of moderate size; what would cost minutes or gigabytes to read is refused."""

from __future__ import annotations

from typing import Any

import yaml

MOST_CHARACTERS, MOST_NESTED = 1 << 20, 32
"""PyYAML's time grows with the square of how deep lists and mappings are nested."""


def read(text: str) -> Any:
    """The value that YAML text stands for: None, numbers, strings, dates, lists and dictionaries.

    Raises ValueError, in one line, for text that is not YAML, names Python objects, is longer than `MOST_CHARACTERS`, nested
    deeper than `MOST_NESTED` or holds aliases, a few of which can stand for gigabytes.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it holds {len(text)} characters, expected {MOST_CHARACTERS} at most")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*name) are not read: a few of them can stand for gigabytes; write the values out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_NESTED:
                raise ValueError(f"its lists and mappings are nested deeper than {MOST_NESTED}")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
