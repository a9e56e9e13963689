from pathlib import Path

import pytest

from model.recording import read_mono
from tests.train.corpora.trees import by_id, heard, mp4, table, wav
from train.corpora import read_corpus
from train.corpora.options import CorpusOptions
from train.errors import CorpusError, LeakageError
from train.manifest import published_split, split_speakers

FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
ROWS = {
    "train": [
        ("You\x92re a star!", "Joey", "joy", 0, 0),
        ("Oh, no, no.", "Chandler", "sadness", 0, 1),
        ("Get out!", "Monica", "anger", 1, 0),
        ("Surprise!", "All", "surprise", 1, 1),
        ("Hi.", "Phoebe and Rachel", "neutral", 1, 2),
        ("Ew.", "Nurse", "disgust", 1, 3),
    ],
    "dev": [("Okay.", "Ross", "neutral", 0, 0)],
    "test": [("Why?", "Rachel", "fear", 0, 0)],
}


def rows(split: str) -> list[dict[str, object]]:
    names = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
    return [
        {
            "Sr No.": number,
            **dict(zip(names, row, strict=True)),
            "Sentiment": "neutral",
            "Season": 8,
            "Episode": 21,
            "StartTime": "00:16:16,059",
            "EndTime": "00:16:21,731",
        }
        for number, row in enumerate(ROWS[split], 1)
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "meld"
    for split, clips in FOLDERS.items():
        table(folder / f"{split}_sent_emo.csv", rows(split))
        for *_, dialogue, utterance in ROWS[split]:
            wav(folder / clips / f"dia{dialogue}_utt{utterance}.wav")
    return folder


def test_utterances_carry_label_words_speaker_and_part(root: Path) -> None:
    manifest = read_corpus("meld", root.parent)
    clips = by_id(manifest)
    joey = clips["train_dia0_utt0"]
    assert (heard(joey), joey.consensus, joey.intended, joey.label) == ({"happy": 1.0}, "happy", None, "happy")
    assert (joey.speaker, joey.split, joey.session) == ("meld-joey", "train", "season 8 episode 21")
    assert (joey.transcript, joey.language) == ("You’re a star!", "en")
    assert {name: clip.consensus for name, clip in clips.items()} == {
        "train_dia0_utt0": "happy",
        "train_dia0_utt1": "sad",
        "train_dia1_utt0": "angry",
        "train_dia1_utt3": "disgust",
        "dev_dia0_utt0": "neutral",
        "test_dia0_utt0": "fear",
    }
    assert manifest.dropped == {"several speakers at once": 2}


def test_the_sound_of_a_published_video_is_read(root: Path) -> None:
    (root / "train_splits" / "dia0_utt0.wav").unlink()
    path = mp4(root / "train_splits" / "dia0_utt0.mp4")
    clip = by_id(read_corpus("meld", root.parent))["train_dia0_utt0"]
    assert clip.audio == path
    assert len(read_mono(clip.audio)) >= 1600


def test_four_classes(root: Path) -> None:
    manifest = read_corpus("meld", root.parent, CorpusOptions(label_set=4))
    assert [clip.consensus for clip in manifest.clips] == ["neutral", "happy", "sad", "angry"]
    assert manifest.dropped == {
        "several speakers at once": 2,
        "label disgust: not in the label set of 4": 1,
        "label fear: not in the label set of 4": 1,
    }


def test_a_missing_recording_is_counted(root: Path) -> None:
    (root / "train_splits" / "dia0_utt1.wav").unlink()
    manifest = read_corpus("meld", root.parent)
    assert "train_dia0_utt1" not in by_id(manifest)
    assert manifest.dropped == {"several speakers at once": 2, "label without a recording": 1}


def test_the_published_split_shares_its_main_cast(root: Path) -> None:
    published_split(read_corpus("meld", root.parent))  # this small one does not
    again = [{**row, "Speaker": "Joey"} for row in rows("test")]
    table(root / "test_sent_emo.csv", again)
    manifest = read_corpus("meld", root.parent)
    with pytest.raises(LeakageError, match=r"train and test share the speakers \['meld-joey'\]: split by speaker"):
        published_split(manifest)
    asked = published_split(manifest, allow_overlap=True)
    assert asked.shared == {"train and test": ["meld-joey"]}
    assert [len(part.clips) for part in asked.parts.values()] == [4, 1, 1]
    assert split_speakers(manifest, 0.25, 0.25, 0).shared == {}


def test_every_wrong_row_is_named_at_once(root: Path) -> None:
    bad = rows("train")
    bad[0]["Emotion"] = "boredom"
    bad[1]["Dialogue_ID"] = "x"
    bad[2]["Speaker"] = ""
    bad[4]["Utterance_ID"] = 1
    table(root / "train_sent_emo.csv", bad)
    with pytest.raises(CorpusError) as caught:
        read_corpus("meld", root.parent)
    message = str(caught.value)
    assert message.startswith("4 mistakes")
    assert "train_sent_emo.csv:2: Emotion must be one of anger, sadness" in message
    assert "train_sent_emo.csv:3: Dialogue_ID must be a whole number, got 'x'" in message
    assert "train_sent_emo.csv:4: Speaker must be given, got ''" in message
    assert "train_sent_emo.csv:6: Utterance_ID must be listed once a dialogue, got '1'" in message


def test_missing_tables_columns_and_recordings_are_corpus_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read the label file .*train_sent_emo.csv: No such file"):
        read_corpus("meld", tmp_path, CorpusOptions(folder="elsewhere"))
    for path in root.rglob("*.wav"):
        path.unlink()
    with pytest.raises(CorpusError, match=r"holds no MELD recording: expected train_splits/dia0_utt0\.mp4"):
        read_corpus("meld", root.parent)
    table(root / "dev_sent_emo.csv", [{"Utterance": "Hi", "Emotion": "joy"}])
    with pytest.raises(CorpusError, match=r"dev_sent_emo.csv lacks the columns \['Speaker', 'Dialogue_ID'"):
        read_corpus("meld", root.parent)
