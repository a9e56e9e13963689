"""Bundles beside the default one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import numpy_helper

from daemon.config import DEFAULT_BUNDLE
from model.bundle import ENSEMBLE, MANIFEST, read_bundle, write_manifest
from model.labels import CLASSES


def write_other(folder: Path, name: str) -> str:
    """The default bundle under another id, which is returned."""
    shutil.copytree(DEFAULT_BUNDLE, folder / name)
    (folder / name / "MODEL_CARD.md").write_text(f"# {name}\n")
    return write_manifest(folder / name, replace(read_bundle(DEFAULT_BUNDLE).manifest, name=name)).bundle_id


def write_cheerful(folder: Path, name: str) -> str:
    """A bundle that hears with a Whisper of another name, and takes everybody for happy; its id is returned."""
    write_other(folder, name)
    graph = onnx.load(folder / name / ENSEMBLE, load_external_data=False)
    (bias,) = [each for each in graph.graph.initializer if each.name == "meta.bias"]
    shifted = numpy_helper.to_array(bias).copy()
    shifted[CLASSES.index("happy")] += 20
    bias.CopyFrom(numpy_helper.from_array(shifted, bias.name))
    onnx.save(graph, folder / name / ENSEMBLE)
    manifest = read_bundle(DEFAULT_BUNDLE).manifest
    encoders = tuple(
        replace(encoder, revision="another") if encoder == manifest.ensemble.whisper else encoder
        for encoder in manifest.ensemble.encoders
    )
    ensemble = replace(manifest.ensemble, encoders=encoders)
    return write_manifest(folder / name, replace(manifest, name=name, ensemble=ensemble)).bundle_id


def id_of(folder: Path) -> str:
    """What results of a bundle are stamped with."""
    found: str = json.loads((folder / MANIFEST).read_text())["bundle_id"]
    return found
