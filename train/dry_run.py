"""What a recipe would build, keep and take, told without training anything.

Members and encoders are built without memory for their weights. Bytes follow from the data where it is there, from an hour
of speech where not. Time is told only if it can be measured: the smallest member takes real steps on this machine.

Shapes: B = batch, F = frames, d = width of a frame.
"""

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import av
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.audio import MEL_HOP, SAMPLE_RATE_HZ, WHISPER_HOP
from model.features import FUNCTIONALS_STEPS
from model.labels import ATTRIBUTES, CLASSES
from model.network.member import build_member
from model.network.published import PUBLISHED, parameter_count, parameters_in, published_config
from model.network.whisper_encoder import load_whisper_encoder
from model.sources import SourceError, resolve
from model.spec import WHISPER_KINDS, EncoderSpec, MemberSpec
from train.config import Recipe
from train.corpora import read_corpus
from train.errors import CorpusError, RecipeError
from train.manifest import Clip, Manifest, dominant_class
from train.prepare import split_of

TOKENS_PER_S: Final = 3.5
"""Tokens of a second of speech: two and a half words, somewhat more pieces than words."""
_HALF: Final = np.dtype(np.float16).itemsize
_HOUR_S: Final = 3600
_TYPICAL_S: Final = 5.0
"""Length of the utterance whose shapes are tried where no data says how long they are."""
_DURATIONS: Final = 500
"""Clips whose files are opened to learn how long clips are."""
_TIMED_STEPS: Final = 3
_LARGEST_TIMED: Final = 20_000_000
"""Parameters above which a step is no longer tried: it would take minutes and gigabytes."""


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
        training_hours: of one process with one thread, stages 1 and 2 of every member and fold, without linear members; None
            if not measured.
        why_no_time: why it was not.
    """

    encoders: tuple[EncoderPlan, ...]
    members: tuple[MemberPlan, ...]
    corpora: tuple[CorpusPlan, ...]
    missing: dict[str, str]
    training_hours: float | None
    why_no_time: str


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
    seconds = {name: _mean_s(manifest.clips) for name, manifest in manifests.items()}
    plans = tuple(
        EncoderPlan(e.name, e.kind, e.dim, _parameters(e), round(_HOUR_S * _bytes_per_s(e))) for e in encoders.values()
    )
    trained = recipe.data.corpus
    length_s = seconds.get(trained, _TYPICAL_S)
    members = tuple(_member_plan(spec, encoders, recipe.stage1.batch_size, length_s) for spec in recipe.member_specs())
    hourly = sum(plan.bytes_per_hour for plan in plans)
    spoken = sum(plan.bytes_per_hour for plan in plans if plan.kind != "text-transformer")
    corpora = []
    for name, manifest in manifests.items():
        hours = len(manifest.clips) * seconds[name] / _HOUR_S
        copies = recipe.data.degraded_copies if name == trained else 0  # a degraded copy has the words of the clean one
        corpora.append(CorpusPlan(name, len(manifest.clips), hours, round(hours * (hourly + copies * spoken))))
    if trained in manifests:
        spent, why = _training_hours(recipe, members, manifests[trained], length_s)
    else:
        spent, why = None, f"the corpus {trained} is not here"
    return DryRun(plans, members, tuple(corpora), missing, spent, why)


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


def _mean_s(clips: tuple[Clip, ...]) -> float:
    """Mean seconds of a clip, over clips from the whole corpus."""
    lengths = []
    for clip in clips[:: max(1, len(clips) // _DURATIONS)]:
        try:
            with av.open(str(clip.audio)) as container:
                lengths.append((container.duration or 0) / av.time_base)
        except (av.error.FFmpegError, OSError) as error:
            raise CorpusError(f"cannot read audio from {clip.audio}: {error}") from error
    return statistics.fmean(lengths)


def _frames_per_s(encoder: EncoderSpec) -> float:
    """Frames of a second of speech; of functionals, which have a fixed number an utterance, none."""
    if encoder.kind == "prosody":
        return SAMPLE_RATE_HZ / MEL_HOP
    if encoder.kind == "text-transformer":
        return TOKENS_PER_S
    return 0.0 if encoder.kind == "functionals" else SAMPLE_RATE_HZ / WHISPER_HOP  # the rate of wav2vec 2.0's kin too


def _bytes_per_s(encoder: EncoderSpec) -> float:
    """Cached bytes of a second of speech; functionals are made from other frames and not cached."""
    return _frames_per_s(encoder) * encoder.dim * _HALF


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


def _shapes(encoders: Mapping[str, EncoderSpec], batch: int, length_s: float) -> dict[str, tuple[int, int, int]]:
    """`[B, F, d]` of every modality, for utterances of one length."""
    shapes = {}
    for name, encoder in encoders.items():
        functionals = encoder.kind == "functionals"
        frames = FUNCTIONALS_STEPS if functionals else max(1, round(length_s * _frames_per_s(encoder)))
        shapes[name] = (batch, -(-frames // encoder.stack) * encoder.stack, encoder.dim)
    return shapes


def _member_plan(spec: MemberSpec, encoders: Mapping[str, EncoderSpec], batch: int, length_s: float) -> MemberPlan:
    inputs = {name: encoders[name] for name in spec.modalities}
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        member = build_member(spec, encoders).eval()
        frames = {name: torch.zeros(shape) for name, shape in _shapes(inputs, batch, length_s).items()}
        masks = {name: torch.ones(values.shape[:2], dtype=torch.bool) for name, values in frames.items()}
        logits, attributes = member(frames, masks)
    given, expected = (tuple(logits.shape), tuple(attributes.shape)), ((batch, len(CLASSES)), (batch, len(ATTRIBUTES)))
    if given != expected:
        raise RecipeError(f"member {spec.name!r} gives logits and attributes of shapes {given}, not {expected}")
    parameters = sum(parameter.numel() for parameter in member.parameters())
    return MemberPlan(spec.name, spec.modalities, parameters, counter.get_total_flops())


def _training_hours(
    recipe: Recipe, members: tuple[MemberPlan, ...], manifest: Manifest, length_s: float
) -> tuple[float | None, str]:
    """Hours of stages 1 and 2 in one process: a timed step of the smallest member, and of the others by their operations.

    Linear members are left out: each is fitted in seconds to minutes.
    """
    fitted = {spec.name for spec in recipe.member_specs() if spec.family == "linear"}
    members = tuple(member for member in members if member.name not in fitted)
    if not members:
        return None, "all members are linear: each is fitted in seconds to minutes"
    smallest = min(members, key=lambda member: member.operations)
    if smallest.parameters > _LARGEST_TIMED:
        return None, f"the smallest member has {smallest.parameters:,} parameters: no step of it was tried here"
    clips = split_of(manifest, recipe.data).train.clips
    dominant = Counter(dominant_class(clip, recipe.data.intended_votes) for clip in clips)
    undecided = dominant.pop(None, 0)
    rarest = min(dominant.values())
    balanced = rarest * len(dominant) + min(rarest, undecided)
    steps = sum(
        stage.epochs * -(-examples // stage.batch_size)
        for stage, examples in ((recipe.stage1, len(clips)), (recipe.stage2, balanced))
    )
    fits = recipe.meta.folds  # one on all speakers, and `folds` of them without one part of `folds`
    per_operation = _step_s(recipe, smallest.name, length_s) / smallest.operations
    total = sum(member.operations for member in members) * per_operation * steps * fits
    return total / _HOUR_S, ""


def _step_s(recipe: Recipe, name: str, length_s: float) -> float:
    """Seconds of one training step of a member, in one thread as in a worker; the median of several."""
    spec = next(spec for spec in recipe.member_specs() if spec.name == name)
    encoders = {modality: recipe.encoder_specs()[modality] for modality in spec.modalities}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        member = build_member(spec, encoders).train()
        optimizer = torch.optim.AdamW(member.parameters())
        frames = {n: torch.randn(shape) for n, shape in _shapes(encoders, recipe.stage1.batch_size, length_s).items()}
        masks = {n: torch.ones(values.shape[:2], dtype=torch.bool) for n, values in frames.items()}
        seconds = []
        for _ in range(1 + _TIMED_STEPS):  # the first allocates
            start = time.perf_counter()
            logits, attributes = member(frames, masks)
            loss: Tensor = logits.square().mean() + attributes.square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(seconds[1:])
