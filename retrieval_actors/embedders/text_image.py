"""Embedders of pictures with captions: colour layout with a text model, CLIP and SigLIP, Qwen3-VL-Embedding."""

from collections.abc import Callable
from typing import Any

import numpy as np

from retrieval_actors.embedders.embedder import Embedder, Entry, device, dtype_of, load, unit_rows
from retrieval_actors.embedders.text import TextEmbedder, padded_batches
from retrieval_actors.pictures import LAYOUT_DIMENSION, colour_layout, decode

PICTURE_WEIGHT = 2.0  # of the colour layout; the caption has weight 1
BATCH_SIZE = 32
QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."
PASSAGE_INSTRUCTION = "Represent the user's input."
LONGEST = 8192  # tokens; longer texts are cut, pictures never are
LEAST_PIXELS, MOST_PIXELS = 4 * 32**2, 1800 * 32**2  # pictures are resized to 4 to 1,800 tokens of 32 x 32 pixels, keeping their shape
NOTHING = "NULL"  # the text, if there is neither text nor picture. From QUERY_INSTRUCTION on: the published defaults of Qwen3-VL-Embedding.
PICTURES_AT_ONCE = 8


class ColourLayoutEmbedder(Embedder):
    """[weight * colour layout, caption] with unit norm, zeros for a missing part: for flags and other pictures that differ in their colours."""

    def __init__(self, name: str, captions: TextEmbedder):
        self.name = name
        self._captions = captions
        self.dimension = LAYOUT_DIMENSION + captions.dimension

    def embed(self, entries: list[Entry], of_queries: bool) -> np.ndarray:
        captions = self._captions.embed(entries, of_queries)
        vectors = np.zeros((len(entries), self.dimension), np.float32)
        for row, (picture, text, owner) in enumerate(entries):
            if picture:
                vectors[row, :LAYOUT_DIMENSION] = PICTURE_WEIGHT * colour_layout(picture, owner)
            if text:
                vectors[row, LAYOUT_DIMENSION:] = captions[row]
        return unit_rows(vectors)


class TwoTowerEmbedder(Embedder):
    """CLIP, SigLIP and SigLIP 2: the mean of the unit vectors of picture and caption, with unit norm again: "score fusion" (UniIR,
    arXiv 2311.17136, section 3), with each tower's output normalised first."""

    def __init__(self, name: str, name_or_path: str, precision: str):
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        owner = f"embedder {name!r}"
        self.name = name
        self._model = load(owner, name_or_path, AutoModel.from_pretrained, dtype=dtype_of(precision), use_safetensors=True)
        self._model.eval().to(device())
        self._tokenizer = load(owner, name_or_path, AutoTokenizer.from_pretrained)
        # One backend for resizing on every machine: other pixels are other vectors.
        self._image_processor = load(owner, name_or_path, AutoImageProcessor.from_pretrained, backend="pil")
        self._longest = int(self._model.config.text_config.max_position_embeddings)
        self.dimension = self._embed_texts(["a"]).shape[1]

    def embed(self, entries: list[Entry], of_queries: bool) -> np.ndarray:
        shown, described = np.array([(bool(picture), bool(text)) for picture, text, _ in entries], bool).reshape(-1, 2).T
        vectors = np.zeros((len(entries), self.dimension), np.float32)
        vectors[shown] = self._embed_pictures([entry for entry in entries if entry[0]])
        vectors[described] += self._embed_texts([text for _, text, _ in entries if text])
        return unit_rows(vectors)

    def _embed_texts(self, texts: list[str]) -> np.ndarray:
        # SigLIP was trained on texts padded to full length, CLIP pools the end token: full padding is right for both.
        padding = {"padding": "max_length", "truncation": True, "max_length": self._longest, "return_tensors": "pt"}

        def features(batch: list[str]) -> Any:
            return self._model.get_text_features(**self._tokenizer(batch, **padding).to(self._model.device))

        return self._in_batches(texts, features)

    def _embed_pictures(self, entries: list[Entry]) -> np.ndarray:
        def features(batch: list[Entry]) -> Any:
            images = [decode(picture or b"", f"picture of {owner}") for picture, _, owner in batch]
            pixels = self._image_processor(images=images, return_tensors="pt").to(self._model.device, self._model.dtype)
            return self._model.get_image_features(**pixels)

        return self._in_batches(entries, features)

    def _in_batches(self, items: list, features: Callable[[list], Any]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = [features(items[start : start + BATCH_SIZE]).pooler_output for start in range(0, len(items), BATCH_SIZE)]
        parts = [unit_rows(part.float().cpu().numpy()) for part in found]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), np.float32)


class Qwen3VLEmbedder(Embedder):
    """Qwen3-VL-Embedding (arXiv 2601.04720, section 3.1) reads a system turn with the instruction, a user turn with picture and text, and the
    opening of an assistant turn; the normalised state of the last token is the vector."""

    def __init__(self, name: str, name_or_path: str, precision: str):
        from transformers import AutoModel, AutoTokenizer, Qwen2VLImageProcessorPil

        owner = f"embedder {name!r}"
        self.name = name
        self._model = load(owner, name_or_path, AutoModel.from_pretrained, dtype=dtype_of(precision), use_safetensors=True)
        self._model.eval().to(device())
        self._tokenizer = load(owner, name_or_path, AutoTokenizer.from_pretrained)
        size = {"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS}
        self._image_processor = load(owner, name_or_path, Qwen2VLImageProcessorPil.from_pretrained, size=size)
        self._image_id = int(self._model.config.image_token_id)
        self.dimension = int(self._model.config.text_config.hidden_size)

    def embed(self, entries: list[Entry], of_queries: bool) -> np.ndarray:
        instruction = QUERY_INSTRUCTION if of_queries else PASSAGE_INSTRUCTION
        vectors = np.zeros((len(entries), self.dimension), np.float32)
        shown = [row for row, (picture, _, _) in enumerate(entries) if picture]
        plain = [row for row, (picture, text, _) in enumerate(entries) if not picture and (text or not of_queries)]
        for rows in (plain, *(shown[start : start + PICTURES_AT_ONCE] for start in range(0, len(shown), PICTURES_AT_ONCE))):
            if rows:
                vectors[rows] = self._embed_batch([entries[row] for row in rows], instruction)
        return unit_rows(vectors)

    def _embed_batch(self, entries: list[Entry], instruction: str) -> np.ndarray:
        import torch

        patches = [
            self._image_processor(images=[decode(picture, f"picture of {owner}")], return_tensors="pt") if picture else None
            for picture, _, owner in entries
        ]
        merged = self._image_processor.merge_size**2
        image_tokens = [0 if part is None else int(part["image_grid_thw"].prod()) // merged for part in patches]
        encoded = [self._token_ids(text, tokens, instruction) for (_, text, _), tokens in zip(entries, image_tokens, strict=True)]
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
        """The conversation, then the tokenizer's end tokens; a picture is a run of placeholders in front of the text."""
        opening = f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n" + "<|vision_start|>" * bool(image_tokens)
        head = [*self._encode(opening), *[self._image_id] * image_tokens, *self._encode("<|vision_end|>" * bool(image_tokens))]
        foot = [*self._encode("<|im_end|>\n<|im_start|>assistant\n"), *self._tokenizer("")["input_ids"]]
        # Special tokens spelled in a text stay text: a placeholder without its picture would break the forward pass.
        text_ids = self._encode(text.strip() or ("" if image_tokens else NOTHING), split_special_tokens=True)
        return [*head, *text_ids[: max(0, LONGEST - len(head) - len(foot))], *foot]

    def _encode(self, text: str, **options: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, **options)["input_ids"]


KINDS = {"clip": TwoTowerEmbedder, "siglip": TwoTowerEmbedder, "siglip2": TwoTowerEmbedder, "qwen3_vl": Qwen3VLEmbedder}
"""`model_type` in config.json -> its embedder."""


def picture_embedder(name: str, name_or_path: str, precision: str) -> Embedder:
    """Raises ValueError for a model that is not available, or of another kind."""
    from transformers import AutoConfig

    kind = load(name, name_or_path, AutoConfig.from_pretrained).model_type
    if kind not in KINDS:
        raise ValueError(f"embedder {name!r}: a {kind} model, expected one of {', '.join(KINDS)}; for text use sentence-transformers:")
    return KINDS[kind](name, name_or_path, precision)
