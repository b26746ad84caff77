"""The doctor's answers, case by case, on machines made up by replacing what it looks at."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from types import SimpleNamespace

import pytest

from distill.cli.doctor import machine as doctor
from distill.cli.doctor.machine import Check, Requirement
from distill.hypotheses import neighbours

HERE = {
    "torch": "2.13.0+cpu", "torchcfm": "1.0.7", "POT": "0.9.7.post1", "accelerate": "1.15.0", "safetensors": "0.8.0",
    "tyro": "1.0.17", "PyYAML": "6.0.3", "numpy": "2.4.6", "scipy": "1.17.1", "mujoco": "3.8.1", "gymnasium": "1.4.0",
    "matplotlib": "3.11.2", "Jinja2": "3.1.6", "pillow": "13.0.0", "faiss-cpu": "1.15.1", "diffusers": "0.39.0",
    "wandb": "0.20.0",
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """A machine on which all is well; change the dict to change what is installed."""
    installed = dict(HERE)

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    backends = {"egl": "", "osmesa": "library libOSMesa not found", "raycast": ""}
    monkeypatch.setitem(sys.modules, "envs.cameras.backends", SimpleNamespace(available_backends=lambda: backends))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=50e9))
    return SimpleNamespace(installed=installed, backends=backends)


def _find(name):
    return next(check for check in doctor.checks() if check.name == name)


def test_all_is_well(machine, capsys):
    assert [check for check in doctor.checks() if check.status == "missing"] == []
    assert doctor.run_doctor() == 0
    printed = capsys.readouterr().out
    assert "mujoco" in printed and "3.8.1" in printed and "Ready: everything required is installed." in printed
    assert "MISSING" not in printed


def test_a_missing_package_is_named_with_its_cure(machine, capsys):
    del machine.installed["scipy"]
    assert _find("scipy") == Check("scipy", "missing", "not installed, needed >=1.13", "pip install 'scipy>=1.13'")
    assert doctor.run_doctor() == 1
    printed = capsys.readouterr().out
    assert "MISSING  scipy" in printed and "-> pip install 'scipy>=1.13'" in printed and "Not ready: scipy." in printed


@pytest.mark.parametrize("name", ["wandb", "diffusers", "faiss-cpu"])
def test_optional_packages_do_not_fail(machine, monkeypatch, name):
    del machine.installed[name]
    monkeypatch.setattr(neighbours, "faiss_available", lambda: False)
    check = _find("faiss" if name == "faiss-cpu" else name)
    assert check.status == "optional" and "not installed" in check.found and "pip install" in check.advice
    assert doctor.run_doctor() == 0


def test_mujoco_4_is_refused_with_the_reason(machine):
    machine.installed["mujoco"] = "4.0.0"
    check = _find("mujoco")
    assert check.status == "missing" and check.found == "4.0.0, needed >=3.3.3,<3.9"
    assert "solver bug" in check.advice and "pip install 'mujoco>=3.3.3,<3.9'" in check.advice
    assert doctor.run_doctor() == 1


@pytest.mark.parametrize(
    ("version", "status"),
    [("3.3", "missing"), ("3.3.3", "ok"), ("3.8.1", "ok"), ("3.10.0", "missing"), ("3.9.0", "missing"),
     ("3.2.9", "missing")],
)  # fmt: skip
def test_versions_are_compared_as_numbers(machine, version, status):
    machine.installed["mujoco"] = version
    assert _find("mujoco").status == status


@pytest.mark.parametrize(
    ("version", "status"), [("2.13.0+cpu", "ok"), ("2.7.0", "ok"), ("2.14.0", "missing"), ("2.6", "missing")]
)
def test_torch_versions(machine, version, status):
    machine.installed["torch"] = version
    assert _find("torch").status == status


def test_an_old_optional_package_is_only_a_note(machine):
    machine.installed["diffusers"] = "0.35.1"
    assert _find("diffusers").status == "optional" and _find("diffusers").found == "0.35.1, needed >=0.38"


@pytest.mark.parametrize(
    ("version", "expected"), [("2.13.0+cpu", (2, 13, 0)), ("0.9.7.post1", (0, 9, 7)), ("1.0rc1", (1, 0)), ("dev", ())]
)
def test_numbers_of_a_version(version, expected):
    assert doctor.numbers_of(version) == expected


@pytest.mark.parametrize(
    ("torch", "vision", "status"),
    [("2.13.0+cpu", "0.28.0", "optional"), ("2.13.0+cpu", "0.28.0+cpu", "ok"), ("2.13.0", "0.28.0", "ok"),
     ("2.13.0+cpu", None, "ok")],
)  # fmt: skip
def test_torchvision_beside_a_cpu_torch(machine, torch, vision, status):
    machine.installed["torch"] = torch
    if vision:
        machine.installed["torchvision"] = vision
    check = _find("torchvision")
    assert check.status == status
    assert ("pip uninstall torchvision" in check.advice) == (status == "optional")


@pytest.mark.parametrize(
    ("cpu", "gpu", "status", "found"),
    [("1.15.1", None, "ok", "faiss-cpu 1.15.1, WORDS"),
     (None, "1.15.1", "ok", "faiss-gpu 1.15.1, WORDS"),
     ("1.15.1", "1.15.1", "optional", "faiss-cpu 1.15.1 and faiss-gpu 1.15.1"),
     (None, None, "optional", "WORDS")],
)  # fmt: skip
def test_faiss(machine, monkeypatch, cpu, gpu, status, found):
    monkeypatch.setattr(neighbours, "faiss_available", lambda: bool(cpu or gpu))
    monkeypatch.setattr(neighbours, "faiss_sees_gpu", lambda: False)
    machine.installed.pop("faiss-cpu")
    machine.installed |= {name: version for name, version in (("faiss-cpu", cpu), ("faiss-gpu", gpu)) if version}
    check = _find("faiss")
    words = neighbours.describe_faiss().removeprefix("installed, ")
    assert words.startswith("CPU only: " if cpu or gpu else "not installed: ")
    assert (check.status, check.found) == (status, found.replace("WORDS", words))
    assert ("pip install faiss-cpu" in check.advice) == (not cpu and not gpu)


def test_a_faiss_that_is_listed_but_not_there_or_there_but_not_listed(machine, monkeypatch):
    monkeypatch.setattr(neighbours, "faiss_available", lambda: False)
    check = _find("faiss")
    assert check.status == "optional" and check.found.startswith("faiss-cpu 1.15.1, but not installed: exact search by")
    assert check.advice == "pip install --force-reinstall faiss-cpu"
    monkeypatch.setattr(neighbours, "faiss_available", lambda: True)
    del machine.installed["faiss-cpu"]
    assert _find("faiss") == Check("faiss", "ok", neighbours.describe_faiss())
    assert neighbours.describe_faiss().startswith("installed, ")

    def refuse():
        raise OSError("libfaiss.so: cannot open")

    monkeypatch.setattr(neighbours, "describe_faiss", refuse)
    assert _find("faiss").found == "not usable: OSError: libfaiss.so: cannot open"
    assert _find("faiss").status == "optional"


def test_renderers(machine):
    assert _find("renderer egl") == Check("renderer egl", "ok", "works")
    osmesa = _find("renderer osmesa")  # EGL works, so nothing is to be done
    assert osmesa == Check("renderer osmesa", "ok", "not needed next to EGL (library libOSMesa not found)")
    machine.backends["egl"] = "library libEGL not found"
    assert _find("renderer egl").status == _find("renderer osmesa").status == "optional"
    assert "libegl1" in _find("renderer egl").advice and "libosmesa6" in _find("renderer osmesa").advice
    assert _find("renderer raycast").status == "ok"
    assert doctor.run_doctor() == 0


def test_a_renderer_that_cannot_be_imported(machine, monkeypatch):
    def refuse():
        raise RuntimeError("invalid value for environment variable MUJOCO_GL: glx")

    monkeypatch.setitem(sys.modules, "envs.cameras.backends", SimpleNamespace(available_backends=refuse))
    check = _find("renderer")
    assert check.status == "missing" and "MUJOCO_GL" in check.found and "unset MUJOCO_GL" in check.advice


def test_a_torch_that_cannot_be_imported(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert _find("torch devices").status == "missing"


def test_torch_devices_name_the_gpus(machine, monkeypatch):
    cuda = SimpleNamespace(device_count=lambda: 2, get_device_name=lambda i: f"GPU {i}")
    mps = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, backends=mps))
    assert _find("torch devices").found == "cpu, GPU 0, GPU 1"


@pytest.mark.parametrize(("version", "status"), [((3, 10, 14), "missing"), ((3, 11, 0), "ok"), ((3, 14, 1), "ok")])
def test_python(version, status):
    assert doctor.python_check(version).status == status


def test_disk(machine, monkeypatch, tmp_path):
    assert doctor.disk_check(tmp_path).status == "ok"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1.25e9))
    check = doctor.disk_check(tmp_path)
    assert check.status == "optional" and check.found.startswith("1.2 GB free") and check.advice


def test_launchers(machine, monkeypatch):
    assert _find("launcher torchrun").status == "ok"
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    assert [check.status for check in doctor.launcher_checks()] == ["optional", "optional"]


def test_simulator(machine, monkeypatch, tmp_path):
    monkeypatch.delenv("COPPELIASIM_ROOT", raising=False)
    assert "not pip install pyrep" in _find("CoppeliaSim").advice
    monkeypatch.setenv("COPPELIASIM_ROOT", str(tmp_path / "absent"))
    assert _find("CoppeliaSim").status == "optional"
    monkeypatch.setenv("COPPELIASIM_ROOT", str(tmp_path))
    assert _find("CoppeliaSim") == Check("CoppeliaSim", "ok", str(tmp_path))


def test_everything_that_is_not_ok_says_what_to_do(machine, monkeypatch):
    monkeypatch.setattr(neighbours, "faiss_available", lambda: False)
    machine.installed.clear()
    machine.backends["egl"] = machine.backends["raycast"] = "no"
    for check in doctor.checks():
        assert "\n" not in check.advice + check.found
        assert bool(check.advice) == (check.status != "ok"), check.name


def test_a_status_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="got status 'warn'"):
        Check("x", "warn", "y")


def test_wanted_is_written_as_pip_reads_it():
    assert Requirement("a", "1.0").wanted == ">=1.0" and Requirement("a", "1.0", "2").wanted == ">=1.0,<2"


def test_the_real_machine_can_be_looked_at():
    names = [check.name for check in doctor.checks()]
    assert len(names) == len(set(names)) and {"Python", "torch", "renderer raycast", "disk"} <= set(names)
