"""The audit of the locks: a known hole fails it, an index that cannot tell does not, and says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "requirements" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOLE = {"id": "PYSEC-1", "fix_versions": ["2.0"]}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages looked up, 0 not known to the index, 0 known holes"),
        ([{"name": "a", "version": "1", "vulns": [HOLE]}, {"name": "b", "skip_reason": "not found"}], 1,
         "audit: a 1 has the known hole PYSEC-1, mended in 2.0\naudit: 1 packages looked up, 1 not known"),
        ([{"name": "b", "skip_reason": "not found"}], 0, "nothing was looked up (the index knows of no holes of any package)"),
    ],
)  # fmt: skip
def test_the_verdict(audit: ModuleType, capsys: pytest.CaptureFixture[str], packages: list, status: int, said: str) -> None:
    assert audit.say({"dependencies": packages}, "") == status
    assert said in capsys.readouterr().out


def test_without_an_answer_it_says_why_and_passes(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.say(None, "no network") == 0
    assert capsys.readouterr().out == "audit: nothing was looked up (no network); the locks were not checked for known holes\n"


def test_an_accepted_hole_is_no_failure(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.ACCEPTED, "PYSEC-1", "only in a part that is not used")
    assert audit.say({"dependencies": [{"name": "a", "version": "1", "vulns": [HOLE]}]}, "") == 0
