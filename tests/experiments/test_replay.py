"""`r1-router replay`: a recorded run under other rewards, and in other knowledge bases."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from episodes import CAPITAL, RETRIEVERS, STOP, episode, malformed, question, step, stop, turn
from made_run import begun, config_in

from experiments.config import load_config
from experiments.evaluation.recorded_episodes import recorded_episode, retriever_names
from experiments.evaluation.score_again import Embedding, disagreements, score_again, search_again
from experiments.replay import main
from experiments.tracking.run_folder import RunFolder
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.records import Passage
from rewards.actor import RETRIEVERS as NAMES
from rewards.actor import batched_similarity, score_trajectory, texts_to_compare
from rewards.config import RewardConfig
from rollout.records import PlanValues, QueryValues, State, Trajectory, TurnGroup

ELSEWHERE = f"<think>x</think><sub-question>{CAPITAL.query}</sub-question><ret>Table Retriever</ret>"


def with_groups(trajectory: Trajectory, number: int, plans: tuple[str, ...] = (), finals: tuple[str, ...] = ()) -> Trajectory:
    """Its turns in groups; `plans` and `finals`: further siblings of the first plan turn and of the final turn."""
    groups, history = [], ()

    def add(kind, first, others, **read):
        prompt = np.array([number, len(groups)], np.int32)
        turns = (first, *(turn(kind, text) for text in others))
        groups.append(TurnGroup(State(kind, prompt, None, trajectory.question, history, **read), turns))

    for place, found in enumerate(trajectory.steps):
        add("plan", found.plan, () if place else plans)
        if found.exchange:
            add("answer", found.answer, (), query=found.action.query, kb=found.action.kb, passages=found.passages)
            history += (found.exchange,)
    add("final", trajectory.final, finals)
    return dataclasses.replace(trajectory, groups=tuple(groups))


def said(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.fixture(scope="module")
def embedding():
    return Embedding("minilm")


def scored(trajectories, embedding, config: RewardConfig):
    texts = [text for trajectory in trajectories for text in texts_to_compare(trajectory, NAMES, config)]
    similarity = batched_similarity(texts, embedding)
    return [found for trajectory in trajectories for found in score_trajectory(trajectory, similarity, config, NAMES)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, embedding) -> RunFolder:
    """A run in branch mode: an iteration with siblings, and the episodes after training."""
    folder = begun(config_in(tmp_path_factory.mktemp("run"), "recorded"))
    siblings = [
        with_groups(
            episode(question(0), step("text", "Tasla"), stop(), answer="Tasla"), 0, (STOP, ELSEWHERE, "Tasla!"), (said("Runo"),) * 2
        ),
        with_groups(episode(question(1), step("table", "unknown"), step("text", "Runo"), stop(), answer="Runo"), 1, (STOP, STOP)),
    ]
    after = [
        with_groups(episode(question(number), step("text", "Tasla"), stop(), answer="Tasla & <b>sons</b>" if number else ""), number)
        for number in (2, 3)
    ] + [with_groups(episode(question(4), malformed(), answer="Runo"), 4)]
    for name, trajectories in (("iteration-000001", siblings), ("after", after)):
        folder.write_trajectories(name, trajectories, (), scored(trajectories, embedding, RewardConfig()))
    return folder


def recorded(run: RunFolder, name: str, trunk_only: bool = False):
    return [recorded_episode(name, row, trunk_only) for row in run.read_trajectories(name)]


@pytest.mark.parametrize(("name", "trunk_only"), [("iteration-000001", False), ("iteration-000001", True), ("after", True)])
def test_under_its_own_reward_a_run_is_paid_what_it_was_paid(run, embedding, name, trunk_only):
    found = list(score_again(recorded(run, name, trunk_only), RewardConfig(), NAMES, embedding))
    assert {turn.kind for turn in found} == {"plan", "answer", "final"}
    assert len({turn.paid for turn in found}) > 1
    for each in found:
        assert (each.paid is None) == (each.again is None), each
        assert each.again is None or each.again.total == pytest.approx(each.paid, abs=1e-4)
    assert disagreements(found, 10) == []


def test_equal_siblings_count_as_often_as_they_were_sampled(run, embedding):
    found = score_again(recorded(run, "iteration-000001"), RewardConfig(), NAMES, embedding)
    assert [turn.times for turn in found if turn.kind == "final" and turn.text == said("Runo") and turn.question.id == "q0"] == [2]
    assert sum(turn.times for turn in score_again(recorded(run, "iteration-000001"), RewardConfig(), NAMES, embedding)) == 17


def test_another_reward_prefers_another_sibling_and_the_page_says_which(run, capsys):
    assert main([str(run.path), "reward.terms.retrieval_cost=1", "reward.terms.step={final: 1.0}"]) == 0
    told = capsys.readouterr().out
    plans = next(line for line in told.splitlines() if "iteration-000001" in line and "plan" in line)
    assert "2 of 2 groups" in plans  # stopping at once earns most
    assert "Where the two disagree most" in told
    page = (run.path / "replay.html").read_text()
    assert "retrieval_cost -1.00" in page
    assert "What is the capital of Kormu? → Table Retriever" in page
    assert "sub-question" not in page
    assert "<b>" not in page


def test_terms_that_need_the_rest_of_the_episode_are_scored_along_its_trunk(run, capsys):
    assert main([str(run.path), "episodes=[iteration-000001]", "reward.terms.outcome=1"]) == 0
    plans = next(line for line in capsys.readouterr().out.splitlines() if "iteration-000001" in line and "plan" in line)
    cells = [cell.strip() for cell in plans.split("│")]
    assert "0.400" in cells  # of five plan turns two led to the right answer


def test_what_routes_would_have_brought_is_stored_and_paid_again(tmp_path, embedding):
    made = with_groups(episode(question(0), step("text", "Tasla"), stop(), answer="Tasla"), 0, (ELSEWHERE, STOP))
    query = QueryValues(CAPITAL.query, ("Tasla", "unknown"), (0.96, -0.02), 0.0)
    valued = dataclasses.replace(made.groups[0], values=PlanValues(("text", "table"), (query,), 0.0, 4, 1, 3, 0, 50))
    made = dataclasses.replace(made, groups=(valued, *made.groups[1:]))
    config, folder = RewardConfig(terms={"query_value": 1.0, "route_regret": 1.0}), begun(config_in(tmp_path, "valued"))
    folder.write_trajectories("iteration-000001", [made], (), scored([made], embedding, config))
    again = list(score_again(recorded(folder, "iteration-000001"), config, NAMES, embedding))
    assert [turn.paid for turn in again[:3]] == pytest.approx([0.96, 0.0, -0.02])
    assert [turn.both == (turn.paid, pytest.approx(turn.paid)) for turn in again[:3]] == [True] * 3


def knowledge_base(folder: Path, *texts: str) -> str:
    passages = [Passage(f"n{number}", text) for number, text in enumerate(texts)]
    vectors = build_embedder("minilm").embed_passages(passages)
    names = {"name": "text", "retriever_name": "Text Retriever", "description": "Facts.", "modality": "text", "embedder": "minilm"}
    write_knowledge_base(folder, passages=passages, vectors=vectors, shards=2, **names)
    return str(folder)


def test_the_same_queries_are_searched_again_in_another_knowledge_base(run, tmp_path):
    right = knowledge_base(tmp_path / "right", "Deep is the sea.", "The capital of Kormu is Tasla.", "Runo sings.")
    wrong = knowledge_base(tmp_path / "wrong", "Deep is the sea.", "The capital of Mola is Tasla.", "Runo sings.")
    episodes = recorded(run, "after", True)
    kept, found = search_again(episodes, {"text": right}, 2)
    assert [(search.held_before, search.holds_now) for search in found] == [(True, True)] * 2
    assert [(search.now[0].text, len(search.now)) for search in found] == [("The capital of Kormu is Tasla.", 2)] * 2
    assert all(passage.kb == "text" for search in found for passage in search.now)
    lost, found = search_again(episodes, {"text": wrong}, 2)
    assert [(search.held_before, search.holds_now, search.same_first) for search in found] == [(True, False, False)] * 2
    evidence = RewardConfig(terms={"new_evidence": 1.0})
    paid = [
        [t.again.total for t in score_again(some, evidence, NAMES, Embedding("minilm")) if t.kind == "plan" and t.again]
        for some in (kept, lost)
    ]
    assert (max(paid[0]), max(paid[1])) == (1.0, 0.0)
    answers = [sum(group.state.kind == "answer" for e in some for group in e.trajectory.groups) for some in (episodes, lost)]
    assert answers == [2, 0]  # nobody has read the new passages


def test_the_command_tells_which_searches_lost_the_answer(run, tmp_path, capsys):
    wrong = knowledge_base(tmp_path / "wrong", "Deep is the sea.", "The capital of Mola is Tasla.")
    assert main([str(run.path), f"retrieval.folders.text={wrong}"]) == 0
    told = capsys.readouterr().out
    assert "4 answer turns that read others are not scored" in told
    assert "Searches that gained or lost the answer" in told
    assert "<td class=''>The capital of Mola is Tasla.</td>" in (run.path / "replay.html").read_text()


def test_a_retriever_name_is_that_of_the_run(run):
    rows = run.read_trajectories("after")
    assert retriever_names(rows, ["text", "table"], NAMES) == {"Text Retriever": "text", "Table Retriever": "table"}
    assert retriever_names([], [], NAMES) == {name: kb for kb, name in RETRIEVERS.items()}
    mine = [{"steps": [{"kb": "laws", "plan": "<think>x</think><sub-question>y</sub-question><ret> The Laws </ret>"}]}]
    assert retriever_names(mine, ["laws"], NAMES) == {"The Laws": "laws"}
    moved = rows[0] | {"steps": [rows[0]["steps"][0] | {"kb": "table"}]}  # after its values: the best route, which the text does not name
    assert retriever_names([moved, *rows], [], NAMES) == NAMES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "replay with what? Expected reward.terms.NAME=WEIGHT"),
        (["reward.terms.kindness=1"], "reward.terms.kindness: no such reward; expected MODULE:FUNCTION or one of step, routing"),
        (["reward.terms.information_gain=1"], "reward.terms.information_gain: it asks the policy, which a replay does not load"),
        (["reward.terms.route_regret=1"], "reward.terms.route_regret: the run measured no values of routes"),
        (["rewards.terms.routing=1"], "unknown key rewards; did you mean reward?"),
        (["reward.terms.routing=1", "episodes=[befor]"], "episodes is 'befor'; expected some of after, iteration-000001"),
        (["retrieval.folders.laws=kbs/laws"], "retrieval.folders.laws: no recorded search went there; the run searched table, text"),
        (["retrieval.folders.text=kbs/nowhere"], "kbs/nowhere"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_a_line(run, capsys, settings, message):
    assert main([str(run.path), *settings]) in (1, 2)
    told = capsys.readouterr().out
    assert message in " ".join(told.split())
    assert "traceback" not in told


def test_a_run_that_kept_no_trajectories_says_so(tmp_path, capsys):
    folder = begun(config_in(tmp_path, "empty"))
    assert main([str(folder.path), "reward.terms.routing=1"]) == 2
    assert "the run kept no trajectories" in capsys.readouterr().out
    assert main([]) == 2
    assert "which run? r1-router replay RUN" in capsys.readouterr().out
    assert load_config([str(folder.path / "config.yaml")]).name == "empty"
