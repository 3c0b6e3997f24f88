"""The score card: every claim with its outcome, nothing fetched from a network, and hostile text shown as text."""

from __future__ import annotations

import re

import pytest

from selftest.test_results import record
from torch_conformance import results
from torch_conformance.__main__ import main

pytest.importorskip("jinja2")
EVIL = "<script>alert('1 < 2 & 3')</script>"


@pytest.fixture
def pages(tmp_path):
    """Make the report of the sides and read its pages."""

    def pages(*sides, footer=True):
        names = []
        for number, cases in enumerate(sides):
            path = tmp_path / f"{number}.jsonl"
            writer = results.Writer(path)
            writer.header({"torch": f"2.{number}.0", "devices": {"cpu": {}}, "vias": ["eager"], "seed": 0})
            for case in cases:
                writer.case(case)
            if footer:
                outcomes = [case["outcome"] for case in cases]
                writer.footer({"cases": len(cases), "counts": {o: outcomes.count(o) for o in set(outcomes)}})
            names.append(str(path))
        assert main(["report", *names, "--out", str(tmp_path / "out")]) == 0
        return {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}

    return pages


def test_a_page_for_each_file_and_an_index(pages):
    made = pages([record()], [record(outcome="violated", message="got 3")])
    assert sorted(made) == ["2.0.0.html", "2.1.0.html", "index.html"]
    assert "dropout.eval.identity" in made["index.html"]
    assert re.search(r'class="violated"[^>]*>violated', made["index.html"])
    assert "got 3" in made["2.1.0.html"]


def test_nothing_is_fetched_from_a_network(pages):
    for page in pages([record()]).values():
        assert not re.search(r"<(script|link|img|iframe)|@import|url\(", page)


def test_messages_are_shown_as_text(pages):
    page = pages([record(outcome="violated", message=EVIL)])["2.0.0.html"]
    assert "<script>" not in page
    assert "1 &lt; 2 &amp; 3" in page


def test_a_claim_is_as_good_as_its_worst_case_and_unsupported_ones_do_not_count(pages):
    cases = [record(params=str(n), outcome=o) for n, o in enumerate(["holds", "unsupported", "violated"])]
    assert ">violated</a>" in pages(cases)["index.html"]
    assert ">holds</a>" in pages(cases[:2])["index.html"]
    assert ">unsupported</a>" in pages(cases[1:2])["index.html"]


def test_an_incomplete_result_says_so_on_both_pages(pages):
    assert all("incomplete" in page for page in pages([record()], footer=False).values())


def test_a_claim_that_no_file_lists_is_not_dropped(pages):
    assert "house.rule.one" in pages([record(claim="house.rule.one")])["index.html"]


def test_two_files_of_one_version_are_two_pages(tmp_path, pages):
    pages([record()])
    out = tmp_path / "again"
    assert main(["report", *[str(tmp_path / "0.jsonl")] * 2, "--out", str(out)]) == 0
    assert len([*out.glob("2.0.0*.html")]) == 2


def test_an_unwritable_folder_is_one_line(tmp_path, pages, capsys):
    pages([record()])
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path / "0.jsonl"), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be made" in capsys.readouterr().err
