"""What a budget buys: nested, of every class, and nobody who is tested on."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from tests.train.synthetic import make_clip
from train.errors import LeakageError, RecipeError
from train.manifest import Clip, Manifest, Split
from train.transfer.budgets import SPEAKERS_TO_HOLD_OUT, UNITS, Budget, Unit

NAMES = ("angry", "sad", "neutral")
SHARES = (0.1, 0.2, 0.5, 1.0)


def clips(speakers: range, per_class: int = 4) -> tuple[Clip, ...]:
    return tuple(
        make_clip(id=f"{speaker}-{name}-{n}", speaker=f"s{speaker}", intended=name)
        for speaker, name, n in product(speakers, NAMES, range(per_class))
    )


def split(rare: bool = False) -> Split:
    train = clips(range(10))
    if rare:  # one speaker alone has fear
        train += tuple(make_clip(id=f"3-fear-{n}", speaker="s3", intended="fear") for n in range(2))
    return Split(Manifest(train), Manifest(clips(range(10, 12))), Manifest(clips(range(20, 24))))


def ids(part: Manifest) -> set[str]:
    return {clip.id for clip in part.clips}


@pytest.mark.parametrize("unit", UNITS)
def test_budgets_are_nested_and_their_draws_differ(unit: Unit) -> None:
    whole = split()
    pool = [*whole.train.clips, *whole.dev.clips]
    bought = [[{c.id for c in Budget(share, draw, unit).bought(pool)} for share in SHARES] for draw in range(3)]
    for draw in bought:
        assert all(less < more for less, more in zip(draw, draw[1:], strict=False))
        assert draw[-1] == ids(whole.train) | ids(whole.dev)
    assert len({frozenset(draw[0]) for draw in bought}) == 3


def test_a_share_of_clips_holds_that_share_of_every_class() -> None:
    pool = [*split().train.clips, *split().dev.clips]
    counts = Counter(clip.intended for clip in Budget(0.25, 0, "clips").bought(pool))
    assert counts == dict.fromkeys(NAMES, 12)
    assert len({clip.speaker for clip in Budget(0.25, 0, "clips").bought(pool)}) > 6


def test_a_share_of_speakers_is_whole_speakers_and_buys_rare_classes_first() -> None:
    whole = split(rare=True)
    pool = [*whole.train.clips, *whole.dev.clips]
    for draw in range(5):
        bought = Budget(0.1, draw, "speakers").bought(pool)
        (speaker,) = {clip.speaker for clip in bought}
        assert len(bought) == sum(clip.speaker == speaker for clip in pool)
        assert speaker == "s3", "who has a class that nobody else has comes first"
        half = {clip.speaker for clip in Budget(0.5, draw, "speakers").bought(pool)}
        assert len(half) == 6


@pytest.mark.parametrize(("share", "unit"), list(product(SHARES, UNITS)))
def test_what_validates_is_paid_for_and_what_tests_stays(share: float, unit: Unit) -> None:
    whole, budget = split(), Budget(share, 1, unit)
    found = budget.narrow(whole, 0.0)
    bought = {clip.id for clip in budget.bought([*whole.train.clips, *whole.dev.clips])}
    assert ids(found.train) | ids(found.dev) == bought
    assert found.test == whole.test
    assert not set(found.test.speakers) & {*found.train.speakers, *found.dev.speakers}
    assert {clip.intended for clip in found.train.clips} == set(NAMES)
    if len({*found.train.speakers, *found.dev.speakers}) >= SPEAKERS_TO_HOLD_OUT:
        assert not set(found.train.speakers) & set(found.dev.speakers)
        assert 0 < len(found.dev.clips) / len(bought) < 0.4
    else:
        assert found.train.clips == found.dev.clips, "of so few, all train"
        assert unit == "speakers"


def test_a_budget_of_somebody_who_is_tested_on_is_refused() -> None:
    leaking = Split(split().train, split().dev, Manifest(clips(range(0, 2))), allow_overlap=True)
    assert Budget(1.0, 0).narrow(leaking, 0.0).test.clips, "a corpus whose own split has it was asked for"
    careless = Split(Manifest(clips(range(5))), Manifest(clips(range(5, 6))), Manifest(clips(range(20, 21))))
    object.__setattr__(careless, "test", Manifest(clips(range(0, 1))))
    with pytest.raises(LeakageError, match="s0"):
        Budget(1.0, 0).narrow(careless, 0.0)


def undecided(names: set[str]) -> Split:
    """A split whose raters disagreed about every clip of some speakers."""
    torn = {"angry": 1.0, "sad": 1.0}

    def heard(part: Manifest) -> Manifest:
        return Manifest(
            tuple(replace(c, votes=make_clip(votes=torn).votes) if c.speaker in names else c for c in part.clips)
        )

    whole = split()
    return Split(heard(whole.train), heard(whole.dev), whole.test)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("draw", range(3))
def test_only_speakers_with_a_class_validate(unit: Unit, draw: int) -> None:
    """Whoever would validate otherwise trains."""
    budget, everybody = Budget(1.0, draw, unit), {f"s{n}" for n in range(12)}
    first = set(budget.narrow(split(), 0.0).dev.speakers)
    found = budget.narrow(undecided(first), 0.0)
    assert len(found.dev.speakers) == len(first) == 2
    assert not first & set(found.dev.speakers)
    assert first < set(found.train.speakers)
    assert budget.narrow(undecided(first), 2.0).dev.speakers == sorted(first), "the actor decides"
    one = budget.narrow(undecided(everybody - {"s3", "s4"}), 0.0)
    assert len(one.dev.speakers) == 1, "somebody with a class trains too"
    assert set(one.dev.speakers) < {"s3", "s4"}
    for many in (everybody, everybody - {"s3"}):
        nobody = budget.narrow(undecided(many), 0.0)
        assert ids(nobody.dev) == ids(nobody.train)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(RecipeError, match="above 0 and at most 1"):
        Budget(share, 0)
