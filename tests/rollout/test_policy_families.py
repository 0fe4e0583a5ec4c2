"""Policies by architecture: for every family, prompts are those of its own template, and what the engine samples is what the library computes."""

from __future__ import annotations

import copy
import io
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as PillowImage
from policy_families import FAMILIES, FORMATS, TEXT, WITH_PICTURES, chat_tokenizer, saved_family
from transformers import AddedToken

from rollout.engines.base import Request, Sampling, generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy, load_policy
from rollout.policies.chat import ChatFormat
from rollout.policies.policy import PICTURE
from rollout.records import Image, Message


def picture(seed: int, width: int = 80, height: int = 60) -> Image:
    out = io.BytesIO()
    PillowImage.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(out, "PNG")
    return Image.of(out.getvalue())


def prompts(policy: Policy) -> list[tuple[np.ndarray, Image | None]]:
    """Prompts of several lengths; a policy that reads pictures gets two different ones."""
    asked = [
        ("", "Which country has this flag?", 1),
        ("Be brief.", "The capital of France?", None),
        ("", "Paris " * 20, 2),
        ("", "Why?", None),
    ]
    shown = [(Message(system, user, seed is not None), picture(seed, 80 + 40 * seed) if seed else None) for system, user, seed in asked]
    return [(policy.encode(message, image), image if policy.reads_pictures else None) for message, image in shown]


def plain(policy: Policy, prompt: np.ndarray, image: Image | None, response: np.ndarray) -> np.ndarray:
    """Log-probs by the library's own forward pass."""
    ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    with torch.no_grad():
        logits = policy.model(input_ids=ids, **policy.pictured(ids, [image] if image else [])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_log_probs_are_those_of_a_plain_forward_pass_also_after_an_update(family):
    policy = load_policy(saved_family(family))
    engine = TransformersEngine(policy)
    noise = torch.Generator().manual_seed(1)
    moved = {n: p + 0.1 * p.std() * torch.randn(p.shape, generator=noise) for n, p in policy.model.named_parameters() if p.numel() > 1}
    moved = dict(policy.model.named_parameters()) | moved
    first: list[np.ndarray] = []
    for version, weights in enumerate(({n: p.clone() for n, p in policy.model.named_parameters()}, moved)):
        engine.update_weights(version, weights)
        requests = [Request(ids, image, 3, seed, Sampling(max_new_tokens=10)) for seed, (ids, image) in enumerate(prompts(policy))]
        for request, siblings in zip(requests, generate(engine, requests), strict=True):
            for response in siblings:
                expected = plain(policy, request.prompt_ids, request.image, response.ids)
                np.testing.assert_allclose(response.logprobs, expected, atol=1e-4)
            first.append(siblings[0].ids)
    assert any(not np.array_equal(before, after) for before, after in zip(first[:4], first[4:], strict=True)), "the update changed nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_are_those_of_the_library_s_generate(family):
    policy = load_policy(saved_family(family))
    for prompt, image in prompts(policy):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        (response,) = generate(TransformersEngine(policy), [Request(prompt, image, 1, 0, Sampling(temperature=0, max_new_tokens=8))])[0]
        options = {
            "do_sample": False,
            "max_new_tokens": 8,
            "suppress_tokens": list(policy.banned_token_ids),
            "eos_token_id": policy.end_token_id,
        }
        mask, pictured = torch.ones_like(ids), policy.pictured(ids, [image] if image else [])
        expected = policy.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=policy.pad_token_id, **options, **pictured)
        assert response.ids.tolist() == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", WITH_PICTURES)
def test_what_is_seen_depends_on_the_picture(family):
    policy = load_policy(saved_family(family))
    message = Message("", "Which country has this flag?", True)
    one, other = (policy.padded_hidden([(policy.encode(message, image), image)])[0, -1] for image in (picture(1), picture(2)))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(30, 30), (80, 60), (300, 40)])
@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
def test_placeholders_are_those_of_the_family_s_own_processor(family, size):
    policy, shown = load_policy(saved_family(family)), picture(3, *size)
    ids = policy.encode(Message("", "What?", True), shown)
    assert (ids == policy.image_token_id).sum() == policy.vectors(shown)
    name = {"smolvlm": "Idefics3", "idefics3": "Idefics3"}[family]  # SmolVLM's own needs torchvision, for videos; their pictures are alike
    processor = getattr(transformers, f"{name}Processor")(
        policy.image_processor, policy.tokenizer, image_seq_len=policy.model.model.image_seq_len
    )
    text = policy.chat.prompt("", [{"type": "image"}, {"type": "text", "text": "What?"}])
    decoded = PillowImage.open(io.BytesIO(shown.data)).convert("RGB")
    assert processor(text=text, images=[[decoded]], add_special_tokens=False)["input_ids"][0] == ids.tolist()


@pytest.mark.parametrize("chat", FORMATS)
def test_prompts_are_those_of_the_tokenizer_s_own_template(chat):
    tokenizer, end = chat_tokenizer(chat), FORMATS[chat][3]
    format = ChatFormat(tokenizer, lists=chat == "smolvlm")
    assert tokenizer.convert_ids_to_tokens(format.end_token_id) == end
    assert {tokenizer.convert_tokens_to_ids(token) for token in FORMATS[chat][0]} - {format.end_token_id} == set(format.banned_token_ids)
    for system in ("", "Be brief."):
        parts = [{"type": "text", "text": "Which flag?"}]
        turns = [{"role": "system", "content": [{"type": "text", "text": system}]}] * bool(system) + [{"role": "user", "content": parts}]
        if chat == "smollm" and not system:  # Its own default is left out
            turns = [{"role": "system", "content": [{"type": "text", "text": ""}]}, *turns]
        if chat == "gemma" and system:  # No place for it: in front of the user's own words
            turns = [{"role": "user", "content": [{"type": "text", "text": f"{system}\n\nWhich flag?"}]}]
        if chat != "smolvlm":
            turns = [turn | {"content": turn["content"][0]["text"]} for turn in turns]
        expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert format.prompt(system, parts) == (expected.removesuffix("<think>\n") if chat == "thinking" else expected)


def test_special_tokens_that_a_text_spells_out_are_broken_up():
    for chat, (special, *_) in FORMATS.items():
        format = ChatFormat(chat_tokenizer(chat), lists=chat == "smolvlm")
        found = format.prompt("", [{"type": "text", "text": "".join(special)}])
        clean = format.prompt("", [{"type": "text", "text": "X"}])
        assert all(found.count(token) == clean.count(token) for token in special)


def test_a_text_policy_reads_a_mark_in_place_of_a_picture():
    policy, shown = load_policy(saved_family("llama")), picture(1)
    for last in (False, True):
        text = policy.tokenizer.decode(policy.encode(Message("", "Which flag?", True, last), shown))
        assert (f"Which flag?\n{PICTURE}" if last else f"{PICTURE}\nWhich flag?") in text
    assert PICTURE not in policy.tokenizer.decode(policy.encode(Message("", "Which flag?", False), shown))


def spoiled(family: str, tmp_path, **config: object):
    shutil.copytree(saved_family(family), tmp_path / "policy")
    file = tmp_path / "policy/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return tmp_path / "policy"


@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        ("qwen2.5", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "layer_types": None}, "sliding attention"),
        ("llama", {"model_type": "mistral", "sliding_window": 64}, "a sliding window of 64 tokens"),
        ("llama", {"model_type": "cohere", "logit_scale": 0.1}, "computes attention or logits in a way of its own"),
        ("llama", {"model_type": "t5"}, "T5 is an encoder-decoder"),
        ("llama", {"intermediate_size": 50}, r"down_proj\.weight is \(64, 96\) in the weights, and \(64, 50\) by config\.json"),
        ("llama", {"num_hidden_layers": 3}, r"the weights lack model\.layers\.2\.\S+ and \d more"),
        ("llama", {"model_type": "mamba"}, "Mamba brings its own attention"),
        ("llama", {"model_type": "gemma3_text", "sliding_window": 64}, "sliding attention"),
        ("llama", {"model_type": "never_heard_of"}, "never_heard_of"),
        ("qwen2-vl", {"model_type": "llava"}, "does not fit together"),
    ],
)
def test_what_is_not_supported_is_refused_in_a_line(family, config, why, tmp_path):
    with pytest.raises(ValueError, match=why) as refused:
        load_policy(spoiled(family, tmp_path, **config))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"policy {tmp_path / 'policy'}: ")


@pytest.mark.parametrize("name", ["Nemotron", "Bert", "DeepseekV3", "Cohere"])
def test_a_model_that_computes_in_a_way_of_its_own_is_refused(name, tmp_path):
    """Attention that our arguments do not reach; that looks ahead; whose keys and values differ in size; scaled logits."""
    tokenizer = chat_tokenizer("llama")
    config = getattr(transformers, f"{name}Config")(
        **TEXT | {"num_key_value_heads": 4}, vocab_size=len(tokenizer), max_position_embeddings=64, eos_token_id=1, pad_token_id=0
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="computes attention or logits in a way of its own"):
        load_policy(tmp_path)


def test_a_folder_without_config_or_template_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_policy(tmp_path)
    folder = spoiled("llama", tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template: put its chat_template\.jinja beside the tokenizer"):
        load_policy(folder)


def test_every_family_is_saved_as_it_was_loaded(tmp_path):
    for family in FAMILIES:
        policy = load_policy(saved_family(family))
        policy.save(tmp_path / family)
        again = load_policy(tmp_path / family)
        assert type(again) is type(policy)
        for (ids, _), (same, _) in zip(prompts(policy), prompts(again), strict=True):
            assert np.array_equal(ids, same)
        for one, other in zip(policy.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_turn_marks_that_a_tokenizer_does_not_call_special_are_broken_up_and_never_sampled_and_the_date_is_fixed():
    """As in DeepSeek's distills of Qwen; templates of Llama 3 write the date."""
    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{{ eos_token }}"
    tokenizer = copy.deepcopy(chat_tokenizer("qwen"))
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<|user|>", "<|assistant|>", "<think>")])
    tokenizer.chat_template = template
    format = ChatFormat(tokenizer, lists=False)
    assert format.prompt("", [{"type": "text", "text": "<|user|><think>"}]) == "26 Jul 2024<|user|>< |user|><think><|im_end|>"
    banned = tokenizer.convert_ids_to_tokens(list(format.banned_token_ids))
    assert {"<|user|>", "<|assistant|>"} <= set(banned)
    assert "<think>" not in banned


def test_a_tokenizer_without_its_files_is_refused_and_generation_settings_that_the_library_would_not_save_are_mended(tmp_path):
    folder = spoiled("qwen2.5", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6}))
    load_policy(folder).save(tmp_path / "saved")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"its tokenizer makes '' of .*; are tokenizer\.json or the vocabulary missing\?"):
        load_policy(folder)
