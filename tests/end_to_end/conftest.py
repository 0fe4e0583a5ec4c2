"""What the tests of the service share."""

from __future__ import annotations

import base64

import pytest

from experiments.worlds.atlas import Atlas
from rollout.records import Question


@pytest.fixture(scope="session")
def client(service):
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def world() -> Atlas:
    """Whose knowledge bases the service searches."""
    return Atlas("heldout", seed=0, worlds=1, countries=6)


@pytest.fixture(scope="session")
def text_question(world) -> Question:
    return next(question for question in world.questions(64, 0) if question.image is None and question.gold_steps)


@pytest.fixture(scope="session")
def image_question(world) -> Question:
    return next(question for question in world.questions(64, 0) if question.image is not None)


@pytest.fixture(scope="session")
def image_url(image_question) -> str:
    return f"data:image/png;base64,{base64.b64encode(image_question.image.data).decode()}"
