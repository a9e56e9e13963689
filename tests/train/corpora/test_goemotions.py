from pathlib import Path

import pytest

from tests.train.synthetic import TRAINED, write_goemotions
from train.corpora.goemotions import read_goemotions
from train.errors import CorpusError

ROWS = (
    ("You are a fool", "anger"),
    ("I miss her since she died", "sadness,grief"),  # two labels of one class
    ("I love it but it scares me", "love,fear"),  # two classes
    ("Yuck", "disgust"),  # not a class of the corpus of speech
    ("The shop opens at nine", "neutral"),
    ("You should have asked me", "disapproval"),  # an attitude
    ("I hate this, and you", "anger,annoyance"),  # a milder emotion too
)


def test_sentences_whose_labels_agree_are_kept(tmp_path: Path) -> None:
    write_goemotions(tmp_path, ROWS)
    rows = read_goemotions(tmp_path, "train", TRAINED).rows
    assert [(row.id, row.text, row.emotion) for row in rows] == [
        ("comment0", "You are a fool", "angry"),
        ("comment1", "I miss her since she died", "sad"),
        ("comment4", "The shop opens at nine", "neutral"),
    ]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    write_goemotions(tmp_path, ROWS)
    sentences = read_goemotions(tmp_path, "train", TRAINED)
    assert sum(sentences.dropped.values()) + len(sentences.rows) == len(ROWS)
    assert sorted(sentences.dropped.values()) == [1, 1, 2]
    assert sentences.dropped["labels of several classes"] == 1
    assert sentences.dropped["a label that names no emotion itself"] == 2


def test_parts_are_separate(tmp_path: Path) -> None:
    write_goemotions(tmp_path, ROWS[:1], "train")
    write_goemotions(tmp_path, ROWS[4:], "dev")
    assert [row.emotion for row in read_goemotions(tmp_path, "dev", TRAINED).rows] == ["neutral"]


@pytest.mark.parametrize("missing", ["train.tsv", "labels.txt"])
def test_a_missing_file_is_a_corpus_error(tmp_path: Path, missing: str) -> None:
    write_goemotions(tmp_path, ROWS)
    (tmp_path / missing).unlink()
    with pytest.raises(CorpusError, match=f"{missing} is missing"):
        read_goemotions(tmp_path, "train", TRAINED)
