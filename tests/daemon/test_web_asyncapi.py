"""docs/asyncapi.yaml in the eyes of AsyncAPI's own parser, and the page that is made of it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from tests import npm

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"
PARSER: Final = "@asyncapi/parser@3.6.3"
PROGRAM: Final = """
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const [folder, ...paths] = process.argv.slice(1);
const { Parser } = createRequire(`${folder}/`)("@asyncapi/parser");
for (const path of paths) {
    const { document, diagnostics } = await new Parser().parse(readFileSync(path, "utf8"));
    const messages = document?.messages().all().map((message) => message.id()) ?? [];
    const problems = diagnostics.map(({ severity, code, message, path }) => [severity, code, message, path.join(".")]);
    console.log(JSON.stringify({ messages, problems }));
}
"""
ERROR, WARNING = 0, 1

Json = dict[str, Any]


def parsed(*documents: Path) -> list[Json]:
    folder = npm.installed(PARSER)
    assert npm.NODE is not None
    command = [npm.NODE, "--input-type=module", "--eval", PROGRAM, str(folder), *map(str, documents)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_page_made_of_it_is_up_to_date() -> None:
    """Else: `python docs/render_asyncapi.py > docs/protocol.md`."""
    program, page = (DOCUMENT.with_name(name) for name in ("render_asyncapi.py", "protocol.md"))
    made = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=60).stdout
    assert made == page.read_text(encoding="utf-8")
    told = {message["id"] for message in re.finditer(r"^### `(?P<id>.*)`$", made, re.MULTILINE)}
    assert told == set(yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))["components"]["messages"])


def test_the_document_is_valid_and_one_with_a_mistake_is_not(tmp_path: Path) -> None:
    broken = tmp_path / "asyncapi.yaml"
    broken.write_text(DOCUMENT.read_text(encoding="utf-8").replace("action: receive", "action: hear"))
    found, mistaken = parsed(DOCUMENT, broken)
    assert [problem for problem in found["problems"] if problem[0] in (ERROR, WARNING)] == []
    assert {"session.created", "emotion", "session.closed"} <= set(found["messages"])
    assert [problem for problem in mistaken["problems"] if problem[0] == ERROR]
