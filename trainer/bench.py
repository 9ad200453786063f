"""`kudos bench`: figures that take too long for a test. Their results are kept under bench/."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.ended import clean_up_when_ended

app = typer.Typer(name="bench", help="Figures that take too long for a test.", no_args_is_help=True)
app.callback()(clean_up_when_ended)


@app.command()
def demo(
    tastes: Annotated[str, typer.Option(help="Hidden tastes, with commas between them.")] = "list,warm,exclaim",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them.")] = "0,1,2",
    rounds: Annotated[int, typer.Option(min=1, max=10, help="Rounds of each demo.")] = 2,
    out: Annotated[Path, typer.Option(help="One JSON line a demo; those already in it are not run again.")] = Path(
        "bench/demo.jsonl"
    ),
) -> None:
    """Run the demo for every taste and seed, one after another. Exits 1 where one fails or stays below .75."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for taste in tastes.split(","):
        for seed in map(int, seeds.split(",")):
            if any((row["taste"], row["seed"], row["rounds"]) == (taste, seed, rounds) for row in done):
                continue
            command = [
                sys.executable,
                "-m",
                "kudos",
                "demo",
                "--taste",
                taste,
                "--seed",
                str(seed),
                "--rounds",
                str(rounds),
            ]
            status, lines = _said(command)
            if not lines:
                typer.echo(f"the demo of {taste}, seed {seed}, ended with status {status} and no result", err=True)
                raise typer.Exit(1)
            row = json.loads(lines[-1])
            done.append(row)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    typer.echo(table(done))
    if any(row["win_rate_after"][0] < 0.75 or row["streams_failed"] for row in done):
        raise typer.Exit(1)


def _said(command: list[str]) -> tuple[int, list[str]]:
    """Its status, and the lines that it printed. Where this process is told to end, it tells the other one, which has a
    server to end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise
    return process.returncode, said.strip().splitlines()


@app.command()
def learn(
    *,
    taste: Annotated[str, typer.Option(help="What the simulated people secretly like.")] = "warm",
    noise: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of answers that are random.")] = 0.0,
    contrary: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of people who want the opposite.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of people and of training.")] = 0,
    votes: Annotated[int, typer.Option(min=100, help="In all rounds together.")] = 2000,
    rounds: Annotated[int, typer.Option(min=1, max=10, help="Of votes and training.")] = 2,
    reward_model_only: Annotated[
        bool, typer.Option(help="How often the reward model agrees with the taste, after one round; no PPO.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="A JSON file with training settings, as for `kudos train`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Append the line to this file too.")] = None,
    table_only: Annotated[bool, typer.Option(help="Learn nothing: print what --out has as a table.")] = False,
) -> None:
    """Learn from simulated votes, without the server: the true win rate over the first policy. One JSON line."""
    if table_only:
        if out is None:
            raise typer.BadParameter("--table-only reads the file that --out names: give one")
        typer.echo(learned(list(map(json.loads, out.read_text().splitlines()))))
        return
    from trainer.config import TrainingConfig
    from trainer.tiny.learn_bench import LearnConfig
    from trainer.tiny.learn_bench import learn as run

    training = TrainingConfig.model_validate_json(config.read_text()) if config else TrainingConfig()
    figures = run(
        LearnConfig(
            taste=taste,
            seed=seed,
            noise=noise,
            contrary=contrary,
            votes=votes,
            rounds=rounds,
            reward_model_only=reward_model_only,
            training=training,
        )
    )
    line = json.dumps({"settings": training.model_dump(mode="json", exclude_defaults=True), **figures})
    typer.echo(line)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")


@app.command()
def sybils(
    *,
    share: Annotated[float, typer.Option(min=0.0, max=0.5, help="Of all people, who push a phrase together.")] = 0.05,
    taste: Annotated[str, typer.Option(help="What the honest people secretly like.")] = "warm",
    seed: Annotated[int, typer.Option(help="Of people and of training.")] = 0,
    votes: Annotated[int, typer.Option(min=100, help="Of the honest people.")] = 1000,
    practise: Annotated[bool, typer.Option(help="Also what PPO makes of it, with no protection and with all.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="A JSON file with training settings, as for `kudos train`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Append the line to this file too.")] = None,
) -> None:
    """A few people push a phrase: what the reward model learns of it, and what the gate says. One JSON line."""
    from trainer.config import TrainingConfig
    from trainer.tiny.sybil_bench import SybilConfig, measure

    training = TrainingConfig.model_validate_json(config.read_text()) if config else TrainingConfig()
    attack = SybilConfig(share, taste, seed, votes=votes, practise=practise, training=training)
    line = json.dumps(measure(attack))
    typer.echo(line)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")


@app.command()
def gold(
    *,
    taste: Annotated[str, typer.Option(help="What the simulated people secretly like.")] = "warm",
    seed: Annotated[int, typer.Option(help="Of people and of training.")] = 0,
    votes: Annotated[int, typer.Option(min=100, help="What the reward model is fitted to.")] = 1000,
    every: Annotated[int, typer.Option(min=1, help="Iterations from one measurement to the next.")] = 2,
    config: Annotated[
        Path | None, typer.Option(help="A JSON file with training settings, as for `kudos train`.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="A Python that has TRL 1.12: train TRL's PPO on the same reward too.")
    ] = None,
    trl_learning_rate: Annotated[float, typer.Option(min=0.0, help="Of TRL's policy and critic.")] = 1e-4,
    out: Annotated[Path, typer.Option(help="Append the JSON line to this file.")] = Path("bench/gold.jsonl"),
    plot: Annotated[Path | None, typer.Option(help="Draw every line of --out into this SVG.")] = None,
    plot_only: Annotated[bool, typer.Option(help="Train nothing, and draw what is there.")] = False,
) -> None:
    """The true win rate against KL while PPO practises, ours and TRL's with one reward model. One JSON line."""
    from trainer.config import TrainingConfig
    from trainer.tiny import gold_bench

    if not plot_only:
        training = TrainingConfig.model_validate_json(config.read_text()) if config else TrainingConfig()
        settings = gold_bench.GoldConfig(taste, seed, votes, every, trl_learning_rate, training)
        line = json.dumps(gold_bench.measure(settings, against))
        typer.echo(line)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(line + "\n")
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(gold_bench.plot(gold_bench.read(out)) + "\n", encoding="utf-8")


@app.command()
def ppo(
    *,
    episodes: Annotated[int, typer.Option(min=1, help="Counted; one more batch warms up.")] = 256,
    batch: Annotated[int, typer.Option(min=2, help="Episodes of an iteration.")] = 64,
    prompt_len: Annotated[int, typer.Option(min=2, help="Tokens of a prompt; with --natural, at most.")] = 32,
    response_len: Annotated[int, typer.Option(min=1, help="Tokens of a reply; with --natural, at most.")] = 64,
    epochs: Annotated[int, typer.Option(min=1)] = 4,
    minibatches: Annotated[int, typer.Option(min=1, help="Of each epoch.")] = 1,
    method: Annotated[str, typer.Option(help="default, lora (nothing shared) or full (every weight).")] = "default",
    natural: Annotated[
        bool, typer.Option(help="Replies end where they end, to prompts of the built-in world.")
    ] = False,
    model: Annotated[Path | None, typer.Option(help="A model folder; unset: kudos-tiny.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU where there is one.")] = "auto",
    against: Annotated[
        Path | None, typer.Option(help="A Python that has TRL 1.12: time TRL's PPO beside ours, in turn.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="With --against: how often each runs.")] = 5,
) -> None:
    """Time PPO's loop: episodes a second, peak memory, and where the time goes. One JSON line."""
    from trainer.device import pick_device
    from trainer.tiny.build import MODEL_FOLDER
    from trainer.tiny.ppo_bench import METHODS, PpoBench, beside_trl, measure

    if method not in METHODS:
        raise typer.BadParameter(f"{method!r}: choose one of {', '.join(METHODS)}")
    if batch % minibatches or episodes < batch:
        raise typer.BadParameter("batch must be a multiple of minibatches, and episodes at least one batch")
    bench = PpoBench(
        model=model or MODEL_FOLDER,
        episodes=episodes,
        batch=batch,
        prompt_len=prompt_len,
        response_len=response_len,
        epochs=epochs,
        minibatches=minibatches,
        method=method,
        natural=natural,
        device=str(pick_device(device)),
    )
    typer.echo(json.dumps(measure(bench) if against is None else beside_trl(bench, against, pairs)))


@app.command()
def swap(
    swaps: Annotated[int, typer.Option(min=0, help="How often an adapter is swapped for another.")] = 100,
    streams: Annotated[int, typer.Option(min=1, help="Open all the time.")] = 32,
    quiet: Annotated[float, typer.Option(min=1.0, help="Seconds without a swap, to compare with.")] = 10.0,
    full: Annotated[int, typer.Option(min=0, help="How often a full checkpoint is swapped for another.")] = 6,
    folds: Annotated[int, typer.Option(min=0, help="How often an adapter is folded into the base's weights.")] = 4,
) -> None:
    """Swap and fold policies under live streams: how long does a stream stand still, what does it cost in memory, what
    does a fold bring? One JSON line; exits 1 where a stream fails."""
    from trainer.tiny.swap_bench import measure

    figures = measure(swaps=swaps, streams=streams, quiet_seconds=quiet, full=full, folds=folds)
    typer.echo(json.dumps(figures))
    if figures["failed"] or figures["replies_of_two_policies"]:
        raise typer.Exit(1)


@app.command()
def rollout(
    streams: Annotated[int, typer.Option(min=1, help="Open all the time.")] = 32,
    bad_votes: Annotated[int, typer.Option(min=40, help="Within which a bad policy must be gone.")] = 1000,
    good_votes: Annotated[int, typer.Option(min=40, help="Within which a good one must serve everybody.")] = 8000,
) -> None:
    """Leave rollouts of bad policies and of a good one to themselves, under live streams. One JSON line; exits 1 where
    one does not end as it should, or a stream fails."""
    from trainer.tiny.rollout_bench import measure

    figures = measure(streams=streams, bad_votes=bad_votes, good_votes=good_votes)
    typer.echo(json.dumps(figures))
    if not figures["as_expected"] or figures["streams_failed"] or figures["replies_of_two_policies"]:
        raise typer.Exit(1)


def learned(rows: list[dict[str, Any]]) -> str:
    """Markdown, one row for each taste and kind of people: means over the seeds, with the least and the most. A reward
    model alone has rows of its own: all its votes were on the first policy's replies."""

    def spread(values: list[float]) -> str:
        return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    groups: dict[tuple[bool, str, float, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(("rounds" not in row, row["taste"], row["noise"], row["contrary"]), []).append(row)
    columns = (
        "taste", "random answers", "contrary people", "seeds", "win rate", "at best", "where the taste decides",
        "KL, nats", "reward model",
    )  # fmt: skip
    cells = []
    for (alone, taste, noise, contrary), found in sorted(groups.items()):
        told: list[str] = []
        for name in ("win_rate", "win_rate_at_best", "win_rate_decided", "kl_nats", "reward_model_accuracy"):
            values = [row[name] for row in found if name in row]  # older lines lack some
            told.append(spread([value[0] if isinstance(value, list) else value for value in values]) if values else "")
        name = f"{taste}, the reward model alone" if alone else taste
        cells.append((name, f"{noise:.0%}", f"{contrary:.0%}", str(len(found)), *told))
    return _markdown(columns, cells)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one row a demo."""

    def interval(values: list[float]) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*values)

    def rounds(row: dict[str, Any]) -> list[str]:
        """A policy that the gate refused met nobody: what served before went on serving."""
        by_round = zip(row["win_rate_by_round"], row["accepted"], strict=True)
        return [interval(rate) if accepted else "refused" for rate, accepted in by_round]

    columns = (
        "taste", "seed", "votes", "win rate before", "after each round", "KL, nats", "streams failed",
        "longest gap, s", "minutes",
    )  # fmt: skip
    return _markdown(
        columns,
        [
            (
                row["taste"],
                str(row["seed"]),
                str(row["votes"]),
                interval(row["win_rate_before"]),
                ", then ".join(rounds(row)),
                f"{row['kl_nats']:.2f}",
                f"{row['streams_failed']} of {row['streams_finished']}",
                f"{row['longest_gap_seconds']:.2f}",
                f"{row['seconds'] / 60:.1f}",
            )
            for row in rows
        ],
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
