"""Stage 3, the linear meta-classifier on out-of-fold member outputs, and stage 4, the soup.

Shapes: N = examples, M = members.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.network.metaclassifier import MetaClassifier, meta_input
from train.config import MetaConfig
from train.dataset import Examples, balanced_subset
from train.loop import class_bias
from train.losses import Labels, class_weights, multitask_loss


def train_meta(
    outputs: Tensor, examples: Examples, trained_classes: tuple[str, ...], config: MetaConfig, seed: int
) -> MetaClassifier:
    """One run of stage 3: balanced sampling as in stage 2, no mixup.

    Classes are weighted as in stage 1 where the recipe says so: clips of every class carry votes for neutral, so a set
    that is balanced by dominant class is not balanced by votes, and a meta-classifier trained on it leans to neutral.

    Args:
        outputs: out-of-fold member outputs as `meta_input` gives them, `[N, 11 M]`.
        examples: the same N examples, for their targets.
        trained_classes: classes that occur.
        config: epochs, batch size, learning rate.
        seed: decides the initial weights and the draws.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    meta = MetaClassifier(outputs.shape[1] // 11)
    optimizer = torch.optim.AdamW(meta.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    bias, weights = class_bias(trained_classes), class_weights(examples.targets, config.class_weight)
    labels, classes = _labels(examples), examples.dominant
    for _ in range(config.epochs):
        subset = balanced_subset(classes, rng)
        for start in range(0, len(subset), config.batch_size):
            rows = torch.from_numpy(subset[start : start + config.batch_size])
            logits, attributes = meta(outputs[rows])
            drawn = Labels(labels.classes[rows], labels.attributes[rows], labels.rated[rows])
            loss = multitask_loss(logits, attributes, drawn, weights, bias)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
    return meta.eval()


def soup(runs: Sequence[MetaClassifier]) -> MetaClassifier:
    """Uniform soup: the mean of the runs' weights. Of linear layers, it is exactly the mean of their outputs."""
    mixed = MetaClassifier(runs[0].linear.in_features // 11)
    states = [run.state_dict() for run in runs]
    mixed.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
    return mixed.eval()


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


def _labels(examples: Examples) -> Labels:
    rated = ~np.isnan(examples.attributes)
    return Labels(
        torch.from_numpy(examples.targets),
        torch.from_numpy(np.where(rated, examples.attributes, 0.0).astype(np.float32)),
        torch.from_numpy(rated),
    )
