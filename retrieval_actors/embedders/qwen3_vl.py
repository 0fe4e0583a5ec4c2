"""Text and pictures by Qwen3-VL-Embedding: one model reads both, the state of its last token is the vector.

After the usage that is published with Qwen/Qwen3-VL-Embedding-2B and the paper (arXiv 2601.04720, section 3.1): a system turn with the
instruction, a user turn with picture and text, the opening of an assistant turn; the last token's hidden state, normalised. Tested on
small models of the same class; the published weights were not run here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval_actors.embedders.embedder import unit_rows, written
from retrieval_actors.embedders.loading import device, dtype_of, load
from retrieval_actors.embedders.text import padded_batches
from retrieval_actors.pictures import decoded
from retrieval_actors.records import Passage, Query

QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."
PASSAGE_INSTRUCTION = "Represent the user's input."
"""The published defaults of the two sides."""
LONGEST = 8192
"""Tokens; longer texts are cut before the closing tokens of the template, pictures never are."""
SIDE = 32
"""Pixels of one token's side: patches of 16, merged 2 x 2."""
LEAST_PIXELS, MOST_PIXELS = 4 * SIDE**2, 1800 * SIDE**2
"""Pictures are resized to between 4 and 1,800 tokens, keeping their shape."""
NOTHING = "NULL"
"""What the published code writes where there is neither text nor picture."""
PICTURES_AT_ONCE = 8


class Qwen3VLEmbedder:
    def __init__(self, name: str, name_or_path: str, precision: str):
        """Raises ValueError for a model that can not be had."""
        from transformers import AutoModel, AutoTokenizer, Qwen2VLImageProcessorPil

        whose = f"embedder {name!r}"
        self.name = name
        self._model = load(whose, name_or_path, AutoModel.from_pretrained, dtype=dtype_of(precision), use_safetensors=True)
        self._model.eval().to(device())
        self._tokenizer = load(whose, name_or_path, AutoTokenizer.from_pretrained)
        size = {"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS}
        self._image_processor = load(whose, name_or_path, Qwen2VLImageProcessorPil.from_pretrained, size=size)
        self._image_id = int(self._model.config.image_token_id)
        self.dimension = int(self._model.config.text_config.hidden_size)

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        whose = [f"passage {passage.id!r}" for passage in passages]
        entries = [(passage.image, written(passage)) for passage in passages]
        return self._embed(entries, whose, PASSAGE_INSTRUCTION)

    def embed_queries(self, queries: Sequence[Query]) -> np.ndarray:
        """A query with neither text nor picture has the zero row."""
        rows = [row for row, query in enumerate(queries) if query.text or query.image]
        vectors = np.zeros((len(queries), self.dimension), np.float32)
        whose = [f"query {queries[row].text[:60]!r}" for row in rows]
        vectors[rows] = self._embed([(queries[row].image, queries[row].text) for row in rows], whose, QUERY_INSTRUCTION)
        return vectors

    def _embed(self, entries: list[tuple[bytes | None, str]], whose: list[str], instruction: str) -> np.ndarray:
        """Those with a picture and those without go apart, a few pictures at a time."""
        vectors = np.zeros((len(entries), self.dimension), np.float32)
        shown = [row for row, (picture, _) in enumerate(entries) if picture]
        plain = [row for row, (picture, _) in enumerate(entries) if not picture]
        for rows in (plain, *(shown[start : start + PICTURES_AT_ONCE] for start in range(0, len(shown), PICTURES_AT_ONCE))):
            if rows:
                vectors[rows] = self._embed_batch([entries[row] for row in rows], [whose[row] for row in rows], instruction)
        return unit_rows(vectors)

    def _embed_batch(self, entries: list[tuple[bytes | None, str]], whose: list[str], instruction: str) -> np.ndarray:
        import torch

        patches = [
            self._image_processor(images=[decoded(picture, who)], return_tensors="pt") if picture else None
            for (picture, _), who in zip(entries, whose, strict=True)
        ]
        merged = self._image_processor.merge_size**2
        shown = [0 if part is None else int(part["image_grid_thw"].prod()) // merged for part in patches]
        encoded = [self._token_ids(text, tokens, instruction) for (_, text), tokens in zip(entries, shown, strict=True)]
        vectors = np.zeros((len(entries), self.dimension), np.float32)
        for rows, features in padded_batches(encoded, LONGEST, self._tokenizer.pad_token_id or 0):
            features["mm_token_type_ids"] = (features["input_ids"] == self._image_id).long()
            if pictures := [part for row in rows if (part := patches[row]) is not None]:
                features["pixel_values"] = torch.cat([part["pixel_values"] for part in pictures]).to(self._model.dtype)
                features["image_grid_thw"] = torch.cat([part["image_grid_thw"] for part in pictures])
            last = features["attention_mask"].sum(1) - 1
            with torch.inference_mode():
                states = self._model(**{key: value.to(self._model.device) for key, value in features.items()}, use_cache=False)
            vectors[rows] = states.last_hidden_state[torch.arange(len(rows)), last].float().cpu().numpy()
        return vectors

    def _token_ids(self, text: str, image_tokens: int, instruction: str) -> list[int]:
        """The whole conversation, then what the tokenizer puts at an end; a picture is one chunk of placeholders in front of the text."""
        opening = f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n" + "<|vision_start|>" * bool(image_tokens)
        head = [*self._encode(opening), *[self._image_id] * image_tokens, *self._encode("<|vision_end|>" * bool(image_tokens))]
        foot = [*self._encode("<|im_end|>\n<|im_start|>assistant\n"), *self._tokenizer("")["input_ids"]]
        # A text that spells a special token is text: a placeholder without its picture would break the forward pass.
        said = self._encode(text.strip() or ("" if image_tokens else NOTHING), split_special_tokens=True)
        return [*head, *said[: max(0, LONGEST - len(head) - len(foot))], *foot]

    def _encode(self, text: str, **options: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, **options)["input_ids"]
