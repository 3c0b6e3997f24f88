"""The gate, on interpreters that only pretend: its verdict, and that nothing partial passes for whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest

from selftest.test_results import record
from torch_conformance import results
from torch_conformance.__main__ import main

ROOT = Path(__file__).parent.parent
PRETENDER = """\
#!{python}
import json, sys, time
sys.path.insert(0, {root!r})
facts = json.loads({facts!r})
if sys.argv[1] == "-c":
    print(json.dumps({{"torch": facts["torch"], "python": [3, 11], "prefix": "", "modules": facts["modules"]}}))
    sys.exit()
if facts["refuses"]:
    sys.exit("ERROR: " + facts["refuses"])
from torch_conformance import results
path = next(word for word in sys.argv if word.startswith("--results=")).partition("=")[2]
writer = results.Writer(path)
writer.header({{"torch": facts["torch"], "suite": "1", "seed": 0, "devices": {{"cpu": {{}}}}, "vias": ["eager"]}})
for case in facts["cases"]:
    writer.case(case)
time.sleep(facts["sleeps"])
outcomes = [case["outcome"] for case in facts["cases"]]
if facts["ends"]:
    writer.footer({{"cases": len(outcomes), "counts": {{o: outcomes.count(o) for o in set(outcomes)}}}})
"""


@pytest.fixture
def pretend(tmp_path):
    """Make an interpreter that has this torch and finds these cases."""

    def pretend(name, *cases, torch="2.13.0", ends=True, refuses=None, sleeps=0, modules=("numpy", "pytest", "xdist")):
        facts = {"torch": torch, "cases": cases, "ends": ends, "refuses": refuses, "sleeps": sleeps, "modules": modules}
        path = tmp_path / name
        path.write_text(PRETENDER.format(python=sys.executable, root=str(ROOT), facts=json.dumps(facts)))
        path.chmod(0o755)
        return str(path)

    return pretend


@pytest.fixture
def gate(tmp_path, capfd, monkeypatch):
    """Run the gate; gives exit status, last line, the document and what was printed."""
    monkeypatch.setenv("TORCH_CONFORMANCE_CACHE", str(tmp_path / "cache"))

    def gate(old, new, *arguments):
        out = tmp_path / "out"
        status = main(["gate", old, new, "--out", str(out), "--kernel-budget", "0", *arguments])
        printed = capfd.readouterr()
        document = json.loads((out / "gate.json").read_text()) if (out / "gate.json").exists() else {}
        return status, (printed.out + printed.err).splitlines()[-1], document, printed.out

    return gate


def test_two_like_torches_pass_without_a_line_of_difference(pretend, gate):
    status, verdict, document, _ = gate(pretend("a", record()), pretend("b", record()))
    assert (status, verdict, document["differences"]) == (0, "PASS", [])


def test_a_regression_is_named_with_its_claim_and_a_command_of_the_new_interpreter(pretend, gate):
    new = pretend("b", record(outcome="violated", message="got 3", id="test_x.py::test"))
    status, verdict, document, printed = gate(pretend("a", record(), torch="2.11.0"), new)
    assert (status, verdict) == (1, "REGRESSED: 1 claim")
    assert document["regressed"] == ["dropout.eval.identity"]
    assert f"{new} -m torch_conformance run test_x.py::test --seed 0" in printed


def test_the_folder_holds_all_four_files(pretend, gate, tmp_path):
    gate(pretend("a", record()), pretend("b", record()))
    assert {"gate.json", "gate.md", "old.jsonl", "new.jsonl"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert results.read(tmp_path / "out" / "old.jsonl").complete


def test_a_run_that_does_not_end_gives_no_verdict(pretend, gate):
    status, verdict, document, _ = gate(pretend("a", record()), pretend("b", record(), ends=False))
    assert status == 2
    assert verdict == "CANNOT DECIDE: NEW is incomplete (it ends after 1 case)"
    assert document["complete"] is False


def test_a_run_that_is_refused_gives_its_reason(pretend, gate):
    status, verdict, document, _ = gate(pretend("a", record()), pretend("b", refuses="no such claim"))
    assert (status, document["exit"]) == (2, 2)
    assert verdict == "CANNOT DECIDE: NEW (torch 2.13.0) did not run: no such claim"


def test_results_of_an_earlier_gate_never_stand_for_this_one(pretend, gate, tmp_path):
    gate(pretend("a", record()), pretend("b", record()))
    status, *_ = gate(pretend("a", refuses="x"), pretend("b", refuses="x"))
    assert status == 2
    assert not (tmp_path / "out" / "old.jsonl").exists()


def test_a_run_that_takes_too_long_is_stopped(pretend, gate):
    begun = time.monotonic()
    status, verdict, document, _ = gate(pretend("a", record()), pretend("b", record(), sleeps=600), "--timeout", "4")
    assert time.monotonic() - begun < 120
    assert (status, verdict.partition(":")[0]) == (2, "CANNOT DECIDE")
    assert "stopped after 4 s (--timeout)" in document["remarks"]


def test_an_interruption_leaves_a_marked_partial_result_and_no_process(pretend, tmp_path):
    sides = [pretend(name, record(), sleeps=600) for name in "ab"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch_conformance", "gate", *sides, "--out", str(out), "--kernel-budget", "0"]
    # a job that a script puts in the background inherits that interrupts are ignored
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not all(written(out / f"{name}.jsonl") for name in ("old", "new")):
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    said, told = running.communicate(timeout=60)
    assert running.returncode == 2
    assert said.splitlines()[-1].startswith("CANNOT DECIDE: OLD is incomplete (it ends after 1 case)")
    assert "Traceback" not in told
    assert "interrupted" in json.loads((out / "gate.json").read_text())["remarks"]
    assert not results.read(out / "old.jsonl").complete
    assert not processes(sides[0])


def written(path):
    return path.exists() and b'"case"' in path.read_bytes()


def processes(name):
    """The processes whose command line holds the name."""
    lines = [p / "cmdline" for p in Path("/proc").glob("[0-9]*")] if os.path.isdir("/proc") else []
    found = []
    for line in lines:
        try:
            found += [line] if f"{name}\0-m".encode() in line.read_bytes() else []
        except OSError:
            continue
    return found


def test_without_xdist_a_crash_would_end_the_run_and_the_gate_says_so(pretend, gate, monkeypatch):
    from torch_conformance.upgrade import environments

    def refuse(*_):
        raise environments.CannotInstall("no network")

    monkeypatch.setattr(environments, "install", refuse)
    old = pretend("a", record(), modules=("numpy", "pytest"))
    status, _, document, _ = gate(old, pretend("b", record()))
    assert status == 0
    assert any("OLD lacks pytest-xdist" in remark for remark in document["remarks"])


BAD = [
    (["nonsense", "2.13.0"], "neither a torch version"),
    (["1.2.0", "2.13.0"], "the oldest torch that the suite knows is 1.13"),
    (["/bin/true", "2.13.0"], "is no python"),
    (["missing.whl", "2.13.0"], "is no wheel of torch"),
    (["2.13.0", "2.13.0", "--timeout", "-1"], "must not be negative"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_input_is_one_line_and_exit_status_2(tmp_path, capsys, arguments, words):
    assert main(["gate", *arguments, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("torch-conformance: ")
    assert words in told


def test_a_python_without_torch_is_one_line(tmp_path, capsys):
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1\n")
    path.chmod(0o755)
    assert main(["gate", str(path), str(path), "--out", str(tmp_path / "out")]) == 2
    assert "cannot import torch: ModuleNotFoundError" in capsys.readouterr().err
    assert "CANNOT DECIDE" in (tmp_path / "out/gate.md").read_text()
    assert json.loads((tmp_path / "out/gate.json").read_text())["exit"] == 2


def test_an_out_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["gate", "2.13.0", "2.13.0", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_the_gate_needs_no_torch_of_its_own():
    script = """
        import sys
        sys.modules["torch"] = None
        from torch_conformance.upgrade import compare, differences, environments, gate, ledger, wording
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=True)


# -- the kernels -------------------------------------------------------------------------------------------------------


def test_a_kernel_is_one_line_of_meaning_accuracy_and_speed(tmp_path):
    from torch_conformance.upgrade import differences
    from torch_conformance.upgrade import gate as module

    def side(name, headroom):
        path = tmp_path / name
        writer = results.Writer(path)
        writer.header({"torch": "2.13.0"})
        writer.case(record(claim="norms.layernorm.formula", headroom=headroom))
        writer.footer({"cases": 1, "counts": {"holds": 1}})
        return results.read(path)

    comparison = differences.compare(side("old", 0.1), side("new", 0.3), {})
    row = {
        "name": "layer_norm/s/float32/backward", "norm": "layer_norm", "dtype": "float32", "verdict": "slower",
        "counts": True, "ratio": 1.2, "low": 1.15, "high": 1.25, "pairs": 9, "note": None,
        "old_microseconds": 10.0, "new_microseconds": 12.0,
    }  # fmt: skip
    comparison.kernels = [*module.kernel_lines({"kernels": [row], "missing": []}, comparison)]
    (kernel,) = comparison.kernels
    assert (kernel["semantics"], kernel["accuracy"]) == ("holds", "0.1 -> 0.3")
    assert kernel["speed"] == "slower: 1.200 (1.150 to 1.250, 9 pairs)"
    assert comparison.verdict == "REGRESSED: 1 slower kernel"
