"""What a terminal shows: one card per result, a bar per class. Used by `stream`, `tail` and `demo`."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from model.labels import ATTRIBUTES, CLASSES

COLORS: Final = {
    "angry": "red",
    "sad": "blue",
    "happy": "yellow",
    "surprise": "cyan",
    "fear": "magenta",
    "disgust": "green",
    "contempt": "bright_black",
    "neutral": "white",
}
_BAR: Final = 24
_MS_PER_S: Final = 1000.0
_SHARE: Final = "share_"


def card(fields: Mapping[str, str]) -> RenderableType:
    """One final result, from the flat fields of its Redis entry."""
    start_s, end_s = float(fields["start_ms"]) / _MS_PER_S, float(fields["end_ms"]) / _MS_PER_S
    top = fields["top"]
    heading = Text.assemble(
        (f"{start_s:6.1f}-{end_s:.1f} s  ", "dim"),
        (f"{fields['role']:<9}", "bold"),
        (f" {top} ", f"bold reverse {COLORS[top]}"),
        (f"  {float(fields['confidence']):.0%}", COLORS[top]),
        ("  (unsure)" if fields["abstained"] == "1" else "", "dim"),
    )
    words = Text(f"“{fields['text']}”" if fields["text"] else "(no words)", style="italic")
    footer = Text(_footer(fields), style="dim")
    return Panel(Group(words, _bars(fields), footer), title=heading, title_align="left", border_style=COLORS[top])


def _bars(fields: Mapping[str, str]) -> Table:
    """Two columns of classes; classes that the bundle never learned are left out."""
    shown = [(name, float(fields[f"p_{name}"])) for name in CLASSES]
    shown = [(name, p) for name, p in shown if p > 0.0]
    table = Table.grid(padding=(0, 2))
    half = -(-len(shown) // 2)
    for row in range(half):
        cells = [_bar(*shown[index]) for index in (row, row + half) if index < len(shown)]
        table.add_row(*cells)
    return table


def _bar(name: str, probability: float) -> Text:
    filled = round(probability * _BAR)
    return Text.assemble(
        f"{name:<9}", ("█" * filled, COLORS[name]), ("·" * (_BAR - filled), "dim"), f" {probability:5.1%}"
    )


def _footer(fields: Mapping[str, str]) -> str:
    known = [f"{name} {float(fields[name]):.1f}/7" for name in ATTRIBUTES if fields[name]]
    attributes = ", ".join(known) if known else "arousal, valence, dominance: not trained in this bundle"
    waited, disagreement = float(fields["lat_ms"]), float(fields["uncertainty"])
    said = [attributes, f"scored {waited:.0f} ms after the pause that ended it", f"disagreement {disagreement:.2f}"]
    shares = {name: float(value) for name, value in fields.items() if name.startswith(_SHARE)}
    if shares:
        said.append("made of " + ", ".join(f"{p:.0%} {name.removeprefix(_SHARE)}" for name, p in shares.items()))
    if fields.get("members_used"):
        said.append(f"for lack of time by {fields['members_used'].replace(',', ', ')} alone")
    return "   ·   ".join(said)


def interim_line(fields: Mapping[str, str]) -> Text:
    """One interim result, on one line."""
    top = fields["top"]
    bar = "█" * round(float(fields["confidence"]) * _BAR)
    return Text.assemble(
        (f"{float(fields['end_ms']) / _MS_PER_S:6.1f} s  {fields['role']:<9} … ", "dim"),
        (f"{top:<9}{bar}", COLORS[top]),
    )


def show(console: Console, fields: Mapping[str, str]) -> None:
    """Prints any event."""
    kind = fields["type"]
    if kind == "emotion":
        console.print(card(fields))
    elif kind == "emotion.interim":
        console.print(interim_line(fields))
    elif kind == "call.started":
        # Without markup: roles are a client's own text.
        console.print(f"call {fields['call']} started: {fields['role']}", style="dim", markup=False, highlight=False)
    elif kind == "alert":
        at_s, score = float(fields["end_ms"]) / _MS_PER_S, float(fields["score"])
        line = f"alert {fields['rule']}: {fields['role']} at {at_s:.1f} s, {score:.0%}"
        console.print(line, style="bold red", markup=False, highlight=False)
    elif kind == "call.deleted":
        console.print(f"call {fields['call']} was deleted", style="dim", markup=False, highlight=False)
    elif kind == "gap":
        console.print("[yellow]gap: interim results were dropped[/yellow]")
    else:
        console.print(
            f"[dim]{kind}: {fields['reason']}; {fields['total_finals']} utterances of "
            f"{float(fields['total_received_ms']) / _MS_PER_S:.1f} s of audio[/dim]",
            highlight=False,
        )


def flat(message: Mapping[str, object]) -> dict[str, str]:
    """An `emotion` message of the WebSocket as the flat fields that `show` takes."""
    probabilities, latency = message["probabilities"], message["latency_ms"]
    assert isinstance(probabilities, dict)
    assert isinstance(latency, dict)
    shares = message.get("modality_share", {})
    used = message.get("members_used", [])
    assert isinstance(shares, dict)
    assert isinstance(used, list)
    names = ("role", "start_ms", "end_ms", "top", "confidence", "uncertainty", *ATTRIBUTES)
    return {
        "type": "emotion" if message["final"] else "emotion.interim",
        "text": str(message["text"] or ""),
        "abstained": str(int(bool(message["abstained"]))),
        "lat_ms": str(latency["total"]),
        **{name: "" if message[name] is None else str(message[name]) for name in names},
        **{f"p_{name}": str(probabilities[name]) for name in CLASSES},
        **{f"{_SHARE}{name}": str(share) for name, share in shares.items()},
        "members_used": ",".join(map(str, used)),
    }


def ending(message: Mapping[str, Any]) -> tuple[str | None, bool]:
    """What a `session.closed` means to who streamed: a line where there is something to say, and whether it went well."""
    totals, reason = message["totals"], message["reason"]
    received_s = totals["received_ms"] / _MS_PER_S
    if reason != "client_closed":
        return f"the server ended the call early ({reason}), after {received_s:.1f} s of audio", False
    if not totals["utterances"]:
        return f"no speech was found in {received_s:.1f} s of audio", True
    return None, True
