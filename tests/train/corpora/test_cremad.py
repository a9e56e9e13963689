from pathlib import Path

import pytest

from model.labels import CLASSES
from tests.train.corpora.trees import heard, table, wav
from tests.train.synthetic import write_actors, write_votes
from train.corpora import read_corpus
from train.corpora.options import CorpusOptions
from train.errors import CorpusError, RecipeError
from train.manifest import dominant_class

VOTES = {
    "1001_DFA_ANG_XX": (5, 1, 0, 0, 3, 0),
    "1001_IEO_HAP_LO": (0, 0, 0, 6, 3, 0),
    "1002_TIE_SAD_HI": (0, 2, 1, 0, 4, 4),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cremad"
    write_votes(folder, VOTES)
    write_actors(folder, {"1001": "Male", "1002": "Female"})
    for name in VOTES:
        (folder / f"{name}.opus").touch()
    return folder


def test_clips_carry_their_votes_in_canonical_order(root: Path) -> None:
    manifest = read_corpus("cremad", root.parent)
    angry, happy, sad = manifest.clips
    assert [clip.id for clip in manifest.clips] == sorted(VOTES)
    assert dict(zip(CLASSES, angry.votes, strict=True)) == {
        "angry": 5,
        "sad": 0,
        "happy": 0,
        "surprise": 0,
        "fear": 0,
        "disgust": 1,
        "contempt": 0,
        "neutral": 3,
    }
    assert dict(zip(CLASSES, sad.votes, strict=True))["sad"] == 4
    assert [clip.intended for clip in (angry, happy, sad)] == ["angry", "happy", "sad"]
    assert [clip.gender for clip in (angry, happy, sad)] == ["male", "male", "female"]
    assert manifest.speakers == ["cremad-1001", "cremad-1002"]
    assert all(clip.audio.is_file() and clip.audio.stem == clip.id for clip in manifest.clips)
    assert manifest.dropped == {}


def test_rows_are_joined_by_id(root: Path) -> None:
    write_votes(root, dict(reversed(VOTES.items())))
    votes = {clip.id: clip.votes for clip in read_corpus("cremad", root.parent).clips}
    assert votes["1001_IEO_HAP_LO"][CLASSES.index("happy")] == 6
    assert votes["1002_TIE_SAD_HI"][CLASSES.index("sad")] == 4


def test_what_is_left_out_is_counted(root: Path) -> None:
    (root / "1001_DFA_ANG_XX.opus").unlink()
    (root / "1009_DFA_ANG_XX.opus").touch()
    (root / "1009_DFA_DIS_XX.opus").touch()
    (root / "LICENSE.txt").touch()
    manifest = read_corpus("cremad", root.parent)
    assert len(manifest.clips) == 2
    assert manifest.dropped == {"clip without votes": 2, "votes without clip": 1}


def test_audio_that_is_no_clip_is_counted(root: Path) -> None:
    (root / "room_tone.wav").touch()
    assert read_corpus("cremad", root.parent).dropped == {"clip without votes": 1}


def test_the_table_of_actors_may_be_missing(root: Path) -> None:
    (root / "actors.csv").unlink()
    assert {clip.gender for clip in read_corpus("cremad", root.parent).clips} == {""}


@pytest.mark.parametrize("removed", ["votes.csv", "*.opus", "*"])
def test_an_incomplete_corpus_says_what_is_missing(root: Path, removed: str) -> None:
    for path in root.glob(removed):
        path.unlink()
    with pytest.raises(CorpusError, match=r"cremad.*(votes\.csv is missing|holds no CREMA-D clip)"):
        read_corpus("cremad", root.parent)


def test_a_missing_folder_is_a_corpus_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cremad"):
        read_corpus("cremad", tmp_path)


def test_an_unknown_corpus_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="'savee': there are cremad, emodb, iemocap, meld, msp-podcast, ravdess, table"
    ):
        read_corpus("savee", tmp_path)


def test_a_new_label_is_never_dropped_in_silence(root: Path) -> None:
    write_votes(root, {**VOTES, "1001_DFA_BOR_XX": (1, 0, 0, 0, 0, 0)})
    (root / "1001_DFA_BOR_XX.opus").touch()
    with pytest.raises(CorpusError, match="one of ANG DIS FEA HAP NEU SAD, got '1001_DFA_BOR_XX'"):
        read_corpus("cremad", root.parent)


def test_every_wrong_vote_is_named_at_once(root: Path) -> None:
    with (root / "votes.csv").open("a", encoding="utf-8") as file:
        file.write("1003_DFA_ANG_XX,1,two,0,0,0,-3,9,50.0\n1003_DFA_DIS_XX,,1,0,0,0,0,1,50.0\n")
    with pytest.raises(CorpusError) as caught:
        read_corpus("cremad", root.parent)
    message = str(caught.value)
    assert message.startswith("3 mistakes")
    assert "votes.csv:5: D must be a number of at least 0, got 'two'" in message
    assert "votes.csv:5: S must be a number of at least 0, got '-3'" in message
    assert "votes.csv:6: A must be given, got ''" in message


def test_the_words_are_those_of_the_sentence(root: Path) -> None:
    clips = read_corpus("cremad", root.parent).clips
    assert [clip.transcript for clip in clips] == [
        "Don't forget a jacket.",
        "It's eleven o'clock.",
        "That is exactly what happened.",
    ]
    assert {clip.language for clip in clips} == {"en"}


RESPONSES = [
    # clipName, queryType (1 voice, 2 face, 3 both), respEmo
    ("1001_DFA_ANG_XX", 1, "A"),
    ("1001_DFA_ANG_XX", 1, "A"),
    ("1001_DFA_ANG_XX", 1, "N"),
    ("1001_DFA_ANG_XX", 2, "D"),
    ("1001_DFA_ANG_XX", 3, "S"),
    ("1002_TIE_SAD_HI", 1, "S"),
    ("1003_TIE_SAD_HI", 2, "S"),
]


def published(data: Path) -> Path:
    """The repository as its publishers lay it out."""
    rows: list[dict[str, object]] = [
        {"": n, "localid": "x", "ans": f"{emotion}_80", "queryType": kind, "clipName": clip, "respEmo": emotion}
        for n, (clip, kind, emotion) in enumerate(RESPONSES, 1)
    ]
    table(data / "cremad" / "finishedResponses.csv", rows)
    table(data / "cremad" / "VideoDemographics.csv", [{"ActorID": 1001, "Age": 51, "Sex": "Male"}])
    for clip in ("1001_DFA_ANG_XX", "1002_TIE_SAD_HI", "1003_TIE_SAD_HI"):
        wav(data / "cremad" / "AudioWAV" / f"{clip}.wav")
    return data


def test_the_published_layout_counts_responses_to_the_voice_alone(tmp_path: Path) -> None:
    manifest = read_corpus("cremad", published(tmp_path))
    angry, sad = manifest.clips
    assert heard(angry) == {"angry": 2.0, "neutral": 1.0}
    assert heard(sad) == {"sad": 1.0}
    assert (angry.gender, sad.gender) == ("male", "")
    assert (angry.intended, sad.intended) == ("angry", "sad")
    assert angry.audio == tmp_path / "cremad" / "AudioWAV" / "1001_DFA_ANG_XX.wav"
    assert manifest.dropped == {"clip without votes": 1}


def test_a_response_of_no_emotion_is_named(tmp_path: Path) -> None:
    path = published(tmp_path) / "cremad" / "finishedResponses.csv"
    path.write_text(path.read_text(encoding="utf-8") + "8,x,B_1,1,1001_DFA_ANG_XX,B\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"finishedResponses\.csv:9: respEmo must be one of A D F H N S, got 'B'"):
        read_corpus("cremad", tmp_path)


def test_the_six_classes_are_all_there_are(root: Path) -> None:
    assert read_corpus("cremad", root.parent, CorpusOptions(label_set=6)) == read_corpus("cremad", root.parent)


def test_with_four_classes_fear_and_disgust_are_left_out_and_votes_for_them_are_votes_for_something_else(
    root: Path,
) -> None:
    added = {"1002_DFA_FEA_XX": (0, 0, 9, 0, 1, 0), "1002_DFA_ANG_XX": (0, 4, 5, 0, 0, 0)}
    write_votes(root, VOTES | added)
    for name in added:
        (root / f"{name}.opus").touch()
    manifest = read_corpus("cremad", root.parent, CorpusOptions(label_set=4))
    clips = {clip.id: clip for clip in manifest.clips}
    assert set(clips) == {*VOTES, "1002_DFA_ANG_XX"}
    assert manifest.dropped == {"label FEA: not in the label set of 4": 1}
    assert (sum(clips["1001_DFA_ANG_XX"].votes), clips["1001_DFA_ANG_XX"].other_votes) == (8, 1)
    assert (sum(clips["1002_TIE_SAD_HI"].votes), clips["1002_TIE_SAD_HI"].other_votes) == (8, 3)
    unheard = clips["1002_DFA_ANG_XX"]
    assert (unheard.votes[CLASSES.index("angry")], sum(unheard.votes), unheard.other_votes) == (1, 1, 9)
    assert dominant_class(unheard, 2.0) is None  # more raters heard what has no class here than angry
    assert manifest.notes == {"clip without a vote for a class of the label set: the intended emotion is its target": 1}


def test_a_label_set_that_nobody_uses_is_refused(root: Path) -> None:
    with pytest.raises(RecipeError, match="label_set of 'cremad' is one of 6, 4, got 5"):
        read_corpus("cremad", root.parent, CorpusOptions(label_set=5))
