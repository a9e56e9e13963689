import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from model.features import FUNCTIONALS_STEPS
from model.network.deepser import DeepSER
from model.network.enc import TransformerLayer
from model.spec import EncoderSpec
from tests.fakes import voice
from tests.model.tiny import TEXT_DIM, write_tiny_text_encoder
from tests.train.synthetic import RECIPES, write_votes, write_wav
from train import commands, planned_time
from train import dry_run as module
from train.config import ComputeConfig, Recipe, load_recipe, read_recipe_data
from train.dry_run import DryRun, dry_run
from train.planned_time import PlannedTime, training_time

SHIPPED = sorted(RECIPES.rglob("*.toml"))
COUNT = 7
"""Recipes that ship: a new one is written down here, so that none is skipped unseen."""
PAPER = [
    ("hubert", "roberta"),
    ("wavlm", "hubert", "roberta"),
    ("wavlm", "whisper", "hubert"),
    ("wavlm", "modernbert"),
    *[("wavlm", "roberta")] * 4,
    *[("whisper", "modernbert")] * 2,
    *[("whisper", "roberta")] * 2,
    ("whisper", "wavlm"),
    ("whisper", "wavlm", "modernbert"),
]
"""Table 1."""
STANDS_FOR = {
    "wavlm": "functionals",
    "hubert": "prosody",
    "whisper": "whisper",
    "roberta": "text",
    "modernbert": "text",
}


def time_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small step behind one that allocates: time is told all the same."""
    monkeypatch.setattr(planned_time, "_TIMED", 1)
    monkeypatch.setattr(planned_time, "_TIMED_OPERATIONS", 1e9)


def test_every_recipe_is_among_these() -> None:
    assert len(SHIPPED) == COUNT


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_shipped_recipe_can_be_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time_less(monkeypatch)
    recipe, plans = load_recipe(path), []

    def noting(asked: Recipe, data: Path | None) -> DryRun:
        plans.append(dry_run(asked, data))
        return plans[-1]

    monkeypatch.setattr(commands, "dry_run", noting)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(commands.app, ["run", "--config", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    (plan,) = plans
    for told in (*(member.name for member in plan.members), "stages 1 and 2: roughly", "per hour of speech, at most"):
        assert told in result.stdout, told
    assert ("passes of" in result.stdout) == bool(plan.timed)
    assert [(member.name, member.modalities) for member in plan.members] == [
        (member.name, member.modalities) for member in recipe.members
    ]
    assert all(member.parameters > 0 and member.operations > member.parameters for member in plan.members)
    assert [encoder.name for encoder in plan.encoders] == list(recipe.encoders)
    assert all(encoder.parameters is not None for encoder in plan.encoders)
    assert all(encoder.bytes_per_hour > 0 for encoder in plan.encoders)
    assert set(plan.missing) == {recipe.data.corpus, *recipe.data.evaluate}
    assert plan.corpora == ()
    assert plan.per_hour
    assert plan.training is not None, plan.why_no_time
    assert plan.training.hours > 0
    is_large = max(spec.dim for spec in recipe.member_specs()) >= 1024
    assert ("one Transformer layer of width 1024" in plan.training.basis) == is_large
    published = tuple(e.name for e in recipe.encoder_specs().values() if e.sources and e.sources[0].startswith("hub:"))
    assert plan.timed == published
    assert (plan.extraction is None) == (not published)
    assert plan.extraction is None or plan.extraction.hours > 0


def test_the_full_recipe_is_the_paper_s() -> None:
    recipe = load_recipe(RECIPES / "medusa.toml")
    assert [member.modalities for member in recipe.members] == PAPER
    assert {(spec.dim, spec.layers) for spec in recipe.member_specs()} == {(1024, 2)}
    for stage in (recipe.stage1, recipe.stage2):
        assert (stage.batch_size, stage.learning_rate, stage.mixup) == (16, 1e-5, 0.3)
    assert (recipe.meta.batch_size, recipe.meta.learning_rate, len(recipe.meta.seeds)) == (128, 1e-3, 6)
    assert recipe.encoders.keys() == STANDS_FOR.keys()


def test_the_full_recipe_states_every_number_of_the_paper() -> None:
    """In the file itself, and none left to the code's defaults."""
    stated = read_recipe_data(RECIPES / "medusa.toml")
    stage: dict[str, object] = {
        "batch_size": 16,
        "learning_rate": 1e-5,
        "weight_decay": 0.01,
        "mixup": 0.3,
        "mixup_alpha": 0.2,
    }
    stage |= {"warmup": 0.1, "clip_norm": 1.0, "accumulate": 1, "precision": "bfloat16", "epochs": 15}
    assert stated["stage1"] == stated["stage2"] == stage
    objective = {"targets": "soft", "cross_entropy_weight": 1.5, "attribute_weight": 0.4, "class_weight": 0.5}
    assert stated["objective"] == objective
    meta = {"folds": 5, "epochs": 40, "batch_size": 128, "learning_rate": 1e-3, "weight_decay": 0.01, "draws": 1}
    assert stated["meta"] == meta | {"class_weight": 0.0, "seeds": [1, 2, 3, 4, 5, 6], "soup": "uniform"}
    recipe = load_recipe(RECIPES / "medusa.toml")
    assert type(recipe.stage1).model_fields.keys() - stated["stage1"].keys() == {"patience"}, "TOML has no None"
    assert type(recipe.meta).model_fields.keys() == stated["meta"].keys()


def test_the_full_recipe_has_the_defaults_but_for_its_precision() -> None:
    recipe = load_recipe(RECIPES / "medusa.toml")
    for stage in (recipe.stage1, recipe.stage2):
        plain = type(stage)(epochs=15, batch_size=16, learning_rate=1e-5, mixup=0.3)
        assert stage.model_copy(update={"precision": "float32"}) == plain
    assert recipe.objective == type(recipe.objective)()
    assert recipe.meta == type(recipe.meta)(folds=5, epochs=40, seeds=(1, 2, 3, 4, 5, 6))


def test_the_small_recipe_has_the_shape_of_the_full_one() -> None:
    full, small = (load_recipe(RECIPES / f"{name}.toml") for name in ("medusa", "small"))
    assert [(m.name, m.seed) for m in small.members] == [(m.name, m.seed) for m in full.members]
    for mine, theirs in zip(small.members, full.members, strict=True):
        assert mine.modalities == tuple(STANDS_FOR[name] for name in theirs.modalities)
    assert (small.meta.seeds, small.stage1.mixup) == (full.meta.seeds, full.stage1.mixup)


def small_recipe(text: Path, **data: object) -> Recipe:
    shipped = load_recipe(RECIPES / "small.toml").model_dump(exclude_unset=True)
    words = {"kind": "text-transformer", "dim": TEXT_DIM, "stack": 1, "sources": [f"path:{text}"]}
    encoders = shipped["encoders"] | {"text": words}
    return Recipe.model_validate(shipped | {"data": shipped["data"] | data, "encoders": encoders})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten speakers with two clips of a second each, and a text encoder."""
    folder = tmp_path_factory.mktemp("dry")
    write_tiny_text_encoder(folder / "text")
    votes = {"ANG": (8, 0, 0, 0, 1, 0), "SAD": (0, 1, 0, 0, 1, 7)}
    write_votes(folder / "cremad", {f"{s}_DFA_{c}_XX": v for s in range(1001, 1011) for c, v in votes.items()})
    for speaker in range(1001, 1011):
        for code in votes:
            samples = voice(2.0, 100.0)[:16_000]
            write_wav(folder / "cremad" / f"{speaker}_DFA_{code}_XX.wav", samples)
    return folder


def test_parameters_are_those_of_the_members_that_would_be_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_less(monkeypatch)
    recipe = small_recipe(folder / "text")
    encoders = recipe.encoder_specs()
    for plan, spec in zip(dry_run(recipe, None).members, recipe.member_specs(), strict=True):
        assert plan.parameters == sum(p.numel() for p in DeepSER(spec, encoders).parameters())


def test_data_that_is_here_is_counted_and_a_step_is_timed(folder: Path) -> None:
    plan = dry_run(small_recipe(folder / "text"), folder)
    (corpus,) = plan.corpora
    assert (corpus.name, corpus.clips) == ("cremad", 20)
    assert corpus.hours == pytest.approx(20 / 3600, rel=0.01)
    hourly = sum(encoder.bytes_per_hour for encoder in plan.encoders)
    assert corpus.feature_bytes == pytest.approx(hourly * 20 / 3600, rel=0.01)
    assert set(plan.missing) == {"ravdess"}
    assert not plan.per_hour
    assert plan.training is not None
    assert 0 < plan.training.hours < 1
    assert plan.training.basis == "a training step of the smallest member in float32"
    assert plan.training.device == "this CPU, one thread"
    assert plan.why_no_time == ""


class TooFull:
    """Stands for the clock; its device has no memory left."""

    def __call__(self, step: object, device: torch.device) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\nGPU 0 has 0 bytes free.")


def test_a_device_without_memory_is_told_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And why; all else is told as ever."""
    monkeypatch.setattr(planned_time, "_median_s", TooFull())
    plan = dry_run(load_recipe(RECIPES / "iemocap.toml"), None)
    assert (plan.training, plan.extraction, plan.timed) == (None, None, ())
    for why in (plan.why_no_time, plan.why_no_extraction):
        assert why == "nothing could be timed on cpu: CUDA out of memory. Tried to allocate 2.00 MiB."
    config = str(RECIPES / "iemocap.toml")
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(commands.app, ["run", "--config", config, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "training: no time is told, because nothing could be timed on cpu: CUDA out of memory" in shown.stdout
    assert "extracting features: no time is told, because nothing could be timed on cpu" in shown.stdout


def one_long_clip(folder: Path, seconds: int) -> Path:
    """A corpus of twenty clips of a second each, but for one."""
    long = Path(shutil.copytree(folder, folder.parent / f"{folder.name}-{seconds}"))
    write_wav(long / "cremad" / "1003_DFA_ANG_XX.wav", np.resize(voice(2.0, 100.0), seconds * 16_000))
    return long


def test_a_long_recording_counts_as_the_utterance_that_is_cut_from_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As extraction cuts it, at 20 s: a step is not timed on minutes that no member is given."""
    time_less(monkeypatch)
    timed: list[float] = []

    def noted(*asked: Any) -> PlannedTime:
        timed.append(asked[-1])
        return training_time(*asked)

    monkeypatch.setattr(module, "training_time", noted)
    recipe = small_recipe(folder / "text")
    plans = [dry_run(recipe, one_long_clip(folder, seconds)) for seconds in (20, 600)]
    (cut,), (long,) = (plan.corpora for plan in plans)
    assert (cut.hours * 3600, long.hours * 3600) == pytest.approx((39, 619), rel=1e-3)
    assert timed == [pytest.approx(39 / 20, rel=1e-3)] * 2
    assert cut.feature_bytes == long.feature_bytes
    assert [plan.encoders for plan in plans] == [plans[0].encoders] * 2


@pytest.mark.parametrize("largest", [planned_time.LARGEST_TIMED, 1000])
def test_on_a_cpu_a_step_has_as_many_rows_as_are_timed_in_seconds(
    folder: Path, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it takes is scaled to a whole batch."""
    rows: list[int] = []

    def second(network: torch.nn.Module, loss: Callable[[], torch.Tensor], *_: object) -> float:
        network.register_forward_pre_hook(noted, with_kwargs=True)
        loss()
        return float(rows[-1])

    def noted(network: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = given[0]
        rows.append(len(next(iter(first.values())) if isinstance(first, dict) else first))

    monkeypatch.setattr(planned_time, "LARGEST_TIMED", largest)
    monkeypatch.setattr(planned_time, "_step_s", second)
    recipe, found = small_recipe(folder / "text"), []
    for most in (1.0, 1e15):
        monkeypatch.setattr(planned_time, "_TIMED_OPERATIONS", most)
        plan = dry_run(recipe, None).training
        assert plan is not None
        found.append(plan.hours)
    assert rows == [1, recipe.stage1.batch_size]
    assert found[0] == pytest.approx(found[1])


def test_a_corpus_without_consensus_is_told_no_time(folder: Path) -> None:
    """Stage 2 would draw as many clips of each class, and there is none; nobody's vote counts for the actor's either."""
    tied = Path(shutil.copytree(folder, folder.parent / f"{folder.name}-tied"))
    names = [f"{speaker}_DFA_{code}_XX" for speaker in range(1001, 1011) for code in ("ANG", "SAD")]
    write_votes(tied / "cremad", dict.fromkeys(names, (4, 0, 0, 0, 0, 4)))
    plan = dry_run(small_recipe(folder / "text", intended_votes=0.0), tied)
    assert plan.training is None
    assert "clips has a class that most of its raters heard" in plan.why_no_time
    assert plan.corpora[0].clips == 20


def test_degraded_copies_take_disk_but_for_their_words(folder: Path) -> None:
    plain, copied = (dry_run(small_recipe(folder / "text", degraded_copies=n), folder).corpora[0] for n in (0, 2))
    text = EncoderSpec("text", "text-transformer", TEXT_DIM, 1)
    words = 20 / 3600 * module._hourly_bytes(text, 1.0)
    assert copied.feature_bytes == pytest.approx(words + 3 * (plain.feature_bytes - words), rel=0.01)


def test_functionals_are_kept_once_for_every_utterance() -> None:
    functionals = EncoderSpec("functionals", "functionals", 1540, 1)
    for length_s in (1.0, 5.0):
        expected = 3600 / length_s * FUNCTIONALS_STEPS * 1540 * 2
        assert module._hourly_bytes(functionals, length_s) == pytest.approx(expected)


def test_of_large_members_one_layer_is_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time_less(monkeypatch)
    monkeypatch.setattr(planned_time, "LARGEST_TIMED", 1000)
    plan = dry_run(small_recipe(folder / "text"), folder)
    assert plan.training is not None
    assert plan.training.basis == "a training step of one Transformer layer of width 48 in float32"
    assert plan.training.hours > 0


def test_a_layer_s_operations_are_counted_as_those_of_members_are() -> None:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer = TransformerLayer(64, 4, 96, 0.0).eval()
        layer(torch.zeros(3, 50, 64), torch.ones(3, 50, dtype=torch.bool))
    assert planned_time._layer_operations(layer, 3, 50, 64) == counter.get_total_flops()


def test_no_time_is_told_of_a_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = load_recipe(RECIPES / "iemocap.toml").model_copy(update={"compute": ComputeConfig(device="cuda")})
    plan = dry_run(recipe, None)
    assert (plan.training, plan.extraction) == (None, None)
    for why in (plan.why_no_time, plan.why_no_extraction):
        assert "torch sees no CUDA device here" in why


@pytest.mark.parametrize(("name", "giga"), [("wavlm", 185.6), ("roberta", 10.6), ("whisper", 521.0)])
def test_operations_of_an_encoder_follow_from_its_published_sizes(name: str, giga: float) -> None:
    """Of 5 s: WavLM's by torch's own count; 303 M weights on 17.5 tokens; 635 M on the 400 frames of 8 s."""
    encoder = load_recipe(RECIPES / "medusa.toml").encoder_specs()[name]
    assert planned_time.encoder_operations(encoder, 5.0) == pytest.approx(giga * 1e9, rel=0.05)
    assert planned_time.encoder_operations(replace(encoder, sources=("path:/nowhere",)), 5.0) is None


def test_an_encoder_that_is_nowhere_has_no_count() -> None:
    whisper = load_recipe(RECIPES / "default.toml").encoder_specs()["whisper"]
    assert module._parameters(whisper) == pytest.approx(7.6e6, rel=0.01)
    assert module._parameters(replace(whisper, sources=("hub:somebody/else", "path:/nowhere"))) is None
