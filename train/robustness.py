"""What bad lines cost a finished run: its test speakers, heard through each degradation alone.

Training with degraded copies is a promise about microphones, rooms and lines that no table of clean recordings shows. Every
switch of `[augment]` is turned on by itself here, for every test clip; words are transcribed from what is left, as the daemon
does it, and the ensemble is scored. A second run, say one without degraded copies, is held against the first on the same clips.

Shapes: N = test clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from train.augment_config import AugmentConfig, WordErrorsConfig
from train.contamination import KEY, contaminating
from train.corpora import read_corpus
from train.dataset import Examples, examples_of
from train.errors import RunError
from train.evaluate import score
from train.extraction import extraction_of
from train.features import Extraction, Progress
from train.manifest import Manifest
from train.metrics import paired_difference, unweighted_average_recall
from train.prepare import Dealt, split_of
from train.reference import Guesses, Reference, reference_of
from train.robustness_report import CLEAN, write_robustness
from train.transfer.source import Source
from train.transfer.target import shared_classes
from train.word_errors import misheard

_PEAK_DB: Final = -3.0
"""Of every degraded clip but those whose level is what changes; "level" shows what that alone does."""


_LOUD: Final = (0.0, 10.0)
_USUAL: Final = AugmentConfig()


def _span(values: tuple[float, float]) -> str:
    return f"{values[0]:g} to {values[1]:g}"


def _alone(**switch: Any) -> AugmentConfig:
    """One switch on, all others off."""
    off = dict.fromkeys(("colour_db", "echo", "room", "noise", "clipping", "telephone", "opus"), 0.0)
    return AugmentConfig.model_validate({**off, "level_db": (_PEAK_DB, _PEAK_DB), **switch})


@dataclass(frozen=True, slots=True)
class Condition:
    """One way in which all test clips are spoiled.

    Attributes:
        told: what happens, for people.
        augment: the rules; where they change words alone, the recordings stay as they are.
    """

    told: str
    augment: AugmentConfig

    @property
    def spoils_words(self) -> bool:
        """Whether the words are changed, and not the sound."""
        return self.augment.words.is_on


CONDITIONS: Final[Mapping[str, Condition]] = {
    "level": Condition(f"a peak of {_PEAK_DB:g} dB of full scale, as in all rows but the gain's", _alone()),
    "microphone": Condition(
        f"a random frequency response, {_USUAL.colour_db:g} dB at points an octave apart",
        _alone(colour_db=_USUAL.colour_db),
    ),
    "echo": Condition("a room of up to 0.7 s, mostly below the direct sound", _alone(echo=1.0)),
    "room": Condition(f"early reflections, reverberation of {_span(_USUAL.room_rt60_s)} s", _alone(room=1.0)),
    "noise": Condition(f"stationary noise {_span(_USUAL.snr_db)} dB below the speech", _alone(noise=1.0)),
    "loud noise": Condition(f"the same {_span(_LOUD)} dB below the speech", _alone(noise=1.0, snr_db=_LOUD)),
    "clipping": Condition(f"driven {_span(_USUAL.overdrive_db)} dB over the limit", _alone(clipping=1.0)),
    "telephone": Condition("300 to 3400 Hz and mu-law", _alone(telephone=1.0)),
    "Opus": Condition(f"{_span(_USUAL.opus_kbit_s)} kbit/s", _alone(opus=1.0)),
    "gain": Condition(f"a peak of {_span(_USUAL.level_db)} dB of full scale", _alone(level_db=_USUAL.level_db)),
    "misheard words": Condition(
        "a tenth of the words missing, 15 % exchanged", _alone(words=WordErrorsConfig(errors=1.0, variants=1))
    ),
    "no words": Condition("an empty transcript", _alone(words=WordErrorsConfig(empty=1.0))),
    "degraded copies": Condition("the rules that copies for training have by default", AugmentConfig()),
}


def measure_robustness(runs: Sequence[Source], data: Path, cache: Path, out: Path, progress: Progress) -> Path:
    """Scores runs under every condition and writes the table; returns the page's path.

    Args:
        runs: finished ones; each is held against the first.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the comparison.
        progress: told what is done.

    Raises:
        CorpusError: if a run's corpus is not there.
        RunError: if the runs were tested on other clips.
    """
    tests = [_test_part(run, data) for run in runs]
    if other := [run.id for run, test in zip(runs, tests, strict=True) if _ids(test) != _ids(tests[0])]:
        raise RunError(
            f"{', '.join(other)} and {runs[0].id} are tested on other clips: compare runs of one corpus and split"
        )
    corpus = runs[0].recipe.data.corpus
    clean = examples_of(tests[0].clips, {}, runs[0].recipe.data.intended_votes)
    votes = examples_of(tests[0].clips, {}, 1e-6).targets
    reference = reference_of(clean, votes, [clip.gender for clip in tests[0].clips])
    guesses: dict[str, dict[str, Guesses]] = {name: {} for name in (CLEAN, *CONDITIONS)}
    for run, test in zip(runs, tests, strict=True):
        heard = _Heard(run, extraction_of(run.recipe, cache, progress), test)
        for done, name in enumerate(guesses):
            progress(f"conditions of {run.id}", done, len(guesses))
            guesses[name][run.id] = run.guesses(heard.under(CONDITIONS.get(name)))
        progress(f"conditions of {run.id}", len(guesses), len(guesses))
    return write_robustness(
        out,
        {
            "format": 1,
            "corpus": corpus,
            "runs": {run.id: _copies(run) for run in runs},
            "taught": {run.id: {KEY: contaminating(run.recipe, corpus, set(run.recipe.encoders))} for run in runs},
            "clips": int((reference.truth >= 0).sum()),
            "speakers": len(set(reference.speakers)),
            "reference": reference.kind,
            "conditions": {name: condition.told for name, condition in CONDITIONS.items()},
            "rows": robustness_rows(reference, guesses),
        },
    )


def robustness_rows(
    reference: Reference, guesses: Mapping[str, Mapping[str, Guesses]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Condition -> run -> UAR, its change from the clean recordings, and its lead over the first run; all paired.

    Args:
        reference: the truth about N test clips.
        guesses: condition -> run -> guesses `[N]`; the clean recordings are among the conditions.
    """
    known = np.flatnonzero(reference.truth >= 0)
    truth, speakers = reference.truth[known], [reference.speakers[row] for row in known]

    def change(after: Guesses, before: Guesses) -> dict[str, float]:
        return asdict(paired_difference(unweighted_average_recall, truth, after[known], before[known], speakers))

    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for condition, found in guesses.items():
        first = next(iter(found))
        rows[condition] = {
            run: {
                "uar": asdict(score(mine, reference).uar),
                "change": None if condition == CLEAN else change(mine, guesses[CLEAN][run]),
                "over_first": None if run == first else change(mine, found[first]),
            }
            for run, mine in found.items()
        }
    return rows


@dataclass(frozen=True, slots=True)
class _Heard:
    """A run's test clips under conditions."""

    run: Source
    extraction: Extraction
    test: Manifest

    def under(self, condition: Condition | None) -> Examples:
        """In whole calls, as the run's own report hears them; the clean recordings for no condition."""
        clips, recipe = self.test.clips, self.run.recipe
        if condition is None or condition.spoils_words:
            frames = self.extraction.frames(clips)
        else:
            frames = replace(self.extraction, augment=condition.augment).frames(clips, 1)
        examples = examples_of(clips, frames, recipe.data.intended_votes)
        if condition is not None and condition.spoils_words:
            spoiled = misheard(replace(self.extraction, augment=condition.augment), clips)
            assert spoiled is not None
            examples = spoiled.draw(examples, np.random.default_rng(recipe.seed))
        return Dealt(recipe, self.run.checkpoint.adaptation).once(examples)


def _copies(run: Source) -> str:
    """Degraded copies that a run's own training heard of every clip, for people."""
    before = ", beside what the runs before it heard" if run.checkpoint.lineage else ""
    return f"{run.recipe.data.degraded_copies} degraded copies of a clip{before}"


def _test_part(run: Source, data: Path) -> Manifest:
    settings = run.recipe.data
    split = split_of(read_corpus(settings.corpus, data, settings.options), settings)
    return shared_classes(split, run.classes).test


def _ids(part: Manifest) -> tuple[str, ...]:
    return tuple(clip.id for clip in part.clips)
