from pathlib import Path

import pytest

from model.labels import CLASSES
from train.corpora import read_corpus
from train.errors import CorpusError

INTENDED = {
    "01": "neutral",
    "02": "neutral",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}


def write_clips(data: Path, *names: str) -> Path:
    (data / "ravdess").mkdir()
    for name in names:
        (data / "ravdess" / f"{name}.opus").touch()
    return data


def test_the_acted_emotion_is_the_label(tmp_path: Path) -> None:
    data = write_clips(tmp_path, *(f"03-01-{code}-01-02-01-12" for code in INTENDED))
    manifest = read_corpus("ravdess", data)
    assert {clip.id.split("-")[2]: clip.intended for clip in manifest.clips} == INTENDED
    for clip in manifest.clips:
        assert [name for name, votes in zip(CLASSES, clip.votes, strict=True) if votes] == [clip.intended]
        assert sum(clip.votes) == 1
    assert manifest.dropped == {}


def test_even_actors_are_women(tmp_path: Path) -> None:
    data = write_clips(tmp_path, "03-01-05-01-01-01-11", "03-01-05-01-01-01-12")
    clips = read_corpus("ravdess", data).clips
    assert [(clip.speaker, clip.gender) for clip in clips] == [("ravdess-11", "male"), ("ravdess-12", "female")]


def test_the_copied_recording_is_left_out_and_counted(tmp_path: Path) -> None:
    data = write_clips(tmp_path, "03-01-03-01-02-01-07", "03-01-03-01-02-02-07")
    manifest = read_corpus("ravdess", data)
    assert [clip.id for clip in manifest.clips] == ["03-01-03-01-02-01-07"]
    assert manifest.dropped == {"copy of another recording": 1}


def test_no_folder_and_no_clips_are_corpus_errors(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"ravdess is no folder: .*\.wav"):
        read_corpus("ravdess", tmp_path)
    write_clips(tmp_path)
    (tmp_path / "ravdess" / "README.md").touch()
    with pytest.raises(CorpusError, match="holds no RAVDESS clip"):
        read_corpus("ravdess", tmp_path)


def test_audio_that_is_no_clip_is_counted(tmp_path: Path) -> None:
    data = write_clips(tmp_path, "03-01-05-01-01-01-11", "room-tone")
    manifest = read_corpus("ravdess", data)
    assert (len(manifest.clips), manifest.dropped) == (1, {"not named as a clip": 1})


def test_videos_and_songs_are_counted(tmp_path: Path) -> None:
    data = write_clips(tmp_path, "03-01-05-01-01-01-11", "03-02-05-01-01-01-11", "01-01-05-01-01-01-11")
    manifest = read_corpus("ravdess", data)
    assert [clip.id for clip in manifest.clips] == ["03-01-05-01-01-01-11"]
    assert manifest.clips[0].transcript == "Kids are talking by the door."
    assert manifest.dropped == {"video or song": 2}


@pytest.mark.parametrize("name", ["03-01-09-01-01-01-11", "03-01-05-01-01-01-1A"])
def test_a_code_that_the_corpus_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusError, match=f"the third part is 01..08 .*got '{name}'"):
        read_corpus("ravdess", write_clips(tmp_path, name))


def test_the_actors_folders_of_the_published_archive(tmp_path: Path) -> None:
    for name in ("Actor_12/03-01-05-01-01-01-12", "Actor_02/03-01-06-01-01-01-02"):
        path = tmp_path / "ravdess" / f"{name}.wav"
        path.parent.mkdir(parents=True)
        path.touch()
    clips = read_corpus("ravdess", tmp_path).clips
    assert [(clip.id, clip.intended) for clip in clips] == [
        ("03-01-05-01-01-01-12", "angry"),
        ("03-01-06-01-01-01-02", "fear"),
    ]
