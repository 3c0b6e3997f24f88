"""The command line: what each command prints, and that bad input is one line and exit status 2."""

import json

import pytest

from torch_conformance.__main__ import main
from torch_conformance.commands import deviations, run
from torch_conformance.results import Case


def case(dtype, outcome, layout="contiguous"):
    return Case(
        claim="a.b", test="t::t", device="cpu", dtype=dtype, layout=layout, via="eager", params="p=[1]",
        outcome=outcome, message="not within 2 eps of the law, at index (0,): got 1.0",
    )  # fmt: skip


def test_claims_lists_a_chapter(capsys):
    assert main(["claims", "dropout.eval.*"]) == 0
    assert "dropout.eval.identity  must" in capsys.readouterr().out


def test_claims_as_json_are_for_programs(capsys):
    assert main(["claims", "--json", "dropout.eval.*"]) == 0
    assert {c["level"] for c in json.loads(capsys.readouterr().out)} <= {"must", "may", "myth"}


def test_explain_is_a_lesson(capsys):
    assert main(["explain", "dropout.eval.scales-nothing"]) == 0
    told = capsys.readouterr().out
    for part in ("Many believe", "In truth", "The law", "The test, test_modes", "The wrong torch", "Run it"):
        assert part in told


def test_cite_prints_sentences_with_fingerprints(capsys):
    assert main(["cite", "torch.nn.Dropout"]) == 0
    assert "torch.nn.Dropout#" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["claims", "absent.*"], "no claim matches 'absent.*'"),
        (["explain", "dropout.evil.identity"], "do you mean dropout.eval.identity"),
        (["cite", "torch.nn.Absent"], "no object named torch.nn.Absent"),
        (["mutants", "absent.*"], "no mutant matches 'absent.*'"),
        (["deviations", "--update", "absent/x.toml", "--results", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(capsys, words, told):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("torch-conformance: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command", ["claims", "explain", "cite", "compare", "bench", "gate", "report", "mutants", "ledger"]
)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"torch-conformance {command}" in capsys.readouterr().out


def test_a_result_file_is_one_word_with_its_option():
    assert run.joined(["-q", "--results", "x.jsonl", "t"]) == ["-q", "--results=x.jsonl", "t"]


def test_what_is_violated_as_a_whole_is_one_entry():
    (block,) = deviations.blocks([case("float32", "violated"), case("float64", "violated")])
    assert "dtype" not in block
    assert 'shows    = "not\\\\ within"' in block


def test_what_holds_beside_it_narrows_the_entry():
    (block,) = deviations.blocks([case("float32", "violated"), case("float64", "holds")])
    assert 'dtype    = "float32"' in block
    cases = [case("float32", "violated"), case("float32", "holds", "strided"), case("float64", "violated", "strided")]
    assert len(list(deviations.blocks(cases))) == 2


def test_a_glob_matches_its_text_alone():
    assert deviations.glob("p=[1]*") == "p=[[]1][*]"
