"""A policy small enough for a laptop without a GPU: the real Qwen2.5-VL classes with a few layers and their own tokenizer. Two choices make
it learn in minutes: a tokenizer that always cuts a name and a number into the same few tokens, and weights that start as an induction
circuit (previous-token heads, then heads that look up what followed the same token before), so that copying works before training."""

import re
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from experiments.worlds.flag_pictures import SIZE
from rollout.policies.qwen_vl import QwenVLPolicy

SPECIAL = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>".split()
TAGS = "<think> </think> <sub-question> </sub-question> <ret> </ret> <answer> </answer>".split()
PIECES = r" ?\d{1,2}|-\p{L}+| ?\p{L}+|\n| ?[^\s\p{L}\d]"  # Numbers in pairs of digits, names cut at hyphens, words with their space
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts` with Qwen's special tokens first and the format's tags last; any text encodes without loss."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS), special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    marks = re.compile("|".join(map(re.escape, SPECIAL + TAGS)))
    tokenizer.train_from_iterator((piece for text in texts for piece in marks.split(text) if piece), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_policy(
    tokenizer: PreTrainedTokenizerFast,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    vision_hidden: int = 96,
    vision_layers: int = 2,
    seed: int = 0,
) -> QwenVLPolicy:
    """A fresh `Qwen2_5_VLForConditionalGeneration`, 1.3M parameters by default, with induction weights."""
    torch.manual_seed(seed)
    half = hidden // heads // 2
    height_width = (half - half // 2) // 2
    sections = [half - 2 * height_width, height_width, height_width]
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": hidden * 8 // 3 // 32 * 32,
            **{"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads, "rms_norm_eps": 1e-6},
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": sections},
            **{"bos_token_id": None, "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>")},
        },
        vision_config={
            **{"depth": vision_layers, "num_heads": vision_hidden // 32, "fullatt_block_indexes": [vision_layers - 1]},
            **{"hidden_size": vision_hidden, "intermediate_size": vision_hidden * 2, "out_hidden_size": hidden},
            **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112},
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = token("<|im_end|>"), token("<|endoftext|>")
    induction_weights(model, torch.Generator().manual_seed(seed))
    processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, size={"shortest_edge": SIZE * SIZE, "longest_edge": 4 * SIZE * SIZE})
    return QwenVLPolicy(model.eval(), tokenizer, processor)


@torch.no_grad()
def induction_weights(model: Qwen2_5_VLForConditionalGeneration, generator: torch.Generator) -> None:
    """Start the first two layers as an induction circuit (Olsson et al., arXiv 2209.11895): copying works before any training. Layer 0: two
    heads attend to the previous token, by query and key biases that RoPE turns into "one position back", and write it into a random subspace.
    Layer 1: every head matches the current token against that subspace on the slow RoPE dimensions, and writes the token that followed."""
    text = model.model.language_model
    hidden, heads = text.config.hidden_size, text.config.num_attention_heads
    size, half = hidden // heads, hidden // heads // 2
    sharpness, match_gain, copy_gain, previous_heads = 6.0, 3.0, 0.5, 2

    def orthogonal() -> torch.Tensor:
        return torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))[0]

    text.embed_tokens.weight.normal_(0, hidden**-0.5, generator=generator)
    frequencies = text.rotary_emb.inv_freq
    current, previous, copied = orthogonal(), orthogonal(), orthogonal()
    first, second = text.layers[0].self_attn, text.layers[1].self_attn
    for head in range(previous_heads):
        rows = slice(head * size, (head + 1) * size)
        first.q_proj.weight[rows] *= 0.1
        first.k_proj.weight[rows] *= 0.1
        first.q_proj.bias[rows] = torch.cat([torch.full((half,), sharpness), torch.zeros(half)])
        first.k_proj.bias[rows] = sharpness * torch.cat([frequencies.cos(), frequencies.sin()])
        first.v_proj.weight[rows] = current[rows]
        first.o_proj.weight[:, rows] = previous[rows].T / (previous_heads * size) ** 0.5
    slow = [i for i in range(half) if frequencies[i] < 0.03]
    slow += [i + half for i in slow]
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        source = torch.randperm(previous_heads * size, generator=generator)[: len(slow)]
        query, key = torch.zeros(size, hidden), torch.zeros(size, hidden)
        query[slow], key[slow] = current[source] * match_gain, previous[source] * match_gain
        second.q_proj.weight[rows], second.k_proj.weight[rows] = query, key
        second.v_proj.weight[rows], second.o_proj.weight[:, rows] = copied[rows], copied[rows].T * copy_gain
