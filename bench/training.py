"""Training throughput of one member: samples per second of our loop, and of a plain one, in one run.

    python -m bench.training --recipe recipes/small.toml --member whisper-roberta-1

ours    the training step of stages 1 and 2: features held in memory as the cache gives them, batches by length
plain   the manner of research code: one file per utterance and encoder, read in each step, batches at random; the same
        network, batch size, loss and optimizer
model   our batches as tensors made beforehand: what is left of a step when only the network works

The two loops take turns, an epoch each, so that what else the machine does falls on both. Features are random, with the
widths of the recipe's encoders and lengths of utterances as corpora have them: nothing is said about accuracy.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.features import FUNCTIONALS_STEPS
from model.labels import CLASSES
from model.network.deepser import DeepSER
from model.spec import EncoderKind, EncoderSpec
from train.config import Recipe, StageConfig, load_recipe
from train.dataset import Batch, Examples, HalfFrames, batches_by_length, labels_of, make_batch, tensors
from train.execution import keep_freed_memory
from train.loop import StageData, class_bias, train_stage
from train.losses import multitask_loss

_MEDIAN_S, _SPREAD = 4.0, 0.6
"""Lengths of utterances, log-normal: a mean of 4.8 s and one in twenty above 10.7 s."""
_RATES_HZ: dict[EncoderKind, float] = {"prosody": 100.0, "text-transformer": 2.7}
"""Frames a second; 50 of every other encoder, for text the word pieces of English speech."""


@dataclass(frozen=True, slots=True)
class Task:
    """What both loops train."""

    recipe: Recipe
    member: str
    examples: Examples

    @property
    def inputs(self) -> dict[str, EncoderSpec]:
        """The encoders that the member reads."""
        (spec,) = (spec for spec in self.recipe.member_specs() if spec.name == self.member)
        return {name: self.recipe.encoder_specs()[name] for name in spec.modalities}

    @property
    def config(self) -> StageConfig:
        """One epoch of stage 1, nothing mixed: the plain loop mixes nothing either."""
        return self.recipe.stage1.model_copy(update={"epochs": 1, "mixup": 0.0})

    def network(self) -> DeepSER:
        """The member, new and always with the same weights."""
        torch.manual_seed(0)
        (spec,) = (spec for spec in self.recipe.member_specs() if spec.name == self.member)
        return DeepSER(spec, self.recipe.encoder_specs()).train()


def random_examples(inputs: dict[str, EncoderSpec], count: int) -> Examples:
    """Random frames of utterances of random lengths."""
    rng = np.random.default_rng(0)
    seconds = np.exp(rng.normal(np.log(_MEDIAN_S), _SPREAD, count)).clip(0.4, 25.0)
    frames: dict[str, list[HalfFrames]] = {}
    for name, encoder in inputs.items():
        rate = _RATES_HZ.get(encoder.kind, 50.0)
        steps = [FUNCTIONALS_STEPS if encoder.kind == "functionals" else max(1, round(s * rate)) for s in seconds]
        frames[name] = [rng.standard_normal((size, encoder.dim), np.float32).astype(np.float16) for size in steps]
    return Examples(
        ids=tuple(f"{row:05d}" for row in range(count)),
        frames=frames,
        targets=rng.dirichlet(np.ones(len(CLASSES)), count).astype(np.float32),
        attributes=rng.uniform(1.0, 7.0, (count, 3)).astype(np.float32),
        intended=rng.integers(len(CLASSES), size=count),
        speakers=("",) * count,
        outvoted=np.zeros(count, np.bool_),
    )


def write_files(task: Task, folder: Path) -> None:
    """A float32 file per utterance and encoder."""
    for name in task.inputs:
        for row, utterance in enumerate(task.examples.ids):
            np.save(folder / f"{utterance}.{name}.npy", task.examples.frames[name][row].astype(np.float32))


def plain_batches(task: Task, folder: Path) -> Iterator[Batch]:
    """Batches at random, read from their files."""
    order = np.random.default_rng(1).permutation(len(task.examples))
    for start in range(0, len(order), task.config.batch_size):
        rows = order[start : start + task.config.batch_size]
        read = {
            name: [np.load(folder / f"{task.examples.ids[row]}.{name}.npy") for row in rows] for name in task.inputs
        }
        yield Batch(*tensors(read, task.inputs), labels_of(task.examples.subset(rows)))


def our_batches(task: Task) -> list[Batch]:
    """The batches of an epoch of ours, as tensors."""
    rng = np.random.default_rng(1)
    lengths = np.array([len(rows) for rows in task.examples.frames[next(iter(task.inputs))]])
    order = rng.permutation(len(task.examples))
    cut = batches_by_length(order, lengths, task.config.batch_size, rng)
    return [make_batch(task.examples.subset(rows), task.inputs) for rows in cut]


def only_network(task: Task, batches: Iterator[Batch]) -> None:
    """An epoch by hand: forward, loss, backward, clip, step."""
    member, bias, weights = task.network(), class_bias(CLASSES), torch.ones(len(CLASSES))
    optimizer = torch.optim.AdamW(member.parameters(), lr=task.config.learning_rate)
    for batch in batches:
        optimizer.zero_grad()
        logits, attributes = member(batch.frames, batch.masks)
        loss = multitask_loss(logits, attributes, batch.labels, weights, bias)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(member.parameters(), task.config.clip_norm)
        optimizer.step()


def ours(task: Task) -> None:
    """An epoch of the training loop itself."""
    data = StageData(lambda rng: task.examples, None, torch.ones(len(CLASSES)), CLASSES)
    train_stage(task.network(), task.recipe.encoder_specs(), data, task.config, 0)


def seconds_of(work: Callable[[], None]) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def padding_of(batches: list[Batch]) -> float:
    """Share of padded steps, over all modalities."""
    real = sum(int(mask.sum()) for batch in batches for mask in batch.masks.values())
    return 1.0 - real / sum(mask.numel() for batch in batches for mask in batch.masks.values())


def measure(task: Task, rounds: int) -> None:
    """Prints the figures of `rounds` rounds; the first one, which warms up, is left out."""
    taken: dict[str, list[float]] = {"ours": [], "plain": [], "model": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(task, folder)
        made = our_batches(task)
        paddings = {"ours": padding_of(made), "plain": padding_of(list(plain_batches(task, folder)))}
        for number in range(rounds + 1):
            found = {
                "plain": seconds_of(lambda: only_network(task, plain_batches(task, folder))),
                "ours": seconds_of(lambda: ours(task)),
                "model": seconds_of(lambda: only_network(task, iter(made))),
            }
            if number:
                for kind, seconds in found.items():
                    taken[kind].append(seconds)
    print_figures(task, taken, paddings)


def print_figures(task: Task, taken: dict[str, list[float]], paddings: dict[str, float]) -> None:
    """Medians, and the range of the ratio over the rounds."""
    count = len(task.examples)
    for kind, seconds in taken.items():
        told = f", padding {paddings[kind]:.0%}" if kind in paddings else ""
        say(f"{kind:6} {count / np.median(seconds):8.1f} samples a second{told}")
    ratios = [plain / mine for plain, mine in zip(taken["plain"], taken["ours"], strict=True)]
    shares = [1.0 - model / mine for model, mine in zip(taken["model"], taken["ours"], strict=True)]
    say(f"ours over plain {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    say(f"step time not in the model {np.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")


def say(words: str) -> None:
    """One line on standard output."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/small.toml"))
    parser.add_argument("--member", default="whisper-roberta-1")
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # for both loops alike
    recipe = load_recipe(given.recipe)
    modalities = {spec.name: spec.modalities for spec in recipe.member_specs()}
    if given.member not in modalities:
        parser.error(f"--member {given.member}: {given.recipe} has {', '.join(modalities)}")
    inputs = {name: recipe.encoder_specs()[name] for name in modalities[given.member]}
    task = Task(recipe, given.member, random_examples(inputs, given.examples))
    say(f"{given.member}: {', '.join(inputs)}; batch {task.config.batch_size}, {given.threads} threads")
    measure(task, given.rounds)


if __name__ == "__main__":
    main()
