"""Training the members of a transfer."""

from collections.abc import Mapping
from pathlib import Path

from model.network.member import Member
from train.config import Recipe
from train.execution import device_of
from train.features import Progress
from train.stages.members import Job, Place, TrainingSet, train_member


def train_jobs(
    jobs: list[Job], recipe: Recipe, training: TrainingSet, folder: Path, progress: Progress, what: str = "members"
) -> Mapping[str, Member]:
    """Members by the name of their job, one after the other: a corpus of one's own is small."""
    place, found = Place(device_of(recipe.compute.device)), {}
    for done, job in enumerate(jobs, 1):
        found[job.name] = train_member(job, recipe, training, folder, place=place)
        progress(what, done, len(jobs))
    return found
