import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.question_ledger import ShuffledQuestions


@given(st.integers(1, 20), st.integers(0, 9), st.lists(st.integers(0, 15), max_size=8))
def test_every_epoch_uses_every_question_once_however_many_are_taken_at_a_time(n, seed, takes):
    source = ShuffledQuestions(range(n), seed)
    taken = [question for k in takes for question in source.next(k)]
    for epoch in range(len(taken) // n):
        assert sorted(taken[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(st.integers(1, 20), st.integers(0, 40), st.integers(0, 40))
def test_a_restored_source_goes_on_where_the_other_was(n, before, after):
    one, other = ShuffledQuestions(range(n), 3), ShuffledQuestions(range(n), 4)
    one.next(before)
    other.set_state(one.get_state())
    assert other.next(after) == one.next(after)


def test_epochs_have_different_orders():
    source = ShuffledQuestions(range(50))
    assert source.next(50) != source.next(50)


def test_a_state_of_other_data_is_refused():
    with pytest.raises(ValueError, match="made with 3 training questions, now there are 4"):
        ShuffledQuestions(range(4)).set_state(ShuffledQuestions(range(3)).get_state())
