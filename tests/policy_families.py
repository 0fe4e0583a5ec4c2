"""A small model of every family that can be a policy, with random weights and the chat format of the family."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
LLAMA = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "<bos>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>".split()
HEADERS = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>".split()
TURNS = "<pad> <eos> <bos> <start_of_turn> <end_of_turn>".split()
TILES = "<|endoftext|> <|im_start|> <|im_end|> <fake_token_around_image> <image> <end_of_utterance> <global-img>".split()
TILES += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
FORMATS = {  # special tokens, template, end of text, end of a response
    "qwen": (QWEN, CHATML, "<|im_end|>", "<|im_end|>"),
    "base": (QWEN, CHATML, "<|endoftext|>", "<|im_end|>"),
    "smollm": (QWEN[:3], DEFAULT_SYSTEM + CHATML, "<|im_end|>", "<|im_end|>"),
    "thinking": (QWEN, THINKING, "<|im_end|>", "<|im_end|>"),
    "llama": (HEADERS, LLAMA, "<|end_of_text|>", "<|eot_id|>"),
    "gemma": (TURNS, GEMMA, "<eos>", "<end_of_turn>"),
    "smolvlm": (TILES, DEFAULT_CHAT_TEMPLATE, "<|im_end|>", "<end_of_utterance>"),
}
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
QWEN2_VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
QWEN25_VISION = {"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
QWEN3_VISION = QWEN25_VISION | {"patch_size": 16, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
FAMILIES = {  # family -> (class, chat format, vision config)
    "llama": ("Llama", "llama", None),
    "smollm2": ("Llama", "smollm", None),
    "qwen2.5": ("Qwen2", "qwen", None),
    "qwen3": ("Qwen3", "thinking", None),
    "gemma": ("Gemma", "gemma", None),
    "qwen2-vl": ("Qwen2VL", "qwen", QWEN2_VISION),
    "qwen2.5-vl": ("Qwen2_5_VL", "qwen", QWEN25_VISION | {"window_size": 56, "fullatt_block_indexes": [1]}),
    "qwen3-vl": ("Qwen3VL", "qwen", QWEN3_VISION),
    "smolvlm": ("SmolVLM", "smolvlm", SIGLIP),
    "idefics3": ("Idefics3", "smolvlm", SIGLIP),
}
WITH_PICTURES = [family for family, (_, _, vision) in FAMILIES.items() if vision]


@functools.cache
def chat_tokenizer(chat: str) -> PreTrainedTokenizerFast:
    special, template, end_of_text, _ = FORMATS[chat]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(
        ["Which country has this flag? The capital of France is Paris. <think></think><answer></answer>"] * 3, trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end_of_text, chat_template=template)


@functools.cache
def saved_family(family: str, **changes: object) -> Path:
    """Folder of the model, its tokenizer and its image processor. `changes`: of the text config."""
    name, chat, vision = FAMILIES[family]
    tokenizer, folder = chat_tokenizer(chat), Path(tempfile.mkdtemp(prefix=f"{family}_"))
    token = tokenizer.convert_tokens_to_ids
    text = TEXT | {
        "vocab_size": len(tokenizer) + 3,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if name in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL"):
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    if name in ("Qwen3", "Gemma", "Qwen3VL"):
        text["head_dim"] = 16
    text |= changes
    if not vision:
        config = getattr(transformers, f"{name}Config")(**text, tie_word_embeddings=family != "llama")
    elif name in ("SmolVLM", "Idefics3"):
        text["model_type"] = "llama"
        config = getattr(transformers, f"{name}Config")(
            text_config=text,
            vision_config=vision,
            scale_factor=2,
            image_token_id=token("<image>"),
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    else:
        ids = {f"{kind}_token_id": token(f"<|{kind}_pad|>") for kind in ("image", "video")}
        ids |= {f"vision_{place}_token_id": token(f"<|vision_{place}|>") for place in ("start", "end")}
        config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{'ForConditionalGeneration' if vision else 'ForCausalLM'}")(config).eval()
    with torch.no_grad():  # Larger than the library's start, so that what a token attends to shows in the logits
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if name in ("SmolVLM", "Idefics3"):
        sides = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
        getattr(transformers, f"{name}ImageProcessorPil")(**sides).save_pretrained(folder)
    elif vision:
        sides = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}, "patch_size": vision["patch_size"]}
        transformers.Qwen2VLImageProcessorPil(**sides).save_pretrained(folder)
    return folder
