"""Training throughput: samples per second of our loop, and of a plain one, in one run.

    python -m bench.training --recipe recipes/small.toml --member whisper-roberta-1 [--precision bfloat16]

ours    the training step of stages 1 and 2: features as the cache gives them, batches by length, passes of like lengths, the
        stage's precision
plain   the manner of research code: a float32 file per utterance and encoder, opened in each step, batches at random and
        padded to their longest, float32, torch as it is, its dropout too; the same network, batch size, loss and optimizer
model   our passes as tensors made beforehand: what is left of a step when only the network works, in the stage's precision

Each is measured alone, with every thread, and two side by side with one thread each, as `medusa-train run --workers 2`
trains members: then samples are those of both. All are processes of their own and take turns, an epoch each, so that
what else the machine does falls on all; seconds of a core leave most of it out. Features are random, with the widths of
the recipe's encoders and lengths of utterances as corpora have them: nothing is said about accuracy.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.features import FUNCTIONALS_STEPS
from model.labels import CLASSES
from model.network import deepser, enc
from model.network.deepser import DeepSER
from model.spec import EncoderKind, EncoderSpec
from train.config import Recipe, StageConfig, load_recipe
from train.dataset import Examples, HalfFrames, batches_by_length, labels_of, passes_by_length, steps_of, tensors
from train.execution import keep_freed_memory
from train.loop import StageData, class_bias, train_stage
from train.losses import Labels, multitask_loss

_MEDIAN_S, _SPREAD = 4.0, 0.6
"""Lengths of utterances, log-normal: a mean of 4.8 s and one in twenty above 10.7 s."""
_RATES_HZ: dict[EncoderKind, float] = {"prosody": 100.0, "text-transformer": 2.7}
"""Frames a second; 50 of every other encoder, for text the word pieces of English speech."""

Pass = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Frames and masks of rows that go through the network together."""
Kind = Literal["plain", "ours", "model"]
Precision = Literal["float32", "bfloat16"]
KINDS: Final[tuple[Kind, ...]] = ("plain", "ours", "model")
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Task:
    """What both loops train."""

    recipe: Recipe
    member: str
    examples: Examples
    precision: Precision

    @property
    def inputs(self) -> dict[str, EncoderSpec]:
        """The encoders that the member reads."""
        (spec,) = (spec for spec in self.recipe.member_specs() if spec.name == self.member)
        return {name: self.recipe.encoder_specs()[name] for name in spec.modalities}

    @property
    def config(self) -> StageConfig:
        """One epoch of stage 1, nothing mixed: the plain loop mixes nothing either."""
        return self.recipe.stage1.model_copy(update={"epochs": 1, "mixup": 0.0, "precision": self.precision})

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


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step reads, in one pass or several."""

    passes: list[Pass]
    labels: Labels


def plain_batches(task: Task, folder: Path) -> Iterator[Batch]:
    """Batches at random, read from their files."""
    order = np.random.default_rng(1).permutation(len(task.examples))
    for start in range(0, len(order), task.config.batch_size):
        rows = order[start : start + task.config.batch_size]
        read = {
            name: [np.load(folder / f"{task.examples.ids[row]}.{name}.npy") for row in rows] for name in task.inputs
        }
        yield Batch([tensors(read, task.inputs)], labels_of(task.examples.subset(rows)))


def our_batches(task: Task) -> list[Batch]:
    """The batches of an epoch of ours, as tensors."""
    rng, made = np.random.default_rng(1), []
    lengths = np.array([len(rows) for rows in task.examples.frames[next(iter(task.inputs))]])
    order = rng.permutation(len(task.examples))
    for rows in batches_by_length(order, lengths, task.config.batch_size, rng):
        part = task.examples.subset(rows)
        passes = passes_by_length(steps_of(part.frames, task.inputs))
        inverse = np.argsort(np.concatenate(passes))
        labels = labels_of(part.subset(np.argsort(inverse)))
        made.append(Batch([tensors(part.subset(p).frames, task.inputs) for p in passes], labels))
    return made


def only_network(task: Task, batches: Iterable[Batch], precision: Precision, fused: bool) -> None:
    """An epoch by hand: forward, loss, backward, clip, step."""
    member, bias, weights = task.network(), class_bias(CLASSES), torch.ones(len(CLASSES))
    optimizer = torch.optim.AdamW(member.parameters(), lr=task.config.learning_rate, fused=fused or None)
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits, attributes = member.classify(torch.cat([member.represent(*part) for part in batch.passes]))
        loss = multitask_loss(logits.float(), attributes.float(), batch.labels, weights, bias)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(member.parameters(), task.config.clip_norm)
        optimizer.step()


def ours(task: Task) -> None:
    """An epoch of the training loop itself."""
    data = StageData(lambda rng: task.examples, None, torch.ones(len(CLASSES)), CLASSES)
    train_stage(task.network(), task.recipe.encoder_specs(), data, task.config, 0)


def work(line: Connection, task: Task, folder: Path, kind: Kind, threads: int) -> None:
    """A process of its own: an epoch for every message that is not the last; answers with its CPU seconds."""
    torch.set_num_threads(threads)
    if kind == "plain":
        for module in (enc, deepser):
            vars(module)["dropout"] = F.dropout
    else:
        keep_freed_memory()  # as every process of a run does
    made = our_batches(task) if kind == "model" else []
    while line.recv():
        start = time.process_time()
        if kind == "plain":
            only_network(task, plain_batches(task, folder), "float32", fused=False)
        elif kind == "ours":
            ours(task)
        else:
            only_network(task, made, task.precision, fused=True)
        line.send(time.process_time() - start)


@contextmanager
def workers(task: Task, folder: Path, kind: Kind, count: int, threads: int) -> Iterator[list[Connection]]:
    """Processes of one kind; they wait for their first message."""
    context = multiprocessing.get_context("spawn")
    lines = []
    for _ in range(count):
        mine, theirs = context.Pipe()
        context.Process(target=work, args=(theirs, task, folder, kind, threads), daemon=True).start()
        lines.append(mine)
    try:
        yield lines
    finally:
        for line in lines:
            line.send(False)


def seconds_of(lines: Sequence[Connection]) -> tuple[float, float]:
    """Wall seconds until all have done an epoch, and the CPU seconds of them together, each per epoch."""
    start = time.perf_counter()
    for line in lines:
        line.send(True)
    spent = sum(float(line.recv()) for line in lines)
    return (time.perf_counter() - start) / len(lines), spent / len(lines)


def padding_of(batches: Iterable[Batch]) -> float:
    """Share of padded steps, over all modalities."""
    masks = [mask for batch in batches for _, masks in batch.passes for mask in masks.values()]
    return 1.0 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def measure(task: Task, rounds: int, threads: int) -> None:
    """Prints the figures of `rounds` rounds; the first one, which warms up, is left out."""
    settings = {"alone": (1, threads), "two side by side": (2, max(1, threads // 2))}
    taken: dict[tuple[str, Kind], list[tuple[float, float]]] = {
        (setting, kind): [] for setting in settings for kind in KINDS
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_files(task, folder)
        told = f"padding: ours {padding_of(our_batches(task)):.0%}, plain {padding_of(plain_batches(task, folder)):.0%}"
        lines = {
            (setting, kind): stack.enter_context(workers(task, folder, kind, *settings[setting]))
            for setting, kind in taken
        }
        for number in range(rounds + 1):
            for key, waiting in lines.items():
                seconds = seconds_of(waiting)
                if number:
                    taken[key].append(seconds)
    say(told)
    count = len(task.examples)
    for (setting, kind), rows in taken.items():
        wall, busy = np.median(rows, axis=0)
        say(f"{setting:16} {kind:6} {count / wall:7.1f} samples a second, {count / busy:7.1f} a second of a core")
    for unit, name in enumerate(("seconds", "core seconds")):
        for setting in settings:
            plain, mine, model = (np.array(taken[setting, kind])[:, unit] for kind in KINDS)
            told = f"ours over plain {spread(plain / mine)}; of the step not in the model {spread(1 - model / mine)}"
            say(f"in {name}, {setting}: {told}")
    both, one = (np.array(taken[key])[:, 0] for key in (("two side by side", "ours"), ("alone", "plain")))
    say(f"in seconds: ours, two side by side, over one plain loop with every thread {spread(one / both)}")


def spread(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    """Median, and the range over the rounds."""
    return f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})"


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
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of ours; the plain loop is float32")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    modalities = {spec.name: spec.modalities for spec in recipe.member_specs()}
    if given.member not in modalities:
        parser.error(f"--member {given.member}: {given.recipe} has {', '.join(modalities)}")
    inputs = {name: recipe.encoder_specs()[name] for name in modalities[given.member]}
    task = Task(recipe, given.member, random_examples(inputs, given.examples), given.precision)
    say(
        f"{given.member}: {', '.join(inputs)}; batch {task.config.batch_size}, {given.threads} threads, {given.precision}"
    )
    measure(task, given.rounds, given.threads)


if __name__ == "__main__":
    main()
