"""Plain data, as JSON gives it, checked against the type hints of the dataclass that it is to become."""

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final, Literal

_SHOWN: Final = 60
"""Characters of a wrong value that its message shows."""


def mistakes(data: object, hint: Any, place: str = "") -> Iterator[str]:
    """Every value in `data` that is not of the type that `hint` asks for: one line each, with its place.

    A tuple may be a list, a float an integer that is no bool, and a field that has a default may be left out.

    Args:
        data: numbers, text, None, lists or tuples, and dicts with text for keys.
        hint: a dataclass, `tuple[X, ...]`, `dict[str, X]`, a union, a Literal, `Any`, or str, int, float, bool, None.
        place: where `data` stands, for instance "ensemble.encoders[2]".
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return
    if is_dataclass(hint):
        yield from _in_dataclass(data, hint, place)
    elif origin is types.UnionType:
        if all(any(mistakes(data, one, place)) for one in arguments):
            yield _wrong(data, " or ".join(map(_named, arguments)), place)
    elif origin is Literal:
        if data not in arguments:
            yield _wrong(data, f"one of {', '.join(map(repr, arguments))}", place)
    elif origin is tuple:
        if isinstance(data, list | tuple):
            for index, item in enumerate(data):
                yield from mistakes(item, arguments[0], f"{place}[{index}]")
        else:
            yield _wrong(data, "a list", place)
    elif origin is dict or hint is dict:
        yield from _in_dict(data, arguments[1] if arguments else Any, place)
    elif not _is(data, hint):
        yield _wrong(data, _named(hint), place)


def _in_dataclass(data: object, hint: Any, place: str) -> Iterator[str]:
    if not isinstance(data, Mapping):
        yield _wrong(data, "an object", place)
        return
    known = {item.name: item for item in fields(hint)}
    required = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    where = f" in {place}" if place else ""
    if missing := sorted(required - set(data)):
        yield f"fields missing{where}: {missing}"
    if unknown := sorted(map(str, set(data) - set(known))):
        yield f"fields unknown{where}: {unknown}"
    hints = typing.get_type_hints(hint)
    for name in known.keys() & data.keys():
        yield from mistakes(data[name], hints[name], f"{place}.{name}" if place else name)


def _in_dict(data: object, values: Any, place: str) -> Iterator[str]:
    if not isinstance(data, Mapping):
        yield _wrong(data, "an object", place)
        return
    for name, value in data.items():
        yield from mistakes(value, values, f"{place}[{name!r}]")


def _is(data: object, hint: Any) -> bool:
    if hint is None or hint is type(None):
        return data is None
    if isinstance(data, bool):
        return hint is bool
    return isinstance(data, int | float if hint is float else hint)


def _named(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(hint) or str(hint)


def _wrong(data: object, wanted: str, place: str) -> str:
    shown = repr(data)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"{place} is {wanted}, got {shown}"
