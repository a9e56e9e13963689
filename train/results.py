"""The results of a run as plain data for JSON: everything that the report and the model card say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from model.labels import ATTRIBUTES, CLASSES
from train.calibration import correct_prior
from train.config import Recipe
from train.contamination import KEY, contaminating, taught_test_corpora
from train.dataset import FUNCTIONALS, TEXT, Examples, concatenate
from train.evaluate import compare, majority_vote
from train.extraction import extraction_of
from train.features import Progress
from train.loop import class_bias, predict
from train.prepare import ALONE, Prepared
from train.probe import Probe, audio_modalities
from train.reference import Guesses, Judged, Outputs, reference_of
from train.report import FORMAT
from train.stacking import ABSTAIN_QUANTILE, Stacked, member_outputs
from train.stages.meta import columns_of, meta_posterior, stacked_outputs
from train.transfer.start import CHOSEN

SOUP: Final = "soup of meta-classifiers"
PROBES: Final = ("linear probe", "linear probe, degraded copies too")
ADAPTED_PROBE: Final = "linear probe, adapted to the channel"
_GENERAL_LIMIT: Final = "An emotion posterior is a guess at what a listener would hear, not a fact about a person."
_WORDS_NOTE: Final = (
    "Flat recordings (neutral clips of unseen speakers) scored with different words in the place of their transcript, "
    "mean posterior: words should move it where they carry emotion, and leave it alone where not."
)


def fit_probes(recipe: Recipe, prepared: Prepared) -> dict[str, Probe]:
    """The probes that the ensemble is held against: on the recordings alone, and on what the members see."""
    modalities = audio_modalities(recipe.encoder_specs())
    copies, dev = prepared.alone
    probes = {PROBES[0]: Probe.fit(copies[0], dev, modalities)}
    if len(copies) > 1:
        probes[PROBES[1]] = Probe.fit(concatenate(copies), dev, modalities)
    if recipe.adaptation:
        once = prepared.training.copies[:: recipe.adaptation.draws]
        probes[ADAPTED_PROBE] = Probe.fit(concatenate(once), prepared.training.dev, (FUNCTIONALS,))
    return probes


def evaluate_set(
    recipe: Recipe,
    prepared: Prepared,
    trained: Stacked,
    probes: Mapping[str, Probe],
    name: str,
    beside: Mapping[str, Guesses] | None = None,
) -> Judged:
    """One test set: what it is held against, what the soup and others say, and the evaluation as plain data.

    Args:
        recipe: of the members.
        prepared: holds the test set.
        trained: the ensemble.
        probes: what it is compared with.
        name: of the test set.
        beside: other systems' guesses on these clips, to compare with too.
    """
    test, training = prepared.test[name], prepared.training
    reference = reference_of(test, prepared.votes[name], prepared.genders[name])
    bias, encoders = class_bias(training.trained_classes), recipe.encoder_specs()
    predictions = [predict(member, encoders, test, bias) for member in trained.members]
    stacked = stacked_outputs(predictions)
    otherwise = prepared.otherwise[name]
    members = np.stack([posterior for posterior, _ in predictions], axis=1)
    posterior = meta_posterior(trained.soup, stacked, bias, trained.temperature)
    with torch.no_grad():
        attributes = trained.soup(stacked)[1].numpy()
    outputs = Outputs(
        members=members,
        uncalibrated=meta_posterior(trained.soup, stacked, bias, 1.0),
        posterior=posterior,
        prior_corrected=correct_prior(posterior, trained.prior_ratio),
        attributes=attributes,
        trained_attributes=trained.trained_attributes,
        abstain_below=trained.abstain_below,
    )
    systems: dict[str, npt.NDArray[np.int64]] = {
        **{
            kind: probe.guesses(test if kind == ADAPTED_PROBE else otherwise.get(ALONE, test))
            for kind, probe in probes.items()
        },
        **(beside or {}),
        **{f"member {m.spec.name}": members[:, i].argmax(axis=1) for i, m in enumerate(trained.members)},
        "majority vote": majority_vote(members),
        "soft vote": members.mean(axis=1).argmax(axis=1),
        "single meta-classifier": meta_posterior(trained.runs[0], stacked, bias, 1.0).argmax(axis=1),
        **_fallback_guesses(trained, stacked, bias),
        **{f"soup, {way}": _guesses(recipe, trained, examples, bias) for way, examples in otherwise.items()},
        SOUP: posterior.argmax(axis=1),
    }
    alike = {other: f"soup, {way}" for way in otherwise for other in beside or {} if other.endswith(f", {way}")}
    evaluation = compare(reference, systems, SOUP, outputs, alike)
    whole = (
        system for system in beside or {} if system != CHOSEN
    )  # a source has members that a transfer may leave out
    others = {**dict.fromkeys(whole, set(recipe.encoders)), **{k: set(p.modalities) for k, p in probes.items()}}
    for system, modalities in _read_by(systems, trained, others).items():
        evaluation["systems"][system][KEY] = contaminating(recipe, name, modalities)
    return Judged(reference, outputs, systems, evaluation)


def _read_by(systems: Iterable[str], trained: Stacked, others: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The modalities that each system reads: those of all members, unless it is one part or another system."""
    members = {member.spec.name: set(member.spec.modalities) for member in trained.members}
    parts = {f"member {name}": modalities for name, modalities in members.items()}
    for number, fallback in enumerate(trained.fallbacks, 1):
        names = fallback.spec.members
        parts[_fallback_name(number, names)] = set().union(*(members[name] for name in names))
    whole = set().union(*members.values())
    return {system: {**parts, **others}.get(system, whole) for system in systems}


def _fallback_name(number: int, members: Sequence[str]) -> str:
    return f"fallback {number}: {', '.join(members)}"


def _fallback_guesses(trained: Stacked, stacked: torch.Tensor, bias: torch.Tensor) -> dict[str, Guesses]:
    """What is left of the soup where a server has not time for all members."""
    names, found = [member.spec.name for member in trained.members], {}
    for number, fallback in enumerate(trained.fallbacks, 1):
        columns = columns_of(fallback.spec.members, names)
        posterior = meta_posterior(fallback.meta, stacked[:, columns], bias, fallback.spec.temperature)
        found[_fallback_name(number, fallback.spec.members)] = posterior.argmax(axis=1)
    return found


def _guesses(recipe: Recipe, trained: Stacked, examples: Examples, bias: torch.Tensor) -> npt.NDArray[np.int64]:
    encoders = recipe.encoder_specs()
    stacked = stacked_outputs([predict(member, encoders, examples, bias) for member in trained.members])
    return np.asarray(meta_posterior(trained.soup, stacked, bias, 1.0).argmax(axis=1), np.int64)


def results_of(
    recipe: Recipe, prepared: Prepared, trained: Stacked, evaluations: dict[str, Any], words: list[dict[str, str]]
) -> dict[str, Any]:
    """All results but the learning curves, which the run's folder holds."""
    classes = prepared.training.trained_classes
    data, training = recipe.data, prepared.training
    untrained = [name for name in CLASSES if name not in classes]
    kinds = "as other rooms, microphones, noise and telephone lines would have it"
    acted = f", the actor's intention counted as {data.intended_votes:g} raters" if data.intended_votes else ""
    never = f" Never trained, so with probability exactly 0: {', '.join(untrained)}." if untrained else ""
    return {
        "format": FORMAT,
        "name": f"medusa-rt {recipe.name}",
        "summary": (
            f"{len(trained.members)} members ({', '.join(m.spec.name for m in trained.members)}), "
            f"{_soup_in_words(recipe, trained)}. "
            f"Classes: {', '.join(classes)}.{never}"
        ),
        "data": [
            f"Trained on {data.corpus}: {len(training.train)} clips of {len(set(training.train.speakers))} speakers.",
            f"Selected and calibrated on {len(set(training.dev.speakers))} other speakers."
            if training.selects
            else "Nobody was held out: nothing was selected.",
            *([f"Degraded copies of every clip, {kinds}: {data.degraded_copies}."] if data.degraded_copies else []),
            f"Licence of the data: {data.licence}.",
            f"Soft targets: the raters' votes{acted}.",
            *_adapted_in_words(recipe),
        ],
        "builds_on": [
            {"name": name, "revision": encoder.revision, "licence": encoder.licence}
            for name, encoder in recipe.encoders.items()
            if encoder.sources
        ],
        "dropped": prepared.dropped,
        "evaluations": evaluations,
        "calibration": _calibration(prepared, trained),
        "seeds": _seeds(recipe, trained),
        "words": words,
        "words_note": _WORDS_NOTE,
        "limits": [*recipe.notes, *_contamination(recipe), *_limits(prepared, trained)],
    }


def _adapted_in_words(recipe: Recipe) -> list[str]:
    if recipe.adaptation is None:
        return []
    heard = (
        "Utterances are heard against the earlier ones of their channel (causal; the training mean counts for "
        f"{recipe.adaptation.strength:g} utterances). In the tables each speaker's clips are one call in a random order, "
        "which holds all emotions alike; the rows of the soup for utterances alone and for calls of few emotions say what is "
        "left where a call is short or of one mood."
    )
    return [heard]


def _soup_in_words(recipe: Recipe, trained: Stacked) -> str:
    if not any(history.rows for history in trained.histories):
        return "a linear meta-classifier that was given and not trained here"
    stacked = "a linear meta-classifier on their out-of-fold outputs"
    if recipe.meta.soup == "uniform":
        return f"{stacked}, a soup of {len(trained.runs)} runs"
    return f"{stacked}, a greedy soup of {len(trained.ingredients)} of {len(trained.runs)} runs"


def _seeds(recipe: Recipe, trained: Stacked) -> dict[str, Any]:
    """Every seed that decides the result, and the runs that the soup is made of, by their seeds."""
    meta = recipe.meta
    return {
        "recipe": recipe.seed,
        "split": recipe.data.split_seed,
        "members": {member.name: member.seed for member in recipe.members},
        "meta": list(meta.seeds),
        "soup": {"kind": meta.soup, "ingredients": [meta.seeds[number] for number in trained.ingredients]},
    }


def _contamination(recipe: Recipe) -> list[str]:
    taught = taught_test_corpora(recipe)
    if not taught:
        return []
    told = "; ".join(f"{name}: {corpus}" for name, corpora in taught.items() for corpus in corpora)
    return [
        f"Encoders that were trained on the labels of a corpus that evaluates here, so that its figures flatter: {told}."
    ]


def _limits(prepared: Prepared, trained: Stacked) -> list[str]:
    """Limits that the run itself can tell."""
    corpora = [f"{corpus}: {what}: {count}." for corpus, told in prepared.notes.items() for what, count in told.items()]
    untrained = [name for name in ATTRIBUTES if name not in trained.trained_attributes]
    unrated = [f"Not trained, because no clip was rated for it: {', '.join(untrained)}."] if untrained else []
    return [*corpora, *unrated, _GENERAL_LIMIT]


def _calibration(prepared: Prepared, trained: Stacked) -> dict[str, Any]:
    """What was fitted on the development speakers."""
    dev, columns = prepared.training.dev, [CLASSES.index(name) for name in prepared.training.trained_classes]
    heard = dev.targets.mean(axis=0)[columns].astype(np.float64)
    ratio = trained.prior_ratio[columns]
    implied = heard / ratio
    return {
        "clips": len(dev),
        "speakers": len(set(dev.speakers)),
        "temperature": trained.temperature,
        "abstain_below": trained.abstain_below,
        "abstain_quantile": ABSTAIN_QUANTILE,
        "held_out": prepared.training.selects,
        "prior": {
            CLASSES[column]: {"heard": float(h), "taught": float(t), "log_ratio": float(np.log(r))}
            for column, h, t, r in zip(columns, heard, implied / implied.sum(), ratio, strict=True)
        },
    }


_EXAMPLES = (
    "",
    "The airplane is almost full.",
    "I am so angry with your service.",
    "This is absolutely disgusting.",
    "I am really scared that something bad will happen.",
    "I am so sorry for your loss, this is heartbreaking.",
    "Thank you so much, that is wonderful news!",
)


def words_table(
    recipe: Recipe, prepared: Prepared, trained: Stacked, cache: Path, progress: Progress
) -> list[dict[str, str]]:
    """Flat recordings of unseen speakers scored with different words: mean posterior over the clips."""
    encoders = recipe.encoder_specs()
    test = prepared.test.get(recipe.data.corpus)
    if TEXT not in encoders or test is None:
        return []
    flat = test.subset(np.flatnonzero(test.targets[:, CLASSES.index("neutral")] > 0.9))
    if not len(flat):
        return []
    frames = extraction_of(recipe, cache, progress).words({text: text for text in _EXAMPLES}, TEXT)
    bias = class_bias(prepared.training.trained_classes)
    rows = []
    for text in _EXAMPLES:
        spoken = replace(flat, frames={**flat.frames, TEXT: [frames[text]] * len(flat)})
        outputs = member_outputs(recipe, trained.members, spoken, prepared.training.trained_classes)
        mean = meta_posterior(trained.soup, outputs, bias, trained.temperature).mean(axis=0)
        shown = ", ".join(f"{CLASSES[i]} {mean[i]:.2f}" for i in np.argsort(-mean)[:4])
        rows.append({"text": text, "top": CLASSES[int(mean.argmax())], "shown": shown})
    return rows
