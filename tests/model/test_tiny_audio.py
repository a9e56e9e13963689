"""What tests of encoders share is written once."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
HERE = Path("model/tiny_audio.py")


def functions(name: str) -> Iterator[tuple[Path, str]]:
    """Where encoders are tested: each file with a function of this name, and what it does."""
    for folder in ("export", "model", "train"):
        for path in sorted((TESTS / folder).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    yield (
                        path.relative_to(TESTS),
                        ast.dump(ast.Module([line for line in node.body if not is_docstring(line)], [])),
                    )


def is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def test_audio_is_made_in_one_place() -> None:
    for name in ("waves", "noise"):
        assert [path for path, _ in functions(name)] == [HERE], name


def test_a_distance_is_written_once() -> None:
    """One of another kind may have the name."""
    found = dict(functions("relative"))
    assert [path for path, body in found.items() if body == found[HERE]] == [HERE]
