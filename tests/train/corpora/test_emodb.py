from pathlib import Path

import pytest

from tests.train.corpora.trees import by_id, heard, wav
from train.corpora import read_corpus
from train.corpora.options import CorpusOptions
from train.errors import CorpusError, LeakageError, RecipeError
from train.manifest import Manifest, assert_disjoint

LETTERS = {"W": "angry", "E": "disgust", "A": "fear", "F": "happy", "T": "sad", "N": "neutral"}


def write_clips(data: Path, *names: str, folder: str = "wav") -> Path:
    for name in names:
        wav(data / "emodb" / folder / f"{name}.wav")
    return data


def test_the_letter_is_the_emotion(tmp_path: Path) -> None:
    data = write_clips(tmp_path, *(f"03a01{letter}a" for letter in LETTERS))
    manifest = read_corpus("emodb", data)
    clips = by_id(manifest)
    assert {name[5]: clip.intended for name, clip in clips.items()} == LETTERS
    assert all(heard(clip) == {clip.intended: 1.0} for clip in manifest.clips)
    assert all(clip.audio.is_file() for clip in manifest.clips)
    assert manifest.dropped == {}


def test_speaker_sentence_and_language(tmp_path: Path) -> None:
    data = write_clips(tmp_path, "03a01Fa", "08b10Wb", folder="")
    man, woman = read_corpus("emodb", data).clips
    assert (man.speaker, man.gender, man.transcript) == (
        "emodb-03",
        "male",
        "Der Lappen liegt auf dem Eisschrank.",
    )
    assert (woman.speaker, woman.gender) == ("emodb-08", "female")
    assert {man.language, woman.language} == {"de"}


def test_boredom_is_left_out_and_counted(tmp_path: Path) -> None:
    manifest = read_corpus("emodb", write_clips(tmp_path, "03a01Fa", "03a01La", "09b02Lb", "room-tone"))
    assert [clip.id for clip in manifest.clips] == ["03a01Fa"]
    assert manifest.dropped == {
        "label L: boredom (Langeweile) is none of the eight classes": 2,
        "not named as a clip": 1,
    }


def test_an_emotion_that_the_corpus_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"03a01Xa\.wav: the emotion must be one of W T F A E N L, got 'X'"):
        read_corpus("emodb", write_clips(tmp_path, "03a01Xa"))


def test_no_clips_is_a_corpus_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no EMO-DB clip: expected files such as wav/03a01Fa\.wav"):
        read_corpus("emodb", tmp_path)


def test_an_option_that_means_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'emodb' takes no option label_set: it takes folder"):
        read_corpus("emodb", tmp_path, CorpusOptions(label_set=4))


def test_a_speaker_on_two_sides_is_refused(tmp_path: Path) -> None:
    first, second = read_corpus("emodb", write_clips(tmp_path, "03a01Fa", "03a02Fa")).clips
    with pytest.raises(LeakageError, match=r"train and test share the speakers \['emodb-03'\]"):
        assert_disjoint({"train": Manifest((first,)), "test": Manifest((second,))})
