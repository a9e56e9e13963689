"""A whole run on a corpus of a dozen made-up speakers, through the real audio encoders and a tiny text encoder."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.fakes import voice
from tests.model.tiny import TEXT_DIM
from tests.train.synthetic import RECIPES, write_actors, write_goemotions, write_votes, write_wav
from train.config import Recipe, load_recipe
from train.run import train_ensemble

SPEAKERS = range(1001, 1013)
VOTES = {"ANG": (8, 0, 0, 0, 1, 0), "NEU": (0, 0, 0, 0, 10, 0), "SAD": (0, 1, 0, 0, 4, 4)}  # sad voices: no consensus
TRAINED = ("angry", "sad", "disgust", "neutral")
Progress = list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run; read it, never change it."""

    recipe: Recipe
    data: Path
    cache: Path
    out: Path

    def again(self, out: Path) -> Progress:
        calls: Progress = []
        train_ensemble(self.recipe, self.data, self.cache, out, 1, lambda *call: calls.append(call))
        return calls


def write_corpora(data: Path) -> None:
    cremad, ravdess = data / "cremad", data / "ravdess"
    write_votes(cremad, {f"{speaker}_DFA_{code}_XX": votes for speaker in SPEAKERS for code, votes in VOTES.items()})
    write_actors(cremad, {str(speaker): "Male" if speaker % 2 else "Female" for speaker in SPEAKERS})
    for speaker, (index, code) in product(SPEAKERS, enumerate(VOTES)):
        pitch = 90.0 + 8.0 * (speaker - 1001) + 60.0 * index
        write_wav(cremad / f"{speaker}_DFA_{code}_XX.wav", voice(0.45 + 0.05 * index, pitch))
    (cremad / "1001_DFA_NEU_XX.wav").unlink()
    ravdess.mkdir()
    for code, actor in product(("04", "05", "08"), ("01", "02")):  # 08 is surprise, which no clip above has
        write_wav(ravdess / f"03-01-{code}-01-01-01-{actor}.wav", voice(0.5, 80.0 + 40.0 * int(code) + int(actor)))
    labels = ("anger", "sadness", "disgust", "neutral", "joy")
    write_goemotions(data / "text" / "goemotions", [(f"i am {name} no {n}", name) for name in labels for n in range(2)])


def tiny_recipe(text_encoder: Path) -> Recipe:
    shipped = load_recipe(RECIPES / "default.toml").model_dump(exclude_unset=True)
    encoders = {name: shipped["encoders"][name] for name in ("whisper", "prosody", "functionals")}
    text = {"kind": "text-transformer", "dim": TEXT_DIM, "stack": 1, "sources": [f"path:{text_encoder}"]}
    text["supervised_on"] = ["ravdess", "iemocap"]  # the first of which evaluates
    stage = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
    return Recipe.model_validate(
        shipped
        | {
            "name": "tiny",
            "fallbacks": [["voice"]],
            "data": shipped["data"] | {"dev_fraction": 0.2, "test_fraction": 0.25, "degraded_copies": 1},
            "text": shipped["text"] | {"sentences_per_class": 2},
            "encoders": encoders | {"text": text},
            "member_defaults": {"dim": 8, "heads": 2, "layers": 1, "feed_forward": 8, "dropout": 0.1},
            "members": [
                {"name": "voice", "modalities": ["functionals"], "seed": 1},
                {"name": "words", "modalities": ["whisper", "text"], "seed": 2},
            ],
            "stage1": stage,
            "stage2": stage,
            "meta": {"folds": 2, "epochs": 2, "seeds": [1, 2], "draws": 2},
        }
    )
