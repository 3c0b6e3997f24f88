"""The ledger: written by a line a claim, and checked so that no change goes unseen."""

from __future__ import annotations

import json

import pytest

from selftest.test_results import record
from torch_conformance import results
from torch_conformance.__main__ import main


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command on cases: ``run(*cases, check=True)`` gives exit status, stdout and stderr."""

    def run(*cases, check=False, footer=True, examples=None, **header):
        path = tmp_path / "torch.jsonl"
        writer = results.Writer(path)
        writer.header({"torch": "2.13.0+cpu", "suite": "1", "seed": 0, "devices": {"cpu": {}}, "started": "0"} | header)
        for case in cases:
            writer.case(case)
        writer.note("surface", {"examples": examples or {}})
        if footer:
            writer.footer({"cases": len(cases), "counts": counts(cases)})
        status = main(["ledger", str(path), "--ledger", str(tmp_path / "results"), *["--check"] * check])
        return (status, *capsys.readouterr())

    return run


def counts(cases):
    outcomes = [case["outcome"] for case in cases]
    return {name: outcomes.count(name) for name in set(outcomes)}


def test_what_was_written_checks(run, tmp_path):
    cases = [record(), record(params="p=0.7", outcome="unsupported", headroom=None)]
    assert run(*cases)[0] == 0
    entry = json.loads((tmp_path / "results" / "2.13.0.json").read_text())
    assert entry["claims"] == {"dropout.eval.identity": {"holds": 1, "unsupported": 1, "error": 0.25}}
    assert run(*cases, check=True)[:2] == (0, "torch 2.13.0: as listed\n")


def test_a_claim_is_one_line_of_the_file(run, tmp_path):
    run(record(), record(claim="dropout.train.rate"))
    lines = (tmp_path / "results" / "2.13.0.json").read_text().splitlines()
    assert sum("dropout." in line for line in lines) == 2


@pytest.mark.parametrize(
    "changed",
    [[record(outcome="violated")], [record(), record(params="more")], [record(claim="dropout.train.rate")], []],
)
def test_another_outcome_or_number_of_cases_differs(run, changed):
    run(record())
    status, said, _ = run(*changed, check=True)
    assert status == 1
    assert "dropout.eval.identity: 1 holds -> " in said or "dropout.train.rate" in said


@pytest.mark.parametrize(("error", "status"), [(0.25, 0), (0.9, 0), (1.0, 1), (0.0, 0)])
def test_errors_differ_only_when_they_drifted(run, error, status):
    run(record(headroom=0.25))
    assert run(record(headroom=error), check=True)[0] == status


def test_an_example_that_moved_differs(run):
    run(record(), examples={"zero": "None"})
    assert "example zero: None -> 0" in run(record(), examples={"zero": "0"}, check=True)[1]


def test_an_incomplete_file_is_refused(run):
    status, _, told = run(record(), footer=False)
    assert status == 2
    assert "is incomplete" in told


def test_a_run_of_selected_claims_is_refused(run):
    status, _, told = run(record(), flags={"arguments": ["--claim", "dropout.*"]})
    assert status == 2
    assert "selected claims" in told


def test_a_version_that_is_not_listed_is_refused(run):
    run(record())
    status, _, told = run(record(), check=True, torch="2.14.0")
    assert status == 2
    assert "holds nothing of torch 2.14.0" in told


def test_a_damaged_ledger_is_refused(run, tmp_path):
    run(record())
    (tmp_path / "results" / "2.13.0.json").write_text("{}")
    status, _, told = run(record(), check=True)
    assert status == 2
    assert "no ledger entry" in told
