"""Stage 3, the linear meta-classifier on out-of-fold member outputs, and stage 4, the soup.

Shapes: N = examples, M = members.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.network.metaclassifier import WIDTH, MetaClassifier, meta_input
from train.config import MetaConfig
from train.dataset import Examples, balanced_subset, decided, labels_of
from train.history import History
from train.loop import SELECTION_RESAMPLES, class_bias
from train.losses import PAPER, Labels, Terms, class_weights, multitask_loss
from train.metrics import balanced_macro_f1


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What runs of stage 3 are judged by: outputs of the members trained on everybody `[N, 11 M]`, and their examples."""

    outputs: Tensor
    examples: Examples


@dataclass(frozen=True, slots=True)
class StackingSet:
    """What runs of stage 3 are trained on.

    Attributes:
        outputs: out-of-fold member outputs as `meta_input` gives them, `[N, 11 M]`.
        examples: the same N examples, for their targets.
        trained_classes: classes that occur.
        terms: weights of classes and attributes in the loss.
    """

    outputs: Tensor
    examples: Examples
    trained_classes: tuple[str, ...]
    terms: Terms = PAPER


def train_meta(data: StackingSet, config: MetaConfig, seed: int, dev: HeldOut) -> tuple[MetaClassifier, History]:
    """One run of stage 3: balanced sampling as in stage 2, no mixup; the last epoch is kept.

    Classes are weighted as in stage 1 where the recipe says so: clips of every class carry votes for neutral, so a set
    that is balanced by dominant class is not balanced by votes, and a meta-classifier trained on it leans to neutral.

    Args:
        data: the members' outputs, and what they should have been.
        config: epochs, batch size, learning rate.
        seed: decides the initial weights and the draws.
        dev: scores every epoch for the learning curve, and decides nothing.
    """
    outputs, examples = data.outputs, data.examples
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    meta = MetaClassifier(outputs.shape[1] // WIDTH)
    optimizer = torch.optim.AdamW(meta.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    bias, weights = class_bias(data.trained_classes), class_weights(examples.targets, config.class_weight)
    labels, classes, history = labels_of(examples), examples.dominant, History()
    for epoch in range(config.epochs):
        subset, losses = balanced_subset(classes, rng), []
        for start in range(0, len(subset), config.batch_size):
            rows = torch.from_numpy(subset[start : start + config.batch_size])
            logits, attributes = meta(outputs[rows])
            drawn = Labels(labels.classes[rows], labels.attributes[rows], labels.rated[rows])
            loss = multitask_loss(logits, attributes, drawn, weights, bias, terms=data.terms)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            losses.append(float(loss.detach()))
        score = meta_score(meta, dev, bias)
        row = {"epoch": epoch, "loss": float(np.mean(losses)), "dev_macro_f1": score, "examples": len(subset)}
        history.rows.append(row)
        history.steps += len(losses)
        history.best_epoch = epoch
    return meta.eval(), history


def meta_score(meta: MetaClassifier, dev: HeldOut, bias: Tensor) -> float:
    """The selection score of stages 1 and 2 for a meta-classifier: macro-F1 over balanced resamples.

    Raises:
        CorpusError: if all rows are without consensus.
    """
    rows = decided(dev.examples)
    guesses = meta_posterior(meta, dev.outputs[torch.from_numpy(rows)], bias, 1.0).argmax(axis=1)
    return balanced_macro_f1(dev.examples.dominant[rows], guesses, SELECTION_RESAMPLES, seed=0)


def soup(runs: Sequence[MetaClassifier]) -> MetaClassifier:
    """Uniform soup: the mean of the runs' weights. Of linear layers, it is exactly the mean of their outputs."""
    mixed = MetaClassifier(runs[0].linear.in_features // WIDTH)
    states = [run.state_dict() for run in runs]
    mixed.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
    return mixed.eval()


def greedy_ingredients(runs: Sequence[MetaClassifier], dev: HeldOut, bias: Tensor) -> tuple[int, ...]:
    """Runs of a greedy soup: the best one, then, from good to bad, each that does not lower the soup's score.

    Source: Wortsman et al. (2022), "Model soups", arXiv:2203.05482, recipe 1.

    Returns:
        Their numbers in `runs`, in the order in which they went in; of equally good runs, the earlier one first.
    """
    scores = [meta_score(run, dev, bias) for run in runs]
    first, *others = sorted(range(len(runs)), key=lambda number: -scores[number])
    chosen, best = [first], scores[first]
    for number in others:
        score = meta_score(soup([runs[n] for n in (*chosen, number)]), dev, bias)
        if score >= best:
            chosen.append(number)
            best = score
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Souped:
    """Stages 3 and 4 on one set of members.

    Attributes:
        runs: of stage 3, one per seed.
        histories: what happened in each of them.
        ingredients: numbers of the runs that the soup is made of.
        soup: the mean of these.
    """

    runs: tuple[MetaClassifier, ...]
    histories: tuple[History, ...]
    ingredients: tuple[int, ...]
    soup: MetaClassifier


def souped(data: StackingSet, config: MetaConfig, dev: HeldOut) -> Souped:
    """A run of stage 3 for every seed, and the soup that the recipe asks for."""
    trained = [train_meta(data, config, seed, dev) for seed in config.seeds]
    runs = tuple(run for run, _ in trained)
    greedy, everything = config.soup == "greedy", tuple(range(len(runs)))
    chosen = greedy_ingredients(runs, dev, class_bias(data.trained_classes)) if greedy else everything
    histories = tuple(history for _, history in trained)
    return Souped(runs, histories, chosen, soup([runs[number] for number in chosen]))


def columns_of(names: Sequence[str], members: Sequence[str]) -> list[int]:
    """Where the outputs of some members are in `[N, 11 M]` of all `members`."""
    places = [place for place, member in enumerate(members) if member in names]
    return [column for place in places for column in range(WIDTH * place, WIDTH * (place + 1))]


def stacked_outputs(
    predictions: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
) -> Tensor:
    """Predictions of M members (posteriors `[N, 8]`, attributes `[N, 3]`) as the meta-classifier reads them."""
    posteriors = torch.from_numpy(np.stack([posterior for posterior, _ in predictions], axis=1))
    attributes = torch.from_numpy(np.stack([values for _, values in predictions], axis=1))
    return meta_input(posteriors, attributes)


@torch.no_grad()
def meta_posterior(meta: MetaClassifier, outputs: Tensor, bias: Tensor, temperature: float) -> npt.NDArray[np.float32]:
    """Posteriors `[N, 8]` of the meta-classifier; the formula of `Ensemble.forward`."""
    return torch.softmax(meta(outputs)[0] / temperature + bias, dim=1).numpy()


def fit_temperature(logits: Tensor, targets: npt.NDArray[np.float32], bias: Tensor) -> float:
    """The temperature under which logits `[N, 8]` of held-out speakers explain their vote vectors best.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", arXiv:1706.04599.
    """
    truth = torch.from_numpy(targets)
    grid = np.geomspace(0.1, 10.0, 400)
    losses = [float(-(truth * torch.log_softmax(logits / t + bias, dim=1)).sum(dim=1).mean()) for t in grid]
    return float(grid[int(np.argmin(losses))])
