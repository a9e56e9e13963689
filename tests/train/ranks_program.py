"""Members by as many processes as torchrun has started: the gradient of a step, the weights after a stage, those of a fit.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/train/ranks_program.py FOLDER
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from model.network.deepser import DeepSER
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_member, make_recipe, make_training_set
from train.config import StageConfig
from train.execution import CPU, Execution, Ranks, join_ranks, leave_ranks
from train.loop import StageData, Step, train_stage
from train.resume import ResumePoint
from train.stages.members import Job, Place, train_member

CONFIG = StageConfig(epochs=3, batch_size=8, learning_rate=1e-3, mixup=0.5, accumulate=2)
_LATE_S = 2.0


def program(folder: Path, ranks: Ranks) -> None:
    """Leaves `gradient-RANK`, `weights-RANK` and the members of a linear family in `folder`."""
    examples, dev = make_examples((*TRAINED, None) * 9), make_examples(TRAINED * 5, seed=9)
    data = StageData(lambda rng: examples, dev, torch.ones(8), TRAINED)
    execution = Execution(resume=ResumePoint(folder / "a.epoch.safetensors", "key"), ranks=ranks)
    member = make_member()
    step = Step(member, ENCODERS, data, CONFIG, execution)
    step.gradients([examples.subset(range(20)), examples.subset(range(20, 45))], np.random.default_rng(0))
    save_file(gradients(member), folder / f"gradient-{ranks.rank}.safetensors")
    member = make_member()
    history = train_stage(member, ENCODERS, data, CONFIG, 3, execution)
    assert history.steps == 3 * 3  # 45 examples are 6 batches
    loss = torch.tensor([row["loss"] for row in history.rows])
    save_file(member.state_dict() | {"loss": loss}, folder / f"weights-{ranks.rank}.safetensors")
    recipe = make_recipe(members=[{"name": "flat", "modalities": ["prosody"], "seed": 1, "family": "linear"}])
    (spec,) = recipe.member_specs()
    if ranks.rank:
        time.sleep(_LATE_S)  # the first has long been ready to write what this one then finds
    for fold in (0, 1):
        train_member(Job(spec, fold), recipe, make_training_set(examples), folder / "members", place=Place(CPU, ranks))


def gradients(member: DeepSER) -> dict[str, torch.Tensor]:
    """By parameter."""
    return {name: p.grad.clone() for name, p in member.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    try:
        program(Path(sys.argv[1]), join_ranks())
    finally:
        leave_ranks()
