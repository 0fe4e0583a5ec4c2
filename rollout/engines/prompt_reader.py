"""Prompts as the model takes them: embeddings with the pictures in their places, and M-RoPE positions. Pictures are encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch

from rollout.engines.base import Request
from rollout.policy import Policy
from rollout.records import Image

FEATURE_TOKENS = 65536
"""Picture tokens whose features are kept for later turns of the same questions: half a gigabyte at hidden size 3584 in bfloat16."""


class PromptReader:
    """Keeps the vision features of the weights that are loaded: `forget` them with every update."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._kept = 0

    def forget(self) -> None:
        self._features.clear()
        self._kept = 0

    def embeddings(self, requests: Sequence[Request]) -> torch.Tensor:
        """Of the prompts one behind another: (1, tokens, hidden)."""
        policy = self.policy
        ids = torch.from_numpy(np.concatenate([request.prompt_ids for request in requests]).astype(np.int64)).to(policy.device)
        embeddings = policy.model.get_input_embeddings()(ids)
        pictures = [request.image for request in requests if request.image]
        if pictures:
            embeddings[ids == policy.image_token_id] = torch.cat([self._encoded(image) for image in pictures])
        return embeddings[None]

    def _encoded(self, image: Image) -> torch.Tensor:
        """(tokens, hidden). One picture at a time: its features cannot depend on its neighbours."""
        if image.key not in self._features:
            pixels, grids = self.policy.pixels([image])
            (features,) = self.policy.model.model.get_image_features(pixels, grids, return_dict=True).pooler_output
            self._features[image.key] = features
            self._kept += len(features)
            while self._kept > FEATURE_TOKENS and len(self._features) > 1:
                self._kept -= len(self._features.popitem(last=False)[1])
        self._features.move_to_end(image.key)
        return self._features[image.key]

    def positions(self, request: Request) -> np.ndarray:
        """(3, tokens) int64."""
        grid = self.policy.patches(request.image)[1] if request.image else None
        return self.policy.positions(request.prompt_ids, grid)
