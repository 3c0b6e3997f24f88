"""Comparing: what got worse is named by claim and cause, what was announced is told apart, nothing is silent."""

from __future__ import annotations

import json

import pytest
from packaging.specifiers import SpecifierSet

from selftest.test_results import record
from torch_conformance import claims, results
from torch_conformance.__main__ import main
from torch_conformance.changes import Change
from torch_conformance.claims import Claim
from torch_conformance.upgrade import compare, differences, wording

EVAL, TRAIN, NEW_CLAIM = "dropout.eval.identity", "dropout.train.rate", "dropout.new.promise"
CLAIMS = {
    EVAL: Claim(EVAL, "Eval is the identity.", "must", docs=("torch.nn.Dropout#0123456789",)),
    TRAIN: Claim(TRAIN, "p is the rate.", "must"),
    NEW_CLAIM: Claim(NEW_CLAIM, "Old torches only.", "must", torch=SpecifierSet("<2.13")),
}


@pytest.fixture
def write(tmp_path):
    """Write a result file: ``write("old", *cases, torch="2.11.0", notes=…)``."""

    def write(name, *cases, torch="2.13.0", notes=(), footer=True, **header):
        path = tmp_path / f"{name}.jsonl"
        writer = results.Writer(path)
        facts = {"torch": torch, "suite": "1", "seed": 0, "devices": {"cpu": {}}, "vias": ["eager"]}
        writer.header(facts | header)
        for case in cases:
            writer.case({"id": f"{case['test']}[{case['dtype']}-{case['params']}]"} | case)
        for kind, note in notes:
            writer.note(kind, note)
        if footer:
            outcomes = [case["outcome"] for case in cases]
            writer.footer({"cases": len(cases), "counts": {o: outcomes.count(o) for o in set(outcomes)}})
        return path

    return write


@pytest.fixture
def compared(write):
    """The comparison of the cases of two sides."""

    def compared(old, new, changes=(), strict=False, old_facts=None, new_facts=None):
        a = write("old", *old, **({"torch": "2.11.0"} | (old_facts or {})))
        b = write("new", *new, **(new_facts or {}))
        return differences.compare(results.read(a), results.read(b), CLAIMS, changes, strict)

    return compared


def only(comparison):
    (found,) = comparison.differences
    return found


BECAME = [
    ("holds", "violated", "regressed", True),
    ("deviates", "violated", "regressed", True),
    ("unsupported", "violated", "regressed", True),
    ("holds", "deviates", "regressed", True),
    ("holds", "unsupported", "newly-unsupported", True),
    ("violated", "unsupported", "newly-unsupported", False),
    ("unsupported", "holds", "newly-supported", False),
    ("violated", "holds", "fixed", False),
    ("deviates", "holds", "fixed", False),
]


@pytest.mark.parametrize(("old", "new", "kind", "worse"), BECAME)
def test_each_way_that_a_case_can_go_has_its_word(compared, old, new, kind, worse):
    comparison = compared([record(outcome=old, headroom=None)], [record(outcome=new, headroom=None)])
    assert (only(comparison).kind, only(comparison).worse) == (kind, worse)
    assert comparison.exit == worse


@pytest.mark.parametrize("outcome", ["holds", "violated", "deviates", "unsupported"])
def test_what_did_not_change_is_not_a_line(compared, outcome):
    comparison = compared([record(outcome=outcome)], [record(outcome=outcome)])
    assert comparison.differences == []
    assert comparison.verdict == "PASS"


def test_cases_are_aligned_by_identity_never_by_position(compared):
    cases = [record(params=f"p={p}", outcome="holds" if p < 3 else "violated", headroom=0.1 * p) for p in range(6)]
    assert compared(cases, cases[::-1]).differences == []


def test_added_and_removed_cases_are_lines_but_no_regressions(compared):
    kept = record()
    comparison = compared([kept, record(params="gone")], [kept, record(params="come")])
    assert [(d.kind, d.worse) for d in comparison.differences] == [("removed", False), ("added", False)]


def test_an_added_case_that_is_violated_is_a_regression(compared):
    assert compared([record()], [record(), record(params="come", outcome="violated")]).verdict == "REGRESSED: 1 claim"


def test_cases_of_one_cause_are_one_line_with_its_extent(compared):
    grid = [
        record(dtype=dtype, layout=layout, params=f"p={p}")
        for dtype in ("float32", "bfloat16")
        for layout in ("contiguous", "channels_last")
        for p in range(7)
    ]
    after = [
        case | {"outcome": "violated", "message": f"not within 4 eps of the law, at index ({n},): error 0.{n}"}
        if (case["dtype"], case["layout"]) == ("bfloat16", "channels_last")
        else case
        for n, case in enumerate(grid)
    ]
    found = only(compared(grid, after))
    assert wording.headline(found) == f"{EVAL}, bfloat16, channels_last: 7 of 28 cases"


def test_different_causes_are_different_lines(compared):
    after = [
        record(params="p=1", outcome="violated", message="raised TypeError: no"),
        record(params="p=2", outcome="violated", message="not equal bit by bit"),
    ]
    comparison = compared([record(params="p=1"), record(params="p=2")], after)
    assert len(comparison.differences) == 2
    assert comparison.verdict == "REGRESSED: 1 claim"


DRIFTS = [(0.05, 0.2, True), (0.0, 0.2, True), (0.05, 0.19, False), (0.01, 0.09, False), (0.3, 0.9, False)]


@pytest.mark.parametrize(("old", "new", "drifts"), DRIFTS)
def test_headroom_drift_is_four_times_the_error_and_above_a_tenth_of_the_bound(compared, old, new, drifts):
    comparison = compared([record(headroom=old)], [record(headroom=new)])
    assert [d.kind for d in comparison.differences] == ["headroom-drift"] * drifts
    assert comparison.exit == 0
    assert compared([record(headroom=old)], [record(headroom=new)], strict=True).exit == drifts


def test_accuracy_is_not_compared_between_seeds(compared):
    comparison = compared([record(headroom=0.0)], [record(headroom=0.9)], new_facts={"seed": 1}, strict=True)
    assert comparison.differences == []
    assert any("seed" in remark for remark in comparison.remarks)


def test_a_claim_that_does_not_speak_of_the_new_torch_is_no_regression(compared):
    old, new = record(claim=NEW_CLAIM), record(claim=NEW_CLAIM, outcome="unsupported")
    found = only(compared([old], [new]))
    assert (found.kind, found.worse) == ("newly-unsupported", False)
    assert "<2.13" in str(found.reason)


PLACE = {"url": "https://example.org"}
EXCUSED = PLACE | {"excuses": True}
ANNOUNCED = Change("zero", ("dropout.eval.*",), since="2.12", what="Eval copies.", **EXCUSED)


@pytest.mark.parametrize(
    ("change", "torch", "worse"),
    [
        (ANNOUNCED, "2.13.0", False),
        (ANNOUNCED, "2.11.1", True),
        (Change("zero", ("dropout.eval.*",), since="2.12", what="Eval copies."), "2.13.0", True),
        (Change("zero", ("dropout.eval.*",), "2.12", "An argument more.", **PLACE), "2.13.0", True),
        (Change("zero", ("dropout.train.*",), "2.12", "Other.", **EXCUSED), "2.13.0", True),
        (Change("zero", ("*",), "2.9", "Long ago.", **EXCUSED), "2.13.0", True),
        (Change("zero", ("*",), "2.9", "Back.", until="2.12", **EXCUSED), "2.13.0", False),
    ],
)
def test_only_a_change_that_says_so_between_the_versions_excuses(compared, change, torch, worse):
    comparison = compared([record()], [record(outcome="violated")], [change], new_facts={"torch": torch})
    found = next(d for d in comparison.differences if d.kind == "regressed")
    assert found.worse is worse


def test_a_change_that_excuses_is_found_behind_one_that_does_not(compared):
    listed = [Change("more", ("dropout.eval.*",), "2.12", "An argument more.", **PLACE), ANNOUNCED]
    comparison = compared([record()], [record(outcome="violated")], listed)
    found = next(d for d in comparison.differences if d.kind == "regressed")
    assert (found.change, found.worse) == (ANNOUNCED, False)


def test_an_example_is_told_as_both_sides_measured_it(compared):
    change = Change("zero", (EVAL,), "2.12", "Eval copies.", example="1")
    notes = [[("surface", {"examples": {"zero": value}})] for value in ("0", "None")]
    comparison = compared([record()], [record()], [change], False, {"notes": notes[0]}, {"notes": notes[1]})
    found = only(comparison)
    assert (found.kind, found.old, found.new, found.worse) == ("announced", "0", "None", False)


def test_an_example_that_moves_without_announcement_is_a_regression(compared):
    change = Change("zero", (EVAL,), "2.0", "Eval copies.", example="1")
    notes = [[("surface", {"examples": {"zero": value}})] for value in ("0", "None")]
    comparison = compared([record()], [record()], [change], False, {"notes": notes[0]}, {"notes": notes[1]})
    assert comparison.verdict == "REGRESSED: 1 claim"
    assert only(comparison).subject == EVAL


def test_an_example_that_neither_run_was_asked_for_is_no_line(compared):
    change = Change("zero", (EVAL,), "2.12", "Eval copies.", example="1")
    assert compared([record()], [record()], [change], False, {}, {}).differences == []


def test_signatures_and_state_dict_keys_are_lines(compared):
    old = {"signatures": {"torch.nn.Dropout": "(p=0.5)"}, "state_dict_keys": {"torch.nn.Linear": ["weight", "bias"]}}
    new = {"signatures": {"torch.nn.Dropout": "(p=0.1)"}, "state_dict_keys": {"torch.nn.Linear": ["weight", "b"]}}
    sides = [{"notes": [("surface", side)]} for side in (old, new)]
    comparison = compared([record()], [record()], (), False, *sides)
    assert [(d.kind, d.subject, d.old, d.new, d.claims) for d in comparison.differences] == [
        ("signature", "torch.nn.Dropout", "(p=0.5)", "(p=0.1)", (EVAL,)),
        ("state-dict-keys", "torch.nn.Linear", "bias", "b", ()),
    ]
    assert comparison.exit == 0


def test_a_new_warning_is_a_line_and_an_old_one_is_not(compared):
    def warning(message):
        return ("warning", {"test": record()["test"], "category": "FutureWarning", "message": message})

    notes = {"notes": [warning("known, 3 times")]}, {"notes": [warning("known, 4 times"), warning("news")]}
    found = only(compared([record()], [record()], (), False, *notes))
    assert (found.kind, found.subject, found.new) == ("warning", EVAL, "FutureWarning: news")


def test_another_error_type_is_a_line(compared):
    found = only(compared([record(seen="ValueError")], [record(seen="TypeError")]))
    assert (found.kind, found.worse) == ("answer", False)
    assert "ValueError" in found.old
    assert "TypeError" in found.new


def test_text_drift_tells_what_each_documentation_says(compared):
    def side(text):
        return {"notes": [("surface", {"sentences": {"torch.nn.Dropout#0123456789": text}})]}

    found = only(compared([record()], [record()], (), False, side("It drops."), side(None)))
    assert (found.kind, found.old, found.new) == (
        "text-drift", "torch.nn.Dropout: It drops.", "no cited sentence",
    )  # fmt: skip


def test_a_crashed_case_is_found_by_its_id(compared):
    whole = record(id="t.py::test[cpu-float32-0.3]")
    crashed = whole | {"params": "0.3", "outcome": "violated", "error": "crash", "message": "the interpreter crashed"}
    found = only(compared([whole], [crashed]))
    assert (found.kind, found.cases, found.of) == ("regressed", 1, 1)


def test_an_incomplete_file_gives_no_verdict_but_what_it_shows(compared):
    comparison = compared([record()], [record(outcome="violated")], new_facts={"footer": False})
    assert comparison.exit == 2
    assert comparison.verdict == ("CANNOT DECIDE: NEW is incomplete (it ends after 1 case); 1 claim regressed so far")


def test_what_an_incomplete_run_did_not_get_to_is_not_called_removed(compared):
    old = [record(), record(params="p=0.7"), record(claim=TRAIN)]
    comparison = compared(old, [record()], new_facts={"footer": False})
    assert comparison.differences == []
    assert comparison.exit == 2
    assert any("measured in OLD only" in line for line in comparison.undecided)


def test_a_broken_case_gives_no_verdict(compared):
    comparison = compared([record(), record(claim=TRAIN)], [record(), record(claim=TRAIN, outcome="broken")])
    assert comparison.exit == 2
    assert TRAIN in comparison.verdict


def test_a_claim_measured_on_one_side_only_gives_no_verdict(compared):
    comparison = compared([record(), record(claim=TRAIN)], [record()])
    assert comparison.exit == 2
    assert "1 claim measured in OLD only" in comparison.verdict


def test_a_slower_kernel_is_a_regression(compared):
    comparison = compared([record()], [record()])
    comparison.kernels = [{"kernel": "layer_norm/s", "verdict": "slower"}, {"kernel": "x", "verdict": "undecided"}]
    assert comparison.verdict == "REGRESSED: 1 slower kernel"
    assert comparison.exit == 1


def test_files_with_nothing_in_common_are_refused(compared):
    with pytest.raises(differences.Incomparable, match="no case in common"):
        compared([record()], [record(claim=TRAIN)])


def test_different_devices_are_marked(compared):
    comparison = compared([record()], [record()], new_facts={"devices": {"cpu": {}, "cuda": {}}})
    assert comparison.remarks == ["the two runs differ in devices: cpu and cpu, cuda"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_claim_figures_rerun_and_verdict(write, tmp_path, capsys):
    old = write("old", record(), torch="2.11.0")
    new = write("new", record(outcome="violated", headroom=None, message="got 1|2 <b>"))
    assert main(["compare", str(old), str(new), "--markdown", f"{tmp_path}/d.md", "--json", f"{tmp_path}/d.json"]) == 1
    said = capsys.readouterr().out
    assert claims.by_id(claims.load([compare.SPECS]))[EVAL].says in said
    assert "2.11.0  holds: error 0.25 of the bound" in said
    assert "2.13.0  violated: got 1|2 <b>" in said
    assert "python -m torch_conformance run 'test_modes/test_dropout.py::test_identity[float32-p=0.3]' --seed 0" in said
    assert said.splitlines()[-1] == "REGRESSED: 1 claim"
    assert "got 1\\|2 &lt;b>" in (tmp_path / "d.md").read_text()
    document = json.loads((tmp_path / "d.json").read_text())
    assert (document["exit"], document["regressed"]) == (1, [EVAL])


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "is empty"), ("{}\n", "no result file"), ('{"kind":"header","schema":7,"torch":"2"}\n', "schema 7")],
)
def test_the_command_refuses_bad_files_in_one_line(write, tmp_path, capsys, content, words):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content)
    assert main(["compare", str(write("old", record())), str(bad)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1


def test_an_unwritable_output_is_one_line(write, capsys):
    path = write("old", record())
    assert main(["compare", str(path), str(path), "--json", "/nonexistent/x.json"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_comparison_reads_the_claim_files_of_a_user(write, tmp_path, capsys):
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "house.toml").write_text(
        'title = "House rules"\n["rule.one"]\nsays = "We never do that."\nlevel = "must"\n'
    )
    cases = [record(claim="house.rule.one", outcome=outcome) for outcome in ("holds", "violated")]
    old, new = write("old", cases[0]), write("new", cases[1])
    assert main(["compare", str(old), str(new), "--specs", str(tmp_path / "specs")]) == 1
    assert "We never do that." in capsys.readouterr().out
    assert compare.of_files(old, new).differences[0].says is None
