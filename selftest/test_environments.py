"""Interpreters: what is installed for which torch, where it is cached, and what is said when it cannot be had."""

from __future__ import annotations

import stat
import sys

import pytest

from torch_conformance.upgrade import environments
from torch_conformance.upgrade.environments import CannotInstall, NoInterpreter, NoSuchVersion


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(environments.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def installer(monkeypatch, tmp_path):
    """A uv that only pretends: it makes a folder with a python, and can be told to fail with a message."""
    calls = []

    def install(complaint=None):
        def run(command, progress):
            calls.append(command)
            if "venv" in command:
                binary = environments.Path(command[-1]) / "bin"
                binary.mkdir(parents=True)
                (binary / "python").write_text("#!/bin/sh\n")
            elif complaint:
                return 1, complaint
            return 0, ""

        monkeypatch.setattr(environments, "run", run)
        monkeypatch.setattr(environments, "uv", lambda: ["uv"])
        monkeypatch.setattr(environments, "probe", lambda python: {"torch": "2.13.0+cpu", "modules": []})
        return calls

    return install


def test_a_version_is_built_once(installer, cache):
    calls = installer()
    first, second = (environments.prepare("2.13.0") for _ in range(2))
    assert first == second
    assert first.torch == "2.13.0+cpu"
    assert first.python.is_relative_to(cache)
    assert len(calls) == 2
    assert {"torch==2.13.0", "numpy", "pytest>=8", "pytest-xdist"} <= set(calls[1])


def test_a_build_that_failed_is_not_taken_for_whole(installer, cache):
    installer("error: boom")
    with pytest.raises(CannotInstall, match="boom"):
        environments.prepare("2.13.0")
    assert not [path for path in cache.iterdir() if path.is_dir()]
    installer()
    assert environments.prepare("2.13.0").python.exists()


def test_a_build_that_was_killed_is_done_again(installer):
    calls = installer()
    built = environments.prepare("2.13.0")
    (built.python.parent.parent / "ready.json").unlink()
    environments.prepare("2.13.0")
    assert len(calls) == 4


COMPLAINTS = [
    ("cause: Because there is no version of torch==9.9.9 and you require", NoSuchVersion, "there is no such release"),
    ("ERROR: No matching distribution found for torch==9.9.9", NoSuchVersion, "there is no such release"),
    ("error: failed to write: No space left on device (os error 28)", CannotInstall, "no space left on the disk"),
    ("error: x\n  cause: dns error", CannotInstall, "no network"),
    ("", CannotInstall, "it said nothing"),
]


@pytest.mark.parametrize(("complaint", "error", "words"), COMPLAINTS)
def test_an_installers_complaint_becomes_one_line(installer, complaint, error, words):
    installer(complaint or " ")
    with pytest.raises(error, match=words) as raised:
        environments.prepare("9.9.9")
    assert "\n" not in str(raised.value)


REQUIREMENTS = [
    ("1.13.1", ["numpy<2", "pytest>=8", "pytest-xdist", "setuptools<81"]),
    ("2.1.2", ["numpy<2", "pytest>=8", "pytest-xdist", "setuptools<81"]),
    ("2.2.2", ["numpy<2", "pytest>=8", "pytest-xdist"]),
    ("2.3.0", ["numpy", "pytest>=8", "pytest-xdist"]),
]


@pytest.mark.parametrize(("torch", "wanted"), REQUIREMENTS)
def test_old_releases_get_what_they_can_live_with(torch, wanted):
    assert environments.requirements(torch, list(environments.SUITE)) == wanted


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [("2.13", "torch==2.13.*"), ("2.13.0", "torch==2.13.0"), ("2.13.0+cpu", "torch==2.13.0+cpu")],
)
def test_a_series_is_its_newest_release(spec, wanted):
    assert environments.torch_requirement(spec) == wanted


PYTHONS = [
    ("1.13.1", 11, 11), ("1.13.1", 14, 11), ("2.4.0", 13, 12), ("2.8.0", 14, 13), ("2.9.0", 14, 14), ("2.15.0", 10, 11),
    ("2.16.0", 16, 16),
]  # fmt: skip


@pytest.mark.parametrize(("torch", "here", "chosen"), PYTHONS)
def test_the_python_is_the_nearest_that_the_torch_has_wheels_for(monkeypatch, torch, here, chosen):
    monkeypatch.setattr(environments.sys, "version_info", type("V", (), {"minor": here})())
    monkeypatch.setattr(environments.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert environments.python_for(torch) == chosen


def test_without_a_fitting_python_the_range_is_named(monkeypatch):
    monkeypatch.setattr(environments.sys, "version_info", type("V", (), {"minor": 15})())
    monkeypatch.setattr(environments.shutil, "which", lambda name: None)
    monkeypatch.setattr(environments, "uv", lambda: None)
    with pytest.raises(NoInterpreter, match=r"Python 3\.10 to 3\.11, none of which is here; this is 3\.15"):
        environments.python_for("1.13.1")


def test_pips_sources_are_handed_on_to_uv(monkeypatch):
    for name in ("UV_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_STRATEGY", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    found = environments.installer_variables()
    assert (found["UV_FIND_LINKS"], found["UV_DEFAULT_INDEX"]) == ("/wheels", "https://mirror/simple")
    monkeypatch.setenv("UV_FIND_LINKS", "/own")
    assert environments.installer_variables()["UV_FIND_LINKS"] == "/own"


def test_a_users_interpreter_is_never_written_to(installer, tmp_path, monkeypatch):
    calls = installer()
    own = tmp_path / "own"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setattr(environments, "probe", lambda python: {"torch": "2.1.0", "modules": ["numpy", "pytest"]})
    found = environments.prepare(str(own))
    (command,) = calls
    assert command[command.index("--target") + 1] == str(found.extra)
    assert "pytest-xdist" in command
    assert "torch" not in " ".join(command[command.index("--target") :])
    assert found.variables()["PYTHONPATH"] == str(found.extra)
    assert found.python == own


def test_a_virtual_environments_folder_names_its_python(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert environments.find_executable(str(tmp_path)) == tmp_path / "bin" / "python"


def test_a_file_that_is_not_executable_is_refused(tmp_path):
    path = tmp_path / "python"
    path.write_text("")
    path.chmod(stat.S_IRUSR)
    with pytest.raises(NoInterpreter, match="is not executable"):
        environments.find_executable(str(path))


def test_an_unwritable_cache_names_the_variable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(environments.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(CannotInstall, match=environments.CACHE_VARIABLE):
        environments.prepare("2.13.0")
