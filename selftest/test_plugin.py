"""The plugin: collection rules, verdicts, what a red case prints, bad input, and that a rerun command works."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from torch_conformance import checks, outcomes
from torch_conformance.axes import Point
from torch_conformance.settings import ROOT

HOLDS = """
    @claim("house.topic.holds")
    def test_holds(case):
        case.close(case.tensor_of([1.0]), [1.0], k=1)
"""
VIOLATED = HOLDS.replace("[1.0], k=1", "[1.5], k=1")


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_case_that_holds_is_recorded_and_counted(house, pytester):
    result = house(HOLDS, "--results", "out.jsonl")
    result.assert_outcomes(passed=1)
    header, *cases, footer = [
        r for r in records(pytester.path / "out.jsonl") if r["kind"] in ("header", "case", "footer")
    ]
    assert header["schema"] == 1
    assert header["torch"]
    assert [(c["claim"], c["outcome"], c["headroom"], c["device"]) for c in cases] == [
        ("house.topic.holds", "holds", 0.0, "cpu")
    ]
    assert (footer["cases"], footer["counts"]) == (1, {"holds": 1})
    result.stdout.fnmatch_lines(["*score card*", "House rules*1*1*-*-*-*-*", "result file: out.jsonl"])


def test_a_test_that_names_its_via_runs_there(house):
    aot = HOLDS.replace("@claim", "@axes(via='aot')\n    @claim")
    house(aot, "--via", "aot").assert_outcomes(passed=1)


def test_benchmarks_alone_run_no_claim(house, monkeypatch):
    pytest.importorskip("pytest_benchmark")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # workers time nothing
    house(HOLDS, "--benchmark-only").assert_outcomes(deselected=1)


def test_claims_without_a_case_in_this_run_are_named(house):
    other = """
    @claim("house.topic.other")
    @axes(via="aot")
    def test_other(case):
        pass
    """
    more = '["topic.other"]\nsays = "Two is two."\nlaw = "2 = 2"\nlevel = "must"\n'
    result = house(HOLDS + other, more=more)
    result.stdout.fnmatch_lines(["no case for these dtypes and vias: house.topic.other"])


def test_a_violation_prints_all_that_is_needed(house):
    result = house(VIOLATED)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "violated  test_house/test_house.py::test_holds?cpu-float32?",
            "claim     house.topic.holds (must)",
            "says      One is one.",
            "law       1 = 1",
            "observed  not within 1 eps of the law, at index (0,): got 1.0, the law gives 1.5; error 0.5 = *",
            "where     test_house/test_house.py:7: case.close*",
            "rerun     *pytest*",
        ]
    )


def rerun_of(result):
    line = next(line for line in result.stdout.lines if line.startswith("rerun"))
    return line.removeprefix("rerun").strip()


def paste(command, folder):
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(shlex.split(command), cwd=folder, env=here, capture_output=True, text=True, check=False)


def test_the_rerun_command_works_when_pasted(house, pytester):
    tests = VIOLATED.replace("def test", '@pytest.mark.parametrize("p", [0.25, 0.5])\n    def test').replace(
        "(case)", "(case, p)"
    )
    result = house(tests, "--seed", "5", "-k", "0.25")
    command = rerun_of(result)
    again = paste(command, pytester.path)
    assert again.returncode == 1
    assert "1 failed" in again.stdout
    assert "--seed 5" in command


ENDS = {
    "case.close(case.tensor_of([1.0]), [1.0], k=1)": "holds",
    "raise RuntimeError('kernel refused')": "violated",
    "assert 1 == 2": "violated",
    "with pytest.warns(UserWarning): pass": "violated",
    "raise case.unsupported('has no such thing')": "unsupported",
    "undefined_name": "broken",
    "raise MemoryError": "broken",
    "case.binomial(1, 2, 0.5)": "broken",
    "torch.set_grad_enabled(False)": "broken",
    "torch.set_default_dtype(torch.float64)": "broken",
}


@pytest.mark.parametrize("fixtures", ["case", "case, request"], ids=["called-straight-away", "by-pytest's-phases"])
def test_each_end_has_its_outcome(house, pytester, fixtures):
    tests = (f"@claim('house.topic.holds')\ndef test_{i}({fixtures}):\n    {body}\n" for i, body in enumerate(ENDS))
    result = house("\n".join(tests), "--results", "out.jsonl")
    cases = [r for r in records(pytester.path / "out.jsonl") if r["kind"] == "case"]
    assert [case["outcome"] for case in cases] == list(ENDS.values())
    assert result.ret == 1


EXPLORED = """
    @claim("house.topic.holds")
    @axes(dtype=("float32", "float64"))
    @pytest.mark.parametrize("size", [1, 3, 64])
    def test_holds(case, size):
        assert not 37 <= size < 64, "wrong between the listed sizes"
"""


def test_exploring_finds_and_shrinks_what_lies_between_the_cases(house, pytester):
    pytest.importorskip("hypothesis")
    result = house(EXPLORED, "--explore", "50")
    result.assert_outcomes(failed=1, deselected=5)
    _python, _m, _pytest, *words = shlex.split(rerun_of(result))
    assert '{"size": 37}' in words
    pytester.runpytest_inprocess(*words).stdout.fnmatch_lines("*wrong between the listed sizes*")


PAIRED = """
    @claim("house.topic.holds")
    @axes(dtype="float32")
    @pytest.mark.parametrize(("channels", "groups"), [(6, 2), (6, 3), (12, 4), (12, 6)])
    def test_paired(case, channels, groups):
        assert channels % groups == 0
"""


def test_exploring_leaves_together_what_is_listed_in_pairs(house):
    pytest.importorskip("hypothesis")
    house(PAIRED, "--explore", "50").assert_outcomes(passed=1, deselected=3)


def test_the_rerun_command_keeps_the_given_parameters(house):
    result = house(EXPLORED, "-k", "float32-64", "--given", '{"size": 40}')
    assert '{"size": 40}' in shlex.split(rerun_of(result))


def test_a_claim_about_other_versions_is_unsupported(house, pytester):
    house(VIOLATED, "--results", "out.jsonl", more='torch = "<1.0"')
    (case,) = [r for r in records(pytester.path / "out.jsonl") if r["kind"] == "case"]
    assert case["outcome"] == "unsupported"
    assert "outside the claim's range <1.0" in case["message"]


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        (HOLDS.replace("topic.holds", "topic.absent"), "names house.topic.absent, which no claim file"),
        ("def test_nothing(case): pass", "asserts no claim"),
        (HOLDS.replace("(case)", "()"), "must take the fixture case"),
        (HOLDS.replace("def test", '@axes(dtype="float31")\n    def test'), "no dtype named 'float31'"),
        (HOLDS.replace("def test", '@axes(colour="red")\n    def test'), "no axis named 'colour'"),
        ("def test_plain(): pass", "no test asserts house.topic.holds"),
    ],
)
def test_collection_refuses(house, tests, words):
    result = house(tests)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: *{words}*"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "abacus"], "--device abacus: torch * cannot use it: *"),
        (["--dtype", "float31"], "--dtype float31: unknown; there are float32, *"),
        (["--via", "post"], "--via post: unknown; there are eager, *"),
        (["--claim", "absent.*"], "no claim matches 'absent.?'; *lists them"),
        (["--backend", "absent_module"], "--backend absent_module: cannot be imported: ModuleNotFoundError*"),
        (["--mutant", "absent"], "no mutant named 'absent'*"),
        (["--explore", "0"], "--explore 0: at least 1 *"),
        (["--threads", "0"], "--threads 0: at least 1"),
        (["--given", "[1]"], "--given [[]1]: is no JSON object*"),
        (["--given", '{"size": 3}'], "--given: no test that is left takes size"),
        (["--results", "absent/out.jsonl"], "*absent/out.jsonl*"),
        (["--deviations", "absent.toml"], "absent.toml: not readable*"),
    ],
)
def test_bad_input_is_one_clear_line(house, arguments, words):
    result = house(HOLDS, *arguments)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {words}"])
    assert "Traceback" not in result.stderr.str()


def test_a_torch_that_cannot_be_imported_is_one_clear_line(house, pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fake = pytester.mkdir("fake")
    (fake / "torch.py").write_text("raise ImportError('libtorch.so: no such file')")
    house(HOLDS)
    script = "import sys, pytest; sys.path.insert(0, 'fake'); sys.exit(pytest.main(['-p', 'torch_conformance.plugin']))"
    result = pytester.run(sys.executable, "-c", script)
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: torch cannot be imported: ImportError: libtorch.so: no such file"])


DEVIATION = """
[[deviation]]
claim = "house.topic.holds"
shows = "error 0.5"
reason = "Rounded the wrong way."
observed = "1.0 where 1.5 is claimed"
expires = "2999-01-01"
"""


@pytest.mark.parametrize("device", ["cpu", "absent"])
def test_an_error_of_a_missing_kernel_is_no_answer_but_the_cpu_must_have_one(device):
    wrong = checks.Violation("NotImplementedError where ValueError is claimed")
    wrong.__cause__ = NotImplementedError("Could not run 'aten::mul' with arguments from the 'Absent' backend")
    expected = "violated" if device == "cpu" else "unsupported"
    assert outcomes.judge(wrong, Point(device, "float32")).name == expected


@pytest.mark.parametrize(("kernels", "code"), [("cpu", 0), ("other", 1)])
def test_a_deviation_may_speak_of_the_kernels_that_compute(house, kernels, code):
    assert house(VIOLATED, deviations=DEVIATION + f'kernels = "{kernels}"').ret == code


def test_a_listed_deviation_that_shows_as_described_deviates(house, pytester):
    result = house(VIOLATED, "--results", "out.jsonl", deviations=DEVIATION)
    (case,) = [r for r in records(pytester.path / "out.jsonl") if r["kind"] == "case"]
    assert (result.ret, case["outcome"]) == (0, "deviates")
    assert "Rounded the wrong way." in case["message"]


@pytest.mark.parametrize(
    ("tests", "deviations", "words"),
    [
        (HOLDS, DEVIATION, "no longer shows"),
        (VIOLATED, DEVIATION.replace("error 0.5", "error 0.7"), "not as deviations.toml, entry 1 describes"),
        (VIOLATED, DEVIATION.replace("2999", "2020"), "has expired"),
        (VIOLATED, DEVIATION.replace("2999-01-01", ">=1.0"), "has expired"),
        (HOLDS, DEVIATION + 'params = "absent"', "no case matched it"),
        (HOLDS, DEVIATION.replace("topic.holds", "absent"), "no claim named house.absent"),
        (HOLDS, DEVIATION.replace("reason", "because"), "lacks reason"),
    ],
)
def test_deviations_are_held_strictly(house, tests, deviations, words):
    result = house(tests, deviations=deviations)
    assert result.ret in (1, 4)
    assert words in result.stdout.str() + result.stderr.str()


def test_a_deviation_of_another_version_is_silent(house):
    house(HOLDS, deviations=DEVIATION + 'torch = "<1.0"').assert_outcomes(passed=1)


def test_the_same_seed_gives_the_same_values_on_every_dtype(house):
    house(
        """
        SEEN = {}

        @claim("house.topic.holds")
        @axes(dtype=("float32", "float64"))
        def test_values(case):
            x = case.tensor(3)
            assert torch.equal(SEEN.setdefault("x", x.float()), x.float())
            assert torch.equal(SEEN.setdefault("r", torch.rand(2)), torch.rand(2)) or len(SEEN) == 2
        """
    ).assert_outcomes(passed=2)


CRASHES = HOLDS.replace("case.close(case.tensor_of([1.0]), [1.0], k=1)", "import os; os.abort()")


def test_under_xdist_verdicts_are_the_same_and_a_crash_costs_only_its_case(house, pytester):
    pytest.importorskip("xdist")
    tests = {"test_wrong": VIOLATED, "test_right": HOLDS, "test_crash": CRASHES, "test_listed_crash": CRASHES}
    house(
        "".join(text.replace("test_holds", name) for name, text in tests.items()),
        *("-n", "2", "--max-worker-restart=4", "--results", "out.jsonl"),
        deviations=DEVIATION.replace("error 0.5", "the interpreter crashed") + 'test = "*test_listed_crash"',
    )
    cases = [r for r in records(pytester.path / "out.jsonl") if r["kind"] == "case"]
    assert {r["test"].partition("::")[2]: (r["outcome"], r["error"]) for r in cases} == {
        "test_wrong": ("violated", None),
        "test_right": ("holds", None),
        "test_crash": ("violated", "crash"),
        "test_listed_crash": ("deviates", "crash"),
    }
