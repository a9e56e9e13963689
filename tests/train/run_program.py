"""A whole run of a recipe in JSON, for torchrun to start.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.run_program RECIPE DATA CACHE OUT
"""

import sys
from pathlib import Path

from train.config import Recipe
from train.run import train_ensemble

if __name__ == "__main__":
    recipe, data, cache, out = map(Path, sys.argv[1:])
    told = Recipe.model_validate_json(recipe.read_text(encoding="utf-8"))
    train_ensemble(told, data, cache, out, 1, lambda *call: None)
