"""Chats of several turns: a follow-up ("and its currency?") is first put into one question that stands alone, in a turn of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from rollout.episode import Episode, EpisodeState, choose_trunk
from rollout.need_matcher import mentions, names_in
from rollout.records import UNKNOWN, Message

ONE_EARLIER = "Question: {}\nAnswer: {}\n"
SYSTEM = """You put the last question of a chat into words that need no other part of the chat: names instead of it, its, there. \
Do not answer it. A question that stands alone stays as it is.

Write exactly:
<think>what the last question means</think><question>the question that stands alone</question>

Question: Who wrote Emma?
Answer: Jane Austen
Question: And where was she born?
<think>she is Jane Austen</think><question>Where was Jane Austen born?</question>"""
REWRITTEN = re.compile(r"\s*(?:<think>.*?</think>)?\s*<question>([^<]*\S[^<]*)</question>\s*", re.S)


def follow_up(ep: EpisodeState, earlier: Sequence[tuple[str, str]], run: Callable[[EpisodeState], Episode]) -> Episode:
    """The episode of a question behind `earlier` ones, each with its answer: a rewrite turn, then `run` with the question in its new words."""
    asked = ep.question.text
    chat = "".join(ONE_EARLIER.format(question, answer or UNKNOWN) for question, answer in earlier)
    state = ep.turn_state("rewrite", Message(SYSTEM, f"{chat}Question: {asked}", ep.pictured))
    group, found = choose_trunk((yield state), ep.rng, lambda text: parse_rewrite(text, asked, chat))
    ep.groups.append(group)
    ep.question = replace(ep.question, text=found or asked)
    return (yield from run(ep))


def parse_rewrite(text: str, asked: str, chat: str) -> str | None:
    """The question that stands alone; None when the turn is malformed, loses a name of the question that was `asked`, or brings one in that stands
    neither there nor in the `chat`: then it is another question."""
    match = REWRITTEN.fullmatch(text)
    found = match[1].strip() if match else ""
    kept = mentions(found, names_in(asked)) == 1 and mentions(chat + asked, names_in(found)) == 1
    return found if found and kept else None
