"""The page of evidence from small files made by hand: what is pooled over seeds, marked, judged and listed as not working."""

from __future__ import annotations

import json
import re
from math import comb

import pytest

from benchmarks import objectives, pooled_results, results_page
from distill.cli.command import read_command
from distill.config import Config
from distill.objectives.recipes import recipe

DEFAULT = pooled_results.DEFAULT
LABEL = recipe(DEFAULT).label
ALL, LOST = "1111111111", "1111111110"
PROMISED = ("success", "modes", "entropy", "shares", "outside", "cost", "baselines")


def row(policy, success, modes, phase="main", name="", flags=(), **changes):
    left, right = modes
    return {
        "phase": phase, "row": name, "policy": policy, "flags": list(flags), "nfe": 1, "parameters": 1234,
        "success": success, "mode_counts": {"left": left, "right": right}, "entropy": 0.5, "modes_total": 2,
        "switch_rate": None, "jerk": None, "fidelity": {"energy_distance": 0.01, "off_support_share": 0.02},
        "teacher_cpu_s": 100.0, "sample_cpu_s": 10.0, "train_cpu_s": 20.0,
    } | changes  # fmt: skip


def fidelity(energy, outside):
    return {"energy_distance": energy, "off_support_share": outside}


SEED0 = [
    row("teacher_50", "1111111111", (5, 5), nfe=50, train_cpu_s=None, entropy=1.0),
    row("teacher_1", "0000000000", (0, 0), train_cpu_s=None, entropy=None, fidelity=fidelity(0.5, 0.9)),
    row(DEFAULT, "1111111101", (5, 4), entropy=0.98, fidelity=fidelity(0.01, 0.04)),
    row("regression", "0000000011", (2, 0), entropy=0.0, fidelity=fidelity(0.4, 0.8)),
    # measured again later: this one is taken
    row("chamfer_energy", "0000000000", (0, 0), "objectives"),
    row("chamfer_energy", "1111111111", (5, 5), "objectives", fidelity=fidelity(0.02, 0.01)),
    row("consistency", "1111111100", (4, 4), "baselines", fidelity=fidelity(0.015, 0.06)),
]
SEED1 = [
    row("teacher_50", "1111111110", (5, 4), nfe=50, train_cpu_s=None, entropy=0.9),
    row(DEFAULT, "1111111111", (6, 4), entropy=0.96, train_cpu_s=40.0, fidelity=fidelity(0.03, 0.08)),
]


def write(folder, task="detour", **seeds):
    for seed, rows in seeds.items():
        stored = {"task": task, "seed": int(seed.removeprefix("seed")), "hardware": "two cores", "rows": rows}
        (folder / f"{task}-{seed}.json").write_text(json.dumps(stored))
    return pooled_results.read(folder)[0][task]


def line(page, label, after=""):
    """The cells of the first table row of that policy after a text."""
    found = re.search(rf"^\| {re.escape(label)} \|.*$", page[page.index(after) :], re.MULTILINE)
    assert found, label
    return [cell.strip() for cell in found[0].strip("|").split(" | ")]


def verdicts(targets):
    return re.findall(r"\*\*(.+?)\*\*", targets)


def floor_of(first, second, share):
    """Mean |X / first - Y / second| of two binomials, by adding up all outcomes."""

    def chance(count, trials):
        return comb(trials, count) * share**count * (1 - share) ** (trials - count)

    return sum(chance(x, first) * chance(y, second) * abs(x / first - y / second)
               for x in range(first + 1) for y in range(second + 1))  # fmt: skip


def test_a_policy_is_pooled_over_its_seeds(tmp_path):
    pooled = pooled_results.pool(write(tmp_path, seed0=SEED0, seed1=SEED1), pooled_results.DEFAULT_KEY)
    assert (pooled.seeds, pooled.episodes, pooled.success) == ((0, 1), 20, 0.95)
    # Wilson, 19 of 20: (0.95 + z^2/40 -+ z sqrt(0.95 * 0.05 / 20 + z^2/1600)) / (1 + z^2/20), z = 1.96
    assert pooled.interval == pytest.approx((0.7639, 0.9911), abs=1e-4)
    gap, low, high = pooled.difference
    assert gap == 0.0 and -0.2 <= low < 0 < high <= 0.2  # one episode won, one lost
    assert (pooled.modes, pooled.modes_total, pooled.lost) == (2, 2, None)
    assert pooled.entropy == pytest.approx(0.97)
    # 11 left and 8 right against 10 and 9
    assert pooled.share_error == pytest.approx(1 / 19)
    assert pooled.share_ratio == pytest.approx(1 / 19 / floor_of(19, 19, 21 / 38), rel=0.05)
    assert (pooled.rarest, pooled.teacher_entropy) == pytest.approx((8 / 19, 0.95))
    assert (pooled.energy, pooled.outside, pooled.outside_ratio) == pytest.approx((0.02, 0.06, 3.0))
    # 20 and 40 of training, twice 10 of sampling, twice 100 of the teacher
    assert (pooled.train_s, pooled.cost) == pytest.approx((30.0, 0.4))


def test_what_is_not_known_is_not_made_up(tmp_path):
    nothing = row("regression", "0000000000", (0, 0), entropy=None)
    found = write(tmp_path, seed0=[*SEED0, row("chamfer_energy", "1111111111", (5, 5), train_cpu_s=0.0)],
                  seed1=[*SEED1, nothing])  # fmt: skip
    teacher = pooled_results.pool(found, pooled_results.TEACHER_KEY)
    assert (teacher.difference, teacher.share_error, teacher.cost, teacher.train_s) == (None, None, None, 100.0)
    one = pooled_results.pool(found, ("main", "", "teacher_1"))
    assert (one.difference[0], one.share_error, one.entropy, one.lost) == (-1.0, None, None, (0, 0, 2))
    energy = pooled_results.pool(found, ("main", "", "chamfer_energy"))
    assert (energy.train_s, energy.cost) == (None, None)
    # nothing was solved in seed 1
    assert pooled_results.pool(found, ("main", "", "regression")).entropy is None
    # consistency distillation uses no hypotheses: 20 / 100
    assert pooled_results.pool(found, ("main", "", "consistency")).cost == pytest.approx(0.2)


def test_the_table_of_a_task(tmp_path):
    write(tmp_path, seed0=SEED0, seed1=SEED1)
    page = results_page.page(tmp_path)
    cells = line(page, f"**{LABEL}**", "## `detour`")
    assert cells[1:6] == ["2", "20", "1", "1,234", "95.0 % (76.4 to 99.1)"]
    assert cells[6].startswith("0.0 (−") and cells[7:9] == ["2/2", "0.970"]
    assert float(cells[9]) == pytest.approx(1 / 19 / floor_of(19, 19, 21 / 38), abs=0.06)
    assert cells[10:] == ["0.0200", "6.0 % (3.0 ×)", "30", "40 %"]
    teacher = line(page, "teacher, 50 steps", "## `detour`")
    assert teacher[1:3] == ["2", "20"] and teacher[6] == teacher[9] == "reference" and teacher[11:] == ["2.0 %", "100", "–"]
    # one seed of the two, and the later measurement of it
    energy = line(page, "Chamfer + energy student ▲", "## `detour`")
    assert energy[1:6] == ["**1 of 2**", "10", "1", "1,234", "100.0 % (72.2 to 100.0)"]
    main = page[page.index("## `detour`") : page.index("## What did not work")]
    assert re.findall(r"^\| (.+?) \|", main, re.MULTILINE) == [
        "policy", "---", "teacher, 50 steps", "teacher, 1 step", "Chamfer + energy student ▲", f"**{LABEL}**",
        "Consistency distillation", "Regression student",
    ]  # fmt: skip
    assert line(main, "Consistency distillation")[6].startswith("−20.0 (")  # to the teacher of its own seed
    # of the same seed: 10 of 10 against 9 of 10
    assert re.search(r"by the default from the same starts: Chamfer \+ energy student by \+10\.0 .* points, which may be", main)
    # 0.02 and 0.015 are more than the default's 0.01 of seed 0, and not more than it is over both seeds
    assert "Lower energy distance than the default's: none. Lower off-support share than the default's: Chamfer + e" in main
    assert "selection: outlier_rejection of 8." in main and "Hardware: two cores." in page
    assert line(page, "`detour`")[-1] == "Chamfer + energy student, +10.0"


def test_the_targets_of_a_task(tmp_path):
    found = write(tmp_path, seed0=SEED0, seed1=SEED1)
    said = results_page.targets(found, pooled_results.DEFAULT_KEY)
    # one of twenty won and one lost, 8 of 19 to the right, 0.97 and 0.95, 0.06 / 0.02, (60 + 20) / 200
    assert verdicts(said) == ["missed", "met", "met", "met", "missed", "missed", "met"]
    assert re.match(r"Of the targets 4 of 7 are met: success .*\(\+0\.00 points, lower end −\d+\.\d\d; seeds: 2, ep", said)
    for figure in ("episodes: 20)", "(2/2, the rarest 42.1 %)", "(0.970, teacher 0.950)", "(6.0 %, 3.00 ×)", "(40.0 %)"):
        assert figure in said
    # the baseline's seed alone: 8 of 10 against 9 of 10
    assert re.search(r"\(Consistency distillation −10\.0 \(.*?\) points, entropy 0\.500 to 0\.980\)\.$", said)
    page = results_page.page(tmp_path)
    assert page.count("Of the targets") == 1 and said in page[page.index("## `detour`") :]


@pytest.mark.parametrize(
    ("mine", "baseline", "broken"),
    [
        ({}, {}, ""),  # each at its very limit
        ({"success": LOST}, {"success": "1" * 8 + "00"}, "success"),
        ({"mode_counts": {"left": 7, "right": 3}}, {}, "modes"),
        ({"mode_counts": {"left": 8, "right": 2}}, {}, "modes shares"),
        ({"mode_counts": {"left": 10, "right": 0}}, {}, "modes shares"),
        ({"mode_counts": {"a": 8, "b": 1, "c": 1}, "modes_total": 3}, {}, "shares"),  # of other ways than its teacher's
        ({"mode_counts": {"left": 5, "right": 5}, "modes_total": 3}, {}, "modes"),
        ({"entropy": 0.9599}, {}, "entropy"),
        ({"entropy": None}, {"entropy": None}, "entropy baselines"),
        ({"fidelity": fidelity(0.01, 0.0301)}, {}, "outside"),
        ({"train_cpu_s": 15.1}, {}, "cost"),
        ({}, {"success": ALL}, "baselines"),
        ({}, {"entropy": 0.96}, "baselines"),
        ({}, {"entropy": None}, ""),
    ],
)
def test_every_target_can_fail(tmp_path, mine, baseline, broken):
    kept = {"train_cpu_s": 15.0, "entropy": 0.96, "fidelity": fidelity(0.01, 0.03)}
    found = write(tmp_path, seed0=[
        row("teacher_50", ALL, (5, 5), nfe=50, entropy=0.98), row(DEFAULT, ALL, (5, 5)) | kept | mine,
        row("reflow", LOST, (5, 4), "baselines", entropy=0.95) | baseline, row("imle", ALL, (5, 5), "objectives", entropy=1.0),
    ])  # fmt: skip
    said = verdicts(results_page.targets(found, pooled_results.DEFAULT_KEY))
    assert [name for name, verdict in zip(PROMISED, said, strict=True) if verdict != "met"] == broken.split()
    assert set(said) <= {"met", "missed"}


def test_a_target_that_is_unknown(tmp_path):
    default = row(DEFAULT, ALL, (5, 5), train_cpu_s=None, fidelity=fidelity(0.01, 0.0))
    teacher = row("teacher_50", ALL, (5, 5), nfe=50, fidelity=fidelity(0.01, 0.0))
    # the baseline has another seed than the default
    found = write(tmp_path, seed0=[teacher, default], seed1=[teacher, row("reflow", ALL, (5, 5), "baselines")])
    said = results_page.targets(found, pooled_results.DEFAULT_KEY)
    assert verdicts(said) == [*["met"] * 5, *["unknown"] * 2] and "5 of 7 are met" in said
    assert "seeds: 1, episodes: 10" in said


def test_the_targets_of_a_smaller_student(tmp_path):
    def rows(success, entropy, modes=(10, 9)):
        return [row("teacher_50", "1" * 20, (10, 10), "small", "8 x", nfe=50, entropy=1.0),
                row(DEFAULT, success, modes, "small", "8 x", entropy=entropy)]  # fmt: skip

    # 19 of 20 and 0.9 are enough; nothing of the main phase is there
    for task, made in (("detour", rows("1" * 19 + "0", 0.9)), ("handles", rows("1" * 18 + "00", None, (18, 0)))):
        write(tmp_path, task, seed0=made)
    part = results_page.page(tmp_path).split("## A smaller student")[1].split("\n## ")[0]
    said = re.findall("^Of the targets.*", part, re.MULTILINE)
    assert [verdicts(each) for each in said] == [["met"] * 3, ["missed"] * 3]
    assert said[0].startswith("Of the targets 3 of 3 are met: ") and "(95.0 %; seeds: 1, episodes: 20)" in said[0]


def test_a_task_without_its_main_phase(tmp_path):
    write(tmp_path, seed0=[SEED0[0], SEED0[-2], SEED0[-1]])
    page = results_page.page(tmp_path)
    assert "The default student, or another one to compare it with, was not measured yet." in page
    assert "Of the targets" not in page and "## In short" not in page
    assert line(page, "Consistency distillation")[6].startswith("−20.0 (")


def test_what_did_not_work_is_listed(tmp_path):
    write(tmp_path, seed0=SEED0, seed1=SEED1)
    listed = results_page.page(tmp_path).split("## What did not work")[1]
    lines = [each for each in listed.splitlines() if each.startswith("- ")]
    assert [re.sub(r" \(.*?\)", "", each) for each in lines] == [
        "- `detour`, Regression student: 20.0 % solved, −80.0 points to its teacher; 1 of 2 modes in seed 0, its teacher 2.",
        "- `detour`, Consistency distillation: 80.0 % solved, −20.0 points to its teacher.",
    ]
    (tmp_path / "detour-seed0.json").unlink()
    assert "None of those measured." in results_page.page(tmp_path)


def test_a_student_that_another_task_has_is_missed(tmp_path):
    write(tmp_path, seed0=SEED0)
    write(tmp_path, "handles", seed0=SEED0[:4])
    page = results_page.page(tmp_path)
    assert page.count("Measured on another task but not on this one") == 1
    assert "but not on this one: Chamfer + energy student, Consistency distillation." in page.split("## `handles`")[1]
    assert not re.search("## (Ablations|A smaller|Few|Teachers)", page)


def test_ablations_stand_beside_the_default_of_the_same_seed(tmp_path):
    selected = row("teacher_50", "1100000000", (1, 1), "ablations", "K = 4")  # rolled out as that row says
    rows = [
        *SEED0, selected, row(DEFAULT, "1111111111", (5, 5), "ablations", "K = 32", switch_rate=0.25),
        row(DEFAULT, "1111111000", (4, 3), "ablations", "K = 4"),
        row(DEFAULT, "1111101100", (4, 3), "ablations", "selection: single"),
    ]  # fmt: skip
    write(tmp_path, seed0=rows, seed1=SEED1)
    part = results_page.page(tmp_path).split("## Ablations")[1].split("\n## ")[0]
    assert re.findall(r"^\| (.+?) \| 1 \|", part, re.MULTILINE) == [
        "teacher, 50 steps", f"**{LABEL}**", "K = 4", "K = 32 ▲", "selection: single"
    ]  # fmt: skip
    few = line(part, "K = 4")
    assert few[6].startswith("−30.0 (") and few[-2].startswith("−20.0 (")  # to the main teacher, to the default
    assert line(part, "K = 32 ▲")[-1] == "25.0 %"
    assert line(part, f"**{LABEL}**")[2] == "10"  # not the other seed's
    sample, student = Config().sample, Config().student
    assert f"K = {sample.num_hypotheses}, M = {student.num_latents}, codes = {student.codes}, latent size = " in part


def test_a_teacher_of_another_kind_is_compared_with_itself(tmp_path):
    rows = [
        *SEED0, row("teacher_50", "1111111100", (4, 4), "teachers", "diffusion teacher", nfe=50),
        row(DEFAULT, "1111111110", (5, 4), "teachers", "diffusion teacher"),
    ]  # fmt: skip
    write(tmp_path, seed0=rows)
    part = results_page.page(tmp_path).split("## Teachers of other kinds")[1].split("\n## ")[0]
    assert line(part, "diffusion teacher, 50 steps")[6] == "reference"
    assert line(part, f"diffusion teacher: {LABEL}")[6].startswith("+10.0 (")
    assert re.search(r"diffusion teacher, 50 steps: −20\.0 \(", part)
    assert f"; diffusion teacher: {LABEL}: 0.0 (" in part


def test_distilled_against_the_demonstrations_alone(tmp_path):
    def rows(count, distilled, baseline):
        name = f"{count} demonstrations"
        return [row("teacher_50", "1" * 10, (5, 5), "demonstrations", name),
                row(DEFAULT, distilled, (1, 1), "demonstrations", name),
                row("imle_policy", baseline, (1, 1), "demonstrations", name, train_cpu_s=90.0)]  # fmt: skip

    rows = [*rows(100, "1111111100", "1111111111"), *rows(20, "1111111111", "0000000000")]
    write(tmp_path, seed0=rows)
    page = results_page.page(tmp_path)  # with nothing measured of the main phases
    assert re.findall("^## (.+)", page, re.MULTILINE) == ["Few demonstrations", "What did not work"]
    part = page.split("## Few demonstrations")[1].split("\n## ")[0]
    table = [[cell.strip() for cell in each.strip("|").split(" | ")] for each in part.splitlines() if each.startswith("| `")]
    assert [(cells[1], cells[6].split()[0], "▲" in cells[6]) for cells in table] == [
        ("20", "+100.0", False), ("100", "−20.0", True)
    ]  # fmt: skip
    assert table[0][7:] == ["2/2, 2/2, 2/2", "100, 30, 90"]
    assert "ahead: `detour` with 20 demonstrations; behind: nowhere;" in part


def test_episodes_that_do_not_pair_are_refused(tmp_path):
    found = write(tmp_path, seed0=[SEED0[0], row("imle", "111", (2, 1))])
    with pytest.raises(ValueError, match="imle of seed 0 has 3 episodes, what it is compared with has 10"):
        pooled_results.pool(found, ("main", "", "imle"))
    with pytest.raises(ValueError, match="run benchmarks/objectives.py"):
        pooled_results.read(tmp_path / "nothing")


@pytest.mark.parametrize("phase", objectives.PHASES)
def test_every_row_of_the_grid_is_a_run_that_can_be_made(phase, monkeypatch):
    monkeypatch.chdir(objectives.ROOT)
    for row in objectives.PHASES[phase]:
        recipes = row.recipes or ("regression",)
        for task in row.tasks:
            command = ["evaluate", "--config", f"configs/{task}.yaml", "--student.objectives", *recipes, "--student.default",
                       recipes[0], "--evaluate.teacher-steps", *map(str, row.teacher_steps), *row.flags]  # fmt: skip
            _, _, config = read_command(command)
            assert config.task == task and config.evaluate.teacher_steps[0] == 50


def test_one_table_holds_students_that_are_measured_alike(monkeypatch):
    monkeypatch.chdir(objectives.ROOT)
    rows = [row for phase in pooled_results.MAIN for row in objectives.PHASES[phase]]
    assert {(row.label, row.flags, row.name) for row in rows} == {("", (), "")}
    names = [name for row in rows for name in row.recipes]
    assert {DEFAULT, "regression", *objectives.SETS, *objectives.ONE_STEP_BASELINES} <= set(names)
    assert len(names) == len(set(names))
    # the page knows a baseline by its phase
    assert [name for row in objectives.PHASES["baselines"] for name in row.recipes] == list(objectives.ONE_STEP_BASELINES)
    # whatever selects otherwise than the presets says so in its label
    assert all(read_command(["evaluate", "--config", f"configs/{task}.yaml"])[2].evaluate.selection == "outlier_rejection"
               for task in objectives.TASKS)  # fmt: skip
    told = {row.label for rows in objectives.PHASES.values() for row in rows if "--evaluate.selection" in row.flags}
    assert told == {f"selection: {kind}" for kind in ("single", "temporal_consistency", "kept_latent")}


def test_the_page_knows_every_phase_of_the_grid():
    assert set(objectives.PHASES) == {*pooled_results.MAIN, *pooled_results.SAME_TEACHER, "teachers", "demonstrations"}
    assert objectives.DEFAULT == pooled_results.DEFAULT and objectives.RESULTS == pooled_results.RESULTS
