"""What needs no browser of our pages and client: types, the page about clients, colours."""

import itertools
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from model.labels import CLASSES
from model.spec import INTERACTION
from tests import npm
from tests.daemon.test_web_client import MESSAGES, WEB

RECIPES: Final = WEB.parents[1] / "recipes"
TYPESCRIPT: Final = "typescript@7.0.2"

Json = dict[str, Any]


def _typescript(folder: Path, sources: dict[str, str]) -> str:
    """What the compiler says of the client and of `sources` beside it."""
    shutil.copytree(WEB / "client", folder / "client")
    for name, source in sources.items():
        (folder / name).write_text(source, encoding="utf-8")
    options = {"strict": True, "noEmit": True, "allowJs": True, "checkJs": True, "target": "es2023", "types": []}
    resolution = {"module": "esnext", "moduleResolution": "bundler", "lib": ["es2023", "dom", "dom.iterable"]}
    config = {"compilerOptions": options | resolution, "include": ["client/*", *sources]}
    (folder / "tsconfig.json").write_text(json.dumps(config))
    program = npm.installed(TYPESCRIPT) / "node_modules" / ".bin" / "tsc"
    return subprocess.run(
        [program, "-p", folder], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    ).stdout


def _assigned(messages: dict[str, Json]) -> str:
    lines = [f"export const {name}: ServerMessage = {json.dumps(message)};" for name, message in messages.items()]
    return "\n".join(['import type { ServerMessage } from "./client/medusa.js";', *lines])


def test_the_types_fit_the_code_and_every_message(tmp_path: Path) -> None:
    """Literals: a field too many is an error, as one too few is."""
    numbered = {name: message | {"seq": 1} for name, message in MESSAGES.items()}
    error = """
        import { MedusaError as Made } from "./client/session.js";
        import { MedusaError as Told } from "./client/medusa.js";
        export const made: typeof Told = Made;
        export const told: typeof Made = Told;
    """
    assert _typescript(tmp_path, {"messages.ts": _assigned(numbered), "error.ts": error}) == ""


def test_types_that_do_not_fit_are_found(tmp_path: Path) -> None:
    """Else the compiler above could have looked at nothing."""
    gap = MESSAGES["gap"] | {"seq": 1}
    broken = {"more": gap | {"mood": 1}, "less": {name: value for name, value in gap.items() if name != "reason"}}
    code = 'import { connect } from "./client/medusa.js"; (await connect()).sendd(new Uint8Array());'
    found = _typescript(tmp_path, {"messages.ts": _assigned(broken), "use.ts": code})
    assert sorted(re.findall(r"^(\w+)\.ts\(", found, re.MULTILINE)) == ["messages", "messages", "use"]


def test_the_page_knows_what_every_shipped_modality_listens_to() -> None:
    """The words of `modality_share`: a recipe's encoder that nobody named there would go by its own name."""
    listed = (WEB / "words.js").read_text(encoding="utf-8").partition("const HEARD_IN = {")[2].partition("}")[0]
    known = dict(re.findall(r'(\w+): "([^"]+)"', listed))
    recipes = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(RECIPES.rglob("*.toml"))]
    kinds = {name: encoder["kind"] for recipe in recipes for name, encoder in recipe.get("encoders", {}).items()}
    assert len(kinds) > 5
    wanted = {name: "words" if kind == "text-transformer" else "voice" for name, kind in kinds.items()}
    assert known == wanted | {INTERACTION: "both together"}


def test_the_page_about_clients_shows_what_works(tmp_path: Path) -> None:
    """Its programs compile, its links lead somewhere."""
    docs = WEB.parents[1] / "docs"
    text = (docs / "clients.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```js\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    here = {
        f"program{index}.ts": program.replace("https://medusa.example.org/", "./")
        + "declare function freshToken(): Promise<string>;"
        for index, program in enumerate(programs)
    }
    assert _typescript(tmp_path, here) == ""
    for program in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(program, {})
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)]
    heads = {
        re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^## (.+)$", text, re.MULTILINE)
    }
    assert {anchor for path, _, anchor in links if not path} <= heads
    assert [path for path, _, _ in links if path and not (docs / path).is_file()] == []


Vector = npt.NDArray[np.float64]
EYES: Final = {
    "most people": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
"""How linear sRGB looks to them (Machado, Oliveira, Fernandes 2009, severity 1)."""
APART: Final = 0.08
"""In OKLab, where 0.02 can just be told apart side by side."""


def linear(color: str) -> Vector:
    share = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def oklab(rgb: Vector) -> Vector:
    """Source: Ottosson, "A perceptual color space for image processing", 2020."""
    lms = np.array(
        [
            [0.41222147, 0.53633254, 0.05144599],
            [0.2119035, 0.68069955, 0.10739696],
            [0.08830246, 0.28171884, 0.62997870],
        ]
    )
    lab = np.array(
        [[0.21045426, 0.79361779, -0.00407205], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    )
    found: Vector = lab @ np.cbrt(lms @ np.clip(rgb, 0, 1))
    return found


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_any_two_emotions_have_colours_that_differ(scheme: str, eyes: str) -> None:
    css = (WEB / "base.css").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", css))
    colours = {name: pairs[name].split(", ")[scheme == "dark"] for name in CLASSES}
    seen = {name: oklab(EYES[eyes] @ linear(colour)) for name, colour in colours.items()}
    close = [
        (one, other)
        for one, other in itertools.combinations(CLASSES, 2)
        if np.linalg.norm(seen[one] - seen[other]) < APART
    ]
    assert close == []
