"""The report of a made-up run of three policies: its numbers, its honesty, and that it loads nothing from outside."""

from __future__ import annotations

import base64
import copy
import hashlib
import html as html_module
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from distill.config import Config, StudentConfig, TeacherConfig
from distill.graphs.run import RunGraph, run_graph
from distill.report import figures, tables
from distill.report.headline import headline
from distill.report.modes import mode_groups, mode_styles
from distill.report.page import strict_json, write_report
from distill.report.sections.fidelity import fidelity_table
from distill.report.sections.latency import stage_table
from distill.report.sections.results import main_table
from distill.stages.report import WriteReport
from distill.store.manifest import commit, partial_folder
from distill.worlds import open_world
from distill.worlds.clips import write_clip
from students.selection import SAME_PLAN
from tests.distill.report.made_up import policy as _policy


def _written(folder, results):
    write_report(folder, results)
    return (folder / "report.md").read_text("utf-8"), (folder / "report.html").read_text("utf-8")


def _rows(page):
    """Every table row of the page as lists of (text, small lines, class)."""
    rows = []
    for row in re.findall(r"<tr>(.*?)</tr>", page, re.S):
        cells = []
        for tone, inside in re.findall(r'<td(?: class="(\w+)")? data-label="[^"]*">(.*?)</td>', row, re.S):
            notes = re.findall(r"<small>(.*?)</small>", inside)
            cells.append((html_module.unescape(inside.split("<small>")[0]), notes, tone))
        if cells:
            rows.append(cells)
    return rows


def _row(page, label, number=0):
    """A policy's row in the main table; number 1: in the table of further results, which is the last that it has with notes."""
    found = [row for row in _rows(page) if row[0][0] == label and row[0][1]]
    return found[number]


def test_numbers_stand_in_the_page(tmp_path, results):
    _, page = _written(tmp_path, results)
    row, further = (_row(page, "Student, Chamfer + energy", number) for number in (0, 1))
    assert [text for text, _, _ in row] == [
        "Student, Chamfer + energy", "96.5 %", "2.00", "500", "40.0×", "2/2", "89.3 %", "−1.5", "1", "7",
    ]  # fmt: skip
    assert row[0][1:] == (["default student", "1,234,567 parameters"], "student")
    assert row[1][1] == ["93.0 % to 98.3 %", "193 of 200"]
    assert row[2][1] == ["p95 2.50", "p99 3.20"]
    assert row[6][1] == ["coverage 87.4 %"]
    assert row[7][1:] == (["−4.0 to +1.0", "p = 0.453", "lower, may be chance"], "lower")
    assert row[9][1] == ["collision 5", "timeout 2"]
    assert [text for text, _, _ in further] == [
        "Student, Chamfer + energy", "0.00417", "0.988", "0.061", "1.2 %", "6.2 %", "9.88",
    ]  # fmt: skip
    assert further[1][1] == ["Chamfer", "0.111 / 0.142"]
    assert further[3][1] == ["floor 0.064", "per observation 0.071", "floor 0.053"]
    regression, further = (_row(page, "Student, regression", number) for number in (0, 1))
    assert regression[5] == ("1/2", ["fewer"], "lower")
    assert regression[7] == ("−93.0", ["−96.5 to −89.0", "p &lt; 0.001", "worse"], "worse")
    assert further[3:7] == [("–", [], "")] * 4
    teacher, further = (_row(page, "Teacher, 50 steps", number) for number in (0, 1))
    assert (teacher[3][0], teacher[6][0], teacher[7][0]) == ("12.5", "reference", "reference")
    assert further[1] == ("0.000900", ["against itself"], "")
    assert further[3] == ("reference", ["per observation 0.071", "floor 0.053"], "")


def test_numbers_stand_in_the_markdown(tmp_path, results):
    text, _ = _written(tmp_path, results)
    lines = [line for line in text.splitlines() if line.startswith("| Student, Chamfer + energy (")]
    cells, further = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    assert cells[1:3] == ["96.5 % (93.0 % to 98.3 %; 193 of 200)", "2.00 (p95 2.50; p99 3.20)"]
    assert cells[5:8] == ["2/2", "89.3 % (coverage 87.4 %)", "−1.5 (−4.0 to +1.0; p = 0.453; lower, may be chance)"]
    assert further[3:7] == ["0.061 (floor 0.064; per observation 0.071; floor 0.053)", "1.2 %", "6.2 %", "9.88"]
    assert "OOD observations: share of policy calls whose observation is out of distribution: farther from every" in text
    assert "Jerk [m/s³]: root mean square jerk of the tool" in text.replace("\\", "")
    assert "[report.html](report.html)" in text and "[report.json](report.json)" in text
    for words in ("| demos | 41.2 s |", "| distill/chamfer | 5 min 40 s |", "240 episodes, 19200 frames",
                  "67.1 MB on disk",
                  "1: 75.0 %, 2: 20.0 %, 4: 5.0 % of 100 observations; 12.5 % of the samples repeat an earlier one within 1 %",
                  "| Floor: teacher against itself | 0.100 |",
                  "2000 | 96.0 % | 0.980 | chosen", "| 2.1 % (2.1 × the teacher's own) |"):  # fmt: skip
        assert words in text


def test_how_many_latents_one_evaluation_is_for_stands_beside_it(tmp_path, results):
    results["policies"][1]["candidates"], results["policies"][2]["candidates"] = 1, 16
    at = [column for column, _ in main_table(results).columns].index("NFE")
    cells = [row[at] for row in main_table(results).rows]
    assert [(cell.text, cell.notes) for cell in cells] == [
        ("50", ()), ("1", ()), ("1", ("for 16 latents", "one executed"))
    ]  # fmt: skip
    text, page = _written(tmp_path, results)
    assert text.count("for 16 latents") == 1 and page.count("for 16 latents") == 1


def test_a_baseline_is_called_one_and_no_student(tmp_path, results):
    def said():
        text, page = _written(tmp_path, results)
        return [re.sub(r"base64,[A-Za-z0-9+/=]+|<style>.*?</style>", "", each, flags=re.S) for each in (text, page)]

    assert not any("aseline" in each or "earest demonstration" in each for each in said())
    figures_before = figures.success_against_speed(results["policies"])
    label = "Nearest demonstration"
    baseline = _policy(
        "nearest_demonstration", label, "baseline", num_steps=None, nfe=0, difference=-0.01, difference_low=-0.05,
        difference_high=0.03, mcnemar_p=0.5, mode_share_error=0.2, mode_share_floor=0.1,
    )  # fmt: skip
    results["policies"].insert(1, baseline)
    text, page = said()
    row = _row(page, label)
    assert row[0] == (label, ["baseline, nothing is trained", "1,234,567 stored numbers"], "")
    assert (row[7][0], row[8][0], _row(page, label, 1)[3][0]) == ("−1.0", "0", "0.200")
    assert f"| {label} (baseline, nothing is trained; 1,234,567 stored numbers) |" in text
    assert "Baseline</dt><dd>a policy without training, for comparison: nearest demonstration." in page
    assert "Circles are teachers, diamonds students, squares baselines." in page
    assert figures.success_against_speed(results["policies"]) != figures_before
    # the title, the tiles and the pictures are of the teacher and the students; one line says what the baseline means
    head = headline(results)
    assert label not in head.title and [label in line for line in head.lead].count(True) == 1 and f"<b>{label}" not in page
    baseline["parameters"] = None
    assert _row(said()[1], label)[0][1] == ["baseline, nothing is trained", "stored numbers unknown"]


def test_off_support_is_said_with_its_resolution(results):
    meaning = dict(fidelity_table(results).columns)["Off-support"]
    assert f"and than {100 * SAME_PLAN:g} % of half an action's range" in meaning


def test_what_distilling_cost_is_said_in_both(tmp_path, results):
    # (60.2 + 74.6) / 640 = 0.210625
    line = "istilling cost 21 % of the teacher's training (sampling 60 s + student 75 s, teacher 640 s of processor time)"
    assert tables.distilling_line(results) == f"d{line}"
    text, page = _written(tmp_path, results)
    assert f"D{line}." in text and f"D{line}." in html_module.unescape(page)
    # a student that is made from demonstrations: 74.6 / 640
    results["distilling"] |= {"sample_cpu_s": None, "share": 0.1165625}
    assert tables.distilling_line(results) == (
        "distilling cost 12 % of the teacher's training (student 75 s, teacher 640 s of processor time)"
    )
    results["distilling"]["share"] = None
    assert tables.distilling_line(results) == ""


def _graph(config) -> RunGraph:
    graph = run_graph(config, open_world(config))
    assert isinstance(graph.last, WriteReport)
    return graph


def test_what_distilling_cost_is_read_from_the_stages(tmp_path):
    students = ("chamfer", "imle_policy")

    def cost(default, **seconds):
        config = Config(runs_dir=tmp_path / default / str(len(seconds)), student=StudentConfig(students, default))
        graph = _graph(config)
        for stage in (graph.last.train_teacher, graph.sample, *graph.trained):
            partial_folder(config.folder / stage.name, stage.key).mkdir(parents=True)
            commit(config.folder / stage.name, stage.key, stage.made_from, 1.0, seconds.get(stage.name.split("/")[-1], 0.0))
        return graph.last.distilling(config.folder)

    seconds = {"teacher": 200.0, "sample": 30.0, "chamfer": 20.0, "imle_policy": 150.0}
    trained = {"chamfer": 20.0, "imle_policy": 150.0}
    assert cost("chamfer", **seconds) == {"teacher_cpu_s": 200.0, "sample_cpu_s": 30.0, "students": trained, "share": 0.25}
    assert cost("imle_policy", **seconds) == {
        "teacher_cpu_s": 200.0, "sample_cpu_s": None, "students": trained, "share": 0.75
    }  # fmt: skip
    unknown = {"teacher_cpu_s": None, "sample_cpu_s": None, "students": dict.fromkeys(students), "share": None}
    assert cost("chamfer") == unknown  # manifests from before it was measured say nothing, or 0
    # sampling was not measured: no share of it is made up
    assert cost("chamfer", teacher=200.0, chamfer=20.0)["share"] is None


def test_setting_the_shares_right_is_part_of_what_a_student_cost(tmp_path):
    config = Config(runs_dir=tmp_path, student=StudentConfig(("regression", "chamfer"), "chamfer"))
    graph = _graph(config)
    trained = [(stage, 20.0) for stage in graph.trained]
    for stage, seconds in [(graph.last.train_teacher, 100.0), (graph.sample, 10.0), *trained]:
        partial_folder(config.folder / stage.name, stage.key).mkdir(parents=True)
        commit(config.folder / stage.name, stage.key, stage.made_from, 1.0, seconds)
    folder = config.folder / next(stage.name for stage in graph.chosen if stage.candidates.recipe_name == "chamfer")
    folder.mkdir(parents=True)
    (folder / "calibration.json").write_text(json.dumps({"energy_after": 0.1, "cpu_seconds": 5.0}))
    cost = graph.last.distilling(config.folder)
    assert cost["students"] == {"regression": 20.0, "chamfer": 25.0} and cost["share"] == pytest.approx(35 / 100)


def test_a_teacher_from_elsewhere_has_no_known_cost(tmp_path, make_teacher):
    make_teacher().save_pretrained(tmp_path / "teacher")
    config = Config(runs_dir=tmp_path / "runs", teacher=TeacherConfig(path=tmp_path / "teacher"))
    found = _graph(config).last.distilling(config.folder)
    assert found["teacher_cpu_s"] is None and found["share"] is None


def test_the_off_support_share_is_compared_with_the_teachers_own(results):
    def off_support():
        table = fidelity_table(results)
        column = [title for title, _ in table.columns].index("Off-support")
        return {row[0].text: (row[column].text, row[column].notes) for row in table.rows}

    # without the teacher's own the floor's 0.01 is it: other samples of the teacher
    assert off_support()["Student, Chamfer + energy"] == ("2.1 %", ("2.1 × the teacher's own",))
    results["policies"][0]["fidelity"] = {"off_support_share": 0.014}
    assert off_support()["Student, Chamfer + energy"] == ("2.1 %", ("1.5 × the teacher's own",))
    assert off_support()["Teacher, 50 steps"] == ("1.4 %", ("1.0 × the teacher's own",))
    results["policies"][0]["fidelity"] = {"off_support_share": 0.0}
    assert off_support()["Student, Chamfer + energy"] == ("2.1 %", ())


def test_every_policy_and_section_is_in_both(tmp_path, results):
    text, page = _written(tmp_path, results)
    for policy in results["policies"]:
        assert policy["label"] in text and policy["label"] in page
    for title in ("Results", "Latency", "Fidelity of the sets", "Choice of checkpoints", "How it was made"):
        assert f"## {title}" in text and f">{title}</h" in page


def test_the_page_loads_nothing_from_outside(tmp_path, results):
    write_clip(tmp_path / "clips" / "t.webp", [np.zeros((8, 8, 3), np.uint8)], 10)
    results["clips"] = {"teacher_50": "clips/t.webp"}
    _, page = _written(tmp_path, results)
    plain = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page).replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"https?://|//[a-z]|<link|@import|url\(", plain)
    # one script, which the policy names by its hash, and the data that it draws
    assert re.findall(r"<script[^>]*>", page) == ['<script type="application/json">', "<script>"]
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in page
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert len(sources) >= 9 and all(source.startswith("data:image/") for source in sources)
    assert "data:image/webp;base64," in page and "default-src 'none'" in page and 'name="viewport"' in page


def test_json_is_strict_and_whole(tmp_path, results):
    results["policies"][1]["entropy"] = math.nan
    results["policies"][1]["fidelity"]["recall"] = -math.inf
    results["policies"][0]["episode_success"] = np.array([True, False])
    results["data"]["frames"] = np.int64(19200)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    _written(tmp_path, results)
    read = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert read == strict_json(results)
    assert read["policies"][1]["entropy"] is None and read["policies"][1]["fidelity"]["recall"] is None
    assert read["policies"][0]["episode_success"] == [True, False] and read["data"]["frames"] == 19200
    assert read["curves"]["teacher"][1]["loss"] is None
    write_report(tmp_path / "again", read)
    assert (tmp_path / "again" / "report.html").read_text("utf-8") == (tmp_path / "report.html").read_text("utf-8")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["report.html", "report.json", "report.md"]


def _headline(results, **changes):
    changed = copy.deepcopy(results)
    changed["policies"][2] |= changes
    return headline(changed)


def test_headline_when_chance_could_explain_it(results):
    head = headline(results)
    assert head.tone == "lower"
    assert head.title == (
        "The student solves 96.5 % of the episodes, its teacher 98.0 %: fewer, though chance could explain it; "
        "it is 40.0 times as fast"
    )
    assert head.lead[1] == (
        "Success: teacher 196 of 200 (98.0 %, 95 % interval 95.0 % to 99.2 %), student 193 of 200 (96.5 %, "
        "95 % interval 93.0 % to 98.3 %). On the same starts the student differs by −1.5 percentage points "
        "(95 % interval −4.0 to +1.0, exact McNemar test p = 0.453)."
    )
    assert "teacher 80.0 ms (12.5 per second), student 2.00 ms (500 per second)" in head.lead[2]
    assert head.lead[0].startswith("Take Student, Chamfer + energy: 2.00 ms a call, success 96.5 %, recall 89.3 %")
    assert "the teacher reached 2 and the student 2, the same number" in head.lead[3]
    assert "recall 89.3 % and coverage 87.4 % of the teacher's (a second set of the teacher's: 95.0 %, 97.0 %)" in head.lead[3]


def test_headline_says_worse_and_slower(tmp_path, results):
    bad = {"success_rate": 0.7, "difference": -0.28, "difference_high": -0.2, "mcnemar_p": 1e-9, "modes_reached": 1}
    head = _headline(results, **bad)
    assert head.tone == "worse" and head.title == (
        "The student is worse than its teacher: it solves 70.0 % of the episodes, the teacher 98.0 %, "
        "but it is 40.0 times as fast; it reaches 1 of 2 modes, the teacher 2"
    )
    assert "the teacher reached 2 and the student 1, 1 fewer" in head.lead[-1]
    slow = _headline(results, **bad, speedup=0.5)
    assert "it is slower: one call takes 2.00 times as long" in slow.title
    results["policies"][2] |= bad | {"speedup": 0.5}
    text, page = _written(tmp_path, results)
    assert "is worse than its teacher" in text and '<h1 class="worse">The student is worse than its teacher' in page
    assert _row(page, "Student, Chamfer + energy")[4] == ("0.500×", ["slower"], "worse")


@pytest.mark.parametrize(
    ("change", "tone"),
    [
        ({"difference": -0.02, "difference_low": -0.04, "difference_high": -0.005, "mcnemar_p": 0.0625}, "worse"),
        ({"difference": -0.02, "difference_low": -0.04, "difference_high": 0.0, "mcnemar_p": 0.04}, "worse"),
        ({"difference": 0.02, "difference_low": 0.005, "difference_high": 0.04, "mcnemar_p": 0.0625}, "higher"),
        ({"difference": 0.02, "difference_low": 0.005, "difference_high": 0.04, "mcnemar_p": 0.04}, "better"),
        ({"difference": 0.02, "difference_low": -0.01, "difference_high": 0.04, "mcnemar_p": 0.3}, "higher"),
        ({"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0, "mcnemar_p": 1.0}, "same"),
        ({"difference": None, "mcnemar_p": None}, "none"),
    ],
)
def test_doubt_speaks_for_the_teacher(results, change, tone):
    assert _headline(results, **change).tone == tone


@pytest.mark.parametrize(
    ("speedup", "words"),
    [(1.0, "it is about as fast"), (None, "their speed was not compared"), (2.0, "2.00 times as fast"),
     (0.8, "slower: one call takes 1.25 times as long")],
)  # fmt: skip
def test_headline_on_speed(results, speedup, words):
    assert words in _headline(results, speedup=speedup).title


def test_a_regression_student_that_is_the_default_is_drawn_once(tmp_path, results):
    results["policies"][1]["is_default_student"] = True
    del results["policies"][2]
    _, page = _written(tmp_path, results)
    assert "<b>Default student</b>" in page and "<b>Regression student</b>" not in page


def test_headline_without_one_of_the_two(tmp_path, results):
    results["policies"] = results["policies"][:2]
    text, _ = _written(tmp_path, results)
    assert "This run has no default student" in text


def test_labels_cannot_inject(tmp_path, results):
    evil = '<img src=x onerror=alert(1)>"|`['
    results["policies"][2]["label"] = evil
    results["run"] = results["task"]["summary"] = results["task"]["modes"][0] = evil
    results["scene"][0]["label"] = evil
    text, page = _written(tmp_path, results)
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img" not in text
    row = next(line for line in text.splitlines() if line.startswith("| &lt;img"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 1 + len(main_table(results).columns)


def test_what_was_not_measured_is_said(tmp_path, results):
    for policy in results["policies"]:
        policy |= {"latency": None, "speedup": None, "fidelity": None, "validation": None}
    for name in ("curves", "scene", "trajectories", "planned_sets", "clips", "fidelity_floor", "distilling"):
        results.pop(name)
    del results["data"]["observations"]
    text, page = _written(tmp_path, results)
    for words in (
        "Latency was not measured in this run.", "No clips were recorded in this run.",
        "Distances to fresh teacher samples were not measured in this run.",
        "Checkpoints were not compared on validation starts in this run.",
        "What distilling cost in processor time was not measured in this run.",
    ):  # fmt: skip
        assert words in text and words in page
    for words in ("Paths were not recorded in this run.", "Training curves were not recorded in this run."):
        assert words in page
    assert _row(page, "Student, Chamfer + energy")[2] == ("–", ["not measured"], "")
    assert "The latency of a call was not measured." in text and "| Teacher samples | – |" in text
    assert "their speed was not compared" in text


def test_no_success_at_all(tmp_path, results):
    nothing = {"successes": 0, "success_rate": 0.0, "success_low": 0.0, "success_high": 0.02, "mode_counts": {},
               "modes_reached": 0, "entropy": math.nan}  # fmt: skip
    for policy in results["policies"]:
        policy |= nothing
    _, page = _written(tmp_path, results)
    assert "No episode succeeded, so there are no modes to count." in page
    assert _row(page, "Student, Chamfer + energy", 1)[2][0] == "–"


def test_clips_outside_missing_or_of_other_kinds_are_named(tmp_path, results):
    (tmp_path / "secret.png").write_bytes(b"x")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "page.svg").write_text("<svg/>")
    results["clips"] = {"teacher_50": "../secret.png", "regression": "page.svg", "chamfer_energy": "clips/none.webp"}
    _, page = _written(folder, results)
    assert page.count("is not a picture in this report&#39;s folder") == 2
    assert "clips/none.webp was not found" in page and "image/svg" not in page


@pytest.mark.parametrize(
    ("change", "words"), [({"schema_version": 2}, "schema version 2"), ({"policies": None}, "policies")]
)
def test_results_that_cannot_be_reported_are_refused(tmp_path, results, change, words):
    results |= change
    if results["policies"] is None:
        del results["policies"]
    with pytest.raises(ValueError, match=words):
        write_report(tmp_path / "new", results)
    assert not (tmp_path / "new").exists()


def test_strict_json_refuses_other_things():
    with pytest.raises(ValueError, match="got a set"):
        strict_json({"a": {1, 2}})


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (tables.percent(0.965), "96.5 %"), (tables.percent(None), "–"), (tables.points(-0.015), "−1.5"),
        (tables.points(0.0), "0.0"), (tables.points(-0.0001), "0.0"), (tables.points(0.12), "+12.0"),
        (tables.number(0.0123), "0.0123"), (tables.number(2.1), "2.10"), (tables.number(80.24), "80.2"),
        (tables.number(1250.4), "1250"), (tables.number(0), "0.000"), (tables.number(math.nan), "–"),
        (tables.p_value(0.0004), "p < 0.001"), (tables.p_value(0.0625), "p = 0.062"),
        (tables.duration(59.94), "59.9 s"),
        (tables.duration(340), "5 min 40 s"), (tables.duration(7260), "2 h 1 min"),
    ],
)  # fmt: skip
def test_how_numbers_are_written(shown, expected):
    assert shown == expected


@pytest.mark.parametrize("count", [1, 2, 7, 8, 24, 60])
def test_every_mode_has_a_style_of_its_own(count):
    styles = mode_styles([f"mode {index}" for index in range(count)])
    assert len(styles) == count == len({(style.colour, style.line) for style in styles.values()})
    assert all(re.fullmatch("#[0-9a-f]{6}", style.colour) for style in styles.values())


def test_modes_are_grouped_by_as_many_gates_as_there_are_hues():
    modes = [f"{first}-{second}-{third}" for first in "LR" for second in "LCR" for third in "1234"]
    groups = mode_groups(modes)
    assert [group[0] for group in groups] == ["L-L-1", "L-C-1", "L-R-1", "R-L-1", "R-C-1", "R-R-1"]
    assert all(len(group) == 4 for group in groups)
    styles = mode_styles(modes)
    # within a group the line differs, and the shade runs from dark to light: the middle of #0072b2 is nearer to neither
    assert [styles[mode].line for mode in groups[0]] == ["-", "--", ":", "-."]
    assert styles["L-L-1"].colour == "#003f62" and styles["L-L-4"].colour == "#73b1d5"
    assert mode_groups(["left", "right"]) == [["left"], ["right"]]
    assert [len(group) for group in mode_groups([str(index) for index in range(9)])] == [2, 2, 2, 2, 1]


def test_view_shows_the_scene_and_the_paths():
    scene = [{"kind": "box", "xy": [0.0, 0.0], "size": [1.0, 0.5], "role": "goal"}]
    left, right, bottom, top = figures.view_limits(scene, [[[0.0, 2.0], [math.nan, 1.0]], []])
    assert left < -1 and right > 1 and bottom < -0.5 and top > 1.9
    assert figures.view_limits([], []) == (-1.0, 1.0, -1.0, 1.0)


def test_clip_plays_for_ever_at_its_speed(tmp_path):
    frames = [np.full((24, 32, 3), value, np.uint8) for value in (0, 120, 240)]
    write_clip(tmp_path / "new" / "clip.webp", frames, fps=20)
    with Image.open(tmp_path / "new" / "clip.webp") as clip:
        assert (clip.format, clip.size, clip.n_frames, clip.info["loop"]) == ("WEBP", (32, 24), 3, 0)
        for index, value in enumerate((0, 120, 240)):
            clip.seek(index)
            clip.load()
            assert clip.info["duration"] == 50
            assert np.abs(np.asarray(clip.convert("RGB")).astype(int) - value).max() <= 6
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.webp"]


@pytest.mark.parametrize(
    ("frames", "fps"),
    [([], 10), ([np.zeros((4, 4, 3))], 10), ([np.zeros((4, 4), np.uint8)], 10), ([np.zeros((4, 4, 3), np.uint8)], 0),
     ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], 10)],
)  # fmt: skip
def test_clip_refuses_what_is_no_clip(tmp_path, frames, fps):
    with pytest.raises(ValueError, match="got .*expected"):
        write_clip(tmp_path / "clip.webp", frames, fps)
    assert not list(tmp_path.iterdir())


def test_every_stage_of_a_call_stands_in_its_own_column(results):
    for policy in results["policies"]:
        policy["latency"] = {**policy["latency"], "read_ms": 7.25} if policy.get("latency") else None
    table = stage_table(results)
    assert table is not None
    names = [name for name, _ in table.columns]
    assert names[-5:] == ["preprocess [ms]", "encode [ms]", "head [ms]", "post [ms]", "read [ms]"]
    assert all(len(row) == len(names) for row in table.rows)
    assert [cell.text for cell in table.rows[0][-5:]] == ["0.100", "0.400", "79.4", "0.100", "7.25"]
