from __future__ import annotations

from retrieval_actors.records import Passage
from rollout.needs import askable_needs, asks_for, entities, holds_answer, remaining_needs
from rollout.records import Exchange, GoldStep

COUNTRY = GoldStep("Which is the country whose currency is Bo-la?", "text", "Kor-mu", ("currency", "Bo-la"))
CAPITAL = GoldStep("What is the capital of Kor-mu?", "text", "Da-vel", ("capital", "Kor-mu"))
FLAG = GoldStep("Which country has the flag with red white green vertical stripes?", "text_image", "Kor-mu")


def heard(gold: GoldStep, answer: str, query: str = "") -> Exchange:
    return Exchange(query or gold.query, gold.kb, answer)


def test_a_need_is_met_when_it_was_asked_and_something_came_back():
    assert remaining_needs([COUNTRY, CAPITAL], []) == [COUNTRY, CAPITAL]
    assert remaining_needs([COUNTRY, CAPITAL], [heard(COUNTRY, "unknown")]) == [COUNTRY, CAPITAL]
    assert remaining_needs([COUNTRY, CAPITAL], [heard(COUNTRY, "Kor-mu")]) == [CAPITAL]
    assert remaining_needs([COUNTRY, CAPITAL], [heard(COUNTRY, "Kor-mu"), heard(CAPITAL, "Da-vel")]) == []


def test_a_wrong_reading_counts_as_met_because_the_policy_cannot_see_that_it_is_wrong():
    (need,) = remaining_needs([COUNTRY, CAPITAL], [heard(COUNTRY, "Lo-fan")])
    assert (need.query, need.entities) == ("What is the capital of Lo-fan?", ("capital", "Lo-fan"))
    assert remaining_needs([COUNTRY, CAPITAL], [heard(COUNTRY, "Lo-fan"), heard(need, "Mi-ro")]) == []


def test_asking_for_another_name_or_another_relation_meets_nothing():
    assert not asks_for("What is the capital of Kor-ma?", CAPITAL)
    assert not asks_for("What is the leader of Kor-mu?", CAPITAL)
    assert not asks_for("Kor-mu capital", CAPITAL)
    assert asks_for("what is the capital of Kor-mu", CAPITAL)


def test_a_colour_taken_for_another_is_no_reason_to_ask_again():
    assert asks_for("Which country has the flag with red white blue vertical stripes?", FLAG)


def test_a_need_that_waits_for_the_answer_of_another_cannot_be_asked_yet():
    assert askable_needs([COUNTRY, CAPITAL], []) == [COUNTRY]
    assert askable_needs([COUNTRY, CAPITAL], [heard(COUNTRY, "Lo-fan")])[0].query == "What is the capital of Lo-fan?"
    one, other = (
        GoldStep(f"What was the area of {c} in 1990?", "table", a, ("area", c, "1990")) for c, a in (("A-ba", "10"), ("B-bo", "20"))
    )
    assert askable_needs([one, other], []) == [one, other]
    assert askable_needs([one, other], [heard(other, "20")]) == [one]


def test_the_same_exchange_meets_one_need_only():
    assert len(remaining_needs([CAPITAL, CAPITAL], [heard(CAPITAL, "Da-vel")])) == 1


def test_entities_are_the_names_and_numbers_of_the_gold_query():
    assert entities(GoldStep("Who directed Strangler of the Swamp in 1946?", "text", "x")) == ("Strangler", "Swamp", "1946")
    assert entities(CAPITAL) == ("capital", "Kor-mu")


def test_a_passage_holds_an_answer_when_it_names_what_was_asked_and_the_answer_as_whole_words():
    def holds(text: str, kb: str = "text", error: str = "") -> bool:
        return holds_answer(Passage("1", text, kb=kb, error=error), CAPITAL)

    assert holds("The capital of Kor-mu is Da-vel.")
    assert not holds("The leader of Kor-mu is Da-velan, born in the capital.")
    assert not holds("The capital of Da-vel is Lo-fan.")
    assert not holds("The capital of Kor-mu is Da-vel.", kb="table")
    assert not holds("The capital of Kor-mu is Da-vel.", error="shard is dead")
