"""Data sets: what is trained on is never what is measured on, and real files are read as they are."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from experiments.cold_start import demonstration, recorded_demonstrations, training_turns
from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets import load_dataset
from experiments.datasets.paper_sets import read_recorded_steps
from experiments.datasets.two_wiki import read_two_wiki
from experiments.train import check
from experiments.worlds.atlas import Atlas
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.build.from_passages import build_knowledge_base
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.knowledge_base import KnowledgeBaseError
from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError
from rewards.actor import RETRIEVERS
from rollout.config import RolloutConfig
from rollout.episode import EpisodeState, plan
from rollout.policies import load_policy
from rollout.records import OUTSIDE, Action, Question
from rollout.turn_parser import parse_answer, parse_plan

SHARED = Path(__file__).parents[3] / "../shared/data"
TWO_WIKI = SHARED / "2wiki_hipporag1000"
STEPS = SHARED / "r1router/grpo_dataset_valid_new.jsonl"
SMALL = EvaluationConfig(questions=16, validation_questions=8)
SMALL_SETTINGS = ["evaluation.questions=16", "evaluation.validation_questions=8"]

needs_two_wiki = pytest.mark.skipif(not TWO_WIKI.is_dir(), reason="the 2Wiki subset is not beside the repository")
needs_steps = pytest.mark.skipif(not STEPS.is_file(), reason="the recorded steps are not beside the repository")


def names(questions) -> set[str]:
    return {entity for q in questions for gold in q.gold_steps or () for entity in (*gold.entities, gold.answer) if "-" in entity}


def test_train_validation_and_held_out_worlds_share_no_names():
    data = load_dataset(DataConfig(worlds=1, train_questions=64), SMALL, {})
    parts = [names(part) for part in (data.train, data.validation, data.heldout)]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_training_knowledge_bases_hold_nothing_of_the_held_out_worlds():
    data = load_dataset(DataConfig(worlds=1, train_questions=16), SMALL, {})
    trained = " ".join(passage.text for source in data.training_kbs for passage in source.passages())
    measured = " ".join(passage.text for source in data.evaluation_kbs for passage in source.passages())
    for question in data.heldout:
        for gold in question.gold_steps or ():
            assert gold.answer.isdigit() or gold.answer not in trained
            assert gold.answer in measured
    ids = [passage.id for passage in data.evaluation_kbs[0].passages()]
    assert len(ids) == len(set(ids))


def test_one_in_ten_questions_of_an_evaluation_names_only_what_no_knowledge_base_holds():
    settings = DataConfig(worlds=1, train_questions=16)
    data = load_dataset(settings, EvaluationConfig(questions=72, validation_questions=36), {})
    held = " ".join(passage.text for source in (*data.training_kbs, *data.evaluation_kbs) for passage in source.passages())
    for part, count in ((data.validation, 36), (data.heldout, 72)):
        usual, outside = part[:count], part[count:]
        assert [question.family == OUTSIDE for question in part] == [False] * count + [True] * (count // 9)
        assert not any(question.answers or question.gold_steps for question in outside)
        assert all(question.image or re.findall(r"[A-Z]\w+-\w+", question.text) for question in outside)
        assert not any(name in held for question in outside for name in re.findall(r"[A-Z]\w+-\w+", question.text))
        assert all(question.answers for question in usual)
    alone = Atlas("heldout", settings.seed, settings.worlds, settings.countries).questions(72, settings.seed)
    assert data.heldout[:72] == alone  # the others are the same as without them


@pytest.mark.slow
def test_a_fourth_knowledge_base_is_a_line_of_configuration_and_the_prompt_lists_it(tmp_path: Path, ray_cluster, start_policy):
    card = {"retriever_name": "News Retriever", "description": "What happened yesterday.", "modality": "text"}
    build_knowledge_base([Passage("0", "It rained.")], tmp_path / "news", name="news", embedder_name="minilm", **card)
    data = load_dataset(DataConfig(worlds=1, train_questions=16), SMALL, {"news": str(tmp_path / "news")})
    for sources in (data.training_kbs, data.evaluation_kbs):
        assert [source.name for source in sources] == ["text", "text_image", "table", "news"]
    retriever = start_retrieval(RetrievalConfig(folders={"news": data.training_kbs[-1].ensure()}))
    retriever.close()
    policy, cards = load_policy(start_policy), {card.name: card for card in retriever.catalog}
    state = EpisodeState(Question("q", "?", ()), policy, cards, RolloutConfig(prompts="paper"), random.Random(0))
    assert "- News Retriever: What happened yesterday." in policy.tokenizer.decode(next(plan(state)).prompt_ids)
    said = "<think>news</think><sub-question>Did it rain?</sub-question><ret>News Retriever</ret>"
    assert parse_plan(said, state.retrievers) == Action("Did it rain?", "news")


def test_the_same_seed_gives_the_same_worlds_and_another_seed_another_folder():
    first, again, other = (load_dataset(DataConfig(worlds=1, train_questions=8, seed=seed), SMALL, {}) for seed in (0, 0, 1))
    assert first.train == again.train
    assert [source.folder for source in first.training_kbs] == [source.folder for source in again.training_kbs]
    assert first.training_kbs[0].folder != other.training_kbs[0].folder


def test_unknown_data_and_missing_paths_name_their_key():
    with pytest.raises(RunConfigError, match=r"data\.name is 'wiki'; expected one of atlas"):
        load_dataset(DataConfig(name="wiki"), SMALL, {})
    with pytest.raises(RunConfigError, match=r"data\.path is empty"):
        load_dataset(DataConfig(name="questions"), SMALL, {"text": "kbs/mine"})
    with pytest.raises(RunConfigError, match=r"data\.name is 'no_such_module:load': No module named"):
        load_dataset(DataConfig(name="no_such_module:load"), SMALL, {})
    with pytest.raises(RunConfigError, match=r"webqa_val\.jsonl is not there; set data\.path to where data\.name=webqa lies"):
        load_dataset(DataConfig(name="webqa", folder="nowhere"), SMALL, {})
    with pytest.raises(DataError, match=r"questions\.jsonl: no such file"):
        load_dataset(DataConfig(name="2wiki", path="nowhere"), SMALL, {})


def question_lines(folder: Path, n: int) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"id": f"q{i}", "text": f"What is {i}?", "answers": [str(i)]}) + "\n" for i in range(n)))
    return path


def test_questions_of_a_file_are_split_without_overlap(tmp_path: Path):
    path = question_lines(tmp_path, 40)
    data = load_dataset(DataConfig(name="questions", path=str(path)), SMALL, {"text": "kbs/mine"})
    parts = [{question.id for question in part} for part in (data.train, data.validation, data.heldout)]
    assert [len(part) for part in parts] == [16, 8, 16]
    assert len(set.union(*parts)) == 40
    assert data.training_kbs == data.evaluation_kbs


def test_too_few_questions_to_split_is_said_with_the_keys(tmp_path: Path):
    path = question_lines(tmp_path, 20)
    with pytest.raises(
        RunConfigError, match=r"its 16 held-out and 4 validation questions are all there are; lower evaluation\.questions or"
    ):
        check(["data.name=questions", f"data.path={path}", "retrieval.folders.text=kbs/mine", *SMALL_SETTINGS])


def test_an_evaluation_asks_every_question_of_a_short_file(tmp_path: Path):
    path = str(question_lines(tmp_path, 12))
    for given in ({"path": path}, {"heldout_path": path}):
        data = load_dataset(DataConfig(name="questions", **given), EvaluationConfig(), {"text": "kbs/mine"})
        assert {question.id for question in data.heldout} == {f"q{i}" for i in range(12)}
        assert not data.notes


def test_what_a_run_is_measured_on_stays_the_same_when_it_is_evaluated_again(tmp_path: Path):
    path = question_lines(tmp_path, 40)
    trained, evaluated = (
        load_dataset(DataConfig(name="questions", path=str(path), train_questions=count), SMALL, {"text": "kbs/mine"}) for count in (16, 1)
    )
    assert trained.heldout == evaluated.heldout


def test_held_out_questions_that_are_trained_on_are_said(tmp_path: Path):
    path, other = question_lines(tmp_path, 40), tmp_path / "other"
    other.mkdir()
    for heldout, shared in ((path, 16), (question_lines(other, 4), 4)):
        data = load_dataset(DataConfig(name="questions", path=str(path), heldout_path=str(heldout)), SMALL, {"text": "kbs/mine"})
        (note,) = data.notes
        assert note.startswith(f"{shared} of the {shared} questions of data.heldout_path={heldout} are also in data.path={path}: ")
    (other / "questions.jsonl").write_text('{"text": "another", "answers": ["a"]}\n')
    assert not load_dataset(
        DataConfig(name="questions", path=str(path), heldout_path=str(other / "questions.jsonl")), SMALL, {"t": "k"}
    ).notes


def test_a_knowledge_base_folder_without_its_manifest_is_refused_before_anything_starts(tmp_path: Path):
    data = load_dataset(DataConfig(name="questions", path=str(question_lines(tmp_path, 40))), SMALL, {"text": str(tmp_path)})
    with pytest.raises(KnowledgeBaseError, match=r"kb\.json") as caught:
        data.training_kbs[0].check()
    assert "\n" not in str(caught.value)


@needs_two_wiki
def test_two_wiki_questions_get_gold_steps_from_their_evidence():
    questions, gold = read_two_wiki(TWO_WIKI)
    assert len(questions) == 1000
    first = questions[0]
    assert [step.query for step in first.gold_steps] == [
        "Who is the mother of Lothair II?",
        "When did Ermengarde of Tours die?",
    ]
    assert first.gold_steps[1].answer == "20 March 851"
    assert gold[first.id] == ("4", "5")


@needs_two_wiki
def test_two_wiki_is_one_text_knowledge_base():
    data = load_dataset(DataConfig(name="2wiki", path=str(TWO_WIKI)), SMALL, {})
    assert [source.name for source in data.training_kbs] == ["text"]
    assert sum(1 for _ in data.training_kbs[0].passages()) == 6119
    assert len(data.train) + len(data.validation) + len(data.heldout) == 1000


@needs_steps
def test_every_recorded_turn_of_the_published_file_is_read():
    trajectories, missing = read_recorded_steps(STEPS)
    assert (len(trajectories), missing) == (119, 34)
    turns = [turn for trajectory in trajectories for turn in trajectory]
    assert Counter(turn.kind for turn in turns) == {"plan": 346, "answer": 293, "final": 119}
    by_kb = {
        kb: sum(turn.kind == "plan" and "".join(turn.target.kbs) == kb for turn in turns) for kb in ("text", "table", "text_image", "")
    }
    assert by_kb == {"text": 173, "table": 85, "text_image": 35, "": 53}
    assert not any("<image>" in turn.user for turn in turns)
    assert turns[0].question.text == "When was the director of film Strangler Of The Swamp born?"
    assert turns[-1].question.answers


@needs_steps
def test_whole_recorded_trajectories_are_held_out():
    data = load_dataset(DataConfig(name="recorded_steps", path=str(STEPS)), SMALL, {})
    lines = [{turn.question.id.split("#")[0] for turn in part} for part in (data.train, data.validation, data.heldout)]
    assert not lines[0] & lines[1]
    assert not lines[0] & lines[2]
    assert len(data.heldout) >= 16


@needs_steps
def test_recorded_turns_are_demonstrated_in_their_format_and_held_out_ones_never(tmp_path: Path):
    configuration = tmp_path / "offline.yaml"
    configuration.write_text(f"data: {{name: recorded_steps, path: {STEPS}}}\nrollout: {{mode: offline}}\nevaluation: {{questions: 60}}\n")
    turns = training_turns(str(configuration))
    heldout = load_dataset(DataConfig(name="recorded_steps", path=str(STEPS)), EvaluationConfig(questions=60), {}).heldout
    assert not {turn.question.id for turn in turns} & {turn.question.id for turn in heldout}
    for turn in turns:
        shown = demonstration(turn)
        if turn.kind == "plan":
            action = parse_plan(shown.response, RETRIEVERS)
            assert action is not None
            assert (action.kb or "") == "".join(turn.target.kbs)
        else:
            assert parse_answer(shown.response) == turn.target.answer
    first = list(itertools.islice(recorded_demonstrations(turns), 2 * len(turns)))
    assert {turn.message for turn in first[: len(turns)]} == {turn.message for turn in first[len(turns) :]}


def test_a_recorded_line_of_another_form_is_named_by_file_and_line(tmp_path: Path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"images": [], "steps": [{"step_type": "ret", "problem": "q", "system": "s", "answer": "text"}]}\n')
    with pytest.raises(DataError, match=r"steps\.jsonl:1: not a recorded trajectory"):
        read_recorded_steps(path)
