"""tox plugin: an environment named torchX.Y[.Z] is made of that torch and of what the suite needs beside it.

tox itself would take only the listed names and would want a table of versions; what each torch can live with is known
to `torch_conformance.upgrade.environments`, which the gate uses too.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tox.config.loader.memory import MemoryLoader
from tox.plugin import impl
from tox.tox_env.python.pip.req_file import PythonDeps

sys.path.insert(0, str(Path(__file__).parent))
from torch_conformance.upgrade import environments

NAME = re.compile(r"(?:^|-)torch(\d+\.\d+[\w.+]*)(?:-|$)")
DEFAULT = "2.13.0"
FIXED = {
    "torch": os.environ.get("TORCH", DEFAULT),
    "suite": os.environ.get("TORCH", DEFAULT),
    **dict.fromkeys(("check", "mutants", "bench", "bench-power", "ledger", "miniature"), DEFAULT),
    "xla": "2.9.1",
}
FURTHER = {"xla": ["torch_xla==2.9.0"]}


def torch_of(env_name):
    found = NAME.search(env_name)
    return found[1] if found else FIXED.get(env_name)


@impl
def tox_extend_envs():
    """Names that were asked for and that tox.ini does not list."""
    words = re.split(r"[\s,]+", " ".join([*sys.argv[1:], os.environ.get("TOXENV", "")]))
    return [word for word in words if NAME.search(word)] + ["torch"]


@impl
def tox_add_env_config(env_conf, state):
    """What the environment is made of."""
    torch = torch_of(env_conf.env_name)
    if torch is None:
        return
    release = torch if environments.is_version(torch) else environments.version_of_wheel(Path(torch))
    wanted = [environments.torch_requirement(torch), *environments.requirements(release, list(environments.SUITE))]
    wanted += ["pytest-benchmark", *FURTHER.get(env_conf.env_name, [])]
    env_conf.loaders.insert(0, MemoryLoader(deps=PythonDeps("\n".join(wanted), Path(__file__).parent)))
