from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.labels import CLASSES
from tests.train.corpora.trees import by_id, heard, write_dialogue
from train.corpora import read_corpus
from train.corpora.options import CorpusOptions
from train.errors import CorpusError, LeakageError, RecipeError
from train.manifest import Manifest, dominant_class, leave_one_session_out, target

ANGRY = """\
[6.2901 - 8.2357]\tSes01F_impro01_F000\tang\t[2.0000, 4.0000, 4.5000]
C-E2:\tAnger;\t()
C-E3:\tAnger; Frustration;\t()
C-E4:\tFrustration;\t()
C-F1:\tSadness;\t(what she felt)
A-E3:\tval 2; act 4; dom  4;\t()
A-E4:\tval 1; act 5; dom  ;\t(mildly aggravated but staying polite, attitude)
A-F1:\tval 5; act 5; dom  5;\t()

"""
EXCITED = """\
[10.0100 - 11.3925]\tSes01F_impro01_M000\texc\t[2.0000, 4.0000, 3.0000]
C-E2:\tExcited;\t()
C-E3:\tHappiness;\t()
C-E4:\tNeutral;\t(laughing)

"""
NO_AGREEMENT = """\
[12.0000 - 14.0000]\tSes01F_impro01_M001\txxx\t[2.5000, 2.0000, 3.0000]
C-E2:\tNeutral;\t()
C-E3:\tSadness;\t()
C-E4:\tFrustration;\t()
A-E3:\tval 3; act 2; dom  3;\t()
A-E4:\tval 2; act 2; dom  9;\t()

"""
FRUSTRATED = "[15.0 - 16.0]\tSes01F_impro01_F001\tfru\t[2.0, 3.0, 3.0]\nC-E2:\tFrustration;\t()\n\n"
SURPRISED = "[17.0 - 18.0]\tSes01F_impro01_F002\tsur\t[3.0, 3.0, 3.0]\nC-E2:\tSurprise;\t()\n\n"
AFRAID = "[19.0 - 20.0]\tSes01F_impro01_F003\tfea\t[3.0, 3.0, 3.0]\nC-E2:\tFear;\t()\n\n"
NOT_SAID = "[21.0 - 22.0]\tSes01F_impro01_F004\txxx\t[3.0, 3.0, 3.0]\nC-E2:\tOther;\t()\nC-E3:\tFear;\t()\n\n"
UNRATED = "[23.0 - 24.0]\tSes01F_impro01_F005\tneu\t[3.0, 3.0, 3.0]\n\n"
TURNS = (ANGRY, EXCITED, NO_AGREEMENT, FRUSTRATED, SURPRISED, AFRAID, NOT_SAID, UNRATED)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "iemocap"
    write_dialogue(folder, 1, "Ses01F_impro01", "".join(TURNS))
    words = folder / "Session1" / "dialog" / "transcriptions" / "Ses01F_impro01.txt"
    words.parent.mkdir()
    words.write_text("Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\nF: who?\n", encoding="utf-8")
    (folder / "Session1" / "dialog" / "EmoEvaluation" / "._Ses01F_impro01.txt").write_bytes(b"[\0\xff")
    return folder


def test_votes_are_those_of_the_outside_raters(root: Path) -> None:
    clips = by_id(read_corpus("iemocap", root.parent))
    angry, excited = clips["Ses01F_impro01_F000"], clips["Ses01F_impro01_M000"]
    assert (heard(angry), angry.other_votes, angry.consensus) == ({"angry": 1.5}, 1.5, "angry")
    assert (heard(excited), excited.other_votes, excited.consensus) == ({"happy": 2.0, "neutral": 1.0}, 0.0, "happy")
    expected = [{"happy": 2 / 3, "neutral": 1 / 3}.get(name, 0.0) for name in CLASSES]
    np.testing.assert_allclose(target(excited, 0.0), expected, atol=1e-6)
    assert angry.transcript == "Excuse me."
    assert excited.transcript is None
    assert {clip.language for clip in clips.values()} == {"en"}


def test_the_turn_says_who_speaks_and_not_the_dialogue(root: Path) -> None:
    clips = by_id(read_corpus("iemocap", root.parent))
    woman, man = clips["Ses01F_impro01_F000"], clips["Ses01F_impro01_M000"]
    assert (woman.speaker, woman.gender, woman.session) == ("iemocap-Ses01F", "female", "Ses01")
    assert (man.speaker, man.gender, man.session) == ("iemocap-Ses01M", "male", "Ses01")


def test_attributes_are_mapped_from_1_5_to_1_7(root: Path) -> None:
    manifest = read_corpus("iemocap", root.parent)
    clips = by_id(manifest)
    # activation (4 + 5) / 2, valence (2 + 1) / 2, dominance 4 by one rater; then 1 + 6 (x - 1) / 4
    np.testing.assert_allclose(clips["Ses01F_impro01_F000"].attributes, (6.25, 1.75, 5.5))
    np.testing.assert_allclose(clips["Ses01F_impro01_M000"].attributes, (5.5, 2.5, 4.0))  # the summary's
    np.testing.assert_allclose(clips["Ses01F_impro01_M001"].attributes, (2.5, 3.25, 4.0))
    assert manifest.notes["rating outside 1..5, not used"] == 1


@pytest.mark.parametrize(
    ("label_set", "kept", "dropped"),
    [
        (
            None,
            {"F000", "F005", "M000", "M001"},
            {"sur: not in the label set of 4": 1, "fea: not in the label set of 4": 1},
        ),
        (
            4,
            {"F000", "F005", "M000", "M001"},
            {"sur: not in the label set of 4": 1, "fea: not in the label set of 4": 1},
        ),
        (5, {"F000", "F002", "F005", "M000", "M001"}, {"fea: not in the label set of 5": 1}),
        (6, {"F000", "F002", "F003", "F004", "F005", "M000", "M001"}, {}),
    ],
)
def test_label_sets(root: Path, label_set: int | None, kept: set[str], dropped: dict[str, int]) -> None:
    manifest = read_corpus("iemocap", root.parent, CorpusOptions(label_set=label_set) if label_set else None)
    assert {clip.id[-4:] for clip in manifest.clips} == kept
    expected = {f"label {reason}": count for reason, count in dropped.items()}
    expected["label fru: frustration lies between anger and sadness and is none of the eight classes"] = 1
    if label_set != 6:
        expected["label xxx: no vote for a class of the label set"] = 1
    assert manifest.dropped == expected


def test_turns_without_agreement_are_kept(root: Path) -> None:
    manifest = read_corpus("iemocap", root.parent)
    tied = by_id(manifest)["Ses01F_impro01_M001"]
    assert (heard(tied), tied.other_votes, tied.consensus) == ({"neutral": 1.0, "sad": 1.0}, 1.0, None)
    assert dominant_class(tied, 0.0) is None
    assert manifest.notes["turn without agreement (XO)"] == 1
    assert manifest.notes["turn without raters' votes: the published label is its target"] == 1


def test_an_unknown_label_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="label_set of 'iemocap' is one of 4, 5, 6, got 7"):
        read_corpus("iemocap", tmp_path, CorpusOptions(label_set=7))


def test_a_missing_recording_is_counted(root: Path) -> None:
    (root / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / "Ses01F_impro01_F000.wav").unlink()
    manifest = read_corpus("iemocap", root.parent)
    assert manifest.dropped["label without a recording"] == 1
    assert "Ses01F_impro01_F000" not in by_id(manifest)


def test_every_wrong_line_is_named_at_once(root: Path) -> None:
    bad = (
        "[6.29 - 8.23]\tSes02F_impro01_F000\tneu\n"
        "[7.0 - 8.0]\tSes02F_impro01_F001\tboredom\t[2.0, 2.0, 2.0]\n"
        "[8.0 - 9.0]\tSes02F_impro01_F002\tneu\t[2.0, 2.0, 2.0]\n"
        "C-E1:\tNeutral; Smug;\t()\n"
    )
    write_dialogue(root, 2, "Ses02F_impro01", bad)
    with pytest.raises(CorpusError) as caught:
        read_corpus("iemocap", root.parent)
    message = str(caught.value)
    assert message.startswith("3 mistakes")
    assert "Ses02F_impro01.txt:3: a turn must look like" in message
    assert "Ses02F_impro01.txt:4: label must be one of ang hap exc" in message
    assert "got 'boredom'" in message
    assert "Ses02F_impro01.txt:6: a rater's emotion must be one of Anger, Happiness" in message
    assert "got 'Smug'" in message


def test_a_folder_that_is_not_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no IEMOCAP turn: expected Session1/dialog"):
        read_corpus("iemocap", tmp_path)


def five_sessions(root: Path) -> Manifest:
    for number in range(1, 6):
        name = f"Ses0{number}F_impro01"
        turns = "".join(f"[{i}.0 - {i}.9]\t{name}_{sex}000\tneu\t[3.0, 3.0, 3.0]\n\n" for i, sex in enumerate("FM"))
        write_dialogue(root, number, name, turns)
    return read_corpus("iemocap", root.parent)


def test_leaving_one_session_out(root: Path) -> None:
    manifest = five_sessions(root)
    assert len(manifest.speakers) == 10
    splits = leave_one_session_out(manifest)
    assert list(splits) == ["Ses01", "Ses02", "Ses03", "Ses04", "Ses05"]
    assert splits["Ses03"].test.speakers == ["iemocap-Ses03F", "iemocap-Ses03M"]
    assert splits["Ses05"].dev.speakers == ["iemocap-Ses01F", "iemocap-Ses01M"]
    for split in splits.values():
        assert sum(len(part.clips) for part in split.parts.values()) == len(manifest.clips) == 10
    assert sorted(clip.id for split in splits.values() for clip in split.test.clips) == list(by_id(manifest))


def test_a_speaker_of_two_sessions_is_refused(root: Path) -> None:
    manifest = five_sessions(root)
    first, *others = manifest.clips
    twice = replace(first, id="twice", session="")
    with pytest.raises(CorpusError, match="one for every clip"):
        leave_one_session_out(Manifest((first, twice, *others)))
    moved = Manifest((*manifest.clips, replace(twice, session="Ses02")))
    with pytest.raises(LeakageError, match=r"Ses01 and Ses02 share the speakers \['iemocap-Ses01F'\]"):
        leave_one_session_out(moved)
