"""Small models of the real classes, made and saved here: what a hub would hold, without one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

SPECIAL = ["<pad>", "<eos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
WORDS = ["yes", "no"]
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TEXT, "image_size": 32, "patch_size": 8}


def bytes_tokenizer(folder: Path, end: str = "", longest: int = 512) -> PreTrainedTokenizerFast:
    """A token for each byte, and the special ones; `end` is put behind every text. Any text has tokens."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    # Merges spell the two words; nothing else is merged.
    merges = [("n", "o"), ("y", "e"), ("ye", "s")]
    vocabulary |= {"ye": len(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if end:
        ends = [(end, SPECIAL.index(end))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=ends)
    names = ["input_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_input_names=names)
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    fast.model_max_length = longest
    fast.save_pretrained(folder)
    return fast


def clip(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = bytes_tokenizer(folder, "<eos>", 40)
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = bytes_tokenizer(folder, "<eos>", 64)
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def siglip2(folder: Path) -> Path:
    """The kind for pictures of any shape."""
    torch.manual_seed(0)
    known = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: number for number, token in enumerate(known)}
    tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=[], model_max_length=64)
    tokenizer.save_pretrained(folder)
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    Siglip2Model(Siglip2Config(text_config=text, vision_config={**TEXT, "patch_size": 8, "num_patches": 16})).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return folder


def qwen3_vl(folder: Path) -> Path:
    """Saved with its language head, as the published embedder is; the image processor's limits are others than the embedder's."""
    torch.manual_seed(0)
    tokenizer = bytes_tokenizer(folder)
    ids = {f"{kind}_token_id": SPECIAL.index(f"<|{token}|>") for kind, token in (("image", "image_pad"), ("vision_start", "vision_start"))}
    text = {
        **TEXT,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "depth": 2,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 16,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    ids |= {"video_token_id": SPECIAL.index("<|endoftext|>"), "vision_end_token_id": SPECIAL.index("<|vision_end|>")}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}).save_pretrained(folder)
    return folder


def bert_config(tokenizer: PreTrainedTokenizerFast, **options: int) -> BertConfig:
    return BertConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=128, pad_token_id=0, **options)


def cross_encoder(folder: Path, labels: int = 1) -> Path:
    torch.manual_seed(0)
    tokenizer = bytes_tokenizer(folder, "<eos>", 128)
    BertForSequenceClassification(bert_config(tokenizer, num_labels=labels)).save_pretrained(folder)
    return folder


def sentence_transformer(folder: Path, prompts: dict[str, str] | None = None) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    torch.manual_seed(0)
    base = folder.parent / f"{folder.name}-base"
    tokenizer = bytes_tokenizer(base, "<eos>", 128)
    BertModel(bert_config(tokenizer)).save_pretrained(base)
    words = Transformer(str(base))
    SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu").save(str(folder))
    settings = folder / "config_sentence_transformers.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "prompts": prompts or {}}))
    return folder
