"""What a recipe would build, keep and take, told without training anything.

Members and encoders are built without memory for their weights. Bytes follow from the data where it is there, from an hour
of speech where not; so does time, which is estimated (`train.planned_time`).
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import av
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.audio import MAX_UTTERANCE, MIN_UTTERANCE, SAMPLE_RATE_HZ
from model.labels import ATTRIBUTES, CLASSES
from model.network.member import build_member
from model.network.published import PUBLISHED, parameter_count, parameters_in, published_config
from model.network.whisper_encoder import load_whisper_encoder
from model.sources import SourceError, resolve
from model.spec import WHISPER_KINDS, EncoderSpec, MemberSpec
from train.config import Recipe
from train.corpora import read_corpus
from train.dataset import balanced_subset
from train.errors import CorpusError, DeviceError, RecipeError
from train.manifest import Clip, Manifest, dominant_class
from train.planned_shapes import frames_of, shapes
from train.planned_time import PlannedTime, encoder_operations, passes_s, training_time
from train.prepare import split_of

_HALF: Final = np.dtype(np.float16).itemsize
_HOUR_S: Final = 3600
_TYPICAL_S: Final = 5.0
"""Length of the utterance whose shapes are tried where no data says how long they are."""
_DURATIONS: Final = 500
"""Clips whose files are opened to learn how long clips are."""


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """One encoder: its parameters (None where its weights are not here and their sizes unknown), cached bytes of an hour."""

    name: str
    kind: str
    dim: int
    parameters: int | None
    bytes_per_hour: int


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """One member: its parameters, and floating point operations of one training batch's forward pass."""

    name: str
    modalities: tuple[str, ...]
    parameters: int
    operations: int


@dataclass(frozen=True, slots=True)
class CorpusPlan:
    """One corpus that is there: clips, hours of recordings, and bytes of the features of all copies, at most."""

    name: str
    clips: int
    hours: float
    feature_bytes: int


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a recipe would build, keep and take.

    Attributes:
        encoders: frozen encoders.
        members: members, in the recipe's order.
        corpora: corpora that are there, the one that trains first.
        missing: corpus that is not there -> why.
        training: stages 1 and 2 of every member and fold, without linear members; None if there are no others, or no device.
        why_no_time: why.
        extraction: passes of encoders of published sizes over all clips and copies; None if there are no such encoders, or no
            device. Transcription, decoding and other encoders are not in it.
        timed: encoders that are in it.
        why_no_extraction: why.
        per_hour: both are of an hour of speech, and stage 2 at most as long as that, because the corpus that trains is not
            here.
    """

    encoders: tuple[EncoderPlan, ...]
    members: tuple[MemberPlan, ...]
    corpora: tuple[CorpusPlan, ...]
    missing: dict[str, str]
    training: PlannedTime | None
    why_no_time: str
    extraction: PlannedTime | None
    timed: tuple[str, ...]
    why_no_extraction: str
    per_hour: bool


def dry_run(recipe: Recipe, data: Path | None) -> DryRun:
    """Builds everything without memory, passes shapes through every member, and counts.

    Args:
        recipe: what would be trained.
        data: folder with a sub-folder per corpus, None to look at no data.

    Raises:
        RecipeError: if a member cannot be built, or does not give what its heads should.
    """
    encoders = recipe.encoder_specs()
    manifests, missing = _manifests(recipe, data)
    lengths = {name: _lengths(manifest.clips) for name, manifest in manifests.items()}
    trained = recipe.data.corpus
    length_s = lengths[trained].utterance_s if trained in lengths else _TYPICAL_S
    plans = tuple(
        EncoderPlan(e.name, e.kind, e.dim, _parameters(e), round(_hourly_bytes(e, length_s))) for e in encoders.values()
    )
    members = tuple(_member_plan(spec, encoders, recipe.stage1.batch_size, length_s) for spec in recipe.member_specs())
    corpora, heard = [], {}
    for name, manifest in manifests.items():
        clips, mean = len(manifest.clips), lengths[name]
        heard[name] = clips * mean.utterance_s / _HOUR_S
        hourly = sum(
            _passes(recipe, name, encoder) * _hourly_bytes(encoder, mean.utterance_s) for encoder in encoders.values()
        )
        hours = clips * mean.recording_s / _HOUR_S
        corpora.append(CorpusPlan(name, clips, hours, round(heard[name] * hourly)))
    training, why = _training(recipe, members, manifests.get(trained), length_s)
    extraction, timed, why_none = _extraction(recipe, heard if trained in manifests else {trained: 1.0}, length_s)
    return DryRun(
        encoders=plans,
        members=members,
        corpora=tuple(corpora),
        missing=missing,
        training=training,
        why_no_time=why,
        extraction=extraction,
        timed=timed,
        why_no_extraction=why_none,
        per_hour=trained not in manifests,
    )


def _passes(recipe: Recipe, corpus: str, encoder: EncoderSpec) -> int:
    """How often an encoder is given a clip: a degraded copy has the words of the clean one."""
    copies = recipe.data.degraded_copies if corpus == recipe.data.corpus else 0
    return 1 if encoder.kind == "text-transformer" else 1 + copies


def _manifests(recipe: Recipe, data: Path | None) -> tuple[dict[str, Manifest], dict[str, str]]:
    found: dict[str, Manifest] = {}
    missing: dict[str, str] = {}
    for name in (recipe.data.corpus, *recipe.data.evaluate):
        options = recipe.data.options if name == recipe.data.corpus else recipe.data.options_of(name)
        try:
            if data is None:
                raise CorpusError("no data folder was given")
            found[name] = read_corpus(name, data, options)
        except CorpusError as error:
            missing[name] = str(error)
    return found, missing


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Mean seconds of a corpus' recordings, and of the utterances that are cut from them, at most (`train.cutting`)."""

    recording_s: float
    utterance_s: float


def _lengths(clips: tuple[Clip, ...]) -> _Lengths:
    """Of clips from the whole corpus."""
    lengths = []
    for clip in clips[:: max(1, len(clips) // _DURATIONS)]:
        try:
            with av.open(str(clip.audio)) as container:
                lengths.append((container.duration or 0) / av.time_base)
        except (av.error.FFmpegError, OSError) as error:
            raise CorpusError(f"cannot read audio from {clip.audio}: {error}") from error
    shortest, longest = MIN_UTTERANCE / SAMPLE_RATE_HZ, MAX_UTTERANCE / SAMPLE_RATE_HZ
    cut = [min(max(length, shortest), longest) for length in lengths]
    return _Lengths(statistics.fmean(lengths), statistics.fmean(cut))


def _hourly_bytes(encoder: EncoderSpec, length_s: float) -> float:
    """Cached bytes of an hour of speech in utterances of one length."""
    return _HOUR_S / length_s * frames_of(encoder, length_s) * encoder.dim * _HALF


def _parameters(encoder: EncoderSpec) -> int | None:
    if encoder.kind in ("prosody", "functionals"):
        return 0
    names = [source.removeprefix("hub:").partition("@")[0] for source in encoder.sources if source.startswith("hub:")]
    for name in names:
        if name in PUBLISHED:
            return parameter_count(published_config(name))
    here = tuple(source for source in encoder.sources if not source.startswith("hub:"))
    try:
        folder = resolve(here)
    except SourceError:
        return None
    if encoder.kind in WHISPER_KINDS:
        if not encoder.states:
            return None  # CTranslate2 does not tell
        network = load_whisper_encoder(replace(encoder, sources=here))
        return sum(parameter.numel() for parameter in network.parameters())
    return parameters_in(folder)


def _member_plan(spec: MemberSpec, encoders: Mapping[str, EncoderSpec], batch: int, length_s: float) -> MemberPlan:
    inputs = {name: encoders[name] for name in spec.modalities}
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        member = build_member(spec, encoders).eval()
        frames = {name: torch.zeros(shape) for name, shape in shapes(inputs, batch, length_s).items()}
        masks = {name: torch.ones(values.shape[:2], dtype=torch.bool) for name, values in frames.items()}
        logits, attributes = member(frames, masks)
    given, expected = (tuple(logits.shape), tuple(attributes.shape)), ((batch, len(CLASSES)), (batch, len(ATTRIBUTES)))
    if given != expected:
        raise RecipeError(f"member {spec.name!r} gives logits and attributes of shapes {given}, not {expected}")
    parameters = sum(parameter.numel() for parameter in member.parameters())
    return MemberPlan(spec.name, spec.modalities, parameters, counter.get_total_flops())


def _training(
    recipe: Recipe, members: tuple[MemberPlan, ...], manifest: Manifest | None, length_s: float
) -> tuple[PlannedTime | None, str]:
    """Time of stages 1 and 2, or why there is none. Linear members are left out: each is fitted in seconds to minutes."""
    fitted = {spec.name for spec in recipe.member_specs() if spec.family == "linear"}
    operations = {member.name: member.operations for member in members if member.name not in fitted}
    if not operations:
        return None, "all members are linear: each is fitted in seconds to minutes"
    train = split_of(manifest, recipe.data).train.clips if manifest else None
    try:
        all_clips, balanced = (round(_HOUR_S / length_s),) * 2 if train is None else _epochs(recipe, train)
        steps = sum(
            stage.epochs * -(-examples // stage.batch_size)
            for stage, examples in ((recipe.stage1, all_clips), (recipe.stage2, balanced))
        )
        return training_time(recipe, operations, steps, length_s), ""
    except (CorpusError, DeviceError, RecipeError) as error:
        return None, str(error)


def _epochs(recipe: Recipe, clips: tuple[Clip, ...]) -> tuple[int, int]:
    """Examples of an epoch of stage 1, and of stage 2.

    Raises:
        CorpusError: if no clip has a class.
    """
    dominant = [dominant_class(clip, recipe.data.intended_votes) for clip in clips]
    classes = np.array([-1 if index is None else index for index in dominant], np.int64)
    return len(clips), len(balanced_subset(classes, np.random.default_rng(recipe.seed)))


def _extraction(
    recipe: Recipe, heard: Mapping[str, float], length_s: float
) -> tuple[PlannedTime | None, tuple[str, ...], str]:
    """Time of the encoders' passes over `heard`, hours of speech by corpus, and the encoders in it; or why there is none."""
    encoders = recipe.encoder_specs()
    known = {name: found for name, e in encoders.items() if (found := encoder_operations(e, length_s)) is not None}
    if not known:
        return None, (), "it has no encoder of published sizes, which alone are counted"
    try:
        seconds, device = passes_s(recipe, known)
    except (DeviceError, RecipeError) as error:
        return None, (), str(error)
    total = sum(
        hours * _passes(recipe, corpus, encoders[name]) * spent / length_s
        for corpus, hours in heard.items()
        for name, spent in seconds.items()
    )
    return PlannedTime(total, "a pass through one Transformer layer", device), tuple(known), ""
