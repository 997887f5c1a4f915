"""Schedules: fastai's and torch's numbers, and what holds for every curve."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from fastai_facts import FACTS
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler

from petnb.data import ImageData
from petnb.learner import Callback, Curve, Fit, Learner, fit, vision_learner
from petnb.lr_finder import exponential
from petnb.schedules import (
    combine,
    constant,
    cosine,
    exponential_decay,
    fit_flat_cos,
    fit_one_cycle,
    fit_sgdr,
    flat_cosine,
    linear,
    one_cycle,
    one_cycle_curves,
    polynomial,
    step_decay,
    time_decay,
    triangular,
    warm_restarts,
)

Way = Callable[[float, float, float], float]
WAYS: list[Way] = [linear, cosine, polynomial, exponential]
SCHEDULES: dict[str, Curve] = {
    "constant": constant(),
    "step": step_decay(),
    "exponential": exponential_decay(),
    "time": time_decay(),
    "triangular": triangular(),
    "restarts": warm_restarts(3),
    "flat": flat_cosine(),
    "one cycle": one_cycle_curves()[0],
}

positions = st.floats(0, 1)
values = st.floats(1e-6, 1e3)
shares = st.floats(0.01, 0.99)


def steps(curve: Curve, n_steps: int) -> list[float]:
    """What the loop asks for."""
    return [curve(step / n_steps) for step in range(n_steps)]


# -- fastai ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "way"), [("sched.lin", linear), ("sched.cos", cosine), ("sched.poly", polynomial)]
)
def test_ways_are_fastais(name: str, way: Any) -> None:
    given_ = FACTS[name]["inputs"]
    power = {"power": given_["power"]} if "power" in given_ else {}
    found = [way(given_["start"], given_["end"], p, **power) for p in given_["pos"]]
    assert np.allclose(found, FACTS[name]["expected"], rtol=1e-5, atol=1e-13)


@pytest.fixture(scope="module")
def learn() -> Learner:
    """100 training images in five batches, three groups, on a small body."""
    data = ImageData.drawn_pets(images_per_breed=12, pixels=128, size=32, batch_size=20, workers=0)
    assert len(data.train) == FACTS["fit.sgdr"]["inputs"]["n_batches_per_epoch"]
    return vision_learner(data, "resnet10t", pretrained=False, show_progress=False)


def check_fit(learn: Learner, name: str, but: int | None = None) -> None:
    """Compare the last fit with the record `name`, leaving out step `but`."""
    found, expected = np.array(learn.recorder.lrs), np.array(FACTS[name]["expected"]["lr"])
    compared = [step for step in range(len(expected)) if step != but]
    compare = FACTS[name]["compare"]
    assert found.shape == expected.shape
    assert np.allclose(
        found[compared], expected[compared], rtol=compare["rtol"], atol=compare["atol"]
    )
    momenta = np.array(FACTS[name]["expected"]["mom"])[:, None]
    assert np.allclose(learn.recorder.moms, momenta, rtol=1e-5)


def test_fit_flat_cos_is_fastais(learn: Learner) -> None:
    fit_flat_cos(learn, 2)
    check_fit(learn, "fit.flat_cos")


def test_fit_sgdr_is_fastais_but_for_its_rounding(learn: Learner) -> None:
    fit_sgdr(learn, 3, 1)
    check_fit(learn, "fit.sgdr", but=15)
    assert np.allclose(learn.recorder.lrs[15], 1e-3, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "lr"), [("slice", slice(1e-6, 1e-4)), ("slice_stop", slice(3e-3))]
)
def test_fit_one_cycle_is_fastais(learn: Learner, name: str, lr: slice) -> None:
    fit_one_cycle(learn, FACTS[f"fit.one_cycle.{name}"]["inputs"]["n_epoch"], lr)
    check_fit(learn, f"fit.one_cycle.{name}")


def test_first_fastai_is_one_cycle_with_other_numbers(learn: Learner) -> None:
    fit_one_cycle(learn, 4, slice(3e-3), div_final=25e4, pct_start=0.3)
    check_fit(learn, "v1.one_cycle.default4")


def test_fits_refuse_what_is_no_share_and_no_number_of_cycles(learn: Learner) -> None:
    for pct_start in (0, 1, 1.5):
        with pytest.raises(ValueError, match=f"pct_start is {pct_start}"):
            fit_one_cycle(learn, 1, pct_start=pct_start)
    with pytest.raises(ValueError, match="0 cycles"):
        fit_sgdr(learn, 0, 1)


def test_a_curve_is_a_factor_of_every_groups_rate(learn: Learner) -> None:
    curve = combine([0.4, 0.6], [partial(linear, 0, 1), partial(cosine, 1, 0.1)])
    fit(learn, 1, slice(1e-6, 1e-4), schedule=curve)
    expected = np.outer(steps(curve, 5), [1e-6, 1e-5, 1e-4])
    assert np.allclose(learn.recorder.lrs, expected, rtol=1e-9)


def test_fits_pass_their_arguments_on(learn: Learner) -> None:
    """Ends and shares reach the schedule, and what is not theirs reaches the loop."""

    class Counter(Callback):
        def __init__(self) -> None:
            self.steps = 0

        def after_step(self, fit: Fit) -> None:
            self.steps += 1

    counter = Counter()
    fit_flat_cos(learn, 2, slice(1e-3), div_final=10, pct_start=0.5, callbacks=[counter])
    expected = [1e-3 * flat_cosine(0.5, 10)(step / 10) for step in range(10)]
    assert np.allclose(np.array(learn.recorder.lrs)[:, [0, 2]] * [10, 1], np.c_[expected, expected])
    fit_sgdr(learn, 2, 1, 1e-3, cycle_mult=1, callbacks=[counter])
    assert np.allclose(np.array(learn.recorder.lrs)[5:], np.array(learn.recorder.lrs)[:5])
    options: dict[str, Any] = {"div": 5, "div_final": 50, "pct_start": 0.4, "moms": (0.9, 0.7, 0.8)}
    fit_one_cycle(learn, 1, 2e-3, callbacks=[counter], **options)
    cycle = [one_cycle(step / 5, 2e-3, **options) for step in range(5)]
    recorded = [np.array(learn.recorder.lrs)[:, 0], np.array(learn.recorder.moms)[:, 0]]
    assert np.allclose(np.transpose(recorded), cycle)
    assert counter.steps == 10 + 10 + 5


# -- torch ----------------------------------------------------------------------------------------


def theirs(make: Callable[[SGD], lr_scheduler.LRScheduler], n_steps: int) -> list[list[float]]:
    """Rate and momentum of each step, for a highest rate of 1, by a scheduler of torch."""
    optimizer = SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    scheduler, found = make(optimizer), []
    for step in range(n_steps):
        group = optimizer.param_groups[0]
        found.append([float(group["lr"]), float(group["momentum"])])
        optimizer.step()
        if step < n_steps - 1:
            scheduler.step()
    return found


def rates_of(make: Callable[[SGD], lr_scheduler.LRScheduler], n_steps: int) -> list[float]:
    return [rate for rate, _ in theirs(make, n_steps)]


@pytest.mark.parametrize("n_steps", [20, 40, 1000])
def test_one_cycle_lr(n_steps: int) -> None:
    """torch climbs in one step less and ends at the end: in the descent it is one step ahead."""

    def make(optimizer: SGD) -> lr_scheduler.OneCycleLR:
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=1,
            total_steps=n_steps,
            pct_start=0.25,
            anneal_strategy="cos",
            div_factor=25,
            final_div_factor=1e5 / 25,
        )

    climbed = n_steps // 4 - 1
    mapped = [0.25 * step / climbed for step in range(climbed)]
    mapped += [(step + 1) / n_steps for step in range(climbed, n_steps)]
    ours = [one_cycle(position, 1) for position in mapped]
    assert np.allclose(theirs(make, n_steps), ours, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cycle_mult", [1, 2, 3])
def test_cosine_annealing_warm_restarts(cycle_mult: int) -> None:
    n_steps = 7 * sum(cycle_mult**cycle for cycle in range(4))
    found = rates_of(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=7, T_mult=cycle_mult), n_steps
    )
    assert np.allclose(steps(warm_restarts(4, cycle_mult), n_steps), found, rtol=1e-9, atol=1e-12)


def test_cosine_annealing_lr() -> None:
    found = rates_of(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=30, eta_min=0.1), 30)
    assert np.allclose(steps(partial(cosine, 1, 0.1), 30), found, rtol=1e-9)


@pytest.mark.parametrize("n_drops", [0, 1, 2, 6])
def test_step_lr(n_drops: int) -> None:
    n_steps = 11 * (n_drops + 1)
    found = rates_of(lambda o: lr_scheduler.StepLR(o, step_size=11, gamma=0.3), n_steps)
    assert np.allclose(steps(step_decay(n_drops, 0.3), n_steps), found, rtol=1e-9)


def test_exponential_lr() -> None:
    found = rates_of(lambda o: lr_scheduler.ExponentialLR(o, gamma=0.02 ** (1 / 50)), 50)
    assert np.allclose(steps(exponential_decay(0.02), 50), found, rtol=1e-9)


def test_time_decay_as_a_lambda_lr() -> None:
    """Keras's decay: lr / (1 + decay * step)."""
    decay = (1 / 0.02 - 1) / 50
    found = rates_of(lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + decay * step)), 50)
    assert np.allclose(steps(time_decay(0.02), 50), found, rtol=1e-9)


def test_cyclic_lr() -> None:
    def make(optimizer: SGD) -> lr_scheduler.CyclicLR:
        return lr_scheduler.CyclicLR(
            optimizer, base_lr=0.2, max_lr=1, step_size_up=9, cycle_momentum=False
        )

    assert np.allclose(steps(triangular(3, div=5), 54), rates_of(make, 54), rtol=1e-9)


def test_polynomial_lr() -> None:
    found = rates_of(lambda o: lr_scheduler.PolynomialLR(o, total_iters=40, power=1.7), 40)
    ours = steps(lambda position: polynomial(0, 1, 1 - position, 1.7), 40)
    assert np.allclose(ours, found, rtol=1e-9, atol=1e-12)


def test_linear_lr() -> None:
    def make(optimizer: SGD) -> lr_scheduler.LinearLR:
        return lr_scheduler.LinearLR(optimizer, start_factor=0.3, end_factor=0.9, total_iters=20)

    assert np.allclose(steps(partial(linear, 0.3, 0.9), 20), rates_of(make, 20), rtol=1e-9)


# -- What holds for every curve -------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@given(start=values, end=values, position=positions)
def test_ways_stay_between_their_ends(way: Way, start: float, end: float, position: float) -> None:
    (low, high), rounding = sorted((start, end)), 1e-12 * max(start, end)
    assert low - rounding <= way(start, end, position) <= high + rounding
    assert math.isclose(way(start, end, 0), start, abs_tol=rounding)
    assert math.isclose(way(start, end, 1), end, abs_tol=rounding)


@pytest.mark.parametrize("way", WAYS)
@given(start=values, end=values, pair=st.tuples(positions, positions).map(sorted))
def test_ways_never_turn_back(way: Way, start: float, end: float, pair: list[float]) -> None:
    first, second = (way(start, end, position) for position in pair)
    slack = 1e-12 * max(start, end)
    assert first <= second + slack if start <= end else first >= second - slack


@given(start=values, end=values, position=positions)
def test_a_straight_line_is_a_polynomial_of_power_1(
    start: float, end: float, position: float
) -> None:
    assert polynomial(start, end, position, 1) == linear(start, end, position)


@given(start=values, end=values, position=positions)
def test_cosine_is_its_own_mirror_image(start: float, end: float, position: float) -> None:
    there, back = cosine(start, end, position), cosine(end, start, 1 - position)
    assert math.isclose(there, back, rel_tol=1e-6, abs_tol=1e-12 * max(start, end))


@pytest.mark.parametrize("name", SCHEDULES)
@given(position=positions)
def test_schedules_are_factors_from_0_to_1(name: str, position: float) -> None:
    assert 0 <= SCHEDULES[name](position) <= 1 + 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_reaches_its_rate(name: str) -> None:
    assert math.isclose(max(steps(SCHEDULES[name], 1120)), 1, rel_tol=1e-12)


@pytest.mark.parametrize("name", ["step", "exponential", "time", "flat", "constant"])
@given(pair=st.tuples(positions, positions).map(sorted))
def test_decays_never_rise(name: str, pair: list[float]) -> None:
    earlier, later = (SCHEDULES[name](position) for position in pair)
    assert earlier >= later - 1e-12


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_combine_gives_each_piece_its_steps(lengths: list[int]) -> None:
    """No step is lost to rounding, wherever the pieces meet."""
    n_steps = sum(lengths)
    curve = combine(
        [length / n_steps for length in lengths], [constant(i) for i in range(len(lengths))]
    )
    assert steps(curve, n_steps) == [i for i, length in enumerate(lengths) for _ in range(length)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_combine_shows_each_piece_its_own_position(lengths: list[int]) -> None:
    n_steps = sum(lengths)
    curve = combine([length / n_steps for length in lengths], [lambda p: p] * len(lengths))
    expected = [step / length for length in lengths for step in range(length)]
    assert np.allclose(steps(curve, n_steps), expected, atol=1e-9)
    assert curve(1) == 1


@given(share=shares, heights=st.tuples(values, values, values))
def test_combine_is_continuous_where_pieces_meet(
    share: float, heights: tuple[float, float, float]
) -> None:
    curves = [partial(linear, low, high) for low, high in pairwise(heights)]
    curve = combine([share, 1 - share], curves)
    jump = abs(curve(share - 1e-7) - curve(share + 1e-7))
    assert jump <= 1e-7 * max(heights) * (1 / share + 1 / (1 - share)) + 1e-9


@given(position=positions)
def test_combine_of_combines(position: float) -> None:
    halves = [partial(linear, 0, 1), partial(linear, 1, 0)]
    quarters = combine([0.25] * 4, halves * 2)
    nested = combine([0.5, 0.5], [combine([0.5, 0.5], halves)] * 2)
    assert math.isclose(nested(position), quarters(position), abs_tol=1e-7)


def test_combine_leaves_out_a_share_of_0() -> None:
    def never(position: float) -> float:
        raise AssertionError(f"asked for position {position}")

    curve = combine([0, 1, 0], [never, constant(0.5), never])
    assert [curve(position) for position in (0, 0.5, 1)] == [0.5] * 3
    assert flat_cosine(1)(1) == 1
    assert flat_cosine(0)(0.5) == cosine(1, 1e-5, 0.5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([0.5, 0.3], "sum to 0.8"),
        ([1.5, -0.5], "-0.5"),
        ([1.0], "1 shares for 2 curves"),
        ([math.nan, 1.0], "nan"),
    ],
)
def test_combine_refuses_what_are_no_shares(parts: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine(parts, [constant(), constant()])


def test_combine_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="sum to 0"):
        combine([], [])


@given(
    lr_max=values,
    div=st.floats(1, 1e3),
    div_final=st.floats(1, 1e7),
    pct_start=shares,
    moms=st.tuples(*[st.floats(0, 0.99)] * 3),
)
def test_one_cycle_reaches_its_corners(
    lr_max: float, div: float, div_final: float, pct_start: float, moms: tuple[float, float, float]
) -> None:
    cycle = partial(
        one_cycle, lr_max=lr_max, div=div, div_final=div_final, pct_start=pct_start, moms=moms
    )
    corners = {0.0: lr_max / div, pct_start: lr_max, 1.0: lr_max / div_final}
    for (position, lr), momentum in zip(corners.items(), moms, strict=True):
        assert np.allclose(cycle(position), [lr, momentum], rtol=1e-8, atol=1e-15)
    highest = max(cycle(step / 100)[0] for step in range(101))
    assert highest <= lr_max * (1 + 1e-12)


@given(position=positions)
def test_curves_and_numbers_of_one_cycle_agree(position: float) -> None:
    rate, momentum = one_cycle_curves()
    assert np.allclose(one_cycle(position, 2), [2 * rate(position), momentum(position)])


@given(position=positions, pct_start=shares)
def test_momentum_mirrors_the_rate(position: float, pct_start: float) -> None:
    """The nearer the rate is to the top, in its own piece, the nearer is the momentum."""
    lr, momentum = one_cycle(position, 1, div=10, div_final=10, pct_start=pct_start)
    assert math.isclose((lr - 0.1) / 0.9, (0.95 - momentum) / 0.1, abs_tol=1e-9)


@pytest.mark.parametrize("n_cycles", [0, -1])
def test_cycles_are_at_least_one(n_cycles: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        triangular(n_cycles)
    with pytest.raises(ValueError, match="1 or more"):
        warm_restarts(n_cycles)
    with pytest.raises(ValueError, match="1 or more"):
        warm_restarts(2, cycle_mult=0)
