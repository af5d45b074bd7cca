"""Settings: frozen dataclasses filled from a TOML file and `--set key=value`, and nothing silently.

An unknown key is an error that names the nearest known one; a value of the wrong type is an error
that names the key, the value and the type. A dataclass with a classmethod `from_text` may be given
as a string. Not a framework: what it does not know (unions beyond `X | None`, dictionaries of
settings) it refuses when the dataclass is first used.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fourbee.foundation.errors import UsageError

SettingsT = TypeVar("SettingsT")


def nearest(name: str, known: Iterable[str]) -> str:
    """The text " (did you mean 'x'?)" when a known name is close to `name`, else nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; UsageError when it is absent or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"recipe {path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path}: not valid TOML: {error}") from None


def with_overrides(table: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `table` with each `a.b=value` set; the value is read as TOML, else as a string."""
    result: dict[str, Any] = _deep_copy(table)
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted.strip():
            raise UsageError(f"--set {assignment}: expected key=value, such as optimizer.clip=0.5")
        *parents, key = dotted.strip().split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {assignment}: {parent!r} is a value, not a table")
        inner[key] = _toml_value(text.strip())
    return result


def build(settings_class: type[SettingsT], table: Mapping[str, Any], where: str = "") -> SettingsT:
    """An instance of the frozen dataclass `settings_class` from nested tables, every key checked.

    `where` is the dotted path of `table`, for messages. Raises UsageError.
    """
    fields = {field.name: field for field in dataclasses.fields(settings_class)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(settings_class)
    values: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if key not in fields:
            raise UsageError(
                f"unknown key {path!r}{nearest(key, fields)}; known: {', '.join(fields)}"
            )
        values[key] = _convert(hints[key], value, path)
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise UsageError(f"missing key {f'{where}.{name}' if where else name!r}")
    try:
        return settings_class(**values)
    except UsageError as error:
        if not where or not error.parameter or not str(error).startswith(error.parameter):
            raise
        raise UsageError(f"{where}.{error}", f"{where}.{error.parameter}") from None


def explain(
    settings: Any, given: Mapping[str, Any], assignments: Iterable[str] = (), where: str = ""
) -> list[str]:
    """One line a setting: `key = value  (recipe|--set|default)`.

    `given` holds what recipe and `assignments` (of `--set`) gave together.
    """
    assigned = {assignment.partition("=")[0].strip() for assignment in assignments}
    lines: list[str] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        path = f"{where}.{field.name}" if where else field.name
        if dataclasses.is_dataclass(value):
            lines += explain(value, given.get(field.name, {}), assigned, path)
        else:
            source = "recipe" if field.name in given else "default"
            # A whole table may have been assigned at once.
            if any(path == one or path.startswith(f"{one}.") for one in assigned):
                source = "--set"
            lines.append(f"{path} = {_shown(value)}  ({source})")
    return lines


def _shown(value: Any) -> str:
    """A value as a recipe would write it, near enough to read."""
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if dataclasses.is_dataclass(value):
        given = [
            f"{field.name} = {_shown(getattr(value, field.name))}"
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        ]
        return f"{{{', '.join(given)}}}"
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def _deep_copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _deep_copy(v) if isinstance(v, Mapping) else v for k, v in table.items()}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _convert_settings(typing.cast(type[Any], hint), value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [argument for argument in arguments if argument is not type(None)]
        return _convert(inner[0], value, path)
    if origin is typing.Literal:
        if value not in arguments:
            known = [str(argument) for argument in arguments]
            close = nearest(str(value), known)
            raise UsageError(f"{path} = {value!r}: expected one of {', '.join(known)}{close}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{path} = {value!r}: expected a list")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict or origin is Mapping:
        if not isinstance(value, Mapping):
            raise UsageError(f"{path} = {value!r}: expected a table [{path}]")
        return {key: _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_settings(settings_class: type[Any], value: Any, path: str) -> Any:
    if isinstance(value, str) and hasattr(settings_class, "from_text"):
        return settings_class.from_text(value)
    if not isinstance(value, Mapping):
        raise UsageError(f"{path} = {value!r}: expected a table [{path}]")
    return build(settings_class, value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false",
             Path: "a path, as a string"}  # fmt: skip
    if isinstance(value, bool) != (hint is bool) or not isinstance(value, hint):
        raise UsageError(f"{path} = {value!r}: expected {names.get(hint, hint.__name__)}")
    return value
