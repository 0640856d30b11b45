"""Reads one YAML file and its environment overrides into a typed, frozen settings object.

YAML is read by its 1.2 rules where 1.1 surprises: `no`, `on` and `12:30` are strings, and a key
given twice is an error.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from services.shared.errors import ConfigError
from services.shared.masking import MASK, is_secret_name, mask_value

__all__ = [
    "CONFIG_DIR_VARIABLE",
    "ENV_PREFIX",
    "WELL_KNOWN_VARIABLES",
    "ConfigError",
    "SettingsModel",
    "config_directory",
    "load_settings",
]

ENV_PREFIX = "MARKETPRISM__"
"""`MARKETPRISM__<FILE>__<KEY>__<SUBKEY>=<yaml value>` overrides one value of one file."""

CONFIG_DIR_VARIABLE = "MARKETPRISM_CONFIG_DIR"
"""Environment variable that names the directory of the configuration files."""

WELL_KNOWN_VARIABLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "NATS_URL": ("services", ("nats", "url")),
    "CLICKHOUSE_URL": ("services", ("clickhouse", "url")),
    "SERVICE_REGISTRY_URL": ("services", ("registry", "url")),
    "PROMETHEUS_URL": ("services", ("prometheus", "url")),
    "REDIS_URL": ("services", ("redis", "url")),
}
"""Variables with a usual name: which file and key each one overrides."""

_REPOSITORY_CONFIG = Path(__file__).resolve().parents[2] / "config"


class SettingsModel(BaseModel):
    """Base of every settings class: immutable, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )


_M = TypeVar("_M", bound=SettingsModel)
_Path = tuple[str | int, ...]


@dataclass(slots=True)
class _Source:
    """What was read, and where each key came from, so that a problem can name its place."""

    file: Path
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[_Path, int] = field(default_factory=dict)
    variables: dict[_Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, path: _Path) -> str:
        for end in range(len(path), 0, -1):
            if path[:end] in self.variables:
                return f"environment variable {self.variables[path[:end]]}"
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.file}:{self.lines[path[:end]]}"
        return str(self.file)


def config_directory(
    config_dir: Path | str | None = None, environ: Mapping[str, str] = os.environ
) -> Path:
    """Give the directory of the configuration files: the argument, the variable, or `config/`."""
    return Path(config_dir or environ.get(CONFIG_DIR_VARIABLE) or _REPOSITORY_CONFIG)


def load_settings(
    model: type[_M],
    stem: str,
    *,
    config_dir: Path | str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> _M:
    """Read `<config_dir>/<stem>.yaml`, apply the environment, and validate.

    Raises `ConfigError` that lists every problem at once: the file and line or the variable, the
    key, what was expected and what came, secrets masked.
    """
    directory = config_directory(config_dir, environ)
    source = _Source(directory / f"{stem}.yaml")
    _read_file(source)
    if source.problems:
        raise _config_error(source)
    _apply_environment(source, model, stem, environ)
    result: _M | None = None
    try:
        result = model.model_validate(source.data)
    except ValidationError as error:
        source.problems += _explain(error, source, model)
    if source.problems or result is None:
        raise _config_error(source)
    return result


def _config_error(source: _Source) -> ConfigError:
    count = len(source.problems)
    head = f"{count} problems in the configuration" if count > 1 else "bad configuration"
    lines = "".join(f"\n  {problem}" for problem in source.problems)
    return ConfigError(f"{head}:{lines}", metadata={"file": source.file, "problems": count})


# ---- the file


class _YamlLoader(yaml.SafeLoader):
    """SafeLoader with the scalar rules of YAML 1.2's core schema."""


_YamlLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$|^0x[0-9a-fA-F]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^<<$", "<"),
):
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _read_file(source: _Source) -> None:
    try:
        text = source.file.read_text(encoding="utf-8")
    except FileNotFoundError:
        source.problems.append(
            f"{source.file}: expected this file, and it does not exist; create it, or name the "
            f"directory that has it with {CONFIG_DIR_VARIABLE}"
        )
        return
    except (OSError, UnicodeDecodeError) as error:
        source.problems.append(f"{source.file}: expected a readable UTF-8 file, got: {error}")
        return
    loader = _YamlLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return
        if not isinstance(node, yaml.MappingNode):
            source.problems.append(f"{source.file}: expected keys and values at the top level")
            return
        _walk(node, (), source)
        if not source.problems:
            source.data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        source.problems.append(f"{source.file}:{line}: expected valid YAML, got: {error.problem}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        source.problems.append(f"{source.file}: expected valid YAML, got: {error}")
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: _Path, source: _Source) -> None:
    """Note the line of every key and complain of keys given twice or that are no strings."""
    source.lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), source)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            source.problems.append(f"{source.file}:{line}: expected a plain name as a key")
            continue
        key = key_node.value
        if key in seen:
            source.problems.append(
                f"{source.file}:{line}: {_dotted((*path, key))}: expected each key once, and "
                f"line {seen[key]} has this one already"
            )
        seen[key] = line
        _walk(value_node, (*path, key), source)
        source.lines[(*path, key)] = line


# ---- the environment


def _apply_environment(
    source: _Source, model: type[SettingsModel], stem: str, environ: Mapping[str, str]
) -> None:
    overrides: list[tuple[tuple[str, ...], str, str]] = [
        (path, variable, environ[variable])
        for variable, (owner, path) in WELL_KNOWN_VARIABLES.items()
        if owner == stem and environ.get(variable)
    ]
    for variable in sorted(environ):
        if not variable.upper().startswith(ENV_PREFIX):
            continue
        name, *parts = variable[len(ENV_PREFIX) :].split("__")
        if stem == "services" and not _file_exists(source.file.parent, name):
            source.problems.append(
                f"environment variable {variable}: expected "
                f"{ENV_PREFIX}<FILE>__<KEY> with the name of a file in {source.file.parent}, "
                f"got {name!r}{_suggest(name.lower(), _file_stems(source.file.parent))}"
            )
        if name.lower() != stem.lower():
            continue
        if not parts or not all(parts):
            source.problems.append(
                f"environment variable {variable}: expected {ENV_PREFIX}{stem.upper()}__<KEY>"
            )
            continue
        overrides.append((tuple(parts), variable, environ[variable]))
    # An override of a whole section comes before one of a value inside it.
    for keys, variable, text in sorted(overrides, key=lambda item: len(item[0])):
        _apply_override(source, model, keys, variable, text)


def _apply_override(
    source: _Source, model: type[SettingsModel], keys: tuple[str, ...], variable: str, text: str
) -> None:
    try:
        loader = _YamlLoader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError:
        # `nats://user:{x}` and the like are plain strings to whoever sets a variable.
        value = text
    target: Any = source.data
    kind: Any = model
    path: list[str] = []
    for depth, raw in enumerate(keys):
        known = _known_keys(kind, target)
        key = next((k for k in known if k.lower() == raw.lower()), None)
        if key is None:
            source.problems.append(
                f"environment variable {variable}: unknown key {_dotted((*path, raw.lower()))!r}"
                f"{_suggest(raw.lower(), known)}"
            )
            return
        path.append(key)
        kind = _kind_of_key(kind, key)
        if depth == len(keys) - 1:
            target[key] = value
            source.variables[tuple(path)] = variable
            return
        if not isinstance(target.get(key), dict):
            target[key] = {}
        target = target[key]


def _known_keys(kind: Any, target: Any) -> list[str]:
    names = list(_model_fields(kind))
    return names or [str(key) for key in target]


def _model_fields(kind: Any) -> Mapping[str, Any]:
    for candidate in _unwrap(kind):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate.model_fields
    return {}


def _kind_of_key(kind: Any, key: str | int) -> Any:
    fields = _model_fields(kind)
    if fields:
        return fields[key].annotation if isinstance(key, str) and key in fields else None
    for candidate in _unwrap(kind):
        arguments = get_args(candidate)
        if arguments and get_origin(candidate) is not None:
            return arguments[-1] if arguments[-1] is not Ellipsis else arguments[0]
    return None


def _unwrap(kind: Any) -> Iterator[Any]:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        for argument in get_args(kind):
            yield from _unwrap(argument)
    elif hasattr(kind, "__metadata__"):
        yield from _unwrap(get_args(kind)[0])
    else:
        yield kind


def _file_stems(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.yaml"))


def _file_exists(directory: Path, name: str) -> bool:
    return name.lower() in {stem.lower() for stem in _file_stems(directory)}


# ---- what went wrong


def _explain(error: ValidationError, source: _Source, model: type[SettingsModel]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        if problem["type"] == "default_factory_not_called":
            continue
        path = _without_markers(problem["loc"], source.data)
        parent, name = path[:-1], path[-1] if path else ""
        came = _value_at(source.data, path)
        expected = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        expected = re.sub(r"^(?:Input|String|URL|Value|List|Dictionary) should ", "", expected)
        expected = re.sub(r", (?:unable to|got) .*$", "", expected)
        place = source.place(path)
        if problem["type"] == "extra_forbidden":
            kind: Any = model
            for key in parent:
                kind = _kind_of_key(kind, key)
            text = f"unknown key{_suggest(str(name), list(_model_fields(kind)))}"
        elif problem["type"] == "missing":
            field_info = _field_at(model, path)
            about = f" ({field_info.description})" if field_info and field_info.description else ""
            place = source.place(parent)
            text = f"expected a value, and it is missing{about}"
        elif problem["type"] == "value_error":
            text = expected
        else:
            text = f"expected to {expected}, got {_shown(str(name), came)}"
        yield f"{place}: {_dotted(path)}: {text}" if path else f"{place}: {text}"


def _without_markers(path: _Path, data: Any) -> _Path:
    """Drop what pydantic adds to a location for union members and mapping keys."""
    clean: list[str | int] = []
    for part in path:
        inside = isinstance(data, Mapping) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
            clean.append(part)
        elif part == path[-1] and isinstance(data, Mapping) and part != "[key]":
            clean.append(part)
    return tuple(clean)


def _field_at(model: Any, path: _Path) -> Any:
    kind: Any = model
    for key in path[:-1]:
        kind = _kind_of_key(kind, key)
    return _model_fields(kind).get(str(path[-1]))


def _value_at(data: Any, path: _Path) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _shown(name: str, value: Any) -> str:
    if is_secret_name(name):
        return MASK
    text = repr(mask_value(name, value))
    return text if len(text) <= 80 else text[:77] + "..."


def _dotted(path: _Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _suggest(name: str, known: list[str]) -> str:
    if not known:
        return ""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}"
