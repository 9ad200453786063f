"""One HTML file per run, with plots, that an operator reads before a rollout. Nothing in it is fetched from
anywhere. What quotes people stands between marks, so that an erasure can take it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from deploy.gate import Verdict
from feedback.run_files import WORDS_BEGIN, WORDS_END, marked
from trainer import plots
from trainer.assessment import Assessment
from trainer.attribution import Effect, Piece, contributions, pieces, reason_effects, surface_effects
from trainer.config import TrainingConfig
from trainer.evaluation import Evaluation
from trainer.examples import VoteExample
from trainer.reward_model import RewardModel
from trainer.sft import SftEpoch

SAMPLES_SHOWN = 12
EXPLAINED = 6


@dataclass(frozen=True)
class Opinions:
    """What moves the reward model (`trainer.attribution`)."""

    surfaces: list[Effect]
    reasons: list[Effect]
    replies: list[list[Piece]]


def render(template: str, **values: Any) -> str:
    environment = Environment(loader=PackageLoader("trainer"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)


def write_report(
    path: Path,
    *,
    run_id: str,
    version: str,
    parent: str,
    config: TrainingConfig,
    votes: tuple[int, int],
    left_out: str,
    assessment: Assessment,
    imitated: Sequence[SftEpoch],
    history: Sequence[dict[str, float]],
    evaluation: Evaluation,
    verdict: Verdict,
    opinions: Opinions,
    prompt_text: Callable[[Sequence[int]], str],
) -> None:
    episodes = [row["episodes"] for row in history]

    def column(name: str) -> list[float]:
        return [row[name] for row in history]

    report = evaluation.report
    figures = [
        (
            "Reward",
            "One point an iteration: what the reward model thinks of fresh replies, what is paid for them after every "
            "term, and what the second judge thinks. Where it falls while the others rise, the reward is being gamed.",
            plots.lines(
                episodes,
                {"votes": column("votes_reward"), "composed": column("reward")}
                | ({"second judge": column("judge_reward")} if "judge_reward" in history[0] else {}),
                "episodes",
                "standard deviations of the reference",
            ),
        ),
        (
            "Terms of the reward",
            "What adds up to the composed reward, each with its weight.",
            plots.lines(
                episodes,
                {name.removeprefix("term/"): column(name) for name in history[0] if name.startswith("term/")},
                "episodes",
                "standard deviations of the reference",
            ),
        ),
        (
            "Reward against KL",
            "What each nat of distance from the reference buys. A curve that bends down is a reward being gamed.",
            plots.path(column("kl_nats"), column("votes_reward"), "KL to the reference, nats per reply", "reward"),
        ),
        (
            "KL",
            "The controller steers the mean towards its target.",
            plots.lines(
                episodes, {"KL": column("kl_nats")}, "episodes", "nats per reply", target=config.ppo.kl_target_nats
            ),
        ),
        (
            "Doubt of the ensemble",
            "Spread of the members' scores. It grows where the policy goes beyond what the votes cover.",
            plots.lines(episodes, {"spread": column("uncertainty")}, "episodes", "standard deviations"),
        ),
        (
            "Length and ends",
            "Replies that grow or shrink without bound are the first sign of a reward being gamed.",
            plots.lines(episodes, {"tokens": column("reply_tokens")}, "episodes", "tokens per reply"),
        ),
        (
            "Stability",
            "Clip fraction, and the KL of an iteration's updates per token.",
            plots.lines(
                episodes,
                {"clip fraction": column("clip_fraction"), "KL of updates": column("approx_kl_per_token")},
                "episodes",
                "",
            ),
        ),
    ]
    if assessment.reliability:
        figures.append(
            (
                "Calibration of the reward model",
                "On held-out pairs: does a predicted 70 % come true in 70 % of cases?",
                plots.reliability(assessment.reliability),
            )
        )
    for name, caption, found in (
        (
            "Surfaces that move the reward",
            "Each while the others stay as they are, over the evaluation's replies. Votes may be about them, or the "
            "reward model takes them for quality.",
            opinions.surfaces,
        ),
        (
            "Reasons that people gave",
            "Mean score of the replies with a tag, against all with a thumb. A complaint should lie below zero.",
            opinions.reasons,
        ),
    ):
        if found:
            rows = [(each.name, each.effect, each.lower, each.upper) for each in found]
            figure = plots.effects(rows, "standard deviations of the reference")
            figures.append((name, caption, marked(figure) if found is opinions.reasons else figure))
    path.write_text(
        render(
            "report.html",
            run_id=run_id,
            version=version,
            parent=parent,
            votes=votes,
            left_out=left_out,
            assessment=assessment,
            imitated=imitated,
            report=report,
            verdict=verdict,
            figures=figures,
            last=history[-1],
            samples=_samples(evaluation, prompt_text),
            explained=[[(piece.text, piece.gain, _shade(piece.gain)) for piece in reply] for reply in opinions.replies],
            config=config.model_dump_json(indent=2),
            words_begin=WORDS_BEGIN,
            words_end=WORDS_END,
        ),
        encoding="utf-8",
    )


def explain(
    model: RewardModel, evaluation: Evaluation, votes: Sequence[VoteExample], decode: Callable[[Sequence[int]], str]
) -> Opinions:
    """What moves the reward model, on the evaluation's replies and on the votes that it learned from."""
    both = [*evaluation.serving.rollouts, *evaluation.candidate.rollouts]
    rollouts = evaluation.candidate.rollouts[:: max(1, len(evaluation.candidate.rollouts) // EXPLAINED)][:EXPLAINED]
    return Opinions(
        surfaces=surface_effects(
            np.concatenate([evaluation.serving.scores, evaluation.candidate.scores]),
            [*evaluation.serving.texts, *evaluation.candidate.texts],
            [len(rollout.reply) for rollout in both],
        ),
        reasons=reason_effects(model, votes),
        replies=[
            pieces(rollout.reply, gains, decode)
            for rollout, gains in zip(rollouts, contributions(model, rollouts), strict=True)
        ],
    )


def _shade(gain: float) -> str:
    """Green for a gain, red for a loss, as strong as it is large."""
    strength = min(1.0, abs(gain)) * 0.55
    return f"rgba({'16, 122, 87' if gain > 0 else '180, 35, 24'}, {strength:.2f})"


def _samples(evaluation: Evaluation, prompt_text: Callable[[Sequence[int]], str]) -> list[dict[str, Any]]:
    """Replies of both policies to the same prompts, spread evenly over the evaluation."""
    total = len(evaluation.candidate.rollouts)
    rows = range(0, total, max(1, total // SAMPLES_SHOWN))
    return [
        {
            "prompt": prompt_text(evaluation.candidate.rollouts[row].prompt),
            "before": evaluation.serving.texts[row],
            "before_score": float(evaluation.serving.scores[row]),
            "after": evaluation.candidate.texts[row],
            "after_score": float(evaluation.candidate.scores[row]),
        }
        for row in list(rows)[:SAMPLES_SHOWN]
    ]
