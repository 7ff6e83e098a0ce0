"""The learning rate over a run, as a fraction of its peak: `train.py --schedule NAME`.

wsd            warm-up, constant, linear decay to zero
cosine         warm-up, half a cosine down to zero
schedule-free  warm-up, then constant; the average of the weights takes the place of a decay
q              warm-up, then a tabular Q-learner turns the rate up and down by the loss it sees

A schedule is a frozen value. What one learns on the way, its `memory`, is a dict of JSON values
that is handed in and out, so that a checkpoint holds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .optimizer import ADAM_BETA1

Memory = dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """What the training loop asks of every schedule; without a decay of its own."""

    steps: int
    warmup_steps: int  # the rate rises linearly
    decay_fraction: float  # of `steps`, the last; of wsd only
    average_decay: float  # of the averaged weights, per step; schedule-free derives its own
    seed: int

    # Where gradients are taken: 0 is at the weights, 1 at their average.
    toward_average: ClassVar[float] = 0.0
    adam_beta1: ClassVar[float] = ADAM_BETA1

    def initial_memory(self) -> Memory:
        return {}

    def fraction(self, step: int, memory: Memory) -> float:
        """Of the peak rate, for update number 0 <= step < steps."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps))

    def decay_at(self, step: int) -> float:
        """The decay of the average when the weights after step number `step` are mixed into it. It
        starts low, so that it is of use from the first evaluation on."""
        return min(self.average_decay, (1 + step) / (10 + step))

    def observe(self, memory: Memory, step: int, loss: float) -> Memory:
        """The memory after update number `step`, whose loss was `loss` nats."""
        return memory

    def status(self, step: int, memory: Memory) -> dict[str, float]:
        """Under what update number `step` is made, for the progress line and the log."""
        return {"rate": self.fraction(step, memory)}


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Before the decay begins the rate does not depend on `steps`: a run can be lengthened and
    resumed. Haegele et al., 2024, arXiv 2405.18392."""

    def fraction(self, step: int, memory: Memory) -> float:
        left = (self.steps - step) / max(1.0, self.decay_fraction * self.steps)
        return min(super().fraction(step, memory), left)


@dataclass(frozen=True)
class Cosine(Schedule):
    """To zero as wsd, and not to a tenth: only the way down is another. Its whole way depends on
    `steps`. Loshchilov and Hutter, 2017, arXiv 1608.03983, without restarts."""

    def fraction(self, step: int, memory: Memory) -> float:
        left = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        half_cosine = (1 - math.cos(math.pi * min(1.0, left))) / 2
        return min(super().fraction(step, memory), half_cosine)


@dataclass(frozen=True)
class ScheduleFree(Schedule):
    """Defazio et al., 2024, arXiv 2405.15682. The run's weights are the paper's z, its average is
    x, and gradients are taken at y = (1 - beta) z + beta x.

    That interpolation is AdamW's momentum, whose own is therefore off, as in the paper. Muon keeps
    its: it smooths gradients before they are orthogonalised, where a later mean cannot. Weight
    decay acts at z. The best peak may be above that of a schedule that decays.
    """

    toward_average: ClassVar[float] = 0.9  # beta, the paper's default
    adam_beta1: ClassVar[float] = 0.0

    def decay_at(self, step: int) -> float:
        """So that x is the mean of z after every update, weighted by the square of its rate."""
        warmup = max(1, self.warmup_steps)
        risen = min(step + 1, warmup)  # sum of i^2 for i to n: n (n + 1) (2n + 1) / 6
        total = risen * (risen + 1) * (2 * risen + 1) / (6 * warmup**2) + (step + 1 - risen)
        return 1 - risen**2 / warmup**2 / total


@dataclass(frozen=True)
class QLearning(Schedule):
    """The seed's controller (appendix, "Q-Learning Controller"), with the learning that its lines
    leave out: Watkins and Dayan, 1992, "Q-learning".

    Every `interval` updates after the warm-up it sees a state, how fast the smoothed training loss
    falls, and multiplies the rate by a factor, kept within `lowest` and `highest` of the peak.
    Reward: the relative fall of the smoothed loss since the decision before. A function of the
    seed and of the losses alone: its random numbers are Philox(seed, decision).

    The seed's state is the level of the loss; a run passes each level once, and its hundred
    decisions do not fill a table of level x slope: in a noisy toy with one better action, that
    chose it 56% of the time over decisions 75 to 150, slope alone 89%.

    It has no final decay: nothing rewards a low rate at the end of the run but the losses
    themselves, and a reward this near prefers what lowers the loss now to what lowers it later
    (short-horizon bias: Wu et al., 2018, arXiv 1803.02021).

    Its memory: table (a row a state, a column a factor), rate (of the peak), smoothed and past
    (nats; past: at the end of the interval before), state and action (of the last decision),
    decisions (their number).
    """

    factors: ClassVar = (1.0, 0.8, 1.25)  # the last two undo each other; of equals the first wins
    lowest: ClassVar[float] = 0.01
    highest: ClassVar[float] = 2.0
    interval: ClassVar[int] = 10  # updates
    smoothing: ClassVar[float] = 0.9  # of the loss, per update
    slopes: ClassVar = (0.0, 0.005)  # bounds between rising, falling and falling fast, an interval
    learning_rate: ClassVar[float] = 0.2
    discount: ClassVar[float] = 0.5  # a decision
    hope: ClassVar[float] = 0.02  # of an untried action: as if the loss fell by 1% ever after
    epsilon_decay: ClassVar[float] = 0.95  # a decision
    epsilon_floor: ClassVar[float] = 0.05

    def initial_memory(self) -> Memory:
        table = [[self.hope] * len(self.factors) for _ in range(len(self.slopes) + 1)]
        nothing = {"rate": 1.0, "smoothed": None, "past": None, "state": 0, "action": 0}
        return {"table": table, **nothing, "decisions": 0}

    def fraction(self, step: int, memory: Memory) -> float:
        return super().fraction(step, memory) * memory["rate"]

    def epsilon(self, decision: int) -> float:
        """The probability that decision number `decision` is made at random."""
        return max(self.epsilon_floor, self.epsilon_decay**decision)

    def observe(self, memory: Memory, step: int, loss: float) -> Memory:
        smoothed = loss
        if memory["smoothed"] is not None:
            smoothed = self.smoothing * memory["smoothed"] + (1 - self.smoothing) * loss
        memory = {**memory, "smoothed": smoothed}
        if (step + 1) % self.interval:
            return memory
        past, memory["past"] = memory["past"], smoothed
        if past is None or step + 1 < self.warmup_steps:
            return memory
        return self._decide(memory, (past - smoothed) / past)

    def _decide(self, memory: Memory, reward: float) -> Memory:
        table, decision = [row.copy() for row in memory["table"]], memory["decisions"]
        state = sum(reward > bound for bound in self.slopes)
        if decision:  # what came of the one before
            row, action = table[memory["state"]], memory["action"]
            goal = reward + self.discount * max(table[state])
            row[action] += self.learning_rate * (goal - row[action])
        random = np.random.Generator(np.random.Philox([self.seed, decision]))
        action = table[state].index(max(table[state]))
        if random.random() < self.epsilon(decision):
            action = int(random.integers(len(self.factors)))
        rate = min(max(memory["rate"] * self.factors[action], self.lowest), self.highest)
        made = {"table": table, "rate": rate, "state": state, "action": action}
        return {**memory, **made, "decisions": decision + 1}

    def status(self, step: int, memory: Memory) -> dict[str, float]:
        return {
            **super().status(step, memory),
            "state": memory["state"],
            "action": self.factors[memory["action"]],
            "epsilon": self.epsilon(max(0, memory["decisions"] - 1)),
        }


SCHEDULES = {
    "wsd": WarmupStableDecay,
    "cosine": Cosine,
    "schedule-free": ScheduleFree,
    "q": QLearning,
}
