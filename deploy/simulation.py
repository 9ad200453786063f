"""How often the rollout's statistics are wrong, and how soon right: many made-up rollouts, with a look at each vote.

The bounds and tests are those of `deploy.sequential`, and the plan's; the rest is arithmetic on running sums, so that a
thousand rollouts take seconds. All runs take the same step at the same time, each with people of its own. Arrays have
the shape (runs,) or (runs, people); arm 0 is the stable policy's, arm 1 the candidate's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy import sequential
from deploy.decision import ALPHA_PARTS, NET_VOTES_SCALE, WIN_RATE_SCALE
from deploy.guardrails import BETWEEN, RATIO_SCALE, REFUSALS_SCALE
from deploy.sequential import Floats
from deploy.settings import RolloutSettings

SHARE = 0.25
UP_RATE = 0.7  # of votes on the stable policy's replies
VOTED = 0.5  # of replies
_CONCENTRATION = 4.0  # of people's own rates of up (Beta): one person's votes correlate by 0.2


@dataclass(frozen=True)
class Scenario:
    name: str
    harm: float = 0.0  # fewer ups, and fewer wins, of all votes
    heavy: float = 0.0  # share of all turns that are one person's, who dislikes the candidate always
    delay_turns: float = 0.0  # mean number of turns of all people before a vote comes
    lost: float = 0.0  # share of the candidate's users who are never logged
    compared: float = 0.2  # of turns; the others are replies
    first_token: float = 1.0  # how many times as long the candidate takes
    per_token: float = 1.0
    length: float = 1.0  # how many times as long its replies are
    refusals: float = 0.0  # how many more of its replies refuse, of all


SCENARIOS = (
    Scenario("A/A"),
    Scenario("10 points worse", harm=0.1),
    Scenario("10 points worse, thumbs alone", harm=0.1, compared=0.0),
    Scenario("one heavy voter", heavy=0.2),
    Scenario("late votes", delay_turns=500.0),
    Scenario("late votes, 10 points worse", harm=0.1, delay_turns=500.0),
    Scenario("a fifth of the candidate's users lost", lost=0.2),
    Scenario("first token takes twice as long", first_token=2.0),
    Scenario("replies half as long again", length=1.5),
    Scenario("replies a third shorter", length=2 / 3),
    Scenario("refuses 15 points more", refusals=0.15),
    Scenario("at every limit", first_token=1.5, per_token=1.5, length=1.25, refusals=0.05),
)


GUARDRAILS = ("sample_ratio", "net_votes", "win_rate", "first_token", "per_token", "length", "refusals")
MANNERS = {
    # what is measured of each reply: usual value, and deviations of its logarithm between people and within one's own
    "first_token": (0.3, 0.4, 0.6),
    "per_token": (0.03, 0.2, 0.3),
    "length": (60.0, 0.4, 0.6),
}
REFUSED = 0.03  # of the stable policy's replies


class Scores:
    """Means of each person's scores, and from them means over people, for one or two arms."""

    def __init__(self, runs: int, people: int, arms: int) -> None:
        self.count = np.zeros((runs, people))
        self.total = np.zeros((runs, people))
        self.people = np.zeros((runs, arms))
        self.sums = np.zeros((runs, arms))
        self.squares = np.zeros((runs, arms))
        self._runs = np.arange(runs)

    def add(self, person: Any, arm: Any, *, count: float = 0.0, total: Any = 0.0) -> None:
        """For each run one person: `count` more targets, `total` more of score."""
        at, to = (self._runs, person), (self._runs, arm)
        before_count, before_total = self.count[at], self.total[at]
        after_count, after_total = before_count + count, before_total + total
        before = before_total / np.maximum(before_count, 1.0)
        after = after_total / np.maximum(after_count, 1.0)
        self.count[at], self.total[at] = after_count, after_total
        self.people[to] += (after_count > 0) & (before_count == 0)
        self.sums[to] += after - before
        self.squares[to] += after**2 - before**2

    def mean_and_variance(self, half_range: float) -> tuple[Floats, Floats]:
        """Both (runs, arms)."""
        people = np.maximum(self.people, 1.0)
        means = self.sums / people
        deviations = np.maximum(self.squares - self.sums * means, 0.0)
        return means, sequential.mean_variance(people, deviations, half_range)


class Rollouts:
    """Many runs of one scenario, in one step of the rollout."""

    def __init__(self, scenario: Scenario, plan: RolloutSettings, *, runs: int, people: int, seed: int) -> None:
        self.scenario, self.plan, self.runs = scenario, plan, runs
        self.rng = np.random.default_rng(seed)
        logged = SHARE * (1 - scenario.lost)
        self.arm = (self.rng.random((runs, people)) < logged / (logged + 1 - SHARE)).astype(np.int64)
        self.taste = self.rng.beta(_CONCENTRATION * UP_RATE, _CONCENTRATION * (1 - UP_RATE), (runs, people))
        self.preference = self.rng.beta(_CONCENTRATION / 2, _CONCENTRATION / 2, (runs, people))  # for the candidate
        activity = self.rng.lognormal(0.0, 1.0, people)
        self._up_to = np.cumsum(activity) / activity.sum()
        if scenario.heavy:
            self.arm[:, 0] = 1
        self.manners = {name: Scores(runs, people, 2) for name in (*MANNERS, "refusals")}
        self.usual = {name: self.rng.normal(0, between, (runs, people)) for name, (_, between, _) in MANNERS.items()}
        self.net_votes = Scores(runs, people, 2)
        self.win_rate = Scores(runs, people, 1)
        self.votes = 0

    def turn(self) -> tuple[NDArray[np.int64], Any]:
        """Who is next, in each run, and whether that is the heavy voter."""
        person = np.searchsorted(self._up_to, self.rng.random(self.runs)).clip(0, self.arm.shape[1] - 1)
        heavy = bool(self.scenario.heavy) and self.rng.random() < self.scenario.heavy
        return (np.zeros_like(person) if heavy else person), heavy

    def reply(self, person: Any) -> None:
        runs = np.arange(self.runs)
        arm = self.arm[runs, person]
        self.net_votes.add(person, arm, count=1.0)
        for name, (usual, _, within) in MANNERS.items():
            times = np.where(arm == 1, getattr(self.scenario, name), 1.0)
            value = self.usual[name][runs, person] + self.rng.normal(0, within, self.runs) + np.log(usual * times)
            self.manners[name].add(person, arm, count=1.0, total=value.clip(*BETWEEN[name]))
        refused = self.rng.random(self.runs) < REFUSED + np.where(arm == 1, self.scenario.refusals, 0.0)
        self.manners["refusals"].add(person, arm, count=1.0, total=refused.astype(float))

    def vote(self, person: Any, heavy: bool) -> None:
        """Up or down, on a reply that was counted."""
        runs = np.arange(self.runs)
        arm = self.arm[runs, person]
        up_rate = self.taste[runs, person] * np.where(arm == 1, 1 - self.scenario.harm / UP_RATE, 1.0)
        up = (self.rng.random(self.runs) < up_rate) & (not heavy)
        self.net_votes.add(person, arm, total=np.where(up, 1.0, -1.0))
        self.votes += 1

    def choose(self, person: Any, heavy: bool) -> None:
        win_rate = self.preference[np.arange(self.runs), person] * (1 - 2 * self.scenario.harm)
        won = (self.rng.random(self.runs) < win_rate) & (not heavy)
        self.win_rate.add(person, 0, count=1.0, total=won.astype(float))
        self.votes += 1

    def bounds(self) -> dict[str, tuple[Floats, Floats]]:
        """Lower and upper, of each measure; without bounds where there are too few people."""
        means, variances = self.net_votes.mean_and_variance(1.0)
        rates, rate_variances = self.win_rate.mean_and_variance(0.5)
        effects = {
            "net_votes": (means[:, 1] - means[:, 0], variances.sum(1), self.net_votes.people.min(1), NET_VOTES_SCALE),
            "win_rate": (rates[:, 0], rate_variances[:, 0], self.win_rate.people[:, 0], WIN_RATE_SCALE),
        }
        found = {}
        for name, (effect, variance, people, scale) in effects.items():
            reach = sequential.half_width(variance, self.plan.alpha * ALPHA_PARTS[name], scale)
            reach = np.where(people >= sequential.MIN_USERS, reach, np.inf)
            found[name] = (effect - reach, effect + reach)
        return found

    def beyond(self) -> dict[str, NDArray[np.bool_]]:
        """Whether each guardrail is raised, of each run."""
        found = {}
        for name, (low, high) in BETWEEN.items():
            means, variances = self.manners[name].mean_and_variance((high - low) / 2)
            sides = 2 if name == "length" else 1
            scale = REFUSALS_SCALE if name == "refusals" else RATIO_SCALE
            reach = sequential.half_width(variances.sum(1), self.plan.alpha * ALPHA_PARTS[name] / sides, scale)
            effect, enough = means[:, 1] - means[:, 0], self.manners[name].people.min(1) >= sequential.MIN_USERS
            limit = _limit(name, self.plan)
            raised = effect - reach > limit
            if name == "length":
                raised |= effect + reach < -limit
            found[name] = raised & enough
        return found

    def mismatched(self) -> NDArray[np.bool_]:
        people = self.net_votes.people
        log_evidence = sequential.mismatch(people[:, 1], people.sum(1), SHARE) - np.log(2.0)  # the first step's part
        return np.asarray(log_evidence >= -np.log(self.plan.alpha * ALPHA_PARTS["sample_ratio"]))


def simulate(
    scenario: Scenario,
    plan: RolloutSettings | None = None,
    *,
    runs: int = 1000,
    people: int = 2000,
    turns: int = 6000,
    seed: int = 0,
) -> dict[str, Any]:
    """How many runs are rolled back, by which guardrail first, and after how many votes.

    `no_worse` counts those that are before that shown to be so, by both measures and with the margins for all users.
    """
    plan = plan or RolloutSettings()
    rollouts = Rollouts(scenario, plan, runs=runs, people=people, seed=seed)
    first = {name: np.full(runs, np.inf) for name in (*GUARDRAILS, "no_worse")}  # vote at which it was first seen
    later: dict[int, list[tuple[Any, bool]]] = defaultdict(list)

    def look() -> None:
        bounds = rollouts.bounds()
        (net_lower, net_upper), (win_lower, win_upper) = bounds["net_votes"], bounds["win_rate"]
        seen = {
            "sample_ratio": rollouts.mismatched(),
            "net_votes": net_upper < 0.0,
            "win_rate": win_upper < 0.5,
            **rollouts.beyond(),
            "no_worse": (net_lower > -plan.net_votes_margin) & (win_lower > 0.5 - plan.win_rate_margin),
        }
        for name, now in seen.items():
            first[name] = np.where(now, np.minimum(first[name], rollouts.votes), first[name])

    for at in range(turns):
        person, heavy = rollouts.turn()
        if rollouts.rng.random() < scenario.compared:
            rollouts.choose(person, heavy)
            look()
        else:
            rollouts.reply(person)
            if rollouts.rng.random() < VOTED or heavy:
                delay = rollouts.rng.geometric(1 / (1 + scenario.delay_turns)) - 1
                later[at + delay].append((person, heavy))
        for voter, always_down in later.pop(at, ()):
            rollouts.vote(voter, always_down)
            look()
    return _summary(scenario, first, runs=runs, votes=rollouts.votes)


def _limit(name: str, plan: RolloutSettings) -> float:
    if name == "refusals":
        return plan.refusals_margin
    return math.log(getattr(plan, f"{name}_ratio"))


def _summary(scenario: Scenario, first: dict[str, Floats], *, runs: int, votes: int) -> dict[str, Any]:
    times = np.array([first[name] for name in GUARDRAILS])
    soonest, by = times.min(axis=0), times.argmin(axis=0)
    rolled_back = np.isfinite(soonest)
    return {
        "scenario": scenario.name,
        "runs": runs,
        "votes": votes,
        "rolled_back": int(rolled_back.sum()),
        "by": {name: int((rolled_back & (by == k)).sum()) for k, name in enumerate(GUARDRAILS)},
        "median_votes_to_roll_back": float(np.median(soonest[rolled_back])) if rolled_back.any() else None,
        "no_worse": int((first["no_worse"] < soonest).sum()),
    }
