"""`hotpotqa`, `2wikimultihopqa` and `musique`, as published: questions with the paragraphs that they were written about.

The knowledge base is made of the paragraphs of all questions that are drawn (training, validation, held-out), each once; with `retrieval.folders`
it is not made. MuSiQue's decompositions and 2Wiki's evidence become gold steps; plan turns of HotpotQA are not judged. Gold passages are the
supporting paragraphs. Records with `golden_answers` (Search-R1, FlashRAG) bring no paragraphs and no gold."""

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, KnowledgeBaseSource
from experiments.datasets.open_domain import drawn, open_question, published_records, question_files
from experiments.datasets.two_wiki import gold_query
from retrieval_actors.knowledge_base import FORMAT
from retrieval_actors.records import Passage
from rollout.records import GoldStep, Question

CARD = ("Text Retriever", "paragraphs of encyclopedia articles about people, places, works and events")
REFERENCE = re.compile(r"#(\d+)")  # "When was #1 founded?": the answer of the first step
Paragraphs = list[tuple[Passage, bool]]  # with whether it supports the answer


def load_multi_hop(name: str, data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    files, gold = question_files(name, data), dict[str, tuple[str, ...]]()

    def question(where: str, record: dict[str, Any]) -> Question | None:
        if "golden_answers" in record:
            return open_question(name, where, record)
        made = SETS[name][0](record)
        gold[made.id] = tuple(dict.fromkeys(passage.id for passage, supports in SETS[name][1](record) if supports))
        return made

    splits = drawn(files, data, evaluation, question)
    asked = {made.id for part in splits for made in part}
    checksum = zlib.crc32(repr([FORMAT, *(file.stat().st_size for file in files), *sorted(asked)]).encode())
    folder = Path(data.kb_folder) / f"{name}-{checksum:08x}" / "text"  # other questions are built into another folder
    source = KnowledgeBaseSource("text", folder, *CARD, partial(paragraphs_of, name, files, asked))
    sources = (source,) if gold else ()
    return Dataset(*splits, sources, sources, {id: found for id, found in gold.items() if id in asked and found})


def paragraphs_of(name: str, files: Sequence[Path], asked: set[str]) -> list[Passage]:
    """The paragraphs of these questions, each once."""
    records = (record for file in files for _, record in published_records(file))
    mine = (record for record in records if "golden_answers" not in record and _id(record) in asked)
    return list({passage.id: passage for record in mine for passage, _ in SETS[name][1](record) if passage.text}.values())


def _id(record: dict[str, Any]) -> str:
    return str(record["_id"] if "_id" in record else record["id"])


def _passage(title: str, text: str) -> Passage:
    """Its id is a hash: MuSiQue has several paragraphs of one article."""
    return Passage(hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16], text, title)


def _hotpot_question(record: dict[str, Any]) -> Question:
    found = tuple(GoldStep(gold_query(link, about), "text", target, (about,)) for about, link, target in record.get("evidences", ()))
    return Question(_id(record), record["question"], (record["answer"],), None, found or None, record.get("type", ""))


def _hotpot_paragraphs(record: dict[str, Any]) -> Paragraphs:
    """`context` is [[title, [sentence, ...]], ...], or as the hub has it: {title: [...], sentences: [...]}. A supporting paragraph that is not
    in the context (of the fullwiki setting) counts as one that no search finds."""
    context, facts = record["context"], record["supporting_facts"]
    hub = isinstance(context, dict)
    titled = dict(zip(context["title"], context["sentences"], strict=True) if hub else context)
    supporting = set(facts["title"] if hub else [title for title, _ in facts])
    found = [(_passage(title, "".join(sentences).strip()), title in supporting) for title, sentences in titled.items()]
    return found + [(_passage(title, ""), True) for title in sorted(supporting - titled.keys())]


def _musique_question(record: dict[str, Any]) -> Question:
    if record.get("answerable") is False:
        raise ValueError("the question has no answer in its paragraphs; expected musique_ans, not musique_full")
    answers = tuple(dict.fromkeys((record["answer"], *record.get("answer_aliases", ()))))
    steps = musique_steps(record["question_decomposition"])
    return Question(_id(record), record["question"], answers, None, steps, _id(record).partition("__")[0])


def _musique_paragraphs(record: dict[str, Any]) -> Paragraphs:
    return [(_passage(part["title"], part["paragraph_text"]), part["is_supporting"]) for part in record["paragraphs"]]


def musique_steps(decomposition: Sequence[dict[str, Any]]) -> tuple[GoldStep, ...] | None:
    """A gold step for each part (a question, or "subject >> relation"), `#1` being the first answer. None where a part names a later one."""
    steps: list[GoldStep] = []
    for part in decomposition:
        named = [int(number) for number in REFERENCE.findall(part["question"])]
        if any(not 0 < number <= len(steps) for number in named):
            return None
        answers = tuple(dict.fromkeys(steps[number - 1].answer for number in named))
        asked = REFERENCE.sub(lambda found: steps[int(found[1]) - 1].answer, part["question"]).strip()
        subject, arrow, relation = asked.partition(" >> ")
        query, entities = (gold_query(relation.strip(), subject), (subject,)) if arrow else (asked, answers)
        steps.append(GoldStep(query, "text", part["answer"], entities))
    return tuple(steps) or None


SETS: dict[str, tuple[Callable[[dict[str, Any]], Question], Callable[[dict[str, Any]], Paragraphs]]] = {
    "hotpotqa": (_hotpot_question, _hotpot_paragraphs),
    "2wikimultihopqa": (_hotpot_question, _hotpot_paragraphs),
    "musique": (_musique_question, _musique_paragraphs),
}
MULTI_HOP = {name: partial(load_multi_hop, name) for name in SETS}
