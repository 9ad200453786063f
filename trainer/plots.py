"""Plots as inline SVG, in one restrained style, for reports that are a single HTML file."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

INK, MUTED, ACCENT, SECOND, GRID = "#1f2933", "#7b8794", "#2563eb", "#d97706", "#e4e7eb"
COLOURS = (ACCENT, SECOND, "#059669", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#b91c1c")


def svg(draw: Callable[[Any], None], width: float = 5.2, height: float = 3.1) -> str:
    """Draw on one pair of axes; returns an <svg> element."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "font.size": 9,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "svg.hashsalt": "kudos",
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def lines(
    x: Sequence[float], series: Mapping[str, Sequence[float]], x_label: str, y_label: str, target: float | None = None
) -> str:
    def draw(axes: Any) -> None:
        for (name, values), colour in zip(series.items(), cycle(COLOURS), strict=False):
            axes.plot(x, values, color=colour, linewidth=1.8, label=name)
        if target is not None:
            axes.axhline(target, color=MUTED, linewidth=1, linestyle="--", label="target")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(series) > 1 or target is not None:
            axes.legend(frameon=False)

    return svg(draw)


def path(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> str:
    """One thing against another through training, from light to dark."""

    def draw(axes: Any) -> None:
        axes.plot(x, y, color=GRID, linewidth=1.2, zorder=1)
        axes.scatter(x, y, c=range(len(x)), cmap="Blues", vmin=-len(x), s=26, zorder=2, edgecolors="none")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return svg(draw)


def reliability(rows: Sequence[tuple[float, float, int]]) -> str:
    """Predicted against observed, with dots as large as their share of votes."""

    def draw(axes: Any) -> None:
        total = sum(count for _, _, count in rows) or 1
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
        axes.scatter(
            [predicted for predicted, _, _ in rows],
            [observed for _, observed, _ in rows],
            s=[20 + 400 * count / total for _, _, count in rows],
            color=ACCENT,
            alpha=0.8,
            edgecolors="none",
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("predicted share that prefers the left reply")
        axes.set_ylabel("observed share")

    return svg(draw)


def intervals(
    labels: Sequence[str], rows: Sequence[tuple[float, float, float]], y_label: str, level: float | None = 0.5
) -> str:
    """Means with their intervals; each row is (mean, lower, upper)."""

    def draw(axes: Any) -> None:
        for position, (mean, lower, upper) in enumerate(rows):
            axes.plot([position, position], [lower, upper], color=ACCENT, linewidth=2)
            axes.scatter([position], [mean], color=ACCENT, s=40, zorder=3)
            axes.annotate(f"{mean:.2f}", (position, mean), textcoords="offset points", xytext=(9, -3), color=INK)
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=1, linestyle="--")
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(0, 1)
        axes.set_ylabel(y_label)

    return svg(draw)


def effects(rows: Sequence[tuple[str, float, float, float]], x_label: str) -> str:
    """Named effects with their intervals, one under another; each row is (name, effect, lower, upper)."""

    def draw(axes: Any) -> None:
        for place, (_, effect, lower, upper) in enumerate(reversed(rows)):
            colour = ACCENT if lower > 0 else SECOND if upper < 0 else MUTED
            axes.plot([lower, upper], [place, place], color=colour, linewidth=2)
            axes.scatter([effect], [place], color=colour, s=36, zorder=3)
        axes.axvline(0.0, color=MUTED, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(x_label)

    return svg(draw, height=max(1.6, 0.8 + 0.36 * len(rows)))
