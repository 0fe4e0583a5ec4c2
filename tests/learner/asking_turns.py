"""Plan turns that ask, with the names of all knowledge bases as a rollout records them, for the policy of `tiny_turns`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tiny_turns import plain_logprobs

from rollout.policies import Policy
from rollout.records import Image, Message, Question, ScoredTurn, State, Turn, TurnReward
from rollout.route_names import with_routes

RETRIEVERS = {"Text Retriever": "text", "Text Image Retriever": "text_image", "Table": "table"}


def asking_turns(
    policy: Policy, number: int, asked: Sequence[tuple[str, int]], rewards: Sequence[float], image: Image | None = None
) -> list[ScoredTurn]:
    """Siblings of one state: (query, which knowledge base it names) of each; `rewards`: what naming each knowledge base earns."""
    text = f"Which knowledge base holds capital {number} ?"
    prompt = policy.encode(Message("", text, image is not None), image)
    state = State("plan", prompt, image, Question(f"q{number}", text, ("a",), image))
    found = []
    for query, kb in asked:
        said = f"<think> red</think><sub-question> {query}</sub-question><ret> {list(RETRIEVERS)[kb]}</ret>"
        ids = np.array([*policy.tokenizer(said)["input_ids"], policy.end_token_id], np.int32)
        with torch.no_grad():
            logprobs = plain_logprobs(policy, prompt, image, ids).numpy()
        (turn,) = with_routes([Turn("plan", ids, logprobs, "stop", 0, said)], policy, RETRIEVERS)
        episode = f"q{number}#0", None, f"q{number}"
        found.append(ScoredTurn(state.key, prompt, image, turn, TurnReward(rewards[kb]), *episode, tuple(rewards)))
    return found
