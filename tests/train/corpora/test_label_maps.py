import pytest

from model.labels import CLASSES
from tests.train.synthetic import GOEMOTIONS_LABELS
from train.corpora import READERS
from train.corpora.label_maps import LABEL_MAPS, LABEL_SETS, Dropped, canonical, why_dropped

SAD_AND_NEUTRAL = {
    "cremad": ("S", "N"),
    "cremad-intended": ("SAD", "NEU"),
    "ravdess": ("04", "01"),
    "msp-podcast": ("S", "N"),
    "msp-podcast-votes": ("Sad", "Neutral"),
    "iemocap": ("sad", "neu"),
    "iemocap-votes": ("Sadness", "Neutral"),
    "meld": ("sadness", "neutral"),
    "emodb": ("T", "N"),
    "table": ("sad", "neutral"),
    "goemotions": ("sadness", "neutral"),
}


@pytest.mark.parametrize("corpus", LABEL_MAPS)
def test_every_label_has_a_canonical_class_or_a_reason(corpus: str) -> None:
    for label, found in LABEL_MAPS[corpus].items():
        if isinstance(found, Dropped):
            assert len(found.reason) > 10
            assert canonical(corpus, label) is None
            assert why_dropped(corpus, label) == found.reason
        else:
            assert canonical(corpus, label) in CLASSES
            assert why_dropped(corpus, label) is None


def test_every_reader_has_a_map() -> None:
    assert set(READERS) <= set(LABEL_MAPS)


@pytest.mark.parametrize("corpus", LABEL_MAPS)
def test_sad_and_neutral_are_not_swapped(corpus: str) -> None:
    """A new map must be entered here by hand: the trap is a map copied from another corpus' order."""
    sad, neutral = SAD_AND_NEUTRAL[corpus]
    assert (canonical(corpus, sad), canonical(corpus, neutral)) == ("sad", "neutral")


@pytest.mark.parametrize("corpus", LABEL_MAPS)
def test_labels_that_begin_like_a_class_mean_it(corpus: str) -> None:
    """Whatever spells out a class, in full or by its first three letters, maps to it; codes of one letter cannot tell."""
    stems = {"ang": "angry", "sad": "sad", "hap": "happy", "sur": "surprise", "fea": "fear", "dis": "disgust"}
    stems |= {"con": "contempt", "neu": "neutral"}
    apart = {"disapproval", "disappointment", "confusion"}  # other words, of GoEmotions
    for label in LABEL_MAPS[corpus]:
        stem = label.lower()[:3]
        if len(label) > 2 and stem in stems and label not in apart:
            assert canonical(corpus, label) == stems[stem], label


def test_raters_words_and_published_codes_are_the_same_classes() -> None:
    assert {code[0]: name for code, name in LABEL_MAPS["cremad-intended"].items()} == LABEL_MAPS["cremad"]
    words = {name: canonical("iemocap-votes", name) for name in LABEL_MAPS["iemocap-votes"]}
    for word, name in words.items():
        assert canonical("iemocap", word[:3].lower()) == name
    letters = {"Surprise": "U"}  # S is sad
    for word in LABEL_MAPS["msp-podcast-votes"]:
        assert canonical("msp-podcast", letters.get(word, word[0])) == canonical("msp-podcast-votes", word)


def test_label_sets_hold_classes_of_their_corpus() -> None:
    for corpus, sets in LABEL_SETS.items():
        possible = {canonical(corpus, label) for label in LABEL_MAPS[corpus]}
        for size, classes in sets.items():
            assert len(classes) == len(set(classes)) == size
            assert set(classes) <= possible


def test_goemotions_labels_that_name_an_emotion_are_kept() -> None:
    groups: dict[str | None, set[str]] = {}
    for label in GOEMOTIONS_LABELS:
        groups.setdefault(canonical("goemotions", label), set()).add(label)
    milder = groups.pop(None)
    assert groups == {
        "angry": {"anger"},
        "disgust": {"disgust"},
        "fear": {"fear"},
        "sad": {"sadness", "grief"},
        "surprise": {"surprise"},
        "happy": {"joy", "excitement", "gratitude", "love"},
        "neutral": {"neutral"},
    }
    assert len(milder) == len(GOEMOTIONS_LABELS) - 11
    assert {"annoyance", "disapproval", "remorse", "approval"} <= milder


def test_an_unknown_label_raises() -> None:
    with pytest.raises(KeyError):
        canonical("cremad", "X")
    with pytest.raises(KeyError):
        why_dropped("savee", "a")
