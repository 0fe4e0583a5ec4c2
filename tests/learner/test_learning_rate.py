import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.config import LearnerConfig
from learner.learner_group import LR_FLOOR, learning_rate

DECAYING = st.builds(
    lambda schedule, warmup, more: LearnerConfig(
        lr=1e-3, lr_schedule=schedule, warmup_iterations=warmup, lr_decay_iterations=warmup + more
    ),
    st.sampled_from(["linear", "cosine"]),
    st.integers(0, 20),
    st.integers(2, 200),
)


@given(DECAYING)
def test_the_learning_rate_rises_to_its_peak_falls_to_its_floor_and_stays_there(config):
    rates = [learning_rate(config, version) for version in range(config.lr_decay_iterations + 20)]
    peak = max(0, config.warmup_iterations - 1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak] == pytest.approx(config.lr)
    assert all(a >= b - 1e-12 for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert rates[config.lr_decay_iterations - 1 :] == pytest.approx([config.lr * LR_FLOOR] * 21)
    assert all(0 <= rate <= config.lr * (1 + 1e-9) for rate in rates)


@given(DECAYING)
def test_halfway_down_a_line_and_a_cosine_meet(config):
    begin = max(1, config.warmup_iterations)
    if (config.lr_decay_iterations - begin) % 2 == 0:
        middle = (begin + config.lr_decay_iterations) // 2 - 1
        assert learning_rate(config, middle) == pytest.approx(config.lr * (1 + LR_FLOOR) / 2)


def test_without_a_schedule_the_learning_rate_stays_at_its_peak():
    config = LearnerConfig(lr=1e-3, warmup_iterations=4)
    assert [learning_rate(config, version) for version in range(6)] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
    assert learning_rate(config, 10**9) == 1e-3
    assert learning_rate(LearnerConfig(lr=1e-3, warmup_iterations=0), 0) == 1e-3
