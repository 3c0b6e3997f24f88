"""Claim files are refused, in one line that names file and rule, as soon as anything in them is not as agreed."""

import pytest

from torch_conformance import claims
from torch_conformance.errors import UsageError

GOOD = 'title = "T"\n["a.b"]\nsays = "S."\nlevel = "must"\n'


def load(tmp_path, text):
    (tmp_path / "chapter.toml").write_text(text)
    return claims.by_id(claims.load([tmp_path]))


def test_a_claim_is_named_by_its_file_and_table(tmp_path):
    (claim,) = load(tmp_path, GOOD).values()
    assert (claim.id, claim.chapter, claim.says, claim.level) == ("chapter.a.b", "chapter", "S.", "must")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = ", "not readable as TOML"),
        ('["a.b"]\nsays = "S."\nlevel = "must"', "needs a title"),
        ('title = "T"', "holds no claim"),
        (GOOD + 'text = "x"', "unknown keys text"),
        (GOOD.replace('says = "S."', ""), "lacks says"),
        (GOOD.replace("must", "should"), "level must be one of"),
        (GOOD.replace("must", "myth"), "belief and level"),
        (GOOD + 'belief = "x"', "belief and level"),
        (GOOD + 'docs = ["torch.nn.Dropout"]', "object#fingerprint"),
        (GOOD + 'docs = "torch.nn.Dropout#0123456789"', "must be a list"),
        (GOOD + 'torch = "2.x"', "no version range"),
        (GOOD + "law = 3", "law must be a text"),
        (GOOD.replace("a.b", "A b"), "is no id"),
        (GOOD + 'says = "again"', "not readable as TOML"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, words):
    with pytest.raises(claims.ClaimError, match=words) as caught:
        load(tmp_path, text)
    assert "chapter.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(claims.ClaimError, match="no folder"):
        claims.load([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("range", "version", "covered"),
    [
        (">=2.4", "2.4.0+cpu", True),
        (">=2.4", "2.3.1", False),
        (">=2.15", "2.15.0.dev20260101+cu130", True),
        ("!=1.13.0", "1.13.1", True),
        (">=2.0,<2.14", "2.14.0a0+git1", False),
    ],
)
def test_a_range_covers_builds_and_nightlies(tmp_path, range, version, covered):
    assert load(tmp_path, GOOD + f'torch = "{range}"')["chapter.a.b"].covers(version) is covered


def test_a_glob_without_a_match_is_refused(tmp_path):
    known = load(tmp_path, GOOD)
    assert claims.select(known, ["chapter.*"]) == {"chapter.a.b"}
    with pytest.raises(UsageError, match="no claim matches"):
        claims.select(known, ["chapter.*", "absent.*"])


def test_the_projects_own_claims_load():
    from torch_conformance.settings import ROOT

    assert len(claims.by_id(claims.load([ROOT / "specs"]))) > 0
