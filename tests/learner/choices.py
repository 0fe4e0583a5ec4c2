"""The values of the settings of the learner that are one of a few."""

from __future__ import annotations

from typing import Literal, get_args, get_origin, get_type_hints

from learner.config import LearnerConfig

CHOICES = {name: get_args(kind) for name, kind in get_type_hints(LearnerConfig).items() if get_origin(kind) is Literal}
