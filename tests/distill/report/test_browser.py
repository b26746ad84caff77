"""The report in a real browser: what its tiles say, sorting, clips, choosing an observation, and that nothing is cut off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.report.page import write_report
from distill.worlds.clips import write_clip
from tests.distill.report.browser import Browser, browser, missing
from tests.distill.report.made_up import policy, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

CUT_OFF = """
const wide = document.documentElement.clientWidth, found = [];
if (document.documentElement.scrollWidth > wide) found.push(`page of ${document.documentElement.scrollWidth} px`);
for (const each of document.querySelectorAll("main *")) {
  if (each.closest("svg") && each.tagName !== "svg" || !each.clientWidth) continue;
  const name = `${each.tagName} ${each.className} ${each.textContent.slice(0, 30)}`;
  if (each.getBoundingClientRect().right > wide + 1) found.push(`right of the page: ${name}`);
  if (each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== "inline") found.push(`wider: ${name}`);
}
return found;
"""
TILES = """return Object.fromEntries([...document.querySelectorAll(".tile")].map((tile) =>
  [tile.querySelector("h3").textContent, [...tile.querySelectorAll("b")].map((each) => each.textContent)]));"""
FIRST_TABLE = """return [...document.querySelector("table.sortable").tBodies[0].rows].map((row) =>
  [...row.cells].map((cell) => cell.firstChild.textContent));"""


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up run, with 24 modes, long labels and a moving clip of each of two policies."""
    folder, results = tmp_path_factory.mktemp("report"), run()
    modes = [f"{first}-{second}-{third}" for first in "LR" for second in "LCR" for third in "1234"]
    results["task"]["modes"] = modes
    for each in results["policies"]:
        each["mode_counts"] = dict.fromkeys(modes[:20], 2)
    results["policies"].append(policy(
        "other", "Student, a sum of several objectives with a very long name", "student", nfe=4, difference=0.005,
        difference_low=-0.01, difference_high=0.02, mcnemar_p=0.5,
        failures={"planner could not find any path": 3, "timeout": 1},
        mode_share_error=0.1, mode_share_floor=0.1, speedup=32.0,
        latency={**results["policies"][2]["latency"], "median_ms": 2.5, "p95_ms": 9.5, "hz": 400.0},
    ))  # fmt: skip
    for name in ("teacher_50", "chamfer_energy"):
        frames = [np.full((60, 80, 3), 10 * step, np.uint8) for step in range(25)]
        write_clip(folder / "clips" / f"{name}.webp", frames, fps=10)
        results["clips"][name] = f"clips/{name}.webp"
    write_report(folder, results)
    return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 600])
def test_the_report_works_in_a_browser(opened: Browser, report: Path, width: int) -> None:
    opened.open(report, width)
    assert opened.run("return document.documentElement.clientWidth") in range(width - 20, width + 1)
    assert opened.run(CUT_OFF) == []
    tiles = opened.run(TILES)
    assert tiles["Speed-up"] == ["40.0×"] and tiles["Latency"] == ["80.0 ms", "2.00 ms"]
    assert tiles["Success"] == ["98.0 %", "96.5 %"]
    assert opened.run("return document.querySelector('h1').textContent").startswith("The student solves 96.5 % of the episodes")

    def column(number: int) -> list[str]:
        return [row[number] for row in opened.run(FIRST_TABLE)]

    assert column(1) == ["98.0 %", "5.0 %", "96.5 %", "98.0 %"]
    opened.click("table.sortable th:nth-child(2) button")
    assert column(1) == ["98.0 %", "98.0 %", "96.5 %", "5.0 %"]
    opened.click("table.sortable th:nth-child(2) button")
    assert column(1) == ["5.0 %", "96.5 %", "98.0 %", "98.0 %"]
    opened.click("table.sortable th:nth-child(8) button")  # the teacher has no difference to itself: it comes last
    assert column(7) == ["+0.5", "−1.5", "−93.0", "reference"]
    opened.click("table.sortable th:nth-child(1) button")
    assert column(0)[0] == "Student, a sum of several objectives with a very long name" and column(0)[3] == "Teacher, 50 steps"

    _choose_an_observation(opened)
    _play(opened)
    assert opened.run(CUT_OFF) == []
    assert opened.complaints() == []
    assert [address for address in opened.requests() if not address.startswith(("data:", report.as_uri()))] == []


def _choose_an_observation(opened: Browser) -> None:
    def drawn() -> Any:
        return opened.run("""return [...document.querySelectorAll("[data-explorer] figure")].map((figure) =>
          [figure.querySelector("b").textContent, figure.querySelectorAll("polyline").length,
           figure.querySelectorAll(".shape").length]);""")

    assert drawn() == [["Teacher, 50 steps", 2, 2], ["Student, Chamfer + energy", 1, 2]]
    choose = """const [which, value] = arguments, list = document.querySelectorAll("[data-explorer] select")[which];
      list.value = value; list.dispatchEvent(new Event("change"));"""
    opened.run(choose, 0, "1")
    assert drawn() == [["Teacher, 50 steps", 1, 2], ["Student, Chamfer + energy", 2, 2]]
    told = opened.run("return document.querySelector('[data-explorer] .quiet').textContent")
    assert told == "Observed state: tool_x_m 0.15, tool_y_m -0.05"
    opened.run(choose, 1, "2")  # y over time: no scene
    assert drawn() == [["Teacher, 50 steps", 1, 0], ["Student, Chamfer + energy", 2, 0]]


def _play(opened: Browser) -> None:
    """Both clips begin with a dark frame, and are bright two seconds later."""
    clip = "section:has([data-player]) figure img"
    opened.click("button.play")
    assert opened.run(f"return [...document.querySelectorAll('{clip}')].every((each) => each.src.endsWith('#1'))")
    time.sleep(0.3)
    first = opened.picture_of(clip)
    time.sleep(1.2)
    assert opened.picture_of(clip) != first
    whole = f"return [...document.querySelectorAll('{clip}')].every((each) => each.complete && each.naturalWidth === 80)"
    assert opened.run(whole)


def test_the_report_is_printed_whole(opened: Browser, report: Path, tmp_path: Path) -> None:
    """Laid out as on A4 paper, 718 px wide without margins, nothing is cut off; and it gives a PDF of several pages."""
    opened.open(report, 718)
    opened.devtools("Emulation.setEmulatedMedia", media="print")
    assert opened.run(CUT_OFF) == []
    opened.devtools("Emulation.setEmulatedMedia", media="")
    printed = opened.printed()
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") >= 4
