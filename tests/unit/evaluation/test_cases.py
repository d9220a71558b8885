import pytest

from soundstage.core.errors import RequestError
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation.cases import case_kinds, stored_cases, world_cases
from soundstage.evaluation.expectation import expected_of

CONFIG = WorldConfig()


@pytest.fixture(scope="module")
def cases():
    return world_cases(CONFIG, case_kinds(), 6, 1)


def test_every_kind_has_its_number_half_of_them_unseen(cases):
    for kind in case_kinds():
        of = [case for case in cases if case.kind == kind]
        assert [case.unseen for case in of] == [True] * 3 + [False] * 3
    assert len({case.name for case in cases}) == len(cases)


def test_kinds_hold_what_they_say(cases):
    for case in cases:
        if case.kind in ("silent", "off-screen"):
            assert case.scene.audibility == case.kind
        elif case.kind == "varied":
            assert case.scene.kind == "bounce"
            assert not case.scene.is_plain
        else:
            assert case.scene.kind == case.kind
            assert case.scene.is_plain


def test_captions_tell_the_kind(cases):
    """But for a moving camera, which a caption need not mention."""
    for case in cases:
        read = expected_of(case.caption).get("kind")
        assert read == case.kind or (case.kind, read) == ("varied", "bounce"), case.caption


def test_captions_of_instruments_and_ambiences_are_read_right(cases):
    for case in cases:
        expected, facts = expected_of(case.caption), case.scene.to_dict(CONFIG.duration)
        if case.kind == "xylophone":
            assert expected["notes"] == " ".join(facts["notes"])
        if case.kind == "ambience":
            assert (expected["element"], expected["level"]) == (facts["element"], facts["level"])
        if case.kind == "objects":
            assert set(expected["colours"].split()) == {one["colour"] for one in facts["objects"]}
        if case.kind == "pad" and "colours" in expected:
            assert set(expected["colours"].split()) <= set(facts["colours"])
        if case.kind in ("clock", "bell") and "colour" in expected:
            assert expected["colour"] == facts["colour"]


def test_captions_that_cannot_be_used_are_passed_over():
    short = world_cases(CONFIG, ("bounce",), 4, 1, accepts=lambda caption: len(caption) < 50)
    assert len(short) == 4
    assert all(len(case.caption) < 50 for case in short)


def test_same_seed_gives_the_same_cases(cases):
    assert world_cases(CONFIG, ("bounce",), 6, 1) == [case for case in cases if case.kind == "bounce"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"nothing\.mp4 does not exist"):
        stored_cases([tmp_path / "nothing.mp4"])
