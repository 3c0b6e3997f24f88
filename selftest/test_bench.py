"""The paired comparison: its statistics by hand-worked numbers, its verdicts, its plan, and its talk with workers.

Nothing is timed here: the workers are small programs that say what they are told to say.
"""

import json
import random
import stat
import sys
from math import exp, log
from pathlib import Path

import pytest

from torch_conformance.bench import command, comparison, plot, sides
from torch_conformance.bench.comparison import (
    BenchResult,
    KernelResult,
    _Comparison,
    build_warnings,
    compare_kernels,
    limit_at,
)
from torch_conformance.bench.kernels import Kernel
from torch_conformance.bench.paired import Interval, Looks, interval, miss, narrowest_rank, verdict, within
from torch_conformance.errors import UsageError

LAYER = Kernel("layer_norm", "s", "float32", "backward")
GROUP = Kernel("group_norm", "s", "float32", "backward")


# -- statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "rank", "expected"),
    [
        (6, 1, 2 / 64),  # all six heads, or all six tails
        (12, 1, 2 / 4096),
        (12, 2, 2 * (1 + 12) / 4096),
        (5, 2, 2 * (1 + 5) / 32),
    ],
)
def test_miss_is_the_binomial_tail_of_both_sides(n, rank, expected):
    assert miss(n, rank) == pytest.approx(expected)


def test_narrowest_rank_stays_within_what_is_allowed():
    assert narrowest_rank(6, 0.05) == 1
    assert narrowest_rank(9, 0.05) == 2  # 2 (1 + 9) / 512 = 0.039; rank 3 would be 0.18
    assert narrowest_rank(5, 0.05) == 0  # min..max of five misses with 0.0625


def test_interval_is_made_of_order_statistics():
    ratios = [1.00, 1.04, 0.90, 1.02, 1.01, 5.00, 1.03]
    assert interval([log(r) for r in ratios], 2) == Interval(
        pytest.approx(1.02), pytest.approx(1.00), pytest.approx(1.04), 1 - miss(7, 2), 7
    )


def test_interval_covers_the_median_as_often_as_it_says():
    draw = random.Random(7)
    trials = 4000
    missed = sum(
        not found.low <= 1 <= found.high
        for found in (interval([draw.gauss(0, 0.02) for _ in range(9)], 2) for _ in range(trials))
    )
    # binomial(4000, 0.0391) has mean 156 and sd 12.2; six sd is passed by chance less than once in 1e8
    assert abs(missed - trials * miss(9, 2)) < 6 * 12.2


@pytest.mark.parametrize("kernels", [1, 8, 66, 500])
def test_all_looks_together_keep_the_family(kernels):
    looks = Looks(kernels, 0.05)
    for n in looks.schedule:
        looks.rank(n)
    assert looks.spent * kernels <= 0.05


def test_first_look_comes_when_min_to_max_is_enough():
    looks = Looks(66, 0.05)
    assert looks.schedule == (12, 20, 32)  # 2 / 4096 = 0.00049 is at most 2/3 of 0.05 / 66 = 0.00076
    assert [looks.rank(n) for n in looks.schedule] == [1, 2, 6]


def test_a_last_look_before_its_time_buys_nothing():
    assert Looks(66, 0.05).rank(9, last=True) == 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.011, 1.03, "slower"),
        (1.06, 1.12, "slower"),
        (0.99, 1.03, "same"),
        (1.009, 1.03, "same"),
        (0.97, 0.98, "faster"),
        (0.95, 1.00, "undecided"),  # 1/0.95 = 1.053
        (0.99, 1.06, "undecided"),
        (1.009, 1.2, "undecided"),
    ],
)
def test_verdict(low, high, expected):
    assert verdict(low, high, threshold=0.05, resolution=0.01) == expected


def test_within_takes_the_reciprocal_below():
    assert within(0.953, 1.049, 0.05)
    assert not within(0.952, 1.0, 0.05)  # 1/1.05 = 0.95238


# -- judging ----------------------------------------------------------------------------------------------------


def judged(ratios, rank, threshold=0.05):
    comparison = _Comparison(
        (Path("a"), Path("b")), [LAYER], "cpu", 1, {}, random.Random(0), print, threshold, 0.01, Looks(66)
    )
    result = comparison.results[0]
    result.launches = [sides.Measured([100.0, 300.0], [100 * ratio, 300.0]) for ratio in ratios]
    return result, comparison._judge(result, rank)


def test_a_difference_is_called_from_the_corrected_interval():
    result, settled = judged([1.10] * 6 + [1.12] * 6, rank=1)
    assert (result.verdict, settled, result.interval.pairs) == ("slower", True, 12)
    assert (result.interval.low, result.interval.high) == (pytest.approx(1.10), pytest.approx(1.12))


def test_too_few_launches_call_no_difference():
    result, settled = judged([1.5] * 6, rank=0)
    assert (result.verdict, settled) == ("undecided", False)
    assert result.note.startswith("12 launches are needed")


def test_sameness_survives_an_outlier_that_its_own_coverage_allows():
    result, settled = judged([1.0] * 11 + [1.4], rank=1)
    assert (result.verdict, settled) == ("same", True)
    assert result.interval.coverage == pytest.approx(1 - miss(12, 3))


def test_what_leans_beyond_the_resolution_is_looked_at_again():
    result, settled = judged([1.02] * 11 + [0.99], rank=1)
    assert (result.verdict, settled) == ("same", False)


def test_what_leans_but_cannot_be_told_from_1_is_settled_with_enough_launches():
    leaning = [0.98] * 3 + [1.015] * 5 + [1.03] * 4
    assert judged(leaning, rank=1)[1]
    assert not judged(leaning[::2], rank=0)[1]


def test_a_slower_kernel_whose_interval_holds_the_threshold_is_looked_at_again():
    result, settled = judged([1.04] * 6 + [1.06] * 6, rank=1)
    assert (result.verdict, settled) == ("slower", False)


# -- the whole result -------------------------------------------------------------------------------------------


def outcome(*entries, missing=()):
    results = [
        KernelResult(LAYER, [sides.Measured([1000.0], [1000.0])], Interval(low, low, high, 0.99, 12), word)
        for word, low, high in entries
    ]
    about = {"torch": "2", "build": "cpu", "python": "3.11", "executable": "x"}
    limits = {side: {"copy": [(1024, 10.0), (2**22, 40.0)]} for side in ("old", "new")}
    return BenchResult(about, about, results, list(missing), limits, [], 0.05, 0.01, 0.05, 12, 9.0, (1.0, 1.0))


SAME, SLOWER, MUCH = ("same", 0.99, 1.01), ("slower", 1.02, 1.07), ("slower", 1.06, 1.08)
OPEN, OPEN_BELOW = ("undecided", 0.9, 1.2), ("undecided", 0.8, 1.02)


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (outcome(SAME), 0),
        (outcome(SAME, SLOWER), 0),  # slower, but perhaps by less than the threshold
        (outcome(SAME, MUCH), 1),
        (outcome(MUCH, OPEN), 1),
        (outcome(SAME, OPEN), 2),
        (outcome(SAME, OPEN_BELOW), 0),  # whatever it is, it is not slower by the threshold
        (outcome(), 2),
        (outcome(SAME, missing=[{"name": "n", "side": "OLD", "reason": "r"}]), 0),
        (outcome(SAME, missing=[{"name": "n", "side": "NEW", "reason": "r"}]), 2),
    ],
)
def test_exit_code(result, code):
    assert result.exit_code == code


def test_result_is_json_with_what_the_gate_reads():
    row = json.loads(json.dumps(outcome(MUCH).to_json()))["kernels"][0]
    assert row["name"] == "layer_norm/s/float32/backward"
    assert (row["norm"], row["size"], row["dtype"], row["pass"], row["layout"]) == (
        "layer_norm", "s", "float32", "backward", "contiguous")  # fmt: skip
    assert (row["verdict"], row["counts"], row["low"], row["high"], row["pairs"]) == ("slower", True, 1.06, 1.08, 1)
    assert row["old_microseconds"] == 1.0
    assert row["old_gigabytes_per_second"] == pytest.approx(row["bytes"] / 1000)


def test_limit_is_interpolated_between_measured_sizes():
    curve = [(1024, 10.0), (4096, 40.0)]
    assert limit_at(curve, 2048) == pytest.approx(20.0)  # half way on logarithmic axes
    assert (limit_at(curve, 1), limit_at(curve, 10**9), limit_at([], 5)) == (10.0, 40.0, None)


def test_builds_of_two_kinds_are_warned_of():
    cpu, cuda = {"build": "cpu", "python": "3.11"}, {"build": "cuda 13.0", "python": "3.11"}
    assert "builds differ" in build_warnings(cpu, cuda)[0]
    assert build_warnings(cuda, {"build": "cuda 13.2", "python": "3.11"}) == []


def test_table_names_the_worst_first_and_says_what_counts():
    text = list(command.lines(outcome(SAME, SLOWER, MUCH)))
    verdicts = [line.split("  ")[-1] for line in text if line.startswith("layer_norm")]
    assert verdicts == ["slower by more than 5 %", "slower", "same within 1.0 %"]
    assert "2 slower, 0 faster, 1 same, 0 undecided; 1 slower by more than 5 %" in text[-1]


def test_plot_is_one_well_formed_drawing():
    from xml.etree import ElementTree

    root = ElementTree.fromstring(plot.throughput(outcome(SAME).to_json()))
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in plot.throughput(outcome(SAME).to_json())
    assert [e.attrib["class"] for e in root.iter() if e.tag.endswith("circle")].count("new") == 2  # legend, mark


# -- a launch ---------------------------------------------------------------------------------------------------


def test_draws_are_settled_when_the_two_best_of_either_side_agree():
    apart, alike = [100.0, 101.0, 103.0, 103.0] * 3, [100.0, 101.0, 100.9, 103.0] * 3
    assert not sides.agree(apart[:4])
    assert sides.agree(alike[:4])
    least, most = sides.DRAWS
    assert sides.Measured(alike[:4] * least, alike[:4] * least).settled
    assert not sides.Measured(alike[: 2 * least - 2], alike[: 2 * least - 2]).settled
    rising = [100.0 * 1.02**draw for draw in range(most) for _ in "ab"]
    assert not sides.Measured(rising[:-2], rising[:-2]).settled
    assert sides.Measured(rising, rising).settled


def test_draws_are_disturbed_where_most_of_a_side_lie_far_above_its_best():
    calm, once, mostly = (
        [100.0] * 6,
        [100.0, 100.0, 150.0, 150.0, 100.0, 100.0],
        [150.0, 150.0, 100.0, 100.0, 150.0, 150.0],
    )
    assert not sides.Measured(calm, once).disturbed
    assert sides.Measured(calm, mostly).disturbed
    assert sides.Measured(mostly, calm).disturbed


def test_the_ratio_of_a_launch_is_a_quarter_that_of_the_best_and_else_that_of_the_pairs():
    measured = sides.Measured([100, 130, 120, 125, 140, 110], [105, 150, 132, 132, 121, 140])
    pairs = 1.05, 1.10, 1.10
    assert exp(measured.log_ratio) == pytest.approx((105 / 100 * sorted(pairs)[1] ** 3) ** 0.25)


# -- talking to workers -----------------------------------------------------------------------------------------

FAKE = """
import json, sys
factors, lacking, dies = {factors!r}, {lacking!r}, {dies!r}
say = lambda **reply: print(json.dumps(reply), flush=True)
say(torch="9.9", build="cpu", python="3", executable=sys.executable)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "build":
        name = request["kernel"]
        if name == dies:
            sys.exit("segmentation fault, so to say")
        say(unsupported="no such norm") if name == lacking else say(built=True)
    elif request["do"] in ("rough", "block"):
        say(ns=1000.0 * factors.get(name, 1.0))
    else:
        say(share=1.0)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An interpreter that answers like a worker, with a factor on some kernels."""
    monkeypatch.setattr(comparison, "SPREAD_SECONDS", 0)

    def make(name, factors=None, lacking=None, dies=None):
        program = tmp_path / f"{name}.py"
        program.write_text(FAKE.format(factors=factors or {}, lacking=lacking, dies=dies))
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def compare(old, new, kernels=(LAYER, GROUP), **options):
    return compare_kernels(old, new, kernels=list(kernels), budget_seconds=60, seed=1, **options)


def verdicts(result):
    return {entry.kernel.norm: entry.verdict for entry in result.kernels}


def test_equal_workers_are_the_same(fake):
    result = compare(fake("old"), fake("new"))
    assert verdicts(result) == {"layer_norm": "same", "group_norm": "same"}
    assert (result.exit_code, result.launches) == (0, 6)


def test_one_slower_kernel_is_called_and_only_that(fake):
    result = compare(fake("old"), fake("new", {LAYER.name: 1.1}))
    assert verdicts(result) == {"layer_norm": "slower", "group_norm": "same"}
    assert result.exit_code == 1


def test_the_same_workers_the_other_way_round_are_faster(fake):
    result = compare(fake("old", {LAYER.name: 1.1}), fake("new"))
    assert verdicts(result) == {"layer_norm": "faster", "group_norm": "same"}
    assert result.exit_code == 0


def test_a_kernel_that_one_side_lacks_is_told_not_judged(fake):
    result = compare(fake("old", lacking=LAYER.name), fake("new"))
    assert verdicts(result) == {"group_norm": "same"}
    assert result.missing == [{"name": LAYER.name, "side": "OLD", "reason": "OLD: no such norm"}]


def test_a_kernel_that_kills_its_worker_is_undecided_and_the_others_go_on(fake):
    result = compare(fake("old"), fake("new", dies=LAYER.name))
    assert verdicts(result) == {"layer_norm": "undecided", "group_norm": "same"}
    assert "segmentation fault" in next(entry.note for entry in result.kernels if entry.note)
    assert result.exit_code == 2


def test_an_interpreter_without_torch_is_named(tmp_path):
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    path.chmod(0o755)
    with pytest.raises(
        UsageError, match=r"OLD: the worker died .*No module named 'torch'.*it has to import torch and to run on 'cpu'"
    ):
        compare(path, path)


def test_a_file_that_is_no_program_is_named(tmp_path):
    path = tmp_path / "python"
    path.write_text("")
    with pytest.raises(UsageError, match=r"(OLD|NEW): cannot run"):
        compare(path, path)
