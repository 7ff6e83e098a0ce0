"""The learning rate over a run: its shapes, and that the controller learns."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tsm.training.schedule import SCHEDULES, Cosine, QLearning, ScheduleFree, WarmupStableDecay

# steps, warmup_steps, decay_fraction, average_decay, seed
RUN = (100, 10, 0.5, 0.99, 0)


def rates(schedule) -> np.ndarray:
    memory = schedule.initial_memory()
    return np.array([schedule.fraction(step, memory) for step in range(schedule.steps)])


def test_wsd_rises_stays_and_falls_in_straight_lines():
    found = rates(WarmupStableDecay(*RUN))
    assert found[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert (found[10:51] == 1).all()
    assert found[50:] == pytest.approx(np.arange(50, 0, -1) / 50)
    longer = rates(WarmupStableDecay(200, *RUN[1:]))
    assert (longer[:50] == found[:50]).all()  # a run can be lengthened


def test_cosine_falls_to_zero_from_the_end_of_the_warm_up():
    found = rates(Cosine(*RUN))
    assert found[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert found[10] == 1 and found[55] == pytest.approx(0.5)
    assert found[10:] == pytest.approx((1 + np.cos(np.pi * np.arange(90) / 90)) / 2)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 30])
def test_any_run_has_rates_within_its_peak(name, warmup_steps):
    for steps in (1, 2, 25):
        found = rates(SCHEDULES[name](steps, warmup_steps, 0.0, 0.99, 0))
        assert (found > 0).all() and (found <= 1).all()


@pytest.mark.parametrize("warmup_steps", [0, 1, 4])
def test_schedule_free_is_the_mean_weighted_by_the_squared_rate(warmup_steps):
    schedule = ScheduleFree(12, warmup_steps, 0.0, 0.99, 0)
    values, average = np.random.default_rng(0).standard_normal(12), 7.0
    for step, value in enumerate(values):
        average = schedule.decay_at(step) * average + (1 - schedule.decay_at(step)) * value
    assert average == pytest.approx(np.average(values, weights=rates(schedule) ** 2))


def play(schedule: QLearning, answer, decisions: int) -> tuple[list[int], dict]:
    """The actions of a run whose loss falls by `answer(action)`, relative, an interval."""
    memory, loss, actions = schedule.initial_memory(), 3.0, []
    for step in range(decisions * schedule.interval):
        loss *= (1 - answer(memory["action"])) ** (1 / schedule.interval)
        made = memory["decisions"]
        memory = schedule.observe(memory, step, loss)
        if memory["decisions"] > made:
            actions.append(memory["action"])
    return actions, memory


@pytest.mark.parametrize("best", range(3))
def test_q_learns_the_action_that_is_plainly_better(best):
    for seed in range(5):
        schedule = QLearning(*RUN[:-1], seed)
        actions, memory = play(schedule, lambda action: 0.01 * (action == best), 150)
        assert actions[:20].count(best) < 18  # it explores first
        assert actions[-75:].count(best) > 60
        row = memory["table"][memory["state"]]
        assert row[best] == max(row)
        wanted = {1: QLearning.lowest, 2: QLearning.highest}.get(best)
        assert wanted is None or abs(np.log(memory["rate"] / wanted)) < 0.5  # a slip or two


def test_q_is_a_function_of_its_seed_and_losses():
    """And of nothing else: its memory may go through a checkpoint's JSON at any moment."""
    losses = np.random.default_rng(0).uniform(0.5, 6, 400).tolist()
    ends = []
    for seed, stored in ((0, False), (0, True), (1, False)):
        schedule = QLearning(*RUN[:-1], seed)
        memory = schedule.initial_memory()
        for step, loss in enumerate(losses):
            before = json.dumps(memory)
            new = schedule.observe(json.loads(before) if stored else memory, step, loss)
            assert json.dumps(memory) == before  # what was handed in is as it was
            memory = new
            assert QLearning.lowest <= memory["rate"] <= QLearning.highest
            assert json.loads(json.dumps(memory)) == memory
        assert memory["decisions"] == 39  # one an interval, once there is one to compare with
        ends.append(memory)
    assert ends[0] == ends[1] != ends[2]


def test_q_leaves_the_warm_up_alone():
    schedule = QLearning(*RUN)
    memory = schedule.initial_memory()
    assert rates(schedule)[:11] == pytest.approx([*np.arange(1, 11) / 10, 1])
    for step in range(20):
        assert memory["decisions"] == 0 and memory["rate"] == 1
        memory = schedule.observe(memory, step, 3.0)
    assert memory["decisions"] == 1
    status = schedule.status(20, memory)
    assert status.keys() == {"rate", "state", "action", "epsilon"}
    assert status["rate"] == memory["rate"] == status["action"]  # of the peak; from 1
