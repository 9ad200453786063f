"""The demo's one HTML file: win rate by round, reward against KL, votes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import plots
from trainer.report import render

if TYPE_CHECKING:
    from trainer.tiny.demo import Story

_VOTES = ("left", "right", "tie", "both_bad", "up", "down")


def write_demo_report(path: Path, story: Story) -> None:
    served = [each for each in story.rounds if each.accepted]
    figures = [
        (
            "Win rate over the first policy",
            "By fresh people who see two replies and do not know which policy wrote which. Bars are 95 % intervals.",
            plots.intervals(
                ["before", *(f"round {each.number}" for each in served)],
                [story.before, *(each.win_rate for each in served)],
                "win rate",
            ),
        )
    ]
    for each in story.rounds:
        if each.ppo:
            figures.append(
                (
                    f"Round {each.number}: reward against KL",
                    "Each dot is an iteration of PPO, from light to dark: what a nat of distance buys.",
                    plots.path(
                        [row["kl_nats"] for row in each.ppo],
                        [row["votes_reward"] for row in each.ppo],
                        "KL to the reference, nats per reply",
                        "reward, standard deviations",
                    ),
                )
            )
    figures.append(("Votes", "What people said in each round.", _votes(story)))
    path.write_text(render("demo.html", story=story, summary=story.summary(), figures=figures), encoding="utf-8")


def _votes(story: Story) -> str:
    def draw(axes: Any) -> None:
        width = 0.8 / max(1, len(story.rounds))
        colours = (plots.ACCENT, plots.SECOND, "#059669", "#7c3aed")
        for index, each in enumerate(story.rounds):
            places = [position + index * width for position in range(len(_VOTES))]
            axes.bar(
                places,
                [each.votes.get(name, 0) for name in _VOTES],
                width=width * 0.9,
                color=colours[index % len(colours)],
                label=f"round {each.number}",
            )
        middle = 0.4 - width / 2
        axes.set_xticks([position + middle for position in range(len(_VOTES))], [n.replace("_", " ") for n in _VOTES])
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False)

    return plots.svg(draw)
