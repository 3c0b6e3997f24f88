"""Result files: nothing is lost when a run dies, and nothing that is not whole is taken for whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from torch_conformance import results

HEADER = {"torch": "2.13.0", "seed": 0}


def record(**changes: object) -> dict[str, object]:
    facts: dict[str, object] = {
        "claim": "dropout.eval.identity",
        "test": "test_modes/test_dropout.py::test_identity",
        "device": "cpu",
        "dtype": "float32",
        "layout": "contiguous",
        "via": "eager",
        "params": "p=0.3",
        "outcome": "holds",
        "headroom": 0.25,
        "message": None,
        "seconds": 0.001,
    }
    return facts | changes


def write(path: Path, *cases: dict[str, object], footer: bool = True) -> Path:
    writer = results.Writer(path)
    writer.header(HEADER)
    for case in cases:
        writer.case(case)
    if footer:
        outcomes = [case["outcome"] for case in cases]
        writer.footer({"cases": len(cases), "counts": {name: outcomes.count(name) for name in set(outcomes)}})
    return path


def test_what_was_written_is_read(tmp_path):
    found = results.read(write(tmp_path / "a.jsonl", record(), record(params="p=0.7", outcome="violated")))
    assert found.complete
    assert found.torch == "2.13.0"
    assert [case.outcome for case in found.cases] == ["holds", "violated"]
    assert found.cases[0].identity == (
        "dropout.eval.identity", "test_modes/test_dropout.py::test_identity", "cpu", "float32", "contiguous", "eager",
        "p=0.3",
    )  # fmt: skip


def test_each_line_is_json_of_the_schema(tmp_path):
    lines = write(tmp_path / "a.jsonl", record()).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["header", "case", "footer"]
    assert json.loads(lines[0])["schema"] == 1


def test_infinity_is_written_as_valid_json(tmp_path):
    path = tmp_path / "a.jsonl"
    writer = results.Writer(path)
    writer.header(HEADER | {"limit": float("inf")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["limit"] == "inf"


def test_a_file_without_footer_is_incomplete(tmp_path):
    found = results.read(write(tmp_path / "a.jsonl", record(), footer=False))
    assert not found.complete
    assert len(found.cases) == 1


def test_a_half_last_line_is_left_out_and_the_file_incomplete(tmp_path):
    path = write(tmp_path / "a.jsonl", record(), record(params="p=0.7"))
    content = path.read_bytes()
    ends_of_case = content.index(b"\n", content.index(b"\n") + 1) + 1
    for cut in range(ends_of_case, len(content) - 2):
        path.write_bytes(content[:cut])
        found = results.read(path)
        assert not found.complete
        assert found.cases[0].params == "p=0.3"


def test_kinds_that_are_not_known_are_kept(tmp_path):
    writer = results.Writer(tmp_path / "a.jsonl")
    writer.header(HEADER)
    writer.note("from-the-future", {"x": 1})
    assert results.read(tmp_path / "a.jsonl").notes_of("from-the-future") == [{"kind": "from-the-future", "x": 1}]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("", results.MissingHeader, "is empty"),
        ('{"kind": "hea', results.MissingHeader, "ends within its header"),
        ("not json\n", results.MissingHeader, "does not begin with a header"),
        ('{"kind": "case"}\n', results.MissingHeader, "kind 'case'"),
        ('{"kind": "header", "schema": 1}\n', results.MissingHeader, "which torch"),
        ('{"kind": "header", "schema": 2, "torch": "2"}\n', results.WrongSchema, "schema 2"),
        ('{"kind": "header", "torch": "2"}\n', results.WrongSchema, "schema None"),
        ('{"kind": "header", "schema": 1, "torch": "banana"}\n', results.MissingHeader, "which torch"),
        ('{"kind": "header", "schema": 1, "torch": "2", "vias": 5}\n', results.MissingHeader, "vias .* array"),
    ],
)
def test_a_file_without_a_readable_header_is_refused(tmp_path, content, error, words):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(error, match=words) as raised:
        results.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Traceback (most recent call last):", "Traceback"),
        ("", "an empty line"),
        ("[1, 2]", r"\[1, 2\]"),
        (json.dumps({"kind": "header", "schema": 1, "torch": "2"}), "second header"),
        (json.dumps({"kind": "case"}), "claim must be a text"),
        (json.dumps({"kind": "case"} | record(outcome="fine")), "outcome 'fine' is unknown"),
        (json.dumps({"kind": "case"} | record(headroom="much")), "headroom must be a number"),
    ],
)
def test_a_foreign_line_is_refused_with_its_number(tmp_path, line, words):
    path = write(tmp_path / "a.jsonl", record(), footer=False)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(results.ForeignLine, match=words) as raised:
        results.read(path)
    assert f"{path}:3:" in str(raised.value)


def test_lines_after_the_footer_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", record())
    path.write_text(path.read_text() * 2)
    with pytest.raises(results.ForeignLine, match="after the footer"):
        results.read(path)


def test_a_footer_that_miscounts_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", record(), record(params="p=0.7"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1], lines[3]]))
    with pytest.raises(results.WrongFooter, match="counts 2 cases, the file holds 1"):
        results.read(path)
    path.write_text("".join(lines).replace('"outcome": "holds"', '"outcome": "violated"', 1))
    with pytest.raises(results.WrongFooter, match="counts of outcomes"):
        results.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(results.Unreadable, match=r"none\.jsonl: cannot be read: No such file"):
        results.read(tmp_path / "none.jsonl")


@pytest.mark.parametrize("path", ["missing/a.jsonl", "."])
def test_an_unwritable_path_is_refused_at_once(tmp_path, path):
    with pytest.raises(results.Unwritable, match="cannot be written"):
        results.Writer(tmp_path / path)


def test_an_existing_file_is_replaced_only_with_the_header(tmp_path):
    path = write(tmp_path / "a.jsonl", record())
    before = path.read_bytes()
    writer = results.Writer(path)
    with pytest.raises(TypeError):
        writer.header({"torch": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    writer.header(HEADER)
    assert not results.read(path).complete


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_line(tmp_path):
    writer = results.Writer(tmp_path / "a.jsonl")
    writer.header(HEADER)
    writer.close()
    writer.file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(results.Unwritable, match="No space left"):
        writer.case(record())


def test_a_killed_run_loses_nothing_that_it_had_found(tmp_path):
    path = tmp_path / "a.jsonl"
    script = f"""
        import os, signal
        from selftest.test_results import HEADER, record
        from torch_conformance import results
        writer = results.Writer({str(path)!r})
        writer.header(HEADER)
        for p in range(50):
            writer.case(record(params=f"p={{p}}"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=root)
    assert ran.returncode == -signal.SIGKILL
    found = results.read(path)
    assert len(found.cases) == 50
    assert not found.complete


def test_the_worst_outcome_stands_for_several():
    assert results.worst(["holds", "violated", "unsupported"]) == "violated"
    assert results.worst(["holds", "unsupported"]) == "unsupported"
    assert results.worst(["broken", "violated"]) == "broken"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"kind": "footer", "cases": 0, "counts": [1]}, results.WrongFooter),
        ({"kind": "surface", "signatures": {"torch.nn.Dropout": None}}, results.ForeignLine),
        ({"kind": "surface", "state_dict_keys": 5}, results.ForeignLine),
    ],
)
def test_a_line_of_a_shape_that_no_run_writes_is_refused(tmp_path, line, error):
    path = tmp_path / "a.jsonl"
    path.write_text('{"kind": "header", "schema": 1, "torch": "2.13.0"}\n' + json.dumps(line) + "\n")
    with pytest.raises(error):
        results.read(path)
