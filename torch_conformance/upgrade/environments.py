"""Interpreters with a torch: built once for a version and cached, or a user's own taken as it is.

A version (``2.13.0``, ``2.13``) or a wheel becomes a virtual environment under the user's cache folder, made by uv
where there is one and by venv and pip elsewhere. A python executable of the user's is never written to: what the suite
needs and the interpreter lacks is laid beside it in a folder of the cache and put on ``PYTHONPATH`` for the run alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from torch_conformance.errors import UsageError

CACHE_VARIABLE = "TORCH_CONFORMANCE_CACHE"
SUITE = {"numpy": "numpy", "pytest": "pytest>=8", "xdist": "pytest-xdist"}
PYTHONS = {  # the first release of torch from which these minor versions of Python 3 have wheels
    "1.13": (7, 11),
    "2.0": (8, 11),
    "2.2": (8, 12),
    "2.5": (9, 13),
    "2.9": (10, 14),
    "2.15": (11, 15),
}
OLDEST_PYTHON = 10  # of the suite itself
PROBE = """
import importlib.util as u, json, sys
import torch
print(json.dumps({"torch": torch.__version__, "python": list(sys.version_info[:2]), "prefix": sys.prefix,
                  "modules": [m for m in ("numpy", "pytest", "xdist") if u.find_spec(m)]}))
"""
Progress = Callable[[str], None]


class NoEnvironment(UsageError):
    """An interpreter that cannot be had; the message says which and why."""


class NoSuchVersion(NoEnvironment):
    """There is no such release of torch, or none for a Python of this machine."""


class NoTorch(NoEnvironment):
    """A python executable that cannot import torch."""


class NoInterpreter(NoEnvironment):
    """No Python that this torch has wheels for, or a path that is no interpreter."""


class CannotInstall(NoEnvironment):
    """The installation failed: no network, no disk space, or what the installer said."""


@dataclass(frozen=True)
class Environment:
    """An interpreter that can run the suite."""

    python: Path
    torch: str
    extra: Path | None = None
    """A folder for ``PYTHONPATH`` with what the interpreter itself lacks."""
    survives_crashes: bool = True
    """Whether pytest-xdist is there, so that a crash of torch costs one case only."""

    def variables(self) -> dict[str, str]:
        """The environment variables of a run."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PYTEST_ADDOPTS")}
        return {**kept, **({"PYTHONPATH": str(self.extra)} if self.extra else {})}


def interpreter(spec: str, progress: Progress = lambda line: None) -> Path:
    """The python executable for a version of torch, a wheel, or an executable. Raises `NoEnvironment` without one."""
    return prepare(spec, progress).python


def prepare(spec: str, progress: Progress = lambda line: None) -> Environment:
    """An interpreter with torch and all that the suite needs, built when it is not there yet."""
    if executable := find_executable(spec):
        return adopt(executable, progress)
    return build(spec, progress)


def is_version(spec: str) -> bool:
    try:
        Version(spec)
    except InvalidVersion:
        return False
    return True


def find_executable(spec: str) -> Path | None:
    """The interpreter that the text names: a file, a virtual environment's folder, or a command on the path."""
    path = Path(spec).expanduser()
    for inside in ("bin/python", "Scripts/python.exe"):
        if path.is_dir() and (path / inside).exists():
            return (path / inside).absolute()
    if path.is_file() and path.suffix != ".whl":
        if not os.access(path, os.X_OK):
            raise NoInterpreter(f"{spec}: is not executable; give a torch version (2.13.0) or a python executable")
        return path.absolute()  # not resolved: a virtual environment's python is a link that knows itself by its name
    if is_version(spec) or path.suffix == ".whl":
        return None
    if found := shutil.which(spec):
        return Path(found)
    raise NoInterpreter(f"{spec}: neither a torch version (2.13.0), nor a wheel, nor a python executable")


# -- a user's own ------------------------------------------------------------------------------------------------------


def adopt(python: Path, progress: Progress) -> Environment:
    """The user's own interpreter, with what it lacks laid beside it. Raises `NoTorch` where it cannot import torch."""
    facts = probe(python)
    lacking = [module for module in SUITE if module not in facts["modules"]]
    version = str(facts["torch"])
    if not lacking:
        return Environment(python, version)
    try:
        return Environment(python, version, overlay(python, version, lacking, progress))
    except CannotInstall as error:
        if lacking != ["xdist"]:
            raise CannotInstall(f"{python}: lacks {' and '.join(lacking)}, and {error}") from None
        progress(f"{python}: lacks pytest-xdist, so a crash of torch would end the run ({error})")
        return Environment(python, version, survives_crashes=False)


def probe(python: Path) -> Mapping[str, list[str] | str]:
    """What the interpreter says of itself."""
    try:
        ran = subprocess.run([str(python), "-c", PROBE], capture_output=True, text=True, errors="replace", timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "did not answer within 300 s" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
        raise NoInterpreter(f"{python}: cannot be run: {reason}") from None
    if ran.returncode:
        raise NoTorch(f"{python}: cannot import torch: {last_line(ran.stderr) or f'it ended with {ran.returncode}'}")
    try:
        facts: Mapping[str, list[str] | str] = json.loads(ran.stdout.splitlines()[-1])
        return {key: facts[key] for key in ("torch", "python", "prefix", "modules")}
    except (IndexError, ValueError, KeyError, TypeError):
        raise NoInterpreter(f"{python}: is no python: it answered {ran.stdout.strip()[:60]!r}") from None


def overlay(python: Path, torch: str, lacking: list[str], progress: Progress) -> Path:
    wanted = requirements(torch, lacking)
    place = cache() / f"beside-{digest(str(python), *wanted)}"
    with locked(place):
        if not (place / "ready").exists():
            progress(f"installing {', '.join(wanted)} beside {python}")
            clear(place)
            place.mkdir()
            install(python, wanted, place, progress)
            (place / "ready").touch()
    return place


# -- a version ---------------------------------------------------------------------------------------------------------


def build(spec: str, progress: Progress) -> Environment:
    """A cached virtual environment for the version or wheel. Raises a `UsageError` that names what went wrong."""
    release = spec if is_version(spec) else version_of_wheel(Path(spec))
    minor = python_for(release)
    wanted = [torch_requirement(spec), *requirements(release, list(SUITE))]
    index = [f"{k}={v}" for k, v in sorted(installer_variables().items()) if k.startswith(("UV_", "PIP_"))]
    place = cache() / f"torch-{release}-py3.{minor}-{digest(*wanted, *index)}"
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = place / "ready.json"
    with locked(place):
        if not ready.exists() or not python.exists():
            progress(f"building an environment for torch {release} in {place} (once)")
            try:
                clear(place)
                create(place, minor, progress)
                install(python, wanted, None, progress, release)
                ready.write_text(json.dumps({"torch": probe(python)["torch"]}), encoding="utf-8")
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
    return Environment(python, json.loads(ready.read_text(encoding="utf-8"))["torch"])


def torch_requirement(spec: str) -> str:
    """``2.13`` is the newest 2.13, ``2.13.0`` that release in any build, ``2.13.0+cpu`` that build."""
    if not is_version(spec):
        return str(Path(spec).expanduser().absolute())
    version = Version(spec)
    is_series = len(version.release) < 3 and not version.is_prerelease and version.local is None
    return f"torch=={spec}.*" if is_series else f"torch=={spec}"


def version_of_wheel(path: Path) -> str:
    parts = path.name.split("-")
    if not path.expanduser().is_file() or len(parts) < 5 or not is_version(parts[1]):
        raise NoSuchVersion(f"{path}: is no wheel of torch")
    return parts[1]


def requirements(torch: str, modules: list[str]) -> list[str]:
    """What these modules are installed as, within what this torch can live with."""
    release = Version(torch).release
    wanted = [SUITE[module] for module in modules]
    if release < (2, 3) and "numpy" in wanted:  # compiled against NumPy 1
        wanted[wanted.index("numpy")] = "numpy<2"
    if release < (2, 2) and len(modules) == len(SUITE):  # torch.utils.cpp_extension imports pkg_resources
        wanted.append("setuptools<81")
    return wanted


def python_for(torch: str) -> int:
    """The minor version of Python 3 to use: this one where torch has wheels for it, else the nearest that is there.

    Raises `NoSuchVersion` for a torch older than the suite supports, `NoInterpreter` where no Python fits.
    """
    release = Version(torch).release[:2]
    ranges = [span for first, span in PYTHONS.items() if Version(first).release <= release]
    if not ranges:
        raise NoSuchVersion(f"torch {torch}: the oldest torch that the suite knows is {next(iter(PYTHONS))}")
    oldest, newest = max(ranges[-1][0], OLDEST_PYTHON), ranges[-1][1]
    here = sys.version_info.minor
    newest_listed = release >= Version(list(PYTHONS)[-1]).release
    if oldest <= here and (here <= newest or newest_listed):
        return here
    fitting = sorted(range(oldest, newest + 1), key=lambda minor: abs(minor - here))
    if found := next((minor for minor in fitting if shutil.which(f"python3.{minor}")), None):
        return found
    if uv():
        return fitting[0]
    span = f"3.{oldest} to 3.{newest}" if oldest < newest else f"3.{newest}"
    raise NoInterpreter(f"torch {torch}: has wheels for Python {span}, none of which is here; this is 3.{here}")


def create(place: Path, minor: int, progress: Progress) -> None:
    """A bare virtual environment."""
    if tool := uv():
        command = [*tool, "venv", "--quiet", "--python", f"3.{minor}", str(place)]
    else:
        base = sys.executable if minor == sys.version_info.minor else shutil.which(f"python3.{minor}") or sys.executable
        command = [base, "-m", "venv", str(place)]
    ended, said = run(command, progress)
    if ended:
        raise CannotInstall(f"no virtual environment with Python 3.{minor} in {place}: {reason(said)}")


def install(python: Path, wanted: list[str], target: Path | None, progress: Progress, torch: str | None = None) -> None:
    beside = ["--target", str(target)] if target else []
    if tool := uv():
        command = [*tool, "pip", "install", "--python", str(python), *beside, *wanted]
    elif target:  # the user's interpreter may lack pip, but this one need not
        command = [sys.executable, "-m", "pip", "install", "--no-input", f"--python={python}", *beside, *wanted]
    else:
        command = [str(python), "-m", "pip", "install", "--no-input", *wanted]
    ended, said = run(command, progress)
    if not ended:
        return
    if torch and re.search(r"no version of torch|no matching distribution.*torch|no wheels with a match", said, re.I):
        raise NoSuchVersion(f"torch {torch}: there is no such release for this platform and Python")
    raise CannotInstall(f"{', '.join(wanted)} cannot be installed: {reason(said)}")


# -- the installer -----------------------------------------------------------------------------------------------------


def uv() -> list[str] | None:
    """The command of uv, beside this interpreter or on the path; None where there is none."""
    beside = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    return [found] if found else None


def installer_variables() -> dict[str, str]:
    """Where packages come from: pip's variables are handed on to uv, which reads only its own."""
    found = {k: v for k, v in os.environ.items() if k.startswith(("UV_", "PIP_", "SSL_CERT"))}
    handed_on = {"PIP_FIND_LINKS": "UV_FIND_LINKS", "PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_CERT": "SSL_CERT_FILE"}
    for pips, uvs in handed_on.items():
        if pips in found and uvs not in found:
            found[uvs] = found[pips]
    if "PIP_EXTRA_INDEX_URL" in found and "UV_INDEX" not in found:
        found |= {"UV_INDEX": found["PIP_EXTRA_INDEX_URL"], "UV_INDEX_STRATEGY": "unsafe-best-match"}
    return found


def run(command: list[str], progress: Progress) -> tuple[int, str]:
    """Run an installer, its last line shown as progress. Returns how it ended and what it said."""
    said: list[str] = []
    environment = {**os.environ, **installer_variables(), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process:
            assert process.stdout
            for line in process.stdout:
                said.append(line)
                if line.strip():
                    progress(line.strip())
    except OSError as error:
        return 1, f"{command[0]}: {error.strerror}"
    return process.returncode, "".join(said)


def reason(said: str) -> str:
    """The one line of an installer's complaint that a person needs."""
    for pattern, told in (
        (r"No space left on device|os error 28", "no space left on the disk"),
        (r"dns error|Name or service not known|Temporary failure in name|Connection refused", "no network"),
    ):
        if re.search(pattern, said):
            return told
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"(cause|error)\b", line, re.I)]
    first = (causes[1:] or causes or lines or ["it said nothing"])[0]
    told = re.sub(r"^(cause|error)\s*:?\s*", "", first, flags=re.I)
    return told if len(told) <= 200 else f"{told[:197]}..."


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


# -- the cache ---------------------------------------------------------------------------------------------------------


def cache() -> Path:
    """The folder that environments live in: ``TORCH_CONFORMANCE_CACHE``, or the platform's place for caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    home = Path.home()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "torch-conformance"


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def clear(place: Path) -> None:
    """Remove what an interrupted build left."""
    try:
        if place.exists():
            shutil.rmtree(place)
    except OSError as error:
        raise CannotInstall(f"{place}: cannot be removed: {error.strerror}") from None


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """One process at a time builds a place; the others wait and then find it built."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = open(place.with_name(f"{place.name}.lock"), "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise CannotInstall(
            f"{place.parent}: cannot be written: {error.strerror}; {CACHE_VARIABLE} names another folder"
        ) from None
    with handle:
        try:
            import fcntl
        except ImportError:  # Windows: two builds of one version at a time are not guarded against
            yield
            return
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
