"""A text policy in a house with pictures: it reads a mark, its retriever gets the picture, and turns about two pictures are never compared."""

from __future__ import annotations

from dataclasses import replace

from policy_families import saved_family
from scripted import Card, Library, Script
from test_policy_families import picture

from experiments.worlds.teacher import answer_response, plan_response
from retrieval_actors.records import Passage
from rollout.config import RolloutConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import load_policy
from rollout.policies.policy import PICTURE
from rollout.records import Question
from rollout.roll_out import roll_out


class Flags(Library):
    """Knows every flag by its caption, and only by the picture."""

    catalog = (Card("text_image", "Text Image Retriever", "flags", "text_image"),)

    def __init__(self, captions):
        super().__init__()
        self.captions, self.pictures = captions, []

    def search_routed(self, asked, k):
        self.pictures += [query.image for _, query in asked]
        return [[Passage("p", self.captions[query.image], kb=kb)] for kb, query in asked]


def say(kind, prompt, sibling):
    if kind == "plan":
        asks = "Sub-question 1" not in prompt
        return plan_response("t", "Which country has this flag?" if asks else "None", "Text Image Retriever" if asks else "None")
    return answer_response("t", "Kormu" if "The flag of Kormu." in prompt else "Belsi" if "The flag of Belsi." in prompt else "unknown")


def test_it_routes_to_the_picture_knowledge_base_and_reads_captions():
    policy, shown = load_policy(saved_family("smollm2")), [picture(1), picture(2)]
    questions = [
        Question(f"q{i}", "Which country has this flag?", (name,), image)
        for i, (name, image) in enumerate(zip(("Kormu", "Belsi"), shown, strict=True))
    ]
    flags, engine = Flags({shown[0].data: "The flag of Kormu.", shown[1].data: "The flag of Belsi."}), Script(policy, say)
    config = RolloutConfig(group_size=2)
    found = roll_out(questions, engine, flags, config, seed=0)
    assert [trajectory.steps[0].exchange.answer for trajectory in found] == ["Kormu", "Belsi"]
    assert set(flags.pictures) == {image.data for image in shown}
    plans = [prompt for prompt in engine.prompts if "Next step?" in prompt]
    assert plans
    assert all(f"{PICTURE}\nWhich country has this flag?" in prompt for prompt in plans)
    assert any("[1] The flag of Kormu." in prompt for prompt in engine.prompts)
    first = [trajectory.groups[0].state for trajectory in found]
    assert first[0].prompt_ids.tolist() == first[1].prompt_ids.tolist()
    assert first[0].key != first[1].key


def test_its_own_engine_runs_whole_episodes_with_pictures():
    policy, shown = load_policy(saved_family("llama")), picture(1)
    asked = Question("q", "Which country has this flag?", ("Kormu",), shown)
    config = replace(RolloutConfig(), group_size=3, max_new_tokens=8, routing="all")
    (trajectory,) = roll_out([asked], TransformersEngine(policy), Flags({shown.data: "The flag of Kormu."}), config, seed=0)
    assert not trajectory.error
    assert trajectory.final is not None
