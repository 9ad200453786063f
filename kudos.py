"""The one command, assembled from each folder's cli.py."""

import typer

import deploy.cli
import feedback.cli
import server.bench.cli
import server.cli
import trainer.bench
import trainer.cli

app = typer.Typer(
    name="kudos",
    help="A chat server that learns from its users.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold keys and people's words
)
for part in (server.cli, trainer.cli, feedback.cli, deploy.cli):
    part.register(app)
for part in (server.bench.cli, feedback.cli):
    part.register_bench(trainer.bench.app)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
