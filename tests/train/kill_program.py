"""Trains one small member and says so after every epoch: a process of its own, to be killed.

python -m tests.train.kill_program FOLDER
"""

import sys
from pathlib import Path

from model.network.member import Member
from tests.train.synthetic import TRAINED, make_examples, make_recipe, make_training_set
from train.config import Recipe
from train.stages.members import ALL_SPEAKERS, Job, train_member


def recipe_of(resume_every: int = 1) -> Recipe:
    """Dropout, mixup, two stages of six epochs."""
    stage = {"epochs": 6, "batch_size": 8, "learning_rate": 3e-3, "mixup": 0.5, "accumulate": 2}
    return make_recipe(stage1=stage, stage2=stage, compute={"resume_every": resume_every})


def train(folder: Path, recipe: Recipe | None = None) -> Member:
    """Both stages, on what is always the same data."""
    recipe = recipe or recipe_of()
    data = make_training_set(make_examples((*TRAINED, None) * 12))
    job = Job(recipe.member_specs()[0], ALL_SPEAKERS)
    return train_member(job, recipe, data, folder, lambda stage, row: say(f"{stage} {row['epoch']}"))


def say(words: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    train(Path(sys.argv[1]))
    say("done")
