"""A whole run of a recipe in JSON, which says what it does: for torchrun to start, and to be killed.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.run_program RECIPE DATA CACHE OUT [WORKERS]
"""

import sys
from pathlib import Path

from train.config import Recipe
from train.run import train_ensemble


def say(what: str, done: int, total: int) -> None:
    sys.stdout.write(f"{what} {done} {total}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    recipe, data, cache, out = map(Path, sys.argv[1:5])
    workers = int(sys.argv[5]) if len(sys.argv) > 5 else 1
    told = Recipe.model_validate_json(recipe.read_text(encoding="utf-8"))
    train_ensemble(told, data, cache, out, workers, say)
