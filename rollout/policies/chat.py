"""The chat format of a policy: its tokenizer's own template, the token that ends a response, and the tokens that a response never holds."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

NEVER_SAMPLED = ("<|endoftext|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""Also where a tokenizer does not mark them as special. A sampled image placeholder, without a picture, would break the learner's forward pass."""
TEXT = [{"type": "text", "text": "TEXT"}]
THOUGHT = ("<think>", "</think>")  # In templates of thinking models, and in our responses
OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
TODAY = date(2024, 7, 26)
"""For templates that write the date: prompts of one state have to be equal on every day. It is the default of Llama 3.1."""


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


class ChatFormat:
    """`lists`: contents are lists of parts, as the templates of VLMs expect them; else plain strings.
    Raises `ValueError` for a tokenizer without a template, or with one that fails."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lists: bool):
        if not tokenizer.chat_template:
            fix = "put its chat_template.jinja beside the tokenizer, or set chat_template in tokenizer_config.json"
            raise ValueError(f"the tokenizer has no chat template: {fix}")
        self.tokenizer, self._lists = tokenizer, lists
        known = tokenizer.get_vocab()
        # DeepSeek's distills do not mark `<｜User｜>` as special
        written = self._rendered([("user", TEXT), ("assistant", TEXT)]) + self._rendered([("user", TEXT)], add_generation_prompt=True)
        added = {
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or (token.content.startswith(("<", "[")) and token.content in written and token.content not in THOUGHT)
        }
        self._special = sorted({*tokenizer.all_special_tokens, *added, *NEVER_SAMPLED} & known.keys(), key=len, reverse=True)
        self.end_token_id: int = self._end_of_turn()
        self.banned_token_ids: tuple[int, ...] = tuple(sorted({known[token] for token in self._special} - {self.end_token_id}))
        self._has_system = self._takes_system()
        alone, after_nothing = [("user", TEXT)], [("system", [{"type": "text", "text": ""}]), ("user", TEXT)]
        self._adds_system = self._has_system and len(self._rendered(after_nothing)) < len(self._rendered(alone))

    def prompt(self, system: str, user: list[dict[str, str]]) -> str:
        """The text up to where the response begins. `user`: parts of type `text` or `image`. A template that puts in a system prompt of
        its own where there is none gets an empty one: the default would be 20 tokens of every prompt. One that has no place for system prompts gets
        it at the start of the user's message. A thought that the template opens is cut off again: the response opens its own."""
        user = [part | {"text": self._without_special_tokens(part["text"])} if part["type"] == "text" else part for part in user]
        system = self._without_special_tokens(system)
        if system and not self._has_system:
            user, system = [{"type": "text", "text": f"{system}\n\n"}, *user], ""
        first = [("system", [{"type": "text", "text": system}])] if system or self._adds_system else []
        return OPEN_THOUGHT.sub("", self._rendered([*first, ("user", user)], add_generation_prompt=True))

    def _rendered(self, turns: list[tuple[str, list[dict[str, str]]]], **options: Any) -> str:
        def content(parts: list[dict[str, str]]) -> Any:
            return parts if self._lists else "".join(part["text"] for part in parts)

        messages = [{"role": role, "content": content(parts)} for role, parts in turns]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=TODAY.strftime, **options))
        except (TemplateError, TypeError) as error:
            raise ValueError(f"its chat template fails: {one_line(error)}") from None

    def _end_of_turn(self) -> int:
        """The special token that the template writes after a response; without one, the tokenizer's end of text."""
        after = self._rendered([("user", TEXT), ("assistant", TEXT)]).rpartition("TEXT")[2].lstrip()
        ends = next((token for token in self._special if after.startswith(token)), self.tokenizer.eos_token)
        if ends is None:
            raise ValueError("the tokenizer has no token that ends a response: set eos_token in tokenizer_config.json")
        return int(self.tokenizer.convert_tokens_to_ids(ends))

    def _takes_system(self) -> bool:
        try:
            return self._rendered([("system", TEXT), ("user", TEXT)]).count("TEXT") == 2
        except ValueError:
            return False

    def _without_special_tokens(self, text: str) -> str:
        """Breaks up special tokens that are spelled out in a text: they would open a turn, or stand for a picture."""
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text
