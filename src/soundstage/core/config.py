"""Strict dict or TOML to frozen dataclass: an unknown key is an error that names the nearest right one."""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from soundstage.core.errors import ConfigError

C = TypeVar("C")


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Write " (did you mean 'x'?)" for the most similar allowed word, or an empty string."""
    match = difflib.get_close_matches(word, list(allowed), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def from_dict(cls: type[C], data: Mapping[str, Any], *, where: str = "", ignore_unknown: bool = False) -> C:
    """Build the dataclass `cls` from plain data, nested dataclasses included.

    Args:
        where: Prefix of key names in errors, such as "optim".
        ignore_unknown: Drop keys that `cls` lacks; for headers that other programs write.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]  # cls is a dataclass
    label = where or cls.__name__
    unknown = [key for key in data if key not in fields]
    if unknown and not ignore_unknown:
        raise ConfigError(f"{label}: unknown key {unknown[0]!r}{nearest(unknown[0], fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}.{name}" if where else name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{label}: missing key {name!r}")
    return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a dataclass into plain JSON-ready data."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain


def load_toml(cls: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """Read `cls` from a TOML file, then apply overrides such as `optim.lr=1e-4`.

    Raises:
        ConfigError: The file cannot be read or parsed, or does not fit `cls`.
    """
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(data, override)
    return from_dict(cls, data)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, last = key.strip().split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a table")
    data[last] = value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, where)
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            near = nearest(str(value), map(str, allowed))
            raise ConfigError(f"{where}={value!r} is not one of {', '.join(map(repr, allowed))}{near}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r} should be a table")
        return from_dict(hint, value, where=where)
    if origin is tuple:
        return _convert_tuple(hint, value, where)
    if origin in (dict, Mapping):
        return dict(value)
    return _convert_plain(hint, value, where)


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    error: ConfigError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, where)
        except ConfigError as caught:
            error = caught
    raise error or ConfigError(f"{where} may not be null")


def _convert_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{where}={value!r} should be a list")
    items = list(value)
    args = typing.get_args(hint)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if len(args) != len(items):
        raise ConfigError(f"{where} has {len(items)} entries; {len(args)} are needed")
    return tuple(
        _convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, items, strict=True))
    )


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is Fraction and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return Fraction(value)  # `to_dict` writes "24000/1001"
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"{where}={value!r} is not a fraction") from error
    if hint is int and isinstance(value, bool):
        raise ConfigError(f"{where}={value!r} should be an integer")
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ConfigError(f"{where}={value!r} should be of type {hint.__name__}")
    return value
