from pathlib import Path

import numpy as np
import pytest

from model.labels import CLASSES
from tests.train.corpora.trees import by_id, heard, table, wav
from train.corpora import read_corpus
from train.corpora.options import CorpusOptions
from train.errors import CorpusError, LeakageError
from train.manifest import dominant_class, published_split, split_speakers, target

CONSENSUS = {
    # file: EmoClass, EmoAct, EmoVal, EmoDom, SpkrID, Gender, Split_Set
    "MSP-PODCAST_0001_0008.wav": ("A", 5.8, 1.4, 6.2, "97", "Male", "Train"),
    "MSP-PODCAST_0001_0019.wav": ("X", 4.0, 4.0, "", "Unknown", "Unknown", "Train"),
    "MSP-PODCAST_0002_0033.wav": ("O", 3.0, 5.0, 4.0, "12", "Female", "Development"),
    "MSP-PODCAST_0003_0001.wav": ("H", 6.0, 7.0, 1.0, "13", "Female", "Test1"),
    "MSP-PODCAST_0004_0001.wav": ("U", 6.0, 4.0, 4.0, "14", "Male", "Test2"),
    "MSP-PODCAST_0005_0001.wav": ("C", 4.0, 2.0, 5.0, "15", "Male", "Test3"),
}
WORKERS = {
    "MSP-PODCAST_0001_0008.wav": ["Angry", "Angry", "Angry", "Disgust", "Other-annoyed"],
    "MSP-PODCAST_0001_0019.wav": ["Sad", "Sad", "Neutral", "Neutral", "Fear"],
    "MSP-PODCAST_0002_0033.wav": ["Other", "Other-bored", "Other-bored", "Happy", "Neutral"],
    "MSP-PODCAST_0003_0001.wav": ["Happy", "Happy", "Neutral"],
    "MSP-PODCAST_0004_0001.wav": ["Surprise", "Surprise", "Contempt"],
    "MSP-PODCAST_0005_0001.wav": ["Contempt", "Contempt", "Neutral"],
}
CONSENSUS_COLUMNS = ("EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")


def consensus_rows() -> list[dict[str, object]]:
    return [{"FileName": n, **dict(zip(CONSENSUS_COLUMNS, v, strict=True))} for n, v in CONSENSUS.items()]


def worker_rows() -> list[dict[str, object]]:
    return [
        {
            "FileName": name,
            "WorkerID": f"WORKER{worker:08d}",
            "EmoClass_Major": primary,
            "EmoClass_Second": f"{primary},Concerned,Excited",
            "EmoAct": 4.0,
            "EmoVal": 3.0,
            "EmoDom": 5.0,
        }
        for name, primaries in WORKERS.items()
        for worker, primary in enumerate(primaries)
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "msp-podcast"
    for name in CONSENSUS:
        wav(folder / "Audios" / name)
    table(folder / "Labels" / "labels_consensus.csv", consensus_rows())
    table(folder / "Labels" / "labels_detailed.csv", worker_rows())
    return folder


def test_workers_votes_are_the_target(root: Path) -> None:
    (root / "Transcripts").mkdir()
    (root / "Transcripts" / "MSP-PODCAST_0001_0008.txt").write_text("I never said that.\n", encoding="utf-8")
    manifest = read_corpus("msp-podcast", root.parent)
    clips = by_id(manifest)
    assert list(clips) == [name[:-4] for name in CONSENSUS]
    angry = clips["MSP-PODCAST_0001_0008"]
    assert (heard(angry), angry.other_votes, angry.consensus) == ({"angry": 3.0, "disgust": 1.0}, 1.0, "angry")
    expected = [{"angry": 0.75, "disgust": 0.25}.get(name, 0.0) for name in CLASSES]
    np.testing.assert_allclose(target(angry, 0.0), expected)
    assert angry.attributes == (5.8, 1.4, 6.2)  # activation, valence, dominance; the scale is already 1..7
    assert (angry.speaker, angry.speaker_known, angry.gender) == ("msp-podcast-97", True, "male")
    assert (angry.split, angry.session, angry.language) == ("train", "MSP-PODCAST_0001", "en")
    assert angry.transcript == "I never said that."
    assert angry.intended is None
    assert angry.label == "angry"
    assert angry.audio.is_file()
    splits = [clip.split for clip in manifest.clips]
    assert splits == ["train", "train", "dev", "test1", "test2", "test3"]
    assert [clip.consensus for clip in manifest.clips] == ["angry", None, None, "happy", "surprise", "contempt"]


def test_clips_without_agreement_are_kept(root: Path) -> None:
    manifest = read_corpus("msp-podcast", root.parent)
    clips = by_id(manifest)
    tied, other = clips["MSP-PODCAST_0001_0019"], clips["MSP-PODCAST_0002_0033"]
    assert heard(tied) == {"sad": 2.0, "neutral": 2.0, "fear": 1.0}
    assert np.isnan(tied.attributes[2])
    assert (heard(other), other.other_votes) == ({"happy": 1.0, "neutral": 1.0}, 3.0)
    assert [dominant_class(clip, 0.0) for clip in (tied, other)] == [None, None]
    assert manifest.dropped == {}
    assert manifest.notes == {
        "votes for another emotion": 4,
        "clip of an unknown speaker": 1,
        "clip without agreement (XO)": 2,
    }


def test_the_table_with_a_line_of_text_per_worker(root: Path) -> None:
    columns = read_corpus("msp-podcast", root.parent)
    rows = [
        {
            "FileName": row["FileName"],
            "EmoDetail": f"{row['WorkerID']}; {row['EmoClass_Major']}; {row['EmoClass_Second']}; A:4.0; V:3.0; D:5.0;",
        }
        for row in worker_rows()
    ]
    table(root / "Labels" / "labels_detailed.csv", rows)
    assert read_corpus("msp-podcast", root.parent) == columns


def test_an_unknown_speaker_is_not_one_speaker(root: Path) -> None:
    rows = [{**row, "SpkrID": "Unknown"} for row in consensus_rows()]
    rows[0]["SpkrID"] = "97"
    table(root / "Labels" / "labels_consensus.csv", rows)
    manifest = read_corpus("msp-podcast", root.parent)
    unknown = [clip.speaker for clip in manifest.clips if not clip.speaker_known]
    assert len(set(unknown)) == len(unknown) == 5
    assert manifest.notes["clip of an unknown speaker"] == manifest.of_unknown_speaker == 5
    split = split_speakers(manifest, 0.0, 1.0, 0)  # the one known speaker is held out, and with him his podcast
    assert split.test.speakers == ["msp-podcast-97"]
    assert [clip.session for clip in split.train.clips] == [f"MSP-PODCAST_000{n}" for n in range(2, 6)]
    assert split.dropped == {"unknown speaker in a recording of a held-out speaker": 1}


def challenge_rows() -> list[dict[str, object]]:
    names = ("Angry", "Sad", "Happy", "Surprise", "Fear", "Disgust", "Contempt", "Neutral")
    shares = {
        "MSP-PODCAST_0001_0008.wav": (0.6, 0, 0, 0, 0, 0.2, 0, 0.2),
        "MSP-PODCAST_0001_0019.wav": (0, 0.4, 0, 0, 0.2, 0, 0, 0.4),
        "MSP-PODCAST_0002_0033.wav": (0, 0, 0, 0, 0, 0, 0, 0),
        "MSP-PODCAST_0003_0001.wav": (0, 0, 1, 0, 0, 0, 0, 0),
    }
    return [
        {
            "FileName": name,
            **dict(zip(names, row, strict=True)),
            **dict(zip(("EmoAct", "EmoVal", "EmoDom"), CONSENSUS[name][1:4], strict=True)),
            "Split_Set": CONSENSUS[name][6],
        }
        for name, row in shares.items()
    ]


@pytest.mark.parametrize("speakers", [True, False])
def test_the_challenges_table(root: Path, speakers: bool) -> None:
    (root / "Labels" / "labels_detailed.csv").unlink()
    if not speakers:
        (root / "Labels" / "labels_consensus.csv").unlink()
    table(root / "Labels" / "challenge.csv", challenge_rows())
    manifest = read_corpus("msp-podcast", root.parent, CorpusOptions(labels="Labels/challenge.csv"))
    angry, tied, happy = manifest.clips
    assert heard(angry) == {"angry": 0.6, "disgust": 0.2, "neutral": 0.2}
    assert (angry.consensus, tied.consensus, happy.consensus) == ("angry", None, "happy")
    assert manifest.dropped == {"no label and no votes": 1}
    unknown = 1 if speakers else 3
    assert manifest.notes == {"clip without agreement (XO)": 1, "clip of an unknown speaker": unknown}
    assert angry.attributes == (5.8, 1.4, 6.2)
    if speakers:
        assert (angry.speaker, angry.gender, tied.speaker_known) == ("msp-podcast-97", "male", False)
    else:
        assert manifest.of_unknown_speaker == 3
        with pytest.raises(CorpusError, match="no clip tells its speaker"):
            split_speakers(manifest, 0.1, 0.1, 0)


def test_workers_votes_come_before_the_challenges_shares(root: Path) -> None:
    table(root / "Labels" / "challenge.csv", challenge_rows())
    manifest = read_corpus("msp-podcast", root.parent, CorpusOptions(labels="Labels/challenge.csv"))
    assert heard(manifest.clips[0]) == {"angry": 3.0, "disgust": 1.0}


def test_without_workers_the_agreed_class_stands_and_x_and_o_go(root: Path) -> None:
    (root / "Labels" / "labels_detailed.csv").unlink()
    manifest = read_corpus("msp-podcast", root.parent)
    assert [heard(clip) for clip in manifest.clips] == [{"angry": 1}, {"happy": 1}, {"surprise": 1}, {"contempt": 1}]
    assert manifest.dropped == {
        "the annotators did not agree, and their votes are not there": 1,
        "votes only for an emotion that is none of the eight classes": 1,
    }
    assert manifest.notes["clip without workers' votes: the agreed class is its target"] == 4


def test_what_is_left_out_is_counted(root: Path) -> None:
    (root / "Audios" / "MSP-PODCAST_0001_0008.wav").unlink()
    rows = consensus_rows()
    rows[5] |= {"EmoClass": "", "EmoAct": "", "EmoVal": "", "EmoDom": ""}  # as a held-back test part
    table(root / "Labels" / "labels_consensus.csv", rows)
    table(root / "Labels" / "labels_detailed.csv", [r for r in worker_rows() if r["FileName"] != rows[5]["FileName"]])
    manifest = read_corpus("msp-podcast", root.parent)
    assert manifest.dropped == {"label without a recording": 1, "no label and no votes": 1}


def test_labels_that_contradict_the_votes_are_said(root: Path) -> None:
    rows = consensus_rows()
    rows[0]["EmoClass"], rows[3]["EmoClass"] = "N", "S"
    table(root / "Labels" / "labels_consensus.csv", rows)
    assert read_corpus("msp-podcast", root.parent).notes["agreed class is not the one with most votes"] == 2


def test_every_wrong_row_is_named_at_once(root: Path) -> None:
    rows = consensus_rows()
    rows[0]["EmoClass"] = "Z"
    rows[1]["EmoAct"] = "9"
    rows[2]["Split_Set"] = "Holdout"
    rows[3]["Gender"] = "?"
    rows[4]["EmoVal"] = "high"
    rows[5]["FileName"] = rows[4]["FileName"]
    table(root / "Labels" / "labels_consensus.csv", rows)
    with pytest.raises(CorpusError) as caught:
        read_corpus("msp-podcast", root.parent)
    message = str(caught.value)
    assert message.startswith("6 mistakes")
    for line, what in enumerate(
        (
            "EmoClass must be one of A S H U F D C N O X, got 'Z'",
            "EmoAct must be a number in 1..7, got '9'",
            "Split_Set must be one of train, development, dev",
            "Gender must be one of",
            "EmoVal must be a number in 1..7, got 'high'",
            "FileName must be listed once",
        ),
        2,
    ):
        assert f"labels_consensus.csv:{line}: {what}" in message


def test_a_row_cut_short_is_named(root: Path) -> None:
    path = root / "Labels" / "labels_consensus.csv"
    path.write_text(path.read_text(encoding="utf-8") + "MSP-PODCAST_0009_0001.wav,A\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"labels_consensus\.csv:8: 2 fields, but the header names 8 columns"):
        read_corpus("msp-podcast", root.parent)


def test_a_workers_line_without_an_emotion_is_named(root: Path) -> None:
    table(root / "Labels" / "labels_detailed.csv", [{"FileName": "MSP-PODCAST_0001_0008.wav", "EmoDetail": "A:5.0"}])
    with pytest.raises(CorpusError, match=r"labels_detailed\.csv:2: EmoDetail must be such as 'WORKER"):
        read_corpus("msp-podcast", root.parent)


def test_a_table_of_workers_that_names_no_class_is_refused(root: Path) -> None:
    table(root / "Labels" / "labels_detailed.csv", [{**row, "EmoClass_Major": "5"} for row in worker_rows()])
    with pytest.raises(CorpusError, match="holds no vote for Angry, Sad"):
        read_corpus("msp-podcast", root.parent)


def test_missing_tables_and_recordings_are_corpus_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="elsewhere.*labels_consensus.csv is missing"):
        read_corpus("msp-podcast", tmp_path, CorpusOptions(folder="elsewhere"))
    for path in (root / "Audios").iterdir():
        path.unlink()
    with pytest.raises(CorpusError, match=r"labels no recording below .*Audios; left out: .*recording': 6"):
        read_corpus("msp-podcast", root.parent)


def test_a_published_split_with_a_speaker_on_two_sides_is_refused(root: Path) -> None:
    split = published_split(read_corpus("msp-podcast", root.parent))
    assert [len(part.clips) for part in split.parts.values()] == [2, 1, 3]
    assert split.of_unknown_speaker == {"train": 1}
    rows = consensus_rows()
    rows[3]["SpkrID"] = "97"
    table(root / "Labels" / "labels_consensus.csv", rows)
    with pytest.raises(LeakageError, match=r"train and test share the speakers \['msp-podcast-97'\]"):
        published_split(read_corpus("msp-podcast", root.parent))
