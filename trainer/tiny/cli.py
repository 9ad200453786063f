"""`kudos tiny`: build the built-in model, measure it, talk to it. Progress and tables go to standard error."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="tiny", help="The built-in model: build it, measure it, talk to it.", no_args_is_help=True)

FolderOption = Annotated[Path | None, typer.Option("--model", help="A model folder instead of the built-in one.")]


def _folder(chosen: Path | None) -> Path:
    from trainer.tiny.build import MODEL_FOLDER

    folder = chosen or MODEL_FOLDER
    if not (folder / "config.json").exists():
        typer.echo(f"{folder} holds no model: build one with `kudos tiny build --out {folder}`", err=True)
        raise typer.Exit(1)
    return folder


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or absent.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, machine and threads: the same weights.")] = 0,
    dialogues: Annotated[int | None, typer.Option(min=100, help="How many dialogues to train on.")] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Processor threads; part of what makes a build reproducible.")
    ] = 2,
) -> None:
    """Train kudos-tiny from nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from trainer.supervised import Step
    from trainer.tiny.build import DEFAULT_DIALOGUES
    from trainer.tiny.build import build as build_model

    if out.exists() and any(out.iterdir()):
        typer.echo(f"{out} is not empty: choose another folder, or remove it first", err=True)
        raise typer.Exit(1)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=None, numbers="")

        def on_step(step: Step) -> None:
            numbers = f"loss {step.loss:.3f}  rate {step.learning_rate:.1e}  {step.tokens_per_second:,.0f} tokens/s"
            progress.update(task, total=step.total, completed=step.index, numbers=numbers)
            if not console.is_terminal and step.index % -(-step.total // 20) == 0:
                left = step.seconds_left / 60
                console.print(f"{step.index}/{step.total}  {numbers}  {left:.0f} minutes left", highlight=False)

        built = build_model(
            out,
            seed=seed,
            dialogues=dialogues or DEFAULT_DIALOGUES,
            threads=threads,
            on_stage=lambda stage: progress.update(task, description=stage),
            on_step=on_step,
        )
    summary = built.summary
    console.print(
        f"{built.parameters:,} parameters in {built.folder}: {summary.steps} steps, {summary.tokens:,} tokens, "
        f"loss {summary.first_loss:.2f} to {summary.final_loss:.3f}, {summary.seconds / 60:.1f} minutes"
    )


@app.command("eval")
def evaluate(  # noqa: PLR0917 -- typer calls it by name
    model: FolderOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the held-out dialogues and of the sampling.")] = 0,
    dialogues: Annotated[int, typer.Option(min=1, help="Held-out dialogues, one sampled reply each.")] = 500,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts that get 20 samples each.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")] = False,
    show_failures: Annotated[int, typer.Option(min=0, help="Print this many replies that failed.")] = 0,
) -> None:
    """Judge sampled replies to held-out dialogues. Exits 1 below the bar: 95 % well-formed, 90 % fitting."""
    import json

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from trainer.evaluation_sets import load_sets
    from trainer.tiny.evaluate import SAMPLES_PER_PROMPT
    from trainer.tiny.evaluate import evaluate as run

    folder = _folder(model)
    sets = load_sets(folder, {})
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        total = dialogues + prompts * SAMPLES_PER_PROMPT + sum(len(each.cases) for each in sets)
        task = progress.add_task("sampling", total=total)
        report = run(
            folder,
            seed=seed,
            dialogues=dialogues,
            varied_prompts=prompts,
            sets=sets,
            on_reply=lambda count: progress.advance(task, count),
        )
    table = Table("measure", "value", "bar", title=f"kudos-tiny on {dialogues} held-out dialogues, temperature 0.7")
    table.add_row("well-formed", f"{report.well_formed:.1%}", "95 %")
    table.add_row("fits what was asked", f"{report.fits:.1%}", "90 %")
    for language, share in report.fits_by_language.items():
        table.add_row(f"  in {language}", f"{share:.1%}", "")
    table.add_row("right, where it can be", f"{report.right:.1%}", "")
    table.add_row("ended by itself", f"{report.finished:.1%}", "")
    table.add_row("reply tokens, mean", f"{report.mean_reply_tokens:.1f}", "")
    table.add_row(f"good phrasings in {SAMPLES_PER_PROMPT}, mean", f"{report.good_phrasings_mean:.1f}", "6")
    table.add_row(f"good phrasings in {SAMPLES_PER_PROMPT}, least", str(report.good_phrasings_min), "")
    table.add_row("prompts with six or more", f"{report.prompts_with_six:.0%}", "")
    for taste, share in report.satisfied.items():
        table.add_row(f"satisfies {taste}", f"{share:.0%}", "")
    for name, rates in report.sets.items():
        table.add_row(f"passes the set {name}", "{:.1%} ({:.1%} to {:.1%})".format(*rates), "")
    console.print(table)
    for failure in report.failures[:show_failures]:
        console.print(failure, markup=False)
    console.print(f"{report.seconds:.0f} s; {'passes' if report.passes else 'BELOW THE BAR'}")
    if as_json:
        typer.echo(json.dumps(report.as_json(), ensure_ascii=False))
    if not report.passes:
        raise typer.Exit(1)


@app.command()
def sets(
    out: Annotated[
        Path | None, typer.Option(help="A folder; unset: the built-in model's own, where training looks for them.")
    ] = None,
) -> None:
    """Write kudos-tiny's evaluation sets: helpful, truthful, harmless."""
    from trainer.evaluation_sets import SHIPPED
    from trainer.tiny.build import MODEL_FOLDER
    from trainer.tiny.sets import write

    for path in write(out or MODEL_FOLDER / SHIPPED):
        typer.echo(path)


@app.command()
def chat(
    model: FolderOption = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Talk to the model in the terminal, without a server. An empty line ends it."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.tiny.evaluate import sample_replies
    from trainer.tokens import load_tokenizer

    folder = _folder(model)
    tokenizer = load_tokenizer(folder)
    loaded = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16).eval()
    messages = [] if system is None else [{"role": "system", "content": system}]
    while said := typer.prompt("you", default="", show_default=False):
        messages.append({"role": "user", "content": said})
        [reply] = sample_replies(loaded, tokenizer, [messages], seed=seed + len(messages))
        typer.echo(reply.text)
        messages.append({"role": "assistant", "content": reply.text})
