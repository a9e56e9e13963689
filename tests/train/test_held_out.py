"""Corpora divided by session or by fold of speakers, through the whole preparation: who is tested, and that all are once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import voice
from tests.train.corpora.trees import write_dialogue
from tests.train.synthetic import RECIPES, write_actors, write_votes, write_wav
from train.config import Recipe, load_recipe
from train.corpora import read_corpus
from train.errors import CorpusError, RecipeError
from train.prepare import TRAINING, Prepared, prepare
from train.turns import turns_of

SESSIONS = ("Ses01", "Ses02", "Ses03", "Ses04", "Ses05")
ACTORS = range(1001, 1012)
FOLDS = 4
TURNS = ("F000", "M000", "F001", "M001")
VOTES = {"ANG": (8, 0, 0, 0, 1, 0), "NEU": (0, 0, 0, 0, 9, 0)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IEMOCAP with two speakers a session, and CREMA-D with speakers whose number the folds do not divide."""
    folder = tmp_path_factory.mktemp("held-out")
    for number in range(1, 6):
        name = f"Ses0{number}F_impro01"
        turns = [
            f"[{n}.0 - {n}.9]\t{name}_{turn}\t{('neu', 'ang')[n // 2]}\t[3.0, 3.0, 3.0]\n\n"
            for n, turn in enumerate(TURNS)
        ]
        write_dialogue(folder / "iemocap", number, name, "".join(turns))
    cremad = folder / "cremad"
    write_votes(cremad, {f"{actor}_DFA_{code}_XX": votes for actor in ACTORS for code, votes in VOTES.items()})
    write_actors(cremad, {str(actor): "Female" for actor in ACTORS})
    for actor in ACTORS:
        for code in VOTES:
            write_wav(cremad / f"{actor}_DFA_{code}_XX.wav", voice(0.2, 90.0 + 8.0 * (actor - 1001)))
    return folder


def recipe_of(**division: Any) -> Recipe:
    """One member on prosody alone; each recording has a degraded copy."""
    shipped = load_recipe(RECIPES / "default.toml").model_dump(exclude_unset=True)
    return Recipe.model_validate(
        shipped
        | {
            "fallbacks": (),
            "text": None,
            "adaptation": None,
            "encoders": {name: shipped["encoders"][name] for name in ("whisper", "prosody")},
            "members": [{"name": "tone", "modalities": ["prosody"], "seed": 1}],
            "meta": {"folds": 2, "epochs": 1, "seeds": [1]},
            "data": {"licence": "none", "intended_votes": 0.0, "degraded_copies": 1, **division},
        }
    )


def prepared(data: Path, **division: Any) -> Prepared:
    return prepare(recipe_of(**division), data, data.parent / "held-out-cache", lambda what, done, total: None)


def held_out(found: Prepared, corpus: str) -> list[str]:
    """Speakers of the test clips, which no other side has, in any copy or fold."""
    test, training = found.test[corpus], found.training
    assert found.test[f"{corpus}, degraded"].ids == test.ids
    assert len(found.votes[corpus]) == len(test)
    sides = [set(part.speakers) for part in (*training.copies, training.dev)]
    assert not set(test.speakers) & set().union(*sides)
    assert not sides[0] & sides[-1]
    assert len(training.folds) == len(training.train) == len(found.votes[TRAINING])
    for speaker in sides[0]:
        mine = {fold for fold, name in zip(training.folds, training.train.speakers, strict=True) if name == speaker}
        assert len(mine) == 1
    return sorted(set(test.speakers))


def test_a_session_that_is_left_out_is_what_is_tested(data: Path) -> None:
    """The next one selects; over all sessions, every clip of every speaker is tested once."""
    seen: Counter[str] = Counter()
    for number, session in enumerate(SESSIONS):
        found = prepared(data, corpus="iemocap", split="session", test_session=session)
        following = SESSIONS[(number + 1) % len(SESSIONS)]
        assert held_out(found, "iemocap") == [f"iemocap-{session}{sex}" for sex in "FM"]
        assert set(found.training.dev.speakers) == {f"iemocap-{following}{sex}" for sex in "FM"}
        assert len(set(found.training.train.speakers)) == 2 * (len(SESSIONS) - 2)
        seen.update(found.test["iemocap"].ids)
    everything = read_corpus("iemocap", data)
    assert seen == dict.fromkeys((clip.id for clip in everything.clips), 1)
    assert (len(seen), len(everything.speakers)) == (len(SESSIONS) * len(TURNS), 2 * len(SESSIONS))


def test_a_fold_of_speakers_is_what_is_tested(data: Path) -> None:
    """The next one selects; over all folds, every clip of every speaker is tested once, and folds are of about one size."""
    runs = [prepared(data, corpus="cremad", split="folds", folds=FOLDS, test_fold=fold) for fold in range(FOLDS)]
    folds = [held_out(found, "cremad") for found in runs]
    assert sorted(len(fold) for fold in folds) == [2, 3, 3, 3]
    for fold, found in enumerate(runs):
        following = folds[(fold + 1) % FOLDS]
        assert sorted(set(found.training.dev.speakers)) == following
        others = {speaker for part in folds for speaker in part} - {*folds[fold], *following}
        assert set(found.training.train.speakers) == others
    assert Counter(speaker for fold in folds for speaker in fold) == dict.fromkeys(
        (f"cremad-{actor}" for actor in ACTORS), 1
    )
    seen = Counter(clip for found in runs for clip in found.test["cremad"].ids)
    assert seen == dict.fromkeys((clip.id for clip in read_corpus("cremad", data).clips), 1)


def test_a_session_that_there_is_not_is_refused_by_name(data: Path) -> None:
    with pytest.raises(CorpusError, match="iemocap has no session 'Ses06': it has Ses01, Ses02, Ses03, Ses04, Ses05"):
        prepared(data, corpus="iemocap", split="session", test_session="Ses06")


def test_another_seed_makes_other_folds(data: Path) -> None:
    """The same recipe makes the same ones, else no two runs could be put together."""
    first, again, other = (
        held_out(prepared(data, corpus="cremad", split="folds", folds=FOLDS, test_fold=0, split_seed=seed), "cremad")
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_every_session_or_fold_has_its_turn(data: Path) -> None:
    """Whichever the recipe itself tests on, and nothing else of it changes."""
    recipe = recipe_of(corpus="iemocap", split="session", test_session="Ses03")
    turns = turns_of(recipe, data)
    assert [turn.name for turn in turns] == [turn.recipe.data.test_session for turn in turns] == list(SESSIONS)
    assert [turn.folder for turn in turns] == ["0-ses01", "1-ses02", "2-ses03", "3-ses04", "4-ses05"]
    assert turns[2].recipe == recipe
    recipe = recipe_of(corpus="cremad", split="folds", folds=FOLDS, test_fold=1)
    turns = turns_of(recipe, data)
    assert [turn.recipe.data.test_fold for turn in turns] == list(range(FOLDS))
    assert (turns[1].name, turns[1].folder, turns[1].recipe) == ("fold 1", "1-fold-1", recipe)


def test_a_corpus_that_is_divided_once_has_no_turns(data: Path) -> None:
    with pytest.raises(RecipeError, match='split = "speakers" divides cremad once'):
        turns_of(recipe_of(corpus="cremad"), data)
