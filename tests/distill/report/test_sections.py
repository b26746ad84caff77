"""A section is one thing in one place: adding one, leaving one out, and what every kind of report holds."""

from __future__ import annotations

import html as html_module
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import distill.report.page
from distill.report.contents import SECTIONS
from distill.report.headline import headline
from distill.report.page import write_report
from distill.report.section import KINDS, Part, Picture, Section, parts
from distill.report.sections.latency import busy_line
from distill.report.sections.made import made_table
from distill.report.sections.results import further_table, main_table
from distill.report.sections.training import checkpoint_table
from distill.report.tables import Cell, Table


def _policy(name: str, kind: str, **changes: Any) -> dict[str, Any]:
    latency = {"median_ms": changes.pop("median_ms", 2.0), "p95_ms": 2.5, "p99_ms": 3.2, "hz": 500.0,
               "actions_per_second": 4000.0, "calls": 200, "warmup": 20,
               "stages": {"preprocess_ms": 0.1, "encode_ms": 0.0, "head_ms": 1.75, "post_ms": 0.15}}  # fmt: skip
    fidelity = {"chamfer_student_to_teacher": 0.11, "chamfer_teacher_to_student": 0.14, "energy_distance": 0.0042,
                "precision": 0.9, "recall": 0.8, "coverage": 0.7, "off_support_share": 0.021, "observations": 4,
                "samples": 6}  # fmt: skip
    return {
        "name": name, "label": name.capitalize(), "kind": kind, "objective": None, "is_default_student": False,
        "is_reference_teacher": False, "num_steps": 1, "parameters": None, "nfe": 1, "candidates": 1, "latency": latency,
        "speedup": 1.0, "fidelity": fidelity, "observation_modes": {"share_error": 0.125, "share_error_floor": 0.0625},
        "validation": None, "warm_start": False, **changes,
    }  # fmt: skip


def _succeeding(policy: dict[str, Any]) -> dict[str, Any]:
    return policy | {
        "episodes": 4, "successes": 3, "success_rate": 0.75, "success_low": 0.3, "success_high": 0.95,
        "failures": {"timeout": 1}, "difference": None if policy["is_reference_teacher"] else -0.25,
        "difference_low": -0.75, "difference_high": 0.0,
        "mcnemar_p": 1.0, "mode_counts": {"left": 3}, "modes_reached": 1, "modes_total": 2, "entropy": 0.0,
        "switch_rate": 0.125, "jerk": 43.21, "out_of_distribution_share": None,
    }  # fmt: skip


@pytest.fixture
def conversion() -> dict[str, Any]:
    """Of an external policy on recordings, without a task to roll out in."""
    chosen = [{"step": 8, "energy_distance": 0.5, "off_support_share": 0.25, "chosen": False},
              {"step": 10, "energy_distance": 0.4375, "off_support_share": 0.125, "chosen": True}]  # fmt: skip
    return {
        "schema_version": 1, "kind": "conversion", "run": "mine", "measured_success": False,
        "task": {"name": "recorded", "summary": "Observations recorded in data.zarr.", "modes": [], "dt_s": 0.1},
        "made": {"date": "2026-11-29", "seed": 3, "hardware": "2 cores", "threads": 1, "dtype": "float32",
                 "packages": {"torch": "2.13.0"}, "processes": 1, "commands": ["flow2one convert"],
                 "wall_s": {"sample": 2.5}},
        "data": {"observations_from": "data.zarr", "frames": 261, "for_training": 208, "features": {"observation.state": [2]},
                 "observations": 48, "hypotheses_per_observation": 4, "cache_num_steps": 2, "cache_bytes": 1_500_000},
        "policies": [_policy("teacher", "teacher", is_reference_teacher=True, nfe=8, speedup=1.0, median_ms=8.0),
                     _policy("chamfer", "student", is_default_student=True, speedup=4.0, validation=chosen, parameters=5928)],
        "curves": {"chamfer": [{"step": 0, "loss": 1.0}, {"step": 10, "loss": 0.5}]},
        "clips": {}, "fidelity_floor": {"energy_distance": 0.0009, "off_support_share": 0.0},
        "external": [{"label": "my_policy.py:build", "kind": "velocity field", "device": "cpu", "hardware": "2 cores",
                      "torch": "2.13.0", "python": "3.11.7", "separable": False}],
    }  # fmt: skip


def _with_success(results: dict[str, Any]) -> dict[str, Any]:
    task = {**results["task"], "modes": ["left", "right"]}
    policies = [_succeeding(policy) for policy in results["policies"]]
    return results | {"measured_success": True, "task": task, "policies": policies}


def _comparison(results: dict[str, Any]) -> dict[str, Any]:
    policies = [results["policies"][0], _policy("other", "student")]
    data = results["data"] | {"observations": None}
    return results | {"kind": "comparison", "policies": policies, "curves": {}, "data": data}


def _written(folder: Path, results: dict[str, Any]) -> tuple[str, str]:
    write_report(folder, results)
    return (folder / "report.md").read_text("utf-8"), html_module.unescape((folder / "report.html").read_text("utf-8"))



# -- a new section --------------------------------------------------------------------------------------------------------


def test_a_new_section_is_one_definition_and_one_line(
    tmp_path: Path, conversion: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def longest_names(results: Any) -> Table:
        rows = tuple((Cell(policy["name"]), Cell(str(len(policy["name"])))) for policy in results["policies"])
        return Table((("Policy", ""), ("Letters", "how many letters its name has")), rows)

    toy = Section("Length of the names", table=longest_names, text=lambda results: (f"Of {results['run']} & others.",))
    before = _written(tmp_path / "before", conversion)
    assert not any("Length of the names" in text for text in before)
    monkeypatch.setattr(distill.report.page, "SECTIONS", [*SECTIONS, toy])
    text, page = _written(tmp_path / "after", conversion)
    assert "## Length of the names\n\nOf mine &amp; others.\n\n| Policy | Letters |\n| --- | --- |\n| teacher | 7 |" in text
    assert "Letters: how many letters its name has." in text
    assert "<h2>Length of the names</h2>" in page and "<p>Of mine & others.</p>" in page
    assert '<td data-label="Letters">7</td>' in page
    assert "<dt>Letters</dt><dd>how many letters its name has</dd>" in page


def test_every_part_of_a_section_is_shown_in_its_place(
    tmp_path: Path, conversion: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Section(
        "Toy", text=lambda _: ("Before.",), notes=lambda _: ("After.",), lines=lambda _: ("first <b>", "second"),
        pictures=lambda _, folder: (Picture("data:image/png;base64,AA", "a picture", ("Bold", "plain")),
                                    Picture("data:image/png;base64,BB", "a wide one"),
                                    Picture("", "lost", ("Lost",), f"Not in {folder.name}.", "lost file.png")),
    )  # fmt: skip
    monkeypatch.setattr(distill.report.page, "SECTIONS", [toy, replace(toy, title="Toy code", code=True, level=3)])
    write_report(tmp_path / "toy", conversion)
    text, page = (tmp_path / "toy" / "report.md").read_text(), (tmp_path / "toy" / "report.html").read_text()
    places = [page.index(words) for words in (
        "<h2>Toy</h2>", "<p>Before.</p>", "<b>Bold</b><span>plain</span>", 'alt="a picture"',
        '<div class="wide"><img alt="a wide one"', "Not in toy.", "After.", "<li>first &lt;b&gt;</li>", "<h3>Toy code</h3>",
        "<pre>first &lt;b&gt;\nsecond\n</pre>",
    )]  # fmt: skip
    assert places == sorted(places) and 'alt="lost"' not in page
    assert "- Lost: [lost file.png](lost%20file.png)" in text and "- first &lt;b>\n- second\n" in text
    assert "    first <b>\n    second\n" in text


def test_what_is_not_there_is_left_out_or_said(conversion: dict[str, Any], tmp_path: Path) -> None:
    empty, said = Section("Empty"), Section("Said", missing="It was not measured.")
    assert parts([empty, said], conversion, tmp_path) == []
    run = conversion | {"kind": "run"}
    assert parts([empty, said], run, tmp_path) == [Part("Said", 2, missing="It was not measured.")]
    # a heading does not stand under a section that is left out
    under = Section("Under", lines=lambda _: ("a line",), level=3)
    assert [part.level for part in parts([empty, under, under], run, tmp_path)] == [2, 3]
    assert [part.level for part in parts([said, under], run, tmp_path)] == [2, 3]
    assert parts([replace(under, kinds=("run",))], conversion, tmp_path) == []


def test_every_section_has_a_title_of_its_own_and_known_kinds() -> None:
    titles = [section.title for section in SECTIONS]
    assert len(set(titles)) == len(titles)
    assert all(set(section.kinds) <= set(KINDS) and section.level in (2, 3) for section in SECTIONS)


# -- conversions and comparisons ------------------------------------------------------------------------------------------


def test_a_conversion_without_a_task_says_so_and_shows_what_it_has(tmp_path: Path, conversion: dict[str, Any]) -> None:
    text, page = _written(tmp_path, conversion)
    assert "# mine: conversion\n\n**One network evaluation instead of 8, 4.00 times as fast as the teacher.**" in text
    for words in (
        "the student's energy distance to the teacher's is 0.00420; the teacher's own, drawn again, is 0.000900. 2.1 % of its "
        "samples are off the teacher's support; of the teacher's own 0.0 %.",
        "distilled from 4 samples for each of 48 observations, starting from random weights: those of an external policy are "
        "not taken over.",
        "Success was not measured: that needs a task to roll out in (--task).",
        "my_policy.py:build: external policy (velocity field) in a process of its own (Python 3.11.7, torch 2.13.0, cpu), "
        "timed as a whole there; the transfer to that process is not counted.",
    ):  # fmt: skip
        assert words in text and words in page
    for title in ("Results", "Latency", "Where the time goes", "Fidelity of the sets", "Choice of checkpoints",
                  "How it was made", "Wall time", "Command"):  # fmt: skip
        assert f"## {title}\n" in text and f">{title}</h" in page
    for title in ("Real-time evaluation", "Rollout clips", "Paths from above", "Success against speed"):
        assert f"## {title}\n" not in text and f">{title}</h" not in page
    assert "not measured in this run" not in text and "| sample | 2.50 s |" in text and "    flow2one convert\n" in text
    assert 'alt="training losses"' in page and 'alt="latency of one policy call by stage"' in page
    # a stage that no policy has is no column
    assert "| Policy | preprocess \\[ms] | head \\[ms] | post \\[ms] |" in text


def test_the_table_of_a_conversion_has_the_columns_that_it_can_fill(conversion: dict[str, Any]) -> None:
    table = main_table(conversion)
    assert [title for title, _ in table.columns] == [
        "Policy", "Latency [ms]", "Hz", "Speed-up", "Recall", "NFE", "Set distance", "Off-support", "Mode shares"
    ]  # fmt: skip
    assert [cell.text for cell in table.rows[1]] == [
        "Chamfer", "2.00", "500", "4.00×", "80.0 %", "1", "0.00420", "2.1 %", "0.125"
    ]  # fmt: skip
    assert [cell.notes for cell in table.rows[1]] == [
        ("default student", "5,928 parameters"), ("p95 2.50", "p99 3.20"), (), (), ("coverage 70.0 %",), (),
        ("floor 0.000900", "Chamfer", "0.110 / 0.140"), ("floor 0.0 %",), ("floor 0.062",),
    ]  # fmt: skip
    assert further_table(conversion) is None
    assert table.rows[0][0] == Cell("Teacher", ("reference teacher", "parameters unknown"), "teacher")
    table, further = main_table(_with_success(conversion)), further_table(_with_success(conversion))
    assert [title for title, _ in table.columns] == [
        "Policy", "Success", "Latency [ms]", "Hz", "Speed-up", "Modes", "Recall", "Against the teacher", "NFE", "Failed"
    ]  # fmt: skip
    assert further is not None and [title for title, _ in further.columns] == [
        "Policy", "Set distance", "Off-support", "Entropy", "Mode shares", "Mode switches", "Jerk [m/s³]"
    ]  # fmt: skip
    cells = table.rows[1]
    assert [cells[1].text, cells[5].text, cells[7].text, further.rows[1][3].text] == ["75.0 %", "1/2", "−25.0", "0.000"]
    assert cells[7].notes == ("−75.0 to 0.0", "p = 1.000", "lower, may be chance")


def test_refused_actions_are_told_where_the_failures_are(conversion: dict[str, Any]) -> None:
    told = _with_success(conversion)
    told["policies"][1] |= {"refused_actions": 7, "episodes_with_refusals": 2}
    episodes = told["policies"][1]["episodes"]
    without, with_refusals = (row[-1].notes for row in main_table(told).rows)
    assert with_refusals == ("timeout 1", f"refused actions 7, in 2 of {episodes} episodes") and without == ("timeout 1",)


def test_a_conversion_with_a_task_says_how_much_both_solve(tmp_path: Path, conversion: dict[str, Any]) -> None:
    text, page = _written(tmp_path, _with_success(conversion))
    assert "4.00 times as fast as the teacher; it solves 75.0 % of the episodes, the teacher 75.0 %" in text
    assert "Success was not measured" not in text and ">Success against speed</h2>" in page
    assert ">How often each mode was reached</h3>" in page


def test_a_comparison_has_no_student_and_a_first_policy(tmp_path: Path, conversion: dict[str, Any]) -> None:
    results = _comparison(conversion)
    text, page = _written(tmp_path, results)
    assert "# mine: comparison\n\n**2 policies on the same observations, compared with Teacher.**" in text
    assert "Floor: first policy against itself" in text and "the first policy's median latency / this policy's" in text
    assert "Training" not in page and "Choice of checkpoints" not in page and "Teacher samples" not in text
    assert ["Against the first policy" in dict(main_table(each).columns) for each in (results, _with_success(results))] == [
        False, True
    ]  # fmt: skip


def test_checkpoints_chosen_by_sets_say_by_which_distance(conversion: dict[str, Any]) -> None:
    table = checkpoint_table(conversion)
    assert table is not None and [title for title, _ in table.columns] == [
        "Policy", "Step", "Energy distance", "Off-support", "Chosen"
    ]  # fmt: skip
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["Chamfer", "8", "0.500", "25.0 %", ""], ["Chamfer", "10", "0.438", "12.5 %", "chosen"]
    ]  # fmt: skip


def test_recorded_observations_and_samples_are_facts_of_a_conversion(conversion: dict[str, Any]) -> None:
    facts = {name.text: value.text for name, value in made_table(conversion).rows}
    assert facts["Recorded observations"] == "261 frames of data.zarr, 208 for training; observation.state [2]"
    assert facts["Teacher samples"] == "48 observations × 4 samples, 2 solver steps each, 1.5 MB on disk"
    assert "Demonstrations" not in facts


def test_an_unknown_kind_is_refused(tmp_path: Path, conversion: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got results of kind 'other', expected one of"):
        write_report(tmp_path / "new", conversion | {"kind": "other"})
    assert not (tmp_path / "new").exists()


# -- headlines that speak against the student ------------------------------------------------------------------------------


def test_the_headline_names_a_teacher_that_makes_the_student_superfluous(conversion: dict[str, Any]) -> None:
    two = _policy("teacher_2", "teacher", num_steps=2, median_ms=2.0)
    conversion["policies"].insert(1, two)
    conversion["policies"][2]["fidelity"] |= {"energy_distance": 0.05}
    head = headline(conversion)
    assert head.tone == "worse"
    assert head.title.endswith(". But your teacher at 2 steps is at least as fast and is closer to the full teacher")
    assert head.lead[0].startswith("Without any training, your teacher at 2 steps")
    assert head.lead[1].startswith("Take your teacher at 2 steps, no student is needed: 2.00 ms a call")


def test_the_headline_says_that_a_student_is_hardly_faster_or_not_as_close(conversion: dict[str, Any]) -> None:
    conversion["policies"][1] |= {"speedup": 1.2}
    head = headline(conversion)
    assert head.tone == "worse" and head.lead[0].startswith("Speed is no reason to take the student")
    conversion["policies"][1] |= {"speedup": 4.0}
    conversion["policies"][1]["fidelity"] |= {"energy_distance": 0.2}
    head = headline(conversion)
    assert head.tone == "lower"
    assert head.title.endswith("But its samples are not as close to the teacher's as the teacher's own")
    conversion["policies"][1]["fidelity"] |= {"recall": 0.2}
    assert headline(conversion).title.endswith("But the student reproduces only part of what the teacher does (recall 20.0 %)")


def test_a_busy_machine_is_said_and_an_idle_one_is_not(conversion: dict[str, Any]) -> None:
    assert busy_line(conversion) == ""  # p95 2.5 of 2.0
    conversion["made"]["timing"] = {"cores": 2, "load_before": 1.5, "load_after": 2.9, "own_share": 0.9, "seconds": 3.0}
    assert busy_line(conversion) == ""  # one process more than there are cores is this one
    conversion["made"]["timing"]["load_after"] = 3.5
    assert "the load average was 1.8 per core" in busy_line(conversion)
    conversion["policies"][1]["latency"]["p95_ms"] = 3.1
    assert "p95 is 1.6 times the median (Chamfer) and the load" in busy_line(conversion)
