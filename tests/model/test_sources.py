import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from model.sources import SourceError, resolve, resolve_encoder, sha256_of
from model.spec import EncoderSpec


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with weights that must not be imported."""
    folder = tmp_path / "site" / "weights_of_somebody"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model" / "model.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_finds_a_folder_inside_a_package_without_importing_it(package: Path) -> None:
    assert resolve(["package:weights_of_somebody/model"]) == package / "model"
    assert "weights_of_somebody" not in sys.modules


def test_takes_the_first_source_that_exists(tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    assert resolve([f"path:{tmp_path / 'first'}", f"path:{second}", f"path:{tmp_path}"]) == second


def test_finds_a_file_in_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"graph")
    assert resolve(["bundle:text.onnx"], tmp_path) == tmp_path / "text.onnx"


def test_error_lists_every_source_and_its_reason(tmp_path: Path) -> None:
    sources = ["package:no_such_package/model", "package:a.b/model", f"path:{tmp_path}/absent", "bundle:x", "ftp:x", ""]
    with pytest.raises(SourceError) as caught:
        resolve(sources)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(sources)
    assert all(line.startswith(f"  {source}: ") for line, source in zip(lines, sources, strict=True))
    assert "not installed" in lines[0]
    assert "does not exist" in lines[2]


def test_no_source_is_an_error() -> None:
    with pytest.raises(SourceError, match="list of sources is empty"):
        resolve([])


def test_weights_with_another_hash_are_passed_over(package: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    (good / "model.bin").write_bytes(b"the right weights")
    sources = ("package:weights_of_somebody/model", f"path:{good}")
    right = sha256_of(good / "model.bin")
    encoder = EncoderSpec("whisper", "whisper-ctranslate2", 8, 1, sources, sha256=right)
    assert resolve_encoder(encoder) == good
    with pytest.raises(
        SourceError, match=f"has SHA-256 {sha256_of(package / 'model' / 'model.bin')}, expected {right}"
    ):
        resolve(sources[:1], sha256=right, weights="model.bin")


def test_a_source_that_is_a_file_is_hashed_itself(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"graph")
    right = sha256_of(tmp_path / "text.onnx")
    assert resolve(["bundle:text.onnx"], tmp_path, right, "model.safetensors") == tmp_path / "text.onnx"
    with pytest.raises(SourceError, match="expected 00"):
        resolve(["bundle:text.onnx"], tmp_path, "00", "model.safetensors")


def write_speech_model(folder: Path, **files: str) -> EncoderSpec:
    """A folder as `transformers` keeps a speech model, of contents that nobody loads."""
    folder.mkdir()
    for name, text in {"config.json": "{}", "preprocessor_config.json": "{}", **files}.items():
        (folder / name).write_text(text)
    return EncoderSpec("wavlm", "speech-transformer", 8, 1, (f"path:{folder}",))


def test_a_speech_model_is_its_settings_and_its_weights(tmp_path: Path) -> None:
    """How a waveform is standardised decides the frames as much as the weights do."""
    base = {"model.safetensors": "w", "README.md": "a"}
    variants = {
        "same": base | {"README.md": "b"},
        "weights": base | {"model.safetensors": "v"},
        "settings": base | {"preprocessor_config.json": '{"do_normalize": true}'},
        "config": base | {"config.json": "[]"},
        "pickled": {"pytorch_model.bin": "w"},
    }
    write_speech_model(tmp_path / "base", **base)
    first = sha256_of(tmp_path / "base")
    found = {}
    for name, files in variants.items():
        assert resolve_encoder(write_speech_model(tmp_path / name, **files)) == tmp_path / name
        found[name] = sha256_of(tmp_path / name)
    assert found.pop("same") == first
    assert len({first, *found.values()}) == len(found) + 1


def test_safetensors_are_taken_before_a_pickle(tmp_path: Path) -> None:
    write_speech_model(tmp_path / "both", **{"model.safetensors": "w", "pytorch_model.bin": "v"})
    write_speech_model(tmp_path / "one", **{"model.safetensors": "w"})
    assert sha256_of(tmp_path / "both") == sha256_of(tmp_path / "one")


def test_a_folder_that_is_no_speech_model_is_named(tmp_path: Path) -> None:
    encoder = write_speech_model(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(
        SourceError, match=r"'wavlm': .* lacks preprocessor_config\.json, model\.safetensors or pytorch_"
    ):
        resolve_encoder(encoder)


def test_a_speech_model_of_another_hash_is_passed_over(tmp_path: Path) -> None:
    wrong = write_speech_model(tmp_path / "wrong", **{"model.safetensors": "v"})
    right = write_speech_model(tmp_path / "right", **{"model.safetensors": "w"})
    sources = (*wrong.sources, *right.sources)
    wanted = replace(right, sources=sources, sha256=sha256_of(tmp_path / "right"))
    assert resolve_encoder(wanted) == tmp_path / "right"


def test_hub_is_asked_for_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(repository: str, revision: str | None) -> str:
        asked.append((repository, revision))
        if repository == "some/absent":
            raise OSError("no network")
        return str(tmp_path)

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert resolve(["hub:some/absent", "hub:some/model@abc"]) == tmp_path
    assert asked == [("some/absent", None), ("some/model", "abc")]


def test_imports_no_network_and_no_framework() -> None:
    program = "import sys, model.sources; print(*{'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "\n"
