"""A bundle whose members fuse late, exported like any other."""

from dataclasses import replace
from pathlib import Path

from export.bundle import write_bundle
from model.bundle import read_bundle
from model.network.checkpoint import load_checkpoint, save_checkpoint
from tests.model.tiny import tiny_checkpoint, write_tiny_checkpoint

LIMIT = 1e-5


def test_late_fusion_is_exported_and_computes_the_same(tmp_path: Path) -> None:
    spec = load_checkpoint(write_tiny_checkpoint(tmp_path)).spec
    late = replace(spec, members=tuple(replace(member, fusion="late") for member in spec.members))
    save_checkpoint(tmp_path / "late", tiny_checkpoint(late))
    parity = write_bundle(tmp_path / "late", tmp_path / "bundle").parity
    compared = ("member voice", "member words", "ensemble", "ensemble, padding", "ensemble, neighbours")
    assert {name: parity[name] for name in compared if not parity[name] <= LIMIT} == {}
    assert read_bundle(tmp_path / "bundle").spec.members == late.members
