"""What the tests of reports share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distill.report.made_up import run


@pytest.fixture
def results() -> dict[str, Any]:
    """A made-up run of three policies."""
    return run()
