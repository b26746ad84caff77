"""The house keeps its rules: imports go one way, nothing is unpickled, the files beside the code are true to it."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import envs
from distill.checks import validate
from distill.cli.checking import CheckDataOptions, CheckWorldOptions
from distill.cli.command import STAGES, read_command
from distill.cli.export import ExportOptions
from distill.cli.external_config import CompareConfig, ConvertConfig
from distill.config import Config
from distill.presets import apply_preset, find_preset
from envs.gym.mapping import read_mapping
from envs.gym.settings import find
from tests.distill.test_api import HOLD

ROOT = Path(__file__).parent.parent
ROOMS = ("envs", "teachers", "students", "distill")
"""From the top down: a room may import the rooms before it."""
LATE = ("faiss", "wandb", "torchcfm", "matplotlib", "diffusers", "rlbench", "onnxruntime", "openvino", "huggingface_hub",
        "zarr", "h5py", "pyarrow", "av", "pyrep")  # fmt: skip
"""Large, optional or known to crash beside torch: imported by the function that needs them, never at start-up."""
ELSEWHERE = ("lerobot", "transformers")
"""Imported only by adapters, which run in another environment."""
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "torch.load", "torch.save", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "eval", "exec",
    "compile", "__import__",
}  # fmt: skip
FORBIDDEN_METHODS = {"load_state", "save_state", "register_for_checkpointing"}
"""Of accelerate: they pickle."""

FOREIGN = {"rlbench", "pyrep", "metaworld", "gym_pusht"}
"""Of another interpreter: imported by the programs that run there alone, and never declared as a dependency."""
RLBENCH_PROGRAM = ROOT / "envs" / "rlbench" / "program.py"
SUITES = ROOT / "envs" / "gym" / "suites"
PICKLES_FOR_TESTS = ROOT / "tests" / "storing_rlbench.py"
"""A program that the tests start; it writes what RLBench writes."""

SOURCES = [
    ROOT / "distill.py",
    *sorted(path for room in (*ROOMS, "flow2one_runtime", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py")),
]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module a file names in an import, at whatever depth, or gives to import_module as a literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)
        elif isinstance(node, ast.Call) and called(node).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)


def called(node: ast.Call) -> str:
    """What a call names: ``torch.load`` for torch.load(...), "" for anything computed."""
    parts: list[str] = []
    where = node.func
    while isinstance(where, ast.Attribute):
        parts.append(where.attr)
        where = where.value
    return ".".join([where.id, *reversed(parts)]) if isinstance(where, ast.Name) else ""


# -- imports -----------------------------------------------------------------------------------------------------------


def python(code: str, where: Path = ROOT) -> str:
    """Run code in a fresh interpreter, as `python -c` there would, and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_distill_wins_over_the_script_beside_it() -> None:
    assert (ROOT / "distill.py").is_file()
    assert Path(python("import distill; print(distill.__file__)")) == ROOT / "distill" / "__init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_above_it(room: str) -> None:
    below = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests", "benchmarks"}
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = [
        f"{shown(path)} imports {module}"
        for path in files
        for module in imported_modules(ast.parse(path.read_text()))
        if module.split(".")[0] in below
    ]
    assert wrong == []


@pytest.mark.parametrize("module", ["envs", "distill", "distill.cli.main", "distill.graphs.run"])
def test_importing_does_not_bring_in_what_is_imported_late(module: str) -> None:
    assert python(f"import sys, {module}; print([name for name in {LATE} if name in sys.modules])") == "[]"


def test_rlbench_and_pyrep_are_imported_in_one_file_only_and_can_not_be_installed_from_here() -> None:
    importing = [
        path for path in SOURCES
        if FOREIGN & {module.split(".")[0] for module in imported_modules(ast.parse(path.read_text()))}
    ]  # fmt: skip
    assert RLBENCH_PROGRAM in importing and [path for path in importing if path.parent != SUITES] == [RLBENCH_PROGRAM]
    # PyPI's `pyrep` is somebody else's package
    for name in ("pyproject.toml", "requirements/cpu.lock", "requirements/test.lock"):
        text = (ROOT / name).read_text().lower()
        assert not re.search(r"^\s*[\"']?(pyrep|rlbench)\s*([=<>@\[\"'~!;]|$)", text, re.MULTILINE), name


# -- rooms -------------------------------------------------------------------------------------------------------------

FLOORS = {
    "envs": ("", "cameras", "process", "panda", "rlbench", "recorded", "gym"),
    "teachers": ("", "networks", "adapters"),
    "students": ("", "runtime", "export"),
    "distill": ("", "store", "training", "runtime", "hypotheses", "objectives", "report", "evaluation", "worlds", "inputs",
                "stages", "graphs", "cli"),
}  # fmt: skip
"""The rooms of each package from the top down; "" are the files beside the rooms. A room imports those before it."""

AT_ITS_DOOR = {
    "envs": ("envs", "envs.checks", "envs.windows", "envs.demonstrations"),
    "teachers": ("teachers", "teachers.trained", "teachers.flow", "teachers.diffusion", "teachers.energy"),
    "students": ("students", "students.one_step", "students.flow_map"),
    "distill": ("distill", "distill.api", "distill.checks", "distill.presets", "distill.__main__"),
}
"""Files beside the rooms that join them: they may import any room of their package, and rooms after them may import them."""

MOST_MODULES, MOST_LINES = 15, 400
LONG_FILES: dict[str, str] = {}
"""Modules of more than MOST_LINES lines, each with the reason why it is one."""


def modules() -> dict[str, Path]:
    """Every module of the four packages by its dotted name."""
    found = {}
    for package in ROOMS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports() -> dict[str, set[str]]:
    """Which module imports which, at whatever depth: inside functions and under TYPE_CHECKING, too."""
    known, edges = modules(), {}
    for name, path in known.items():
        edges[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            named: list[str] = []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
            for each in named:
                while each and each not in known:
                    each = each.rpartition(".")[0]
                if each and each != name:
                    edges[name].add(each)
    return edges


def room_of(module: str, known: dict[str, Path]) -> tuple[str, str]:
    """Package and room of a module."""
    package, *room = known[module].parent.relative_to(ROOT).parts
    return package, room[0] if room else ""


def chain(start: str, edges: dict[str, set[str]]) -> list[str]:
    """The longest chain of names from `start`. Raises AssertionError for a circle."""
    longest: dict[str, list[str]] = {}

    def visit(name: str, path: tuple[str, ...]) -> list[str]:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name):], name])}"
        if name not in longest:
            below = [visit(each, (*path, name)) for each in sorted(edges.get(name, ()))]
            longest[name] = [name, *max(below, key=len, default=[])]
        return longest[name]

    return visit(start, ())


def test_no_imports_go_in_a_circle() -> None:
    edges = imports()
    assert len(edges) > 150
    for name in edges:
        chain(name, edges)


def test_a_circle_would_be_found() -> None:
    with pytest.raises(AssertionError, match="a circle: b -> c -> b"):
        chain("a", {"a": {"b"}, "b": {"c"}, "c": {"b"}})
    assert chain("a", {"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ["a", "b", "c"]


def test_the_rooms_are_those_of_the_plan_and_keep_their_direction() -> None:
    known, wrong = modules(), []
    assert {room_of(name, known) for name in known} == {(package, room) for package, rooms in FLOORS.items() for room in rooms}
    for name, targets in imports().items():
        package, room = room_of(name, known)
        if name in AT_ITS_DOOR[package]:
            continue
        for target in targets:
            its_package, its_room = room_of(target, known)
            if its_package != package or target in AT_ITS_DOOR[package]:
                continue
            if FLOORS[package].index(its_room) > FLOORS[package].index(room):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_a_chain_of_rooms_from_the_script_down_is_no_longer_than_nine() -> None:
    """Counted in `distill`; below it stand students, teachers and envs."""
    known, rooms = modules(), {}
    for name, targets in imports().items():
        for target in targets:
            here, there = (place if place[1] else (place[0], module) for module, place in (
                (name, room_of(name, known)), (target, room_of(target, known))))  # fmt: skip
            if here != there and here[0] == there[0] == "distill":
                rooms.setdefault(".".join(here), set()).add(".".join(there))
    assert 1 + len(chain("distill.cli", rooms)) <= 9


def test_a_room_holds_few_modules_and_a_module_few_lines() -> None:
    folders: dict[Path, list[str]] = {}
    for name, path in modules().items():
        if path.name != "__init__.py":
            folders.setdefault(path.parent, []).append(name)
    assert {shown(folder): len(names) for folder, names in folders.items() if len(names) > MOST_MODULES} == {}
    long = {name for name, path in modules().items() if len(path.read_text().splitlines()) > MOST_LINES}
    assert long == set(LONG_FILES)


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_says_what_lives_there_what_it_needs_and_what_is_not_its_business(package: str) -> None:
    for room in FLOORS[package]:
        text = ast.get_docstring(ast.parse((ROOT / package / room / "__init__.py").read_text())) or ""
        assert text and (not room or ("Needs:" in text and "Not here:" in text)), room


PRIVATE_WORDS = re.compile(r"\b(Ingredients|Lesson|is_rlbench|Outside\(|senses)\b")


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[len(ROOT.parts)] in ROOMS], ids=shown)
def test_no_private_words(path: Path) -> None:
    """The field's words are in docs/development.md; these were ours alone."""
    assert PRIVATE_WORDS.findall(path.read_text()) == []


# -- nothing in a file is ever unpickled or evaluated ------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_no_file_unpickles_or_evaluates(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = sorted(UNPICKLERS & {module.split(".")[0] for module in imported_modules(tree)})
    if path == PICKLES_FOR_TESTS:
        assert found == ["pickle"] and "pickle.load" not in path.read_text()
        found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = called(node)
            if name in FORBIDDEN_CALLS or name.split(".")[-1] in FORBIDDEN_METHODS:
                found.append(f"{name} in line {node.lineno}")
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("allow_pickle", "trust_remote_code") and not allowed:
                    found.append(f"{keyword.arg} in line {node.lineno}")
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_file_says_its_purpose_in_its_first_line(path: Path) -> None:
    purpose = ast.get_docstring(ast.parse(path.read_text()))
    assert purpose and path.read_text().startswith('"""')


# -- the files beside the code -----------------------------------------------------------------------------------------


def commands_in(text: str) -> list[str]:
    """Lines of the fenced blocks of a Markdown text, continued lines joined, comments at their ends left out."""
    blocks = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return [line.split(" #")[0].strip() for line in blocks.replace("\\\n", " ").splitlines()]


PAGES = ("README.md", "docs/use.md", "docs/install.md", "docs/how-it-works.md", "docs/development.md", "docs/rlbench.md",
         "docs/worlds.md")  # fmt: skip
OTHER_COMMANDS = {"convert": ConvertConfig, "compare": CompareConfig, "export": ExportOptions, "check-data": CheckDataOptions,
                  "check-world": CheckWorldOptions}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_make_command_of_a_page_is_a_target(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`make ([a-z]+)", text))
    named |= {line.split()[1] for line in commands_in(text) if line.startswith("make ")}
    assert {"quickstart", "demo", "test"} <= named or page != "README.md"
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_of_a_page_is_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("distill.cli.command.check_teacher_folder", lambda config: None)  # the page's is not on this disk
    if page == "docs/worlds.md":  # nor are its simulators and files
        monkeypatch.setattr("distill.cli.command.validate", lambda config: None)
    stages = set()
    for line in commands_in((ROOT / page).read_text()):
        words = shlex.split(line)
        arguments = words[1:] if words[:1] == ["flow2one"] else []
        if words[:1] == ["make"]:
            arguments = shlex.split(next((word[5:] for word in words if word.startswith("ARGS=")), ""))
            arguments = [] if words[1] == "test" else arguments
        if arguments and arguments[0] in OTHER_COMMANDS:
            tyro.cli(OTHER_COMMANDS[arguments[0]], args=arguments[1:])
        elif arguments:
            stages.add(read_command(arguments)[0])
    assert stages <= {"", *STAGES, "doctor", "doctor --rlbench"}
    assert page != "docs/use.md" or stages >= {"", "doctor", "distill"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the web."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=shown)
def test_every_link_of_a_page_into_the_repository_exists(page: Path) -> None:
    wrong = []
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
        target = page.parent / link if link else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{link}#{anchor}")
    assert wrong == []


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs/index.md").read_text()
    assert [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md" and f"({path.name}" not in text] == []


def test_the_readme_fits_on_a_screen_or_two() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_there_is_a_preset_for_every_task() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} >= set(envs.TASKS)


PARTS = {path for path in (ROOT / "configs").rglob("*.yaml") if path.read_text().startswith("# Part of presets:")}
"""Not valid by themselves: the presets that extend them are."""


def test_every_part_of_presets_is_extended_by_one() -> None:
    presets = "".join(path.read_text() for path in (ROOT / "configs").rglob("*.yaml") if path not in PARTS)
    assert PARTS and [path.name for path in PARTS if path.name not in presets] == []


@pytest.mark.parametrize("preset", sorted(set((ROOT / "configs").rglob("*.yaml")) - PARTS), ids=shown)
def test_a_preset_says_its_recipe_and_is_valid(preset: Path) -> None:
    assert preset.read_text().startswith("# ")
    config = apply_preset(Config(), preset)
    config.world.check()
    if config.world.gym:  # it is opened in an interpreter that has it: tests/worlds
        read_mapping(find(config.world.mapping))
        return
    validate(config)
    if preset.stem in envs.TASKS:
        assert config.task == preset.stem


# -- what is installed ---------------------------------------------------------------------------------------------------


def test_every_room_and_every_preset_is_installed() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in modules().values()}
    presets = {path.parent.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    named = {"flow2one_presets" + ("" if place == "." else f".{place}") for place in presets}
    assert set(tool["packages"]) == folders | named
    assert tool["package-dir"] == {"flow2one_presets": "configs"}
    assert all(tool["package-data"][name] == ["*.yaml"] for name in named)


def test_a_preset_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = {name: apply_preset(Config(), find_preset(name)) for name in ("avoid", "rlbench/open_box", "detour_points")}
    for name, config in by_name.items():
        assert config == apply_preset(Config(), ROOT / f"configs/{name}.yaml")
        assert config == apply_preset(Config(), find_preset(f"{name}.yaml"))
    (tmp_path / "avoid").write_text("task: detour")  # a file of the user's own comes first
    assert apply_preset(Config(), find_preset("avoid")).task == "detour"


def test_the_command_runs_in_a_folder_with_packages_named_as_ours(tmp_path: Path) -> None:
    for name in ("envs", "teachers", "students"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    line = [sys.executable, "-m", "distill", "--config", "avoid", "--dry-run"]
    here = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(line, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "report " in done.stdout, done.stderr
    program = [sys.executable, str(Path(sys.executable).parent / "flow2one"), *line[3:]]
    assert subprocess.run(program, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=120).stdout == done.stdout


# -- the pinned packages -----------------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    """A lock's packages and versions; every line must be `name==version`, so no path, address or option."""
    lines = [line for line in (ROOT / "requirements" / name).read_text().splitlines() if not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines]
    assert [line for line, match in zip(lines, matches, strict=True) if match is None] == []
    found = {canonicalize_name(match[1]): match[2] for match in matches if match}
    assert len(found) == len(lines), "a package is pinned twice"
    return found


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.mark.parametrize(("lock", "extra"), [
    ("cpu.lock", ""), ("cpu.lock", "cpu"), ("cpu.lock", "onnx"), ("test.lock", "test"),
])  # fmt: skip
def test_a_lock_pins_every_direct_dependency_within_its_range(lock: str, extra: str) -> None:
    declared = project()["optional-dependencies"][extra] if extra else project()["dependencies"]
    pinned, wrong = pins(lock), []
    for requirement in (Requirement(each) for each in declared):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            wrong.append(f"{requirement}: pinned {version}")
    assert wrong == []


def test_the_two_locks_share_no_package_and_only_one_faiss() -> None:
    cpu, test = pins("cpu.lock"), pins("test.lock")
    assert set(cpu) & set(test) == set()
    assert "faiss-cpu" in cpu and "faiss-gpu" not in cpu
    assert cpu["torch"] == "2.13.0"  # without +cpu: that build has this name on some systems, and pip takes both for it


def test_every_third_party_import_is_declared() -> None:
    installed_as = {"ot": "POT", "PIL": "pillow", "yaml": "pyyaml", "faiss": "faiss-cpu"}
    declared = [Requirement(each).name for each in project()["dependencies"]]
    for extra in project()["optional-dependencies"].values():
        declared += [Requirement(each).name for each in extra]
    known = {canonicalize_name(name) for name in declared}
    wrong = [
        f"{shown(path)} imports {top}"
        for path in SOURCES
        if path.parts[len(ROOT.parts)] in (*ROOMS, "distill.py")
        for top in {module.split(".")[0] for module in imported_modules(ast.parse(path.read_text()))}
        if top not in sys.stdlib_module_names and top not in (*ROOMS, *ELSEWHERE, *FOREIGN)
        and canonicalize_name(installed_as.get(top, top)) not in known
    ]  # fmt: skip
    assert wrong == []


UNWANTED = {"torchvision", "torchaudio", "torchdyn", "jupyter", "jupyterlab", "notebook", "ipython", "ipykernel", "ipywidgets",
            "lightning", "pytorch-lightning", "torchmetrics", "pandas", "scikit-learn"}  # fmt: skip
"""What torchcfm declares, and what that brings: nothing here imports it, and torchvision breaks beside a CPU build of torch."""


@pytest.mark.parametrize("lock", ["cpu.lock", "test.lock"])
def test_no_lock_holds_what_nothing_here_imports(lock: str) -> None:
    assert set(pins(lock)) & UNWANTED == set()


def test_no_extra_names_what_nothing_here_imports_and_uv_is_told_what_torchcfm_needs() -> None:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, extra in {"": project()["dependencies"], **project()["optional-dependencies"]}.items():
        assert {canonicalize_name(Requirement(each).name) for each in extra} & UNWANTED == set(), name
    (override,) = tables["tool"]["uv"]["dependency-metadata"]
    assert override["name"] == "torchcfm" and {canonicalize_name(each) for each in override["requires-dist"]} == {
        "torch", "numpy", "pot"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("extra", sorted({*project()["optional-dependencies"]} - {"gpu"}))
def test_pip_resolves_no_extra_to_what_nothing_here_imports(extra: str, tmp_path: Path) -> None:
    """Of the packages that an extra adds; torchcfm is left to the locks, as pip cannot be told what it really needs."""
    wanted = [each for each in project()["dependencies"] if not each.startswith(("torchcfm", "torch>"))]
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report",
            str(tmp_path / "report.json"), *wanted, *project()["optional-dependencies"][extra]]  # fmt: skip
    held = tmp_path / "held.txt"
    held.write_text("".join(f"{name}=={version}\n" for name, version in pins("cpu.lock").items() if name == "torch"))
    done = subprocess.run([*line, "-c", str(held)], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    resolved = json.loads((tmp_path / "report.json").read_text())["install"]
    found = {canonicalize_name(each["metadata"]["name"]) for each in resolved}
    assert len(found) > 20 and found & UNWANTED == set()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installed_command_converts_in_a_folder_with_packages_named_as_ours(tmp_path: Path) -> None:
    """Installed, not editable; the packages that it needs are those of this interpreter."""
    source, here = tmp_path / "source", tmp_path / "here"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git*", ".venv", "runs", "build", "*.egg-info", ".*_cache"))
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, str(source)], check=True, capture_output=True, timeout=300)
    here.mkdir()
    for name in ("envs", "teachers", "students", "distill"):
        (here / name).mkdir()
        (here / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from tests.envs.recorded.writers import as_zarr, walk\n" \
           "from pathlib import Path; as_zarr(Path(sys.argv[2]), walk(10, 12, fps=10))"  # fmt: skip
    subprocess.run([sys.executable, "-c", code, str(ROOT), str(here / "x.zarr")], check=True, cwd=tmp_path, timeout=120)
    (here / "hold.py").write_text(HOLD)
    small = ["--sample.num-observations", "16", "--sample.num-hypotheses", "3", "--student.training-steps", "4",
             "--evaluate.fidelity-observations", "2", "--evaluate.fidelity-samples", "6", "--evaluate.latency-calls", "3",
             "--evaluate.latency-warmup", "1"]  # fmt: skip
    program = [sys.executable, str(site / "bin/flow2one"), "convert", "--teacher", "hold.py:build", "--observations", "x.zarr"]
    # an editable install of this checkout has a finder of its own, which comes after the path
    where = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([*program, "--out", "out", *small], cwd=here, env=where, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and (here / "out/report/report.html").is_file(), done.stderr
    asked = [sys.executable, "-c", "import distill; print(distill.__file__)"]
    assert str(site) in subprocess.run(asked, cwd=tmp_path, env=where, capture_output=True, text=True).stdout
