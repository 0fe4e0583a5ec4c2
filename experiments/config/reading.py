"""Turns `key=value` settings and YAML into typed dataclasses, checked by pydantic.
A text setting is the text as written: in such a field `0042`, `yes`, `1e3` and `a: b` are four texts, whatever YAML makes of them."""

import dataclasses
import difflib
import functools
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError

Settings = TypeVar("Settings")
ADAPTER = functools.cache(TypeAdapter)


class RunConfigError(ValueError):
    """A setting that cannot be used. One line: the key, its value, what was expected, and the nearest allowed word."""


def wrong_value(key: str, value: Any, expected: str, allowed: Iterable[Any] = ()) -> RunConfigError:
    """The error for a value that cannot be used. `allowed`: words among which the nearest is offered."""
    shown = "null" if value is None else repr(value)
    near = difflib.get_close_matches(str(value), list(map(str, allowed)), n=1)
    return RunConfigError(f"{key} is {shown}; expected {expected}{f'; did you mean {near[0]}?' if near else ''}")


def read_settings(schema: type[Settings], arguments: Sequence[str], section: str = "") -> Settings:
    """A flat dataclass from key=value arguments, which may leave out the `section` (such as `serve.`). Raises RunConfigError."""
    arguments = [argument.removeprefix(section) for argument in arguments]
    if bare := [argument for argument in arguments if "=" not in argument]:
        raise RunConfigError(f"{bare[0]!r}: expected key=value, with a key of {', '.join(field_names(schema))}")
    given = from_arguments(schema, arguments)
    check_keys(given, schema, section)
    return typed(schema, merged(dataclasses.asdict(typing.cast(Any, schema())), given), section=section)


def check_keys(tree: dict[str, Any], schema: Any, section: str = "") -> None:
    """Raises RunConfigError for a key that `schema` does not have. A setting without its section is offered with it."""
    types = typing.get_type_hints(schema)
    for key, child in tree.items():
        if key not in types:
            elsewhere = [f"{section}{name}.{key}" for name, kind in types.items() if key in field_names(kind)]
            near = [f"{section}{name}" for name in difflib.get_close_matches(key, types, n=1, cutoff=0)]
            raise RunConfigError(f"unknown key {section}{key}; did you mean {[*elsewhere, *near][0]}?")
        if dataclasses.is_dataclass(types[key]):
            if not isinstance(child, dict):
                raise wrong_value(section + key, child, f"keys and values, such as {section}{key}.{field_names(types[key])[0]}")
            check_keys(child, types[key], f"{section}{key}.")


def is_setting(argument: str) -> bool:
    """Whether it is `key=value`. A path with an equals sign that exists, or whose folder exists, is none; ./name=value is always a path."""
    key, equals, _ = argument.partition("=")
    exists = os.path.exists(argument) or os.path.exists(os.path.dirname(argument))  # also false for what cannot be a path
    return bool(equals) and not ("/" in key or key.startswith(".") or exists)


def from_arguments(schema: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """The tree of `dotted.key=value` arguments; leaves are text where `schema` has a single value. Raises RunConfigError."""
    tree: dict[str, Any] = {}
    for argument in arguments:
        key, _, text = argument.partition("=")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise RunConfigError(f"{argument}: not UTF-8; expected text in UTF-8: rename the file, or set the terminal to UTF-8")
        parts = _parts(kind_of(schema, key))
        single = all(part in (int, float, bool, str, type(None)) or typing.get_origin(part) is Literal for part in parts)
        value: Any = (None if text == "null" and type(None) in parts else text) if single else from_yaml(text, argument)
        for name in reversed(key.split(".")):
            value = {name: value}
        tree = merged(tree, value)
    return tree


def from_yaml(text: str | bytes, source: str) -> Any:
    """The content of a YAML text: dictionaries, lists, text, and None for an unquoted null. Raises RunConfigError that begins with `source`."""
    try:
        loader = yaml.SafeLoader(text)
        return _plain(loader.get_single_node(), loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise RunConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def typed(schema: type[Settings], tree: Any, partial: bool = False, section: str = "") -> Settings:
    """The settings of a tree. `partial`: one layer of several, so rules between settings are not checked yet. `section`: prefix of keys in
    messages. Raises RunConfigError for the first value that pydantic refuses."""
    try:
        settings: Any = ADAPTER(typing.cast(Any, schema)).validate_python(tree)
    except ValidationError as error:
        if found := [each for each in error.errors() if each["type"] != "value_error"]:
            raise _refused(tree, found[0], section) from None
        if partial:
            return schema()
        raise RunConfigError(str(error.errors()[0]["ctx"]["error"]).splitlines()[0]) from None
    for key, value in flattened(dataclasses.asdict(settings)).items():  # NaN passes wherever pydantic has no bound to compare it with
        if any(number != number for number in (value if isinstance(value, list | tuple) else [value])):
            raise wrong_value(section + key, value, "a number")
    return typing.cast(Settings, settings)


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, by OmegaConf: dictionaries are joined, other values replaced. Text goes as bytes, so ${...} is not resolved."""
    both = [OmegaConf.create(_leaves(tree, lambda leaf: leaf.encode() if isinstance(leaf, str) else leaf)) for tree in (under, over)]
    try:
        tree = OmegaConf.to_container(OmegaConf.merge(*both))
    except TypeError:  # a dictionary in one, a list in the other: pydantic reports which it expects
        return under | over
    return _leaves(tree, lambda leaf: leaf.decode() if isinstance(leaf, bytes) else leaf)


def _leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _leaves(value, change) for key, value in tree.items()}
    return [_leaves(value, change) for value in tree] if isinstance(tree, list | tuple) else change(tree)


def kind_of(schema: Any, key: str) -> Any:
    """The type of a dotted key in a tree of dataclasses; None where there is no such key."""
    kind = schema
    for name in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(name)
        else:  # the values of a dictionary, also where a dictionary is one of several possibilities
            kind = next((typing.get_args(part)[1] for part in _parts(kind) if typing.get_origin(part) is dict), None)
    return kind


def field_names(schema: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else []


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a tree of dictionaries; an empty dictionary is a value."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {key: leaf for name, child in tree.items() for key, leaf in flattened(child, f"{prefix}.{name}".removeprefix(".")).items()}


def _refused(tree: Any, found: Any, section: str) -> RunConfigError:
    key, value = "", tree
    for name in found["loc"]:  # after the key pydantic names the types that it tried
        try:
            value = value[name]
        except (LookupError, TypeError):
            break
        key = f"{key}.{name}".removeprefix(".")
    if found["loc"][-1] == "[key]":
        section, key, value = "", f"a key of {section}{key.rpartition('.')[0]}", found["input"]
    return wrong_value(section + key, value, found["msg"].removeprefix("Input should be "), re.findall(r"'(.+?)'", found["msg"]))


def _plain(node: yaml.Node | None, loader: yaml.SafeLoader) -> Any:
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key, _ in node.value if names.count(key.value) > 1), None):
            raise yaml.MarkedYAMLError(None, None, f"{twice.value} is given twice; give it once", twice.start_mark)
        loader.flatten_mapping(node)
        return {str(key.value): _plain(value, loader) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value, loader) for value in node.value]
    return None if node is None or node.tag == "tag:yaml.org,2002:null" else node.value


def _parts(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
