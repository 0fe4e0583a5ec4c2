"""A run with thousands of episodes of a made-up world, as large as a report has to bear."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from experiments.config import TrainConfig
from experiments.tracking.run_folder import RunFolder
from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from retrieval_actors.records import Passage
from rollout.records import (
    Action,
    Exchange,
    GoldStep,
    Image,
    PlanValues,
    QueryValues,
    Question,
    ScoredTurn,
    State,
    Step,
    Trajectory,
    Turn,
    TurnGroup,
    TurnReward,
)

KBS = {"text": "Text Retriever", "text_image": "Text Image Retriever", "table": "Table Retriever"}
WORDS = (
    "river harbour mountain railway treaty census dialect orchard museum glacier parliament copper ferry archive saffron lighthouse "
    "province observatory canal cathedral festival quarry delta peninsula botanist senate viaduct granary monsoon abbey"
).split()
ATTACK = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">'


class World:
    """Passages, pictures and episodes, all of one seed."""

    def __init__(self, seed: int = 0):
        self.random = np.random.default_rng(seed)
        self.pictures = [self.picture() for _ in range(120)]
        self.passages = {kb: [self.passage(kb, i) for i in range(700)] for kb in KBS}

    def words(self, count: int) -> str:
        return " ".join(self.random.choice(WORDS, count))

    def picture(self) -> bytes:
        data = io.BytesIO()
        bands = np.repeat(self.random.integers(0, 255, (6, 1, 3)), 8, 0).repeat(64, 1).astype(np.uint8)
        PillowImage.fromarray(bands).save(data, "PNG")
        return data.getvalue()

    def passage(self, kb: str, number: int) -> Passage:
        if kb == "table":
            text = f"{self.words(1)} statistics | " + " | ".join(
                f"{name} {self.random.integers(1, 999)}" for name in ("year", "people", "area")
            )
        else:
            text = f"The {self.words(1)} of {self.words(2)} {number} lies by the {self.words(22)}."
        image = self.pictures[number % len(self.pictures)] if kb == "text_image" else None
        return Passage(f"{kb}-{number}", text, image=image, kb=kb, score=0.8, title=self.words(2).title() if kb == "text" else "")

    def group(self, question: Question, kind: str, right: str, wrong: str, siblings: int) -> TurnGroup:
        ids = self.random.integers(0, 999, 12).astype(np.int32)
        texts = [right if i == 0 or self.random.random() < 0.6 else wrong for i in range(siblings)]
        turns = tuple(
            Turn(kind, np.array([i, len(text)], np.int32), np.zeros(2, np.float32), "stop", 7, text) for i, text in enumerate(texts)
        )
        return TurnGroup(State(kind, ids, question.image, question), turns)

    def episode(self, number: int, siblings: int = 1) -> Trajectory:
        family = ("text", "table", "image_text", "image_table")[number % 4]
        first = {"text": "text", "table": "table"}.get(family, "text_image")
        kbs = [first] if family in KBS else [first, family.removeprefix("image_")]
        image = Image.of(self.pictures[number % len(self.pictures)]) if family not in KBS else None
        answer = self.words(1)
        gold = tuple(GoldStep(f"what is the {self.words(3)} {number}?", kb, answer) for kb in kbs)
        question = Question(f"q{number}", f"Which {self.words(5)} is nearest to {self.words(2)} {number}?", (answer,), image, gold, family)
        steps, groups = [], []
        for need in gold:
            asked = need.kbs[0] if self.random.random() < 0.8 else "text"
            plan = f"<think>I need the {self.words(4)}.</think><sub-question>{need.query}</sub-question><ret>{KBS[asked]}</ret>"
            other = f"<think>Perhaps.</think><sub-question>{self.words(3)}?</sub-question><ret>Table Retriever</ret>"
            read = f"<think>{self.words(10)}</think><answer>{answer}</answer>"
            passages = tuple(self.passages[asked][i] for i in self.random.integers(0, 700, 3))
            brought = [(answer, 0.96) if kb in need.kbs else ("unknown", -0.02) for kb in KBS]
            routes = PlanValues(tuple(KBS), (QueryValues(need.query, *zip(*brought, strict=True), 0.0),), 0.0, 5, 2, 3, 0, 90)
            groups.append(replace(self.group(question, "plan", plan, other, siblings), values=routes if siblings > 1 else None))
            groups.append(self.group(question, "answer", read, "<think></think><answer>unknown</answer>", siblings))
            exchange = Exchange(need.query, asked, answer)
            steps.append(Step(groups[-2].chosen, Action(need.query, asked), passages, groups[-1].chosen, exchange))
        stop = "<think>I know enough.</think><sub-question>None</sub-question><ret>None</ret>"
        groups.append(self.group(question, "plan", stop, "what?", siblings))
        steps.append(Step(groups[-1].chosen, Action("", None)))
        said = answer if self.random.random() < 0.7 else self.words(2)
        groups.append(self.group(question, "final", f"<think>So.</think><answer>{said}</answer>", "<think>So</think>", siblings))
        return Trajectory(question, tuple(steps), groups[-1].chosen, said, tuple(groups), 0.4)


def scored(trajectories: list[Trajectory]) -> list[ScoredTurn]:
    """Every sibling that says what the first one says earns 1, the others 0.25."""
    return [
        ScoredTurn(
            group.state.key,
            group.state.prompt_ids,
            None,
            turn,
            TurnReward(total := 1.0 if turn.text == group.turns[0].text else 0.25, {"routing": total}),
            trajectory.question.id,
            1.0,
            trajectory.question.id,
        )
        for trajectory in trajectories
        for group in trajectory.groups
        for turn in group.turns
    ]


def large_run(folder: Path, heldout: int = 2350, learned: int = 300) -> RunFolder:
    """`heldout` episodes before and after training, and `learned` with eight siblings at every turn; the first text of one is an attack."""
    run, world = RunFolder.start(TrainConfig(name="large", runs_folder=str(folder))), World()
    for name in ("before", "after"):
        made = [world.episode(number) for number in range(heldout)]
        run.write_trajectories(name, made, turns=scored(made))
    made = [world.episode(number, siblings=8) for number in range(learned)]
    turns = scored(made)
    run.write_trajectories("iteration-000040", made, turns=turns, advantages=turn_advantages(turns, LearnerConfig()).advantages)
    return run
