"""Sentences and fingerprints: the same for every way in which one sentence can be laid out."""

import pytest

from torch_conformance import docs

TEXT = """Scales by :math:`p`, e.g. by
    half.  Then it :ref:`stops <where>`.

    Args:
        p (float): a probability. Default: 0.5
        inplace: if ``True``, in place

    >>> code(1)
"""


def test_sentences_come_in_reading_order():
    assert docs.sentences(TEXT) == [
        "Scales by p, e.g. by half.",
        "Then it stops.",
        "Args:",
        "p (float): a probability.",
        "Default: 0.5",
        "inplace: if `True`, in place",
        ">>> code(1)",
    ]


@pytest.mark.parametrize(
    "same", ["Calls  torch.add\nonce.", "Calls :func:`torch.add` once.", "Calls :obj:`~torch.add` once."]
)
def test_a_fingerprint_ignores_layout_and_roles(same):
    assert docs.fingerprint(same) == docs.fingerprint("Calls torch.add once.")


def test_a_fingerprint_sees_a_changed_word():
    assert docs.fingerprint("Calls it twice.") != docs.fingerprint("Calls it once.")


def test_an_object_is_found_by_its_dotted_name():
    assert docs.resolve("collections.OrderedDict.move_to_end").__name__ == "move_to_end"
    for absent in ("collections.Absent", "absent_module.x"):
        with pytest.raises(LookupError, match="no object named"):
            docs.resolve(absent)
