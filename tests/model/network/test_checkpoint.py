import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.network.checkpoint import load_checkpoint, save_checkpoint
from model.spec import SpecError
from tests.model.tiny import tiny_checkpoint, tiny_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint", tiny_checkpoint(tiny_spec()))
    return tmp_path / "checkpoint"


def test_reads_what_was_written(folder: Path) -> None:
    written, found = tiny_checkpoint(tiny_spec()), load_checkpoint(folder)
    plain = ("name", "spec", "temperature", "abstain_below", "metrics", "training", "model_card", "prior_log_ratio")
    assert [getattr(found, name) for name in plain] == [getattr(written, name) for name in plain]
    for right, network in zip((*written.members, written.meta), (*found.members, found.meta), strict=True):
        state = network.state_dict()
        assert all(torch.equal(values, state[name]) for name, values in right.state_dict().items())
        assert not network.training


def test_a_checkpoint_from_before_knows_no_prior(folder: Path) -> None:
    path = folder / "ensemble.json"
    description = json.loads(path.read_text())
    assert description.pop("prior_log_ratio")
    path.write_text(json.dumps(description))
    assert load_checkpoint(folder).prior_log_ratio == {}


def test_the_ensemble_holds_the_temperature(folder: Path) -> None:
    checkpoint = replace(load_checkpoint(folder), temperature=3.5)
    ensemble = checkpoint.ensemble()
    assert ensemble.temperature.item() == 3.5
    assert not ensemble.training


def test_holds_no_pickle(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    members = {"members/voice.safetensors", "members/words.safetensors"}
    assert files == {"ensemble.json", "meta.safetensors", "MODEL_CARD.md", *members}


@pytest.mark.parametrize("name", ["ensemble.json", "members/words.safetensors", "meta.safetensors", "MODEL_CARD.md"])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(SpecError, match="holds no complete trained ensemble"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["ensemble.json", "members/words.safetensors", "meta.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"[]", b"\xff" * 64])
def test_a_damaged_file_is_refused(folder: Path, name: str, damage: bytes) -> None:
    (folder / name).write_bytes(damage)
    with pytest.raises(SpecError, match="holds no complete trained ensemble"):
        load_checkpoint(folder)


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    (folder / "members" / "words.safetensors").write_bytes((folder / "members" / "voice.safetensors").read_bytes())
    with pytest.raises(SpecError, match=r"words\.safetensors holds another network"):
        load_checkpoint(folder)


@pytest.mark.parametrize("field", ["name", "spec", "temperature", "abstain_below", "metrics", "training"])
def test_a_missing_field_is_refused(folder: Path, field: str) -> None:
    data = json.loads((folder / "ensemble.json").read_text())
    del data[field]
    (folder / "ensemble.json").write_text(json.dumps(data))
    with pytest.raises(SpecError, match=field):
        load_checkpoint(folder)
