"""The page of evidence from small files made by hand: what is pooled over seeds, marked, and listed as not working."""

from __future__ import annotations

import json
import re
from math import comb

import pytest

from benchmarks import objectives, results_page
from distill.cli import read_command
from distill.config import Config
from distill.recipes import recipe

DEFAULT = results_page.DEFAULT
LABEL = recipe(DEFAULT).label


def row(policy, success, modes, phase="main", name="", flags=(), **changes):
    left, right = modes
    return {
        "phase": phase, "row": name, "policy": policy, "flags": list(flags), "nfe": 1, "parameters": 1234,
        "success": success, "mode_counts": {"left": left, "right": right}, "entropy": 0.5, "modes_total": 2,
        "switch_rate": None, "jerk": None, "fidelity": {"energy_distance": 0.01, "outside_share": 0.02},
        "teacher_cpu_s": 100.0, "sample_cpu_s": 10.0, "train_cpu_s": 20.0,
    } | changes  # fmt: skip


def fidelity(energy, outside):
    return {"energy_distance": energy, "outside_share": outside}


SEED0 = [
    row("teacher_50", "1111111111", (5, 5), nfe=50, train_cpu_s=None, entropy=1.0),
    row("teacher_1", "0000000000", (0, 0), train_cpu_s=None, entropy=None, fidelity=fidelity(0.5, 0.9)),
    row(DEFAULT, "1111111101", (5, 4), entropy=0.98, fidelity=fidelity(0.01, 0.04)),
    row("regression", "0000000011", (2, 0), entropy=0.0, fidelity=fidelity(0.4, 0.8)),
    # measured again later: this one is taken
    row("chamfer", "0000000000", (0, 0)),
    row("chamfer", "1111111111", (5, 5), fidelity=fidelity(0.02, 0.01)),
    row(DEFAULT, "1111101100", (4, 3), "objectives", "one sample", objectives.ONE_SAMPLE, fidelity=fidelity(0.02, 0.05)),
    row("consistency", "1111111100", (4, 4), "rivals", "one sample", objectives.ONE_SAMPLE, fidelity=fidelity(0.015, 0.06)),
]
SEED1 = [
    row("teacher_50", "1111111110", (5, 4), nfe=50, train_cpu_s=None, entropy=0.9),
    row(DEFAULT, "1111111111", (6, 4), entropy=0.96, train_cpu_s=40.0, fidelity=fidelity(0.03, 0.08)),
]


def write(folder, task="detour", **seeds):
    for seed, rows in seeds.items():
        stored = {"task": task, "seed": int(seed.removeprefix("seed")), "hardware": "two cores", "rows": rows}
        (folder / f"{task}-{seed}.json").write_text(json.dumps(stored))
    return results_page.read(folder)[0][task]


def line(page, label, after=""):
    """The cells of the first table row of that policy after a text."""
    found = re.search(rf"^\| {re.escape(label)} \|.*$", page[page.index(after) :], re.MULTILINE)
    assert found, label
    return [cell.strip() for cell in found[0].strip("|").split(" | ")]


def floor_of(first, second, share):
    """Mean |X / first - Y / second| of two binomials, by adding up all outcomes."""

    def chance(count, trials):
        return comb(trials, count) * share**count * (1 - share) ** (trials - count)

    return sum(chance(x, first) * chance(y, second) * abs(x / first - y / second)
               for x in range(first + 1) for y in range(second + 1))  # fmt: skip


def test_a_policy_is_pooled_over_its_seeds(tmp_path):
    pooled = results_page.pool(write(tmp_path, seed0=SEED0, seed1=SEED1), results_page.DEFAULT_KEY)
    assert (pooled.seeds, pooled.episodes, pooled.success) == ((0, 1), 20, 0.95)
    # Wilson, 19 of 20: (0.95 + z^2/40 -+ z sqrt(0.95 * 0.05 / 20 + z^2/1600)) / (1 + z^2/20), z = 1.96
    assert pooled.interval == pytest.approx((0.7639, 0.9911), abs=1e-4)
    gap, low, high = pooled.difference
    assert gap == 0.0 and -0.2 <= low < 0 < high <= 0.2  # one episode won, one lost
    assert (pooled.modes, pooled.modes_total, pooled.lost) == (2, 2, None)
    assert pooled.entropy == pytest.approx(0.97)
    # 11 left and 8 right against 10 and 9
    assert pooled.share_error == pytest.approx(1 / 19)
    assert pooled.share_floor == pytest.approx(floor_of(19, 19, 21 / 38), rel=0.05)
    assert (pooled.energy, pooled.outside, pooled.outside_ratio) == pytest.approx((0.02, 0.06, 3.0))
    # 20 and 40 of training, twice 10 of sampling, twice 100 of the teacher
    assert (pooled.train_s, pooled.cost) == pytest.approx((30.0, 0.4))


def test_what_is_not_known_is_not_made_up(tmp_path):
    found = write(tmp_path, seed0=[*SEED0, row("chamfer", "1111111111", (5, 5), train_cpu_s=0.0)])
    teacher = results_page.pool(found, results_page.TEACHER_KEY)
    assert (teacher.difference, teacher.share_error, teacher.cost, teacher.train_s) == (None, None, None, 100.0)
    one = results_page.pool(found, ("main", "", "teacher_1"))
    assert (one.difference[0], one.share_error, one.entropy, one.lost) == (-1.0, None, None, (0, 0, 2))
    chamfer = results_page.pool(found, ("main", "", "chamfer"))
    assert (chamfer.train_s, chamfer.cost) == (None, None)
    # consistency distillation uses no hypotheses: 20 / 100
    assert results_page.pool(found, ("maps", "one sample", "consistency")).cost == pytest.approx(0.2)


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
    chamfer = line(page, "Chamfer student ▲", "## `detour`")
    assert chamfer[1:6] == ["**1 of 2**", "10", "1", "1,234", "100.0 % (72.2 to 100.0)"]
    labels = re.findall(r"^\| (.+?) \|", page[page.index("## `detour`") :].split("\n\n")[2], re.MULTILINE)
    assert labels == ["policy", "---", "teacher, 50 steps", "teacher, 1 step", "Chamfer student ▲",
                      f"**{LABEL}**", "Regression student"]  # fmt: skip
    # of the same seed: 10 of 10 against 9 of 10
    assert re.search(r"by the default from the same starts: Chamfer student by \+10\.0 .* points, which may be chance\.", page)
    # 0.02 is more than the default's 0.01 of seed 0, and less than it is over both seeds
    main = page[page.index("## `detour`") : page.index("**The maps themselves.**")]
    assert "Lower energy distance than the default's: none. Lower outside share than the default's: Chamfer student." in main
    assert "selection: typical of 8. The students here carry out a plan that is so selected." in main
    assert "Hardware: two cores." in page


def test_maps_are_compared_with_the_defaults_own_map(tmp_path):
    found = write(tmp_path, seed0=SEED0, seed1=SEED1)
    page = results_page.page(tmp_path)
    part = page[page.index("**The maps themselves.**") : page.index("## What did not work")]
    # 8 of 10 is ahead of the default's one sample, 7 of 10, and not of what the default does with its selection, 9 of 10
    assert re.findall(r"^\| (.+?) \|", part, re.MULTILINE)[2:] == [
        "teacher, 50 steps", "one sample: Consistency distillation ▲", f"**one sample: {LABEL}**"
    ]  # fmt: skip
    key = ("maps", "one sample", "consistency")
    assert results_page.to_default(found, key)[0] == pytest.approx(0.1)
    assert results_page.to_default(found, results_page.ONE_SAMPLE_KEY) is None
    assert line(part, "one sample: Consistency distillation ▲")[6].startswith("−20.0 (")  # to the main phase's teacher
    assert "the same starts: one sample: Consistency distillation by +10.0 (" in part
    # 0.015 against 0.02, 6 % against 5 %
    assert "Lower energy distance than the default's: one sample: Consistency distillation. Lower outside" in part
    assert "Lower outside share than the default's: none." in part
    short = line(page, "`detour`")
    assert short[-2:] == ["Chamfer student, 100.0 %", "70.0 %; Consistency distillation, 80.0 %"]


def test_a_teacher_of_the_maps_is_the_main_teacher(tmp_path):
    teacher = row("teacher_50", "1111111111", (5, 5), "objectives", "one sample", objectives.ONE_SAMPLE, nfe=50)
    found = write(tmp_path, seed0=[teacher, *SEED0[-2:]])
    assert set(found) == {results_page.TEACHER_KEY, results_page.ONE_SAMPLE_KEY, ("maps", "one sample", "consistency")}
    page = results_page.page(tmp_path)  # the main phase is not there yet
    assert "The default student or another one to compare it with is not there yet." in page
    assert line(page, "one sample: Consistency distillation ▲", "**The maps")[6].startswith("−20.0 (")


def test_what_did_not_work_is_listed(tmp_path):
    write(tmp_path, seed0=SEED0, seed1=SEED1)
    listed = results_page.page(tmp_path).split("## What did not work")[1]
    lines = [each for each in listed.splitlines() if each.startswith("- ")]
    assert [re.sub(r" \(.*?\)", "", each) for each in lines] == [
        "- `detour`, Regression student: 20.0 % solved, −80.0 points to its teacher; 1 of 2 modes in seed 0, its teacher 2.",
        f"- `detour`, one sample: {LABEL}: 70.0 % solved, −30.0 points to its teacher.",
        "- `detour`, one sample: Consistency distillation: 80.0 % solved, −20.0 points to its teacher.",
    ]
    (tmp_path / "detour-seed0.json").unlink()
    assert "None of those measured." in results_page.page(tmp_path)


def test_a_student_that_another_task_has_is_missed(tmp_path):
    write(tmp_path, seed0=SEED0)
    write(tmp_path, "handles", seed0=SEED0[:4])
    page = results_page.page(tmp_path)
    assert page.count("Measured on another task but not here") == 1
    absent = ", ".join(sorted(["Chamfer student", "one sample: Consistency distillation", f"one sample: {LABEL}"]))
    assert f"but not here: {absent}." in page.split("## `handles`")[1]
    assert not re.search("## (Ablations|A smaller|Few|Teachers)", page)


def test_ablations_stand_beside_the_default_of_the_same_seed(tmp_path):
    selected = row("teacher_50", "1100000000", (1, 1), "ablations", "K = 4")  # rolled out as that row says
    rows = [
        *SEED0, selected, row(DEFAULT, "1111111111", (5, 5), "ablations", "K = 32", switch_rate=0.25),
        row(DEFAULT, "1111111000", (4, 3), "ablations", "K = 4"),
        row(DEFAULT, "1111101100", (4, 3), "ablations", "selection: one", objectives.ONE_SAMPLE),
    ]  # fmt: skip
    write(tmp_path, seed0=rows, seed1=SEED1)
    part = results_page.page(tmp_path).split("## Ablations")[1].split("\n## ")[0]
    assert re.findall(r"^\| (.+?) \| 1 \|", part, re.MULTILINE) == [
        "teacher, 50 steps", f"**{LABEL}**", "K = 4", "K = 32 ▲", "selection: one"
    ]  # fmt: skip
    assert line(part, "selection: one")[-2].startswith("−20.0 (")  # to the default with its selection
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
    def rows(count, distilled, rival):
        name = f"{count} demonstrations"
        return [row("teacher_50", "1" * 10, (5, 5), "demonstrations", name),
                row(DEFAULT, distilled, (1, 1), "demonstrations", name),
                row("imle_policy", rival, (1, 1), "demonstrations", name, train_cpu_s=90.0)]  # fmt: skip

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
    found = write(tmp_path, seed0=[SEED0[0], row("chamfer", "111", (2, 1))])
    with pytest.raises(ValueError, match="chamfer of seed 0 has 3 episodes, what it is compared with has 10"):
        results_page.pool(found, ("main", "", "chamfer"))
    with pytest.raises(ValueError, match="run benchmarks/objectives.py"):
        results_page.read(tmp_path / "nothing")


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


def test_maps_are_measured_with_one_sample_and_said_to_be(monkeypatch):
    monkeypatch.chdir(objectives.ROOT)
    maps = [row for phase in results_page.MAPS for row in objectives.PHASES[phase]]
    assert {(row.label, row.flags) for row in maps} == {(results_page.ONE_SAMPLE_KEY[1], objectives.ONE_SAMPLE)}
    names = [name for row in maps for name in row.recipes]
    assert {DEFAULT, "chamfer", "regression", *objectives.SETS, *objectives.RIVALS} <= set(names)
    assert len(names) == len(set(names))
    assert read_command(["evaluate", *objectives.ONE_SAMPLE])[2].evaluate.selection == "one"
    # whatever else selects otherwise than the presets says so in its label
    others = [row for phase, rows in objectives.PHASES.items() if phase not in results_page.MAPS for row in rows]
    told = {row.label for row in others if "--evaluate.selection" in row.flags}
    assert told == {f"selection: {kind}" for kind in ("one", "consistent", "kept_latent")}


def test_the_page_knows_every_phase_of_the_grid():
    known = {"main", *results_page.MAPS, *results_page.SAME_TEACHER, "teachers", "demonstrations"}
    assert set(objectives.PHASES) == known - {"maps"}
    assert objectives.DEFAULT == results_page.DEFAULT and objectives.RESULTS == results_page.RESULTS
