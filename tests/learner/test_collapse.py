import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.collapse import WATCHED, CollapseConfig, Watch, signs

HEALTHY = {
    "entropy": 0.4, "grad_norm": 0.8, "format": 0.97, "use_stop": 0.3, "retrievals_per_question": 1.4, "varied_groups": 0.5, "mismatch": 1e-6,
}  # fmt: skip
SICK = {
    "entropy": {"entropy": 0.001},
    "grad_norm": {"grad_norm": 90.0},
    "format": {"format": 0.2},
    "retrievals_per_question": {"retrievals_per_question": 0.0},
    "zero_variance": {"varied_groups": 0.01},
    "mismatch": {"mismatch": 0.3},
}
CONFIG = CollapseConfig(window=3)


def rows(n: int, **changed) -> list[dict]:
    return [HEALTHY | changed for _ in range(n)]


def names(found) -> list[str]:
    return [sign.name for sign in found]


@pytest.mark.parametrize("name", SICK)
def test_each_figure_that_goes_wrong_is_named_with_its_cause_and_an_option_to_try(name):
    (sign,) = signs(rows(7) + rows(3, **SICK[name]), CONFIG)
    assert sign.name == name
    assert sign.cause
    assert "." in sign.advice
    assert f"{sign.name} is {sign.found:.4g} (threshold {sign.threshold:g})" in str(sign)


@pytest.mark.parametrize(("share", "says"), [(0.0, "never stops"), (1.0, "stops at once")])
def test_stopping_never_and_stopping_at_once_are_two_signs(share, says):
    (sign,) = signs(rows(5, use_stop=share), CONFIG)
    assert says in sign.cause


def test_a_healthy_run_and_one_that_has_just_begun_show_no_sign():
    assert signs(rows(20), CONFIG) == []
    assert signs(rows(2, entropy=0.0), CONFIG) == []


def test_one_bad_iteration_is_no_sign_but_a_bad_mean_is():
    assert signs([*rows(9), HEALTHY | {"format": 0.0}], CONFIG) == []
    assert names(signs([*rows(9), *rows(2, format=0.0)], CONFIG)) == ["format"]


def test_recorded_turns_are_not_expected_to_retrieve():
    recorded = {key: value for key, value in HEALTHY.items() if key != "use_stop"} | {"retrievals_per_question": 0.0}
    assert signs([recorded] * 5, CONFIG) == []


@pytest.mark.parametrize("name", ["entropy", "grad_norm", "mismatch"])
def test_nan_is_a_sign_on_either_side_of_a_threshold(name):
    (sign,) = signs(rows(7) + rows(3, **{name: math.nan}), CONFIG)
    assert (sign.name, math.isnan(sign.found)) == (name, True)


def test_figures_that_were_not_measured_are_no_sign():
    assert signs([{}] * 9, CONFIG) == []


def test_a_gradient_norm_is_judged_by_its_own_history_whatever_its_scale():
    for scale in (1e-3, 1.0, 1e4):
        assert signs(rows(9, grad_norm=scale), CONFIG) == []
        assert names(signs(rows(9, grad_norm=scale) + rows(3, grad_norm=50 * scale), CONFIG)) == ["grad_norm"]


def test_a_threshold_of_zero_switches_its_sign_off():
    off = dataclasses.replace(CONFIG, **{watched["threshold"]: 0 for watched in WATCHED})
    assert signs(rows(3) + [row for change in SICK.values() for row in rows(3, **change)], off) == []


@given(st.lists(st.booleans(), max_size=30))
def test_a_sign_is_told_when_it_comes_up_and_not_again_while_it_stands(sick):
    watch, config = Watch(CollapseConfig(window=1)), CollapseConfig(window=1)
    before = False
    for bad in sick:
        row = HEALTHY | ({"format": 0.0} if bad else {})
        assert bool(watch.add(row)) is (bad and not before)
        assert watch.standing == len(signs([row], config))
        before = bad


def test_a_resumed_watch_does_not_tell_again_what_stood_before():
    before = rows(5, format=0.0)
    assert names(Watch(CONFIG, before[:-1]).add(before[-1])) == []
    assert names(Watch(CONFIG, rows(4)).add(HEALTHY | {"format": -2.0})) == ["format"]


def test_a_threshold_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="min_format_rate"):
        CollapseConfig(min_format_rate=50)
    with pytest.raises(ValueError, match="window"):
        CollapseConfig(window=0)
