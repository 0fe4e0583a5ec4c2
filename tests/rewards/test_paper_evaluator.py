"""The reported measures against re-statements that share no line with them, and against a library."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize
from torchmetrics.functional.text import squad

from rewards.answer_metrics import exact_match, f1, f1_recall, paper_tokens, range_answers

PAIRS = 2000


def restated_contractions() -> dict[str, str]:
    """Words with an apostrophe missing -> with it: the table of the VQA evaluation, put together again by what the words end in."""
    ending = {
        "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
        "'ve": "could might must not should they we what where who would you",
        "'d": "he how it someone something there they where who you",
        "'ll": "how it somebody someone something they what who why you",
        "'re": "there they what why you",
        "'s": "he how somebody someone that there what when where who why",
    }
    found = {f"{stem}{end.replace(chr(39), '')}": stem + end for end, stems in ending.items() for stem in stems.split()}
    for stem in "could had might should would".split():
        found |= {f"{stem}nt've": f"{stem}n't've", f"{stem}n'tve": f"{stem}n't've"}
    for stem in "he it she somebody someone something there they we who you".split():
        found |= {f"{stem}d've": f"{stem}'d've", f"{stem}'dve": f"{stem}'d've"}
    found |= {
        "maam": "ma'am",
        "oclock": "o'clock",
        "twas": "'twas",
        "somebody'd": "somebodyd",
    }  # the last one the other way round, as it is there
    found |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    found |= {"yall": "y'all"} | dict.fromkeys(("yall'll", "y'allll"), "y'all'll")
    return found | dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")


RESTATED_CONTRACTIONS = restated_contractions()
PIECES = [
    *"the a an The film Tasla tasla Kor-mu Zürich ŁÓDŹ naïve 東京 🇵🇰 Ωmega straße İstanbul of is was in".split(),
    *"one Two ten none zero 7 12 1,250 1,234,567 3.14 0.5 .5 41. 1899 20/03/1851 $5.2 12% -4 2003-04 1.062".split(),
    *"dont don't isn't isnt couldnt've somebody'd o'clock its it's y'all 'twas Wisbar's cannot gonna".split(),
    *"U.S. e.g. St. (Oregon) [2] {x} \"quoted\" 'single' a/b c;d e:f g|h what? stop! _x_ x+y=z <b> @home `code` -- ... .. ,".split(),
    *RESTATED_CONTRACTIONS,
    *["\n", "\t", "  ", "\u00a0", "“curly”", "’s", "film’s", "...", ", ", "? ", "...5"],
]


def sentence(rng: random.Random, pieces: int) -> str:
    return "".join(rng.choice(PIECES) + rng.choice([" ", " ", " ", "", ", ", ". ", "\n"]) for _ in range(rng.randrange(pieces + 1)))


# The evaluator, stated again from its description: character by character where the project uses tables, with floats where it uses counts.


def restated_tokens(text: str) -> list[str]:
    text = re.sub(r"[\n\t]", " ", text).strip()
    marks = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
    digits_around_a_comma = any(text[i] == "," and text[i - 1].isdecimal() and text[i + 1].isdecimal() for i in range(1, len(text) - 1))
    out = ""
    for character in text:
        if character not in marks:
            out += character
        elif not (digits_around_a_comma or character + " " in text or " " + character in text):
            out += " "
    stripped, periods = "", 0
    for i, character in enumerate(out):
        if character == "." and not (i + 1 < len(out) and out[i + 1].isdecimal()) and periods < 32:
            periods += 1
            continue
        stripped += character
    numbers = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
    numbers |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
    words = [numbers.get(word, word) for word in stripped.lower().split()]
    words = [RESTATED_CONTRACTIONS.get(word, word) for word in words if word not in ("an", "the")]
    return [token for token in word_tokenize(" ".join(words).lower(), preserve_line=True) if token not in ",.?!:;'\""]


def restated_f1_recall(prediction: str, answers: list[str]) -> float:
    predicted = restated_tokens(prediction)
    best = (0.0, 0.0)
    for answer in answers:
        wanted, left = restated_tokens(answer), list(predicted)
        shared = 0
        for token in wanted:
            if token in left:
                left.remove(token)
                shared += 1
        if shared:
            precision, recall = shared / len(predicted), shared / len(wanted)
            f1_of_both = 2 * precision * recall / (precision + recall)
            best = best if best[0] >= f1_of_both else (f1_of_both, recall)
    return best[1]


def test_every_contraction_is_spelled_as_in_the_restated_table_and_no_other_word_is():
    assert len(RESTATED_CONTRACTIONS) == 114
    others = "shes lets im ive id ill were well shell hell theyd've's somebodyd whats' dont' aint't wed wont've cannot".split()
    for word in [*RESTATED_CONTRACTIONS, *RESTATED_CONTRACTIONS.values(), *others]:
        assert list(paper_tokens(f"so {word} there")) == restated_tokens(f"so {word} there"), word
    assert all(paper_tokens(wrong) == paper_tokens(right) for wrong, right in RESTATED_CONTRACTIONS.items() if wrong != "somebody'd")


def test_f1_recall_is_that_of_a_restated_evaluator_on_two_thousand_pairs():
    rng = random.Random(20250528)
    positive = 0
    for _ in range(PAIRS):
        answers = [sentence(rng, 6) for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.05:
            low = round(rng.uniform(0, 2000), rng.randrange(3))
            answers += range_answers(low, low + rng.choice([0.3, 2.5, 8.0, 60.0]))
        prediction = sentence(rng, 6) + (rng.choice(answers) if rng.random() < 0.7 else "")
        assert list(paper_tokens(prediction)) == restated_tokens(prediction), repr(prediction)
        measured = f1_recall(prediction, answers)
        assert measured == restated_f1_recall(prediction, answers), (prediction, answers)
        positive += measured > 0
    assert PAIRS / 2 < positive < PAIRS


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("It is Frank Wisbar.", ["Frank Wisbar"], 1.0),
        ("Frank", ["Frank Wisbar"], 0.5),
        ("red blue", ["red blue green", "blue"], 2 / 3),  # the best F1, not the best recall
        ("a film", ["film"], 1.0),
        ("film", ["a film"], 0.5),  # `a` is no article for this evaluator
        ("1,250 people", ["1250"], 1.0),
        ("Kor-mu", ["Kor mu"], 1.0),
        ("two", ["2"], 1.0),
        ("dont know", ["don't"], 1.0),
        ("", ["the"], 0.0),
        ("the", ["the"], 0.0),  # nothing is left to compare
        ("6.75 days", range_answers(6.5, 7.0), 1.0),
        ("7 days", range_answers(6.5, 7.0), 1.0),
        ("7.5", range_answers(6.5, 7.0), 0.0),
        ("1900 mm", range_answers(1728.0, 2112.0), 1.0),
        ("1900.5 mm", range_answers(1728.0, 2112.0), 0.0),  # the steps are whole numbers where the range is wide
    ],
)
def test_f1_recall_of_cases_worked_out_by_hand(prediction: str, answers: list[str], expected: float):
    assert f1_recall(prediction, answers) == pytest.approx(expected)


def test_a_range_becomes_every_number_at_a_step_that_depends_on_its_width():
    assert len(range_answers(0.0, 0.5)) == 501 + 1  # thousandths with both ends, then the whole number 0
    assert range_answers(10.0, 12.0)[:3] == ["10.0", "10.01", "10.02"]
    assert range_answers(0.0, 10.0)[:2] == ["0.0", "0.1"]
    assert set(range_answers(100.0, 160.0)[-3:]) == {"158", "159", "160"}


def test_exact_match_and_f1_are_those_of_the_library_on_two_thousand_pairs():
    rng = random.Random(7)
    for _ in range(PAIRS):
        answers = [sentence(rng, 4) for _ in range(rng.randrange(1, 4))]
        prediction = rng.choice(answers) if rng.random() < 0.3 else sentence(rng, 4)
        target = {"id": "q", "answers": {"text": answers, "answer_start": [0] * len(answers)}}
        expected = squad({"id": "q", "prediction_text": prediction}, target)
        assert exact_match(prediction, answers) == float(expected["exact_match"]) / 100
        assert f1(prediction, answers) == pytest.approx(float(expected["f1"]) / 100, abs=1e-6)


def normalised_as_in_squad(text: str) -> str:
    """Lower case, without punctuation, articles and double blanks: what Search-R1 compares, restated character by character."""
    letters = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def restated_f1(prediction: str, answer: str) -> float:
    left, wanted = normalised_as_in_squad(prediction).split(), normalised_as_in_squad(answer).split()
    shared = sum(min(left.count(word), wanted.count(word)) for word in set(left))
    if not left or not wanted:
        return float(left == wanted)
    precision, recall = shared / len(left), shared / len(wanted)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


ANSWER = st.text(alphabet=st.sampled_from("ab theATn.-'_ 1\t\u00e9\u0130\u00a0\u2019"), max_size=12)


@settings(max_examples=500, deadline=None)
@given(ANSWER, st.lists(ANSWER, min_size=1, max_size=3), st.booleans())
def test_exact_match_and_f1_are_those_of_search_r1(prediction: str, answers: list[str], similar: bool):
    prediction = f"The {answers[0].upper()}." if similar else prediction
    same = [normalised_as_in_squad(answer) == normalised_as_in_squad(prediction) for answer in answers]
    assert exact_match(prediction, answers) == float(any(same))
    assert f1(prediction, answers) == pytest.approx(max(restated_f1(prediction, answer) for answer in answers))


@pytest.mark.parametrize(
    ("prediction", "limits", "matches", "agreement"),
    [
        ("1000", (100.0, 200.0), 0.0, 0.0),  # 100.0 without its point
        ("150", (100.0, 200.0), 1.0, 1.0),
        ("150.25", (100.0, 200.0), 1.0, 1.0),  # between two steps of the evaluator
        ("100", (100.0, 200.0), 1.0, 1.0),
        ("200.0.", (100.0, 200.0), 1.0, 1.0),
        ("200.1", (100.0, 200.0), 0.0, 0.0),
        ("6", (6.5, 7.0), 0.0, 0.0),  # a whole number below the range
        ("$1,250", (1200.0, 1300.0), 1.0, 1.0),
        ("the 1,250 m", (1200.0, 1300.0), 0.0, 2 / 3),
        ("about 12 to 13", (12.5, 14.0), 0.0, 2 / 5),
        ("-4", (3.0, 5.0), 0.0, 0.0),
        ("-4", (-5.0, -3.0), 1.0, 1.0),
        (".5", (0.4, 0.6), 1.0, 1.0),
        ("12,5", (12.0, 13.0), 0.0, 0.0),  # no number that this notation has
        ("many", (1.0, 2.0), 0.0, 0.0),
        ("", (0.0, 1.0), 0.0, 0.0),
        (". - ,", (0.0, 1.0), 0.0, 0.0),
    ],
)
def test_a_range_is_compared_with_numbers_and_not_with_texts(
    prediction: str, limits: tuple[float, float], matches: float, agreement: float
):
    answers = range_answers(*limits)
    assert exact_match(prediction, answers, limits) == matches
    assert f1(prediction, answers, limits) == pytest.approx(agreement)
