import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from model.labels import CLASSES
from tests.train.corpora.trees import by_id, heard, table, wav
from train.corpora import read_corpus
from train.corpora.options import CorpusOptions
from train.corpora.tables import MAX_TOLD
from train.errors import CorpusError, LeakageError, RecipeError
from train.manifest import published_split, split_speakers, target

ONE_TO_FIVE = CorpusOptions(scale=(1, 5), folder="calls")
CALLS = CorpusOptions(folder="calls")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    for name in ("a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav"):
        wav(folder / name)
    return folder


def labelled(**changes: object) -> list[dict[str, object]]:
    """Four rows; a change applies to the first."""
    rows: list[dict[str, object]] = [
        {"audio": "a/1.wav", "speaker": "Ann", "label": "angry"},
        {"audio": "a/2.wav", "speaker": "Ann", "label": "Sadness"},
        {"audio": "b/1.wav", "speaker": "Ben", "label": "calm"},
        {"audio": "b/2.wav", "speaker": "unknown", "label": "joy"},
    ]
    rows[0] |= changes
    return rows


def test_one_label_a_row(root: Path) -> None:
    table(root / "labels.csv", labelled())
    manifest = read_corpus("table", root.parent, CALLS)
    clips = by_id(manifest)
    assert {name: clip.consensus for name, clip in clips.items()} == {
        "a/1": "angry",
        "a/2": "sad",
        "b/1": "neutral",
        "b/2": "happy",
    }
    assert heard(clips["a/1"]) == {"angry": 1.0}
    assert clips["a/1"].audio == root / "a/1.wav"
    assert (clips["a/1"].corpus, clips["a/1"].speaker) == ("calls", "calls-Ann")
    assert (clips["b/2"].speaker, clips["b/2"].speaker_known) == ("calls-unknown-b/2", False)
    assert manifest.notes == {"clip of an unknown speaker": 1}


def test_one_column_of_votes_a_class(root: Path) -> None:
    rows = [
        {"Audio": "a/1.wav", "Speaker": "Ann", "ID": "call-7", "Angry": 3, "Sad": 1, "Neutral": "", "Other": 2},
        {"Audio": "a/2.wav", "Speaker": "Ann", "ID": "call-8", "Angry": 2, "Sad": 1, "Neutral": 0, "Other": 2},
        {"Audio": "b/1.wav", "Speaker": "Ben", "ID": "call-9", "Angry": 0, "Sad": 0, "Neutral": 0, "Other": 4},
        {"Audio": "b/2.wav", "Speaker": "Ben", "ID": "call-6", "Angry": 0, "Sad": 0, "Neutral": 0, "Other": 0},
        {"Audio": "b/2.wav", "Speaker": "Ben", "ID": "call-9b", "Angry": 1, "Sad": 0, "Neutral": 0, "Other": 3},
    ]
    table(root / "labels.csv", rows)
    manifest = read_corpus("table", root.parent, CALLS)
    agreed, tied, other = manifest.clips
    assert (agreed.id, heard(agreed), agreed.other_votes) == ("call-7", {"angry": 3.0, "sad": 1.0}, 2.0)
    assert (agreed.consensus, tied.consensus, other.consensus) == ("angry", None, None)
    expected = [{"angry": 0.75, "sad": 0.25}.get(name, 0.0) for name in CLASSES]
    np.testing.assert_allclose(target(agreed, 0.0), expected)
    assert manifest.dropped == {"votes only for other emotions": 1, "no label and no votes": 1}
    assert manifest.notes == {"clip without agreement (XO)": 2}


def test_a_label_beside_votes_is_what_they_agreed_on(root: Path) -> None:
    rows = [{**row, "happy": 1, "neutral": 1} for row in labelled(label="no agreement")]
    table(root / "labels.csv", rows)
    first, second, *_ = read_corpus("table", root.parent, CALLS).clips
    assert (first.consensus, second.consensus) == (None, "sad")
    assert heard(first) == heard(second) == {"happy": 1.0, "neutral": 1.0}


def everything() -> list[dict[str, object]]:
    return labelled(
        arousal=1,
        valence=5,
        dominance="",
        split="validation",
        transcript="Where is my parcel?",
        language="en",
        gender="F",
        session="call 3",
    )


def test_everything_else_that_a_row_may_tell(root: Path) -> None:
    table(root / "labels.csv", everything())
    options = ONE_TO_FIVE.model_copy(update={"language": "de"})
    first, second, *_ = read_corpus("table", root.parent, options).clips
    assert first.attributes[:2] == (1.0, 7.0)
    assert np.isnan(first.attributes[2])
    assert np.isnan(second.attributes).all()
    assert (first.split, first.gender, first.session) == ("dev", "female", "call 3")
    assert (first.transcript, first.language) == ("Where is my parcel?", "en")
    assert (second.split, second.gender, second.session) == ("", "", "")
    assert (second.transcript, second.language) == (None, "de")


def test_json_lines_are_the_same_corpus(root: Path) -> None:
    table(root / "labels.csv", everything())
    from_csv = read_corpus("table", root.parent, ONE_TO_FIVE)
    (root / "labels.csv").unlink()
    rows = [{k: None if v == "" else v for k, v in row.items()} for row in everything()]
    (root / "labels.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    found = read_corpus("table", root.parent, ONE_TO_FIVE)
    assert repr(found) == repr(from_csv)  # NaN is not equal to itself


def test_own_labels_are_mapped_or_dropped(root: Path) -> None:
    table(root / "labels.csv", labelled(label="Furious"))
    options = CALLS.model_copy(update={"label_map": {"furious": "angry", "calm": ""}})
    manifest = read_corpus("table", root.parent, options)
    assert [clip.consensus for clip in manifest.clips] == ["angry", "sad", "happy"]
    assert manifest.dropped == {"label calm: the recipe's label_map drops it": 1}


def test_another_table_of_the_folder(root: Path) -> None:
    table(root / "tables" / "week 2.csv", labelled())
    manifest = read_corpus("table", root.parent, CorpusOptions(folder="calls", labels="tables/week 2.csv"))
    assert len(manifest.clips) == 4


def test_every_mistake_is_named_with_file_line_column_and_value(root: Path) -> None:
    rows = labelled(label="hapy", arousal="7", valence="low", gender="?", split="train2")
    rows[1] |= {"audio": "a/9.wav", "speaker": ""}
    rows[3] |= {"audio": "b/1.wav"}
    table(root / "labels.csv", rows)
    with pytest.raises(CorpusError) as caught:
        read_corpus("table", root.parent, ONE_TO_FIVE)
    message = str(caught.value)
    path = root / "labels.csv"
    assert message.startswith("8 mistakes in the labels:\n")
    for line, what in (
        (2, "label must be one of angry, sad, happy, surprise, fear"),
        (2, "arousal must be a number in 1..5, got '7'"),
        (2, "valence must be a number in 1..5, got 'low'"),
        (2, "gender must be one of female, f, male, m, unknown, got '?'"),
        (2, "split must be one of train, "),
        (3, f"audio must be a file in {root}, got 'a/9.wav'"),
        (3, "speaker must be given, got ''"),
        (5, "audio must be listed once, got 'b/1.wav'"),
    ):
        assert f"{path}:{line}: {what}" in message, what
    assert "(or name it in label_map), got 'hapy'" in message


def test_a_long_list_of_mistakes_is_cut_and_counted(root: Path) -> None:
    rows = [{"audio": "a/1.wav", "speaker": "Ann", "id": str(number), "label": "hapy"} for number in range(50)]
    table(root / "labels.csv", rows)
    with pytest.raises(CorpusError) as caught:
        read_corpus("table", root.parent, CALLS)
    lines = str(caught.value).splitlines()
    assert lines[0] == "50 mistakes in the labels:"
    assert lines[-1] == f"  and {50 - MAX_TOLD} more"
    assert len(lines) == MAX_TOLD + 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("audio,label\na/1.wav,sad\n", r"labels\.csv lacks the columns \['speaker'\]: it has \['audio', 'label'\]"),
        ("audio,speaker\na/1.wav,Ann\n", "2: says nothing of emotion: give a column label, or one a class"),
        ("audio,speaker,label,label\na/1.wav,Ann,sad,sad\n", r"the columns \['label'\] more than once"),
        ("audio,speaker,label\na/1.wav,Ann\n", "2: 2 fields, but the header names 3 columns"),
        ('audio,speaker,label\na/1.wav,"Ann"x,sad\n', "2: not CSV"),
        ("audio,speaker,label\n", r"labels no recording; left out: \{\}"),
        ("", "lacks the columns"),
    ],
)
def test_a_table_that_cannot_be_read(root: Path, text: str, what: str) -> None:
    (root / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=what):
        read_corpus("table", root.parent, CALLS)


def test_lines_that_are_no_json_are_named(root: Path) -> None:
    lines = ["{", "[1]", '{"audio": ["a/1.wav"]}', '{"audio": "a/1.wav", "speaker": "Ann", "label": "sad"}']
    (root / "labels.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        read_corpus("table", root.parent, CALLS)
    message = str(caught.value)
    assert message.startswith("3 mistakes")
    assert "labels.jsonl:1: not JSON" in message
    assert "labels.jsonl:2: must be an object of texts and numbers, got '[1]'" in message
    assert "labels.jsonl:3: must be an object" in message


def test_bytes_that_are_no_text_are_refused(root: Path) -> None:
    (root / "labels.csv").write_bytes(b"audio,speaker\n\xff\xfe\n")
    with pytest.raises(CorpusError, match=r"labels\.csv is not UTF-8"):
        read_corpus("table", root.parent, CALLS)


def test_no_table_is_a_corpus_error(root: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no table of labels: expected labels\.csv or labels\.jsonl"):
        read_corpus("table", root.parent, CALLS)


def test_attributes_need_a_declared_scale(root: Path) -> None:
    table(root / "labels.csv", everything())
    with pytest.raises(
        RecipeError, match=r"rates arousal, valence, dominance: declare the scale, such as scale = \[1, 5\]"
    ):
        read_corpus("table", root.parent, CALLS)


def test_a_published_split_with_a_speaker_on_two_sides_is_refused(root: Path) -> None:
    rows = labelled(split="train")
    for row, part in zip(rows, ("train", "test", "dev", "train"), strict=True):
        row["split"] = part
    table(root / "labels.csv", rows)
    manifest = read_corpus("table", root.parent, CALLS)
    with pytest.raises(LeakageError, match=r"train and test share the speakers \['calls-Ann'\]"):
        published_split(manifest)


def test_unknown_voices_of_a_call_stay_together(root: Path) -> None:
    rows = labelled(session="call 1", speaker="unknown")
    rows[1] |= {"session": "call 1", "speaker": "Unknown"}
    rows[2] |= {"session": "call 1"}
    table(root / "labels.csv", rows)
    manifest = read_corpus("table", root.parent, CALLS)
    assert manifest.speakers == ["calls-Ben", "calls-unknown-b/2", "calls-unknown-call 1"]
    split = split_speakers(manifest, 0.0, 1.0, 0)
    assert [clip.id for clip in split.train.clips] == ["b/2"]
    assert sum(split.dropped.values()) == 2


def test_options_are_checked_when_they_are_made() -> None:
    with pytest.raises(
        ValidationError, match=r"scale is lowest and highest rating, such as \[1, 5\], got \[5.0, 1.0\]"
    ):
        CorpusOptions(scale=(5, 1))
    with pytest.raises(ValidationError, match=r"label_map maps to one of angry, .* got \{'x': 'rage'\}"):
        CorpusOptions(label_map={"x": "rage", "y": "sad", "z": ""})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        CorpusOptions.model_validate({"colour": 1})
