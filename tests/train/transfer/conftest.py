"""What whole transfers begin with: a finished run on one made-up corpus, and another corpus."""

import csv
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from tests.fakes import voice
from tests.model.tiny import write_tiny_text_encoder
from tests.train.synthetic import write_wav
from tests.train.tiny_run import tiny_recipe, write_corpora
from train.config import Recipe
from train.run import train_ensemble
from train.transfer.source import Source, read_source
from train.transfer.target import Target, load_target

SPEAKERS = range(8)
LABELS = ("angry", "sad", "neutral", "disgust", "surprise")  # the source has no surprise
TARGET = """
name = "mine"
[data]
corpus = "table"
options = { folder = "mine" }
licence = "ours"
intended_votes = 0.0
dev_fraction = 0.25
test_fraction = 0.25
[stage1]
epochs = 2
batch_size = 8
learning_rate = 1e-3
[meta]
folds = 2
epochs = 2
seeds = [1, 2]
[transfer]
scratch_epochs = 1
"""


@dataclass(frozen=True, slots=True)
class World:
    """A finished source run and a target corpus; read it, never change it."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def run(self) -> Path:
        return self.folder / "source"

    def source(self, *names: str) -> Source:
        return read_source(self.run, names)

    def target(self, more: str = "", folder: Path | None = None) -> Target:
        path = (folder or self.folder) / "target.toml"
        path.write_text(TARGET + more, encoding="utf-8")
        return load_target(path, self.source().recipe)


def silent(what: str, done: int, total: int) -> None:
    pass


def write_target(root: Path, labels: dict[tuple[int, str, int], str] | None = None, heard: bool = True) -> None:
    """Recordings of every speaker and class; `labels` exchanges what the table says of some; else it says nothing."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["audio", "speaker", *(["label"] if heard else [])])
        for speaker, (index, label), take in product(SPEAKERS, enumerate(LABELS), range(2)):
            name = f"{speaker}-{index}-{take}.wav"
            if not (root / name).exists():
                write_wav(root / name, voice(0.4 + 0.05 * take, 100.0 + 7.0 * speaker + 50.0 * index))
            told = [(labels or {}).get((speaker, label, take), label)] if heard else []
            table.writerow([name, f"s{speaker}", *told])


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all files that a process runs, for the training takes the longest."""
    folder = tmp_path_factory.mktemp("transfer")
    found = World(folder)
    write_corpora(found.data)
    write_target(found.data / "mine")
    write_tiny_text_encoder(folder / "text")
    plain = tiny_recipe(folder / "text").model_dump(exclude_unset=True)
    plain["data"] |= {"evaluate": (), "degraded_copies": 0}
    plain["encoders"]["text"] |= {"licence": "MIT", "supervised_on": ["iemocap"]}
    plain["meta"]["draws"] = 1
    recipe = Recipe.model_validate(plain)
    train_ensemble(recipe, found.data, found.cache, found.run, 1, silent)
    return found


def with_data(target: Target, **changed: object) -> Target:
    """The target with other settings of its data."""
    data = target.recipe.data.model_copy(update=changed)
    return Target(target.recipe.model_copy(update={"data": data}), target.transfer)
