"""Scored turns as a rollout would make them, for a policy of a few thousand weights."""

from __future__ import annotations

import atexit
import functools
import io
import shutil
import tempfile
from dataclasses import replace

import numpy as np
import ray
import torch
from PIL import Image as PillowImage

from experiments.worlds.tiny_policy import tiny_policy, train_tokenizer
from learner.learner_group import LearnerGroup
from rollout.policies import Policy
from rollout.records import Image, Message, Question, ScoredTurn, State, Turn, TurnReward
from rollout.weight_buckets import BUCKET_BYTES, Bucket, Packer, PublishedWeights

TEXTS = ["Which knowledge base holds the capital of Kor-mu ?", "The flag shows red and blue stripes .", "1 2 3 4 5 6 7 8 9 0"]


@functools.cache
def save_tiny_policy() -> str:
    """Folder of a freshly initialised policy with 2 layers of 64."""
    folder = tempfile.mkdtemp(prefix="tiny_policy_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = train_tokenizer(TEXTS * 3, vocabulary=320)
    tiny_policy(tokenizer, hidden=64, layers=2, heads=2, vision_hidden=32, vision_layers=2).save(folder)
    return folder


def weights_of(group: LearnerGroup) -> PublishedWeights:
    """What a learner group would send to rollout workers."""
    return PublishedWeights(tuple(group.publish()), group.policy_version)


def fetched(weights: PublishedWeights) -> list[Bucket]:
    return ray.get([bucket.ref for bucket in weights.buckets], timeout=60)


def packed(named_tensors, bucket_bytes: int = BUCKET_BYTES) -> list[Bucket]:
    """All buckets at once, in memory of their own."""
    return [replace(bucket, data=np.array(bucket.data)) for bucket in Packer(bucket_bytes).buckets(named_tensors)]


def picture(seed: int, side: int = 56) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    PillowImage.fromarray(pixels).save(out, "PNG")
    return Image.of(out.getvalue())


def plain_logprobs(policy: Policy, prompt_ids: np.ndarray, image: Image | None, response_ids: np.ndarray) -> torch.Tensor:
    """(tokens,) log-probs of a response by the library's own forward pass: one row, no packing."""
    ids = torch.from_numpy(np.concatenate([prompt_ids, response_ids]).astype(np.int64))[None]
    pictured = policy.pictured(ids, [image] if image else [])
    logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **pictured).logits[0, len(prompt_ids) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt_ids) :, None])[:, 0]


def group(policy: Policy, seed: int, siblings: int = 4, image: Image | None = None, kind="plan", rewards=None) -> list[ScoredTurn]:
    """Siblings with random responses and, by default, random rewards; their log-probs are the policy's own."""
    random = np.random.default_rng(seed)
    text = " ".join(random.choice(["capital", "flag", "red", "blue", "Kor", "mu", "1", "2", "3"], random.integers(2, 12)))
    prompt_ids = policy.encode(Message("", text, image is not None), image)
    question = Question(id=f"q{seed}", text=text, answers=("a",), image=image)
    state = State(kind, prompt_ids, image, question)
    allowed = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.banned_token_ids)
    turns = []
    for i in range(siblings):
        response = random.choice(allowed, random.integers(1, 14)).astype(np.int32)
        with torch.no_grad():
            logprobs = plain_logprobs(policy, prompt_ids, image, response).numpy().astype(np.float32)
        reward = float(random.random() if rewards is None else rewards[i])
        turn = Turn(kind, response, logprobs, "stop", 0, "")
        turns.append(ScoredTurn(state.key, prompt_ids, image, turn, TurnReward(reward), f"{question.id}#0", reward, question.id))
    return turns
