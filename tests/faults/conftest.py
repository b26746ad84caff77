"""The fork server and the undisturbed commands, made once; tries, counted for the table of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.commands import tiny_conversion, tiny_run
from tests.faults.table import Table, write_table
from tests.faults.trying import Prefixes, Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="session")
def working(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every try works, always at the same path: keys of a conversion name it."""
    return tmp_path_factory.mktemp("faults") / "work"


@pytest.fixture(scope="session")
def run(server: Server, working: Path) -> Prefixes:
    return tiny_run(server, working, working.parent / "run")


@pytest.fixture(scope="session")
def conversion(server: Server, working: Path) -> Prefixes:
    return tiny_conversion(server, working, working.parent / "conversion")


TABLE = Table()


@pytest.fixture
def table() -> Table:
    return TABLE


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended: its rows."""
    TABLE.take(node.workeroutput.get("tries", []) if hasattr(node, "workeroutput") else [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tries"] = TABLE.given()
    else:
        write_table(TABLE)
