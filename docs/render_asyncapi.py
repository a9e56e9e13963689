"""Makes docs/protocol.md of docs/asyncapi.yaml, for people who would rather read tables.

python docs/render_asyncapi.py > docs/protocol.md
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCUMENT = Path(__file__).with_name("asyncapi.yaml")

Json = dict[str, Any]


class Page:
    """The document, and how its parts read."""

    def __init__(self, document: Json) -> None:
        self._document = document

    def _resolved(self, node: Json) -> Json:
        """What a node says, its reference followed; what stands beside the reference goes first."""
        if "$ref" not in node:
            return node
        found: Any = self._document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        beside = {name: value for name, value in node.items() if name != "$ref"}
        return self._resolved(found) | beside

    def _kind(self, schema: Json) -> str:
        """A type with its limits, in a few words."""
        schema = self._resolved(schema)
        if "const" in schema:
            return f"`{json.dumps(schema['const'])}`"
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if "anyOf" in schema:
            return " or ".join(self._kind(one) for one in schema["anyOf"])
        if schema.get("type") == "array":
            return f"list of: {self._kind(schema.get('items', {}))}"
        kind = schema.get("type", "anything")
        words = " or ".join(kind) if isinstance(kind, list) else kind
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is not None and high is not None:
            return f"{words}, {low} to {high}"
        return words if low is None else f"{words}, at least {low}"

    def _meaning(self, schema: Json) -> str:
        schema = self._resolved(schema)
        inner = [self._resolved(one) for one in schema.get("anyOf", ())]
        words = [schema.get("description") or next((one["description"] for one in inner if "description" in one), "")]
        words += [f"Default: `{json.dumps(one['default'])}`." for one in (schema, *inner) if "default" in one]
        return " ".join(" ".join(filter(None, words)).split()).replace("|", "\\|")

    def _fields(self, schema: Json) -> Iterator[str]:
        schema = self._resolved(schema)
        properties, needed = schema.get("properties", {}), schema.get("required", [])
        if not properties:
            return
        yield from ("| field | | type | meaning |", "|---|---|---|---|")
        for name, about in properties.items():
            yield f"| `{name}` | {'' if name in needed else 'optional'} | {self._kind(about)} | {self._meaning(about)} |"
        for name, about in properties.items():
            inner = self._resolved(about)
            if inner.get("properties"):
                yield from ("", f"`{name}`:", "", *self._fields(inner))

    def _message(self, name: str) -> Iterator[str]:
        message = self._document["components"]["messages"][name]
        yield from (f"### `{name}`", "", message["summary"], "")
        if "description" in message:
            yield from (message["description"].strip(), "")
        fields = list(self._fields(message["payload"]))
        if fields:
            yield from (*fields, "")
        for example in message.get("examples", ()):
            yield from ("```json", json.dumps(example["payload"], ensure_ascii=False), "```", "")

    def lines(self) -> Iterator[str]:
        """The page."""
        info, channel = self._document["info"], self._document["channels"]["stream"]
        yield f"<!-- Made of asyncapi.yaml by render_asyncapi.py: change that, and make this anew. -->\n\n# {info['title']}"
        yield from ("", f"Version {info['version']}. [asyncapi.yaml](asyncapi.yaml) says the same to programs.", "")
        yield from (info["description"].strip(), "", f"## Query of `{channel['address']}`", "")
        yield from (*self._fields(channel["bindings"]["ws"]["query"]), "")
        for operation in self._document["operations"].values():
            yield from (f"## {operation['summary'].rstrip('.')}", "")
            for reference in operation["messages"]:
                yield from self._message(reference["$ref"].rpartition("/")[2])


def rendered(document: str) -> str:
    """The page of a document."""
    return "\n".join(Page(yaml.safe_load(document)).lines()).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(rendered(DOCUMENT.read_text(encoding="utf-8")))
