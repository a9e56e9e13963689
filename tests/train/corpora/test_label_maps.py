import pytest

from model.labels import CLASSES
from tests.train.synthetic import GOEMOTIONS_LABELS
from train.corpora import READERS
from train.corpora.label_maps import LABEL_MAPS, canonical


def test_every_label_has_a_canonical_class() -> None:
    assert {name for labels in LABEL_MAPS.values() for name in labels.values()} <= {*CLASSES, None}
    assert set(READERS) <= set(LABEL_MAPS)


def test_corpora_agree_on_sad_and_neutral() -> None:
    assert [canonical("cremad", code) for code in "SN"] == ["sad", "neutral"]
    assert [canonical("cremad-intended", code) for code in ("SAD", "NEU")] == ["sad", "neutral"]
    assert [canonical("ravdess", code) for code in ("04", "01")] == ["sad", "neutral"]
    assert [canonical("goemotions", name) for name in ("sadness", "neutral")] == ["sad", "neutral"]


def test_what_raters_heard_and_what_actors_meant_are_the_same_classes() -> None:
    meant = {code[0]: name for code, name in LABEL_MAPS["cremad-intended"].items()}
    assert meant == LABEL_MAPS["cremad"]
    assert sorted(map(str, meant.values())) == ["angry", "disgust", "fear", "happy", "neutral", "sad"]


def test_goemotions_labels_fall_into_their_groups() -> None:
    groups: dict[str | None, set[str]] = {}
    for label in GOEMOTIONS_LABELS:
        groups.setdefault(canonical("goemotions", label), set()).add(label)
    assert groups["angry"] == {"anger", "annoyance", "disapproval"}
    assert groups["disgust"] == {"disgust"}
    assert groups["fear"] == {"fear", "nervousness"}
    assert groups["sad"] == {"sadness", "grief", "disappointment", "remorse", "embarrassment"}
    assert groups["surprise"] == {"surprise", "realization", "confusion", "curiosity"}
    assert groups["neutral"] == {"neutral"}
    assert len(groups["happy"]) == 12
    assert len(GOEMOTIONS_LABELS) == len(LABEL_MAPS["goemotions"]) == 28


def test_an_unknown_label_raises() -> None:
    with pytest.raises(KeyError):
        canonical("cremad", "X")
    with pytest.raises(KeyError):
        canonical("emodb", "W")
