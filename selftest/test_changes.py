"""The list of changes: well formed, and every example shows its change in the torch that is installed."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from torch_conformance import changes
from torch_conformance.changes import Change, ChangeError

ENTRY = '["a-change"]\nclaims = ["x.*"]\nsince = "2.0"\nwhat = "It changed."\n'


def load(tmp_path, text):
    path = tmp_path / "changes.toml"
    path.write_text(text)
    return changes.load(path)


def test_an_entry_is_read(tmp_path):
    assert load(tmp_path, ENTRY) == (Change("a-change", ("x.*",), "2.0", "It changed."),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENTRY.replace("what", "waht"), "unknown keys waht"),
        (ENTRY.replace('since = "2.0"\n', ""), "lacks since"),
        (ENTRY + "excuses = true\n", "needs url"),
        (ENTRY + 'url = "https://example.org"\nexcuses = "yes"\n', "excuses must be true"),
        (ENTRY.replace("2.0", "two"), "two"),
        (ENTRY + 'example = "1 +"\n', "invalid syntax"),
        ("a = 1", "write it as a table"),
        ("[", "not readable as TOML"),
    ],
)
def test_a_malformed_entry_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ChangeError, match=words):
        load(tmp_path, text)


SPANS = [("1.13.1", "2.0.0", True), ("2.0.0", "2.1.0", False), ("1.13", "2.2", False), ("2.1", "2.2", True)]


@pytest.mark.parametrize(("old", "new", "between"), SPANS)
def test_a_change_lies_between_the_versions_of_which_one_shows_it(old, new, between):
    change = Change("x", ("*",), since="2.0", until="2.2", what="There and back.")
    assert change.lies_between(old, new) is between
    assert change.lies_between(new, old) is between


def test_a_nightly_counts_as_the_release_that_it_leads_to():
    assert Change("x", ("*",), since="2.16", what="New.").shown_by("2.16.0.dev20261120+cpu")


def test_what_an_example_shows_may_move_for_other_reasons():
    change = Change("x", ("*",), since="2.5", what="New.", also=("2.0",))
    assert change.explains("1.13.1", "2.1")
    assert not change.lies_between("1.13.1", "2.1")
    assert not change.explains("2.0", "2.4")


def test_the_list_of_the_project_is_well_formed():
    listed = changes.load()
    assert len(listed) > 100
    assert all(change.example or change.url for change in listed if change.id != "compile-wrapper-training-flag")


def test_every_example_ends_in_a_value_and_not_in_an_error_of_its_own():
    from torch_conformance import surface

    with surface.quiet():
        shown = {change.id: surface.run(change.example) for change in changes.load() if change.example}
    wrong = [name for name, value in shown.items() if value.startswith(("NameError", "SyntaxError"))]
    assert wrong == []


def test_an_example_shows_the_same_twice():
    from torch_conformance import surface

    with surface.quiet():
        first, second = ([surface.run(change.example) for change in changes.load() if change.example] for _ in range(2))
    assert first == second


def test_every_change_names_claims_that_there_are():
    from pathlib import Path

    from torch_conformance import claims

    known = claims.by_id(claims.load([Path(changes.CHANGES).parent]))
    idle = [
        f"{change.id}: {pattern}"
        for change in changes.load()
        for pattern in change.claims
        if not any(fnmatchcase(name, pattern) for name in known)
    ]
    assert idle == []
