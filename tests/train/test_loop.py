"""The optimizer step: accumulation, precision, compilation, early stopping."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.network.deepser import DeepSER
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_member
from train import dataset
from train.config import StageConfig
from train.dataset import Examples
from train.errors import CorpusError
from train.execution import Execution
from train.loop import StageData, Step, train_stage

LABELS = (*TRAINED, None) * 6
CONFIG = StageConfig(epochs=2, batch_size=8, learning_rate=1e-3, mixup=0.0)


def data_of(examples: Examples, dev: Examples | None = None) -> StageData:
    return StageData(lambda rng: examples, dev, torch.linspace(0.5, 2.0, 8), TRAINED)


def gradient(
    parts: list[Examples],
    config: StageConfig = CONFIG,
    execution: Execution | None = None,
    modalities: tuple[str, ...] = ("prosody", "text"),
) -> torch.Tensor:
    """The gradient of one step over `parts`, in a row."""
    member = make_member(modalities)
    step = Step(member, ENCODERS, data_of(parts[0]), config, execution or Execution())
    step.gradients(parts, np.random.default_rng(0))
    return torch.cat([p.grad.flatten() for p in member.parameters() if p.grad is not None])


def weights(member: DeepSER) -> torch.Tensor:
    return torch.cat([values.flatten() for values in member.state_dict().values()])


def test_accumulated_batches_have_the_gradient_of_one_large_batch() -> None:
    """Parts of unequal size with unequally many ratings: the mean of the parts' means would be another gradient."""
    examples = make_examples(LABELS)
    examples.attributes[:8] = np.nan
    parts = [examples.subset(range(8)), examples.subset(range(8, 24)), examples.subset(range(24, 30))]
    whole = gradient([examples])
    torch.testing.assert_close(gradient(parts), whole, atol=1e-6, rtol=1e-5)
    means = torch.stack([gradient([part]) for part in parts]).mean(dim=0)
    assert (means - whole).abs().max() > 1e-3


def test_mixup_counts_the_ratings_that_every_accumulated_batch_keeps() -> None:
    examples = make_examples(LABELS)
    config = CONFIG.model_copy(update={"mixup": 1.0})
    halves = [examples.subset(range(15)), examples.subset(range(15, 30))]
    again = gradient(halves, config)
    assert torch.equal(gradient(halves, config), again)
    assert not torch.allclose(gradient(halves), again)
    assert torch.isfinite(again).all()


def test_bfloat16_computes_in_half_and_keeps_weights_in_full() -> None:
    examples, config = make_examples(LABELS), CONFIG.model_copy(update={"precision": "bfloat16"})
    full, half = gradient([examples]), gradient([examples], config)
    assert half.dtype == torch.float32
    assert not torch.allclose(full, half, rtol=1e-5)
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.99
    member = make_member()
    long = config.model_copy(update={"epochs": 12, "learning_rate": 1e-2})
    history = train_stage(member, ENCODERS, data_of(examples), long, seed=0)
    assert {values.dtype for values in member.state_dict().values()} == {torch.float32}
    assert history.rows[-1]["loss"] < 0.8 * history.rows[0]["loss"]


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own modules
def test_a_compiled_member_has_the_same_gradient() -> None:
    examples, one = make_examples(LABELS), ("prosody",)
    compiled = gradient([examples], CONFIG, Execution(compile=True), one)
    torch.testing.assert_close(compiled, gradient([examples], modalities=one), atol=1e-5, rtol=1e-4)


def test_a_stage_ends_after_epochs_without_gain_and_keeps_its_best() -> None:
    """From the fifth epoch on, labels are exchanged."""
    good, dev = make_examples(LABELS, signal=2.0), make_examples(TRAINED * 6, seed=3, signal=2.0)
    bad = replace(good, targets=good.targets[::-1].copy())
    epochs = iter([good] * 4 + [bad] * 60)
    data = StageData(lambda rng: next(epochs), dev, torch.ones(8), TRAINED)
    config = CONFIG.model_copy(update={"epochs": 60, "learning_rate": 5e-3, "patience": 3})
    history = train_stage(make_member(), ENCODERS, data, config, seed=0)
    scores = [row["dev_macro_f1"] for row in history.rows]
    assert history.best_epoch == int(np.argmax(scores))
    assert len(scores) == history.best_epoch + 1 + 3 < 60


def test_without_patience_every_epoch_is_trained() -> None:
    still = CONFIG.model_copy(update={"epochs": 6, "learning_rate": 1e-9})
    history = train_stage(make_member(), ENCODERS, data_of(make_examples(LABELS), make_examples(TRAINED)), still, 0)
    assert len(history.rows) == 6
    assert history.best_epoch == 0


def test_nothing_is_selected_by_speakers_without_a_class() -> None:
    """All of their clips are ties: no score exists, so none may be the best."""
    with pytest.raises(CorpusError, match="none of 4 held-out clips has a class that most of its raters heard"):
        train_stage(make_member(), ENCODERS, data_of(make_examples(LABELS), make_examples((None,) * 4)), CONFIG, 0)


def test_training_starts_from_its_seed_whatever_ran_before() -> None:
    found = []
    for before in (1, 2):
        member = make_member(dropout=0.3)
        torch.manual_seed(before)
        train_stage(member, ENCODERS, data_of(make_examples(LABELS)), CONFIG, seed=5)
        found.append(weights(member))
    assert torch.equal(*found)


def test_a_batch_in_several_passes_has_the_gradient_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed too: partners and labels stay with their rows, whatever the order of the passes."""
    examples = make_examples(LABELS)
    for row in (3, 11, 17):
        examples.frames["prosody"][row] = np.tile(examples.frames["prosody"][row], (40, 1))  # type: ignore[index]
    for config in (CONFIG, CONFIG.model_copy(update={"mixup": 1.0})):
        found = {}
        for cost, passes in ((0, 5), (10**9, 1)):
            monkeypatch.setattr(dataset, "_PASS_STEPS", cost)
            cut = dataset.passes_by_length(dataset.steps_of(examples.frames, {"prosody": ENCODERS["prosody"]}))
            assert len(cut) >= passes
            found[cost] = gradient([examples], config)
        assert found[0].abs().max() > 0.01
        torch.testing.assert_close(found[0], found[10**9], atol=1e-6, rtol=1e-4)
