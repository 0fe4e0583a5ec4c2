"""`key=value` settings of the small commands: one flat dataclass each, unknown keys fail."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from typing import TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import RunConfigError

Settings = TypeVar("Settings")


def read_settings(schema: type[Settings], arguments: Sequence[str]) -> Settings:
    """The dataclass `schema` with what `arguments` (all of them key=value) say. Raises RunConfigError, one line."""
    known = [field.name for field in dataclasses.fields(typing.cast(typing.Any, schema))]
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals:
            raise RunConfigError(f"{argument!r}: expected key=value, with a key of {', '.join(known)}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise RunConfigError(f"unknown key {key}; did you mean {near}? Known are {', '.join(known)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(list(arguments)))
        return typing.cast(Settings, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise RunConfigError(f"{' '.join(arguments)}: {str(error).splitlines()[0]}") from None
