"""The `hardmoe` command: what Dagster's own commands lack. A user's mistake is one line and an exit code."""

from pkgutil import resolve_name
from typing import cast

import click

from pipelines.cli.errors import OneLineErrors

# each lies in pipelines.cli and is imported when it is called, for many load Dagster or torch
COMMANDS = {
    "demo": ("run", "The whole graph on synthetic data; prints the comparison table."),
    "init": ("init", "Preview a source, write study.toml."),
    "run": ("run", "Build everything missing or stale."),
    "pilot": ("pilot", "What a mixture would gain, before its experts are trained."),
    "backfill": ("run", "Train some experts, or all."),
    "repartition": ("repartition", "Fit the gate again; experts that changed are stale."),
    "status": ("inspect", "What is fresh, stale, missing, failed, running."),
    "results": ("inspect", "The comparison table."),
    "report": ("inspect", "Where the page lies; --open shows it."),
    "lineage": ("lineage", "What something was made from, and what depends on it."),
    "ui": ("inspect", "Dagster's UI and daemon on the study, until interrupted."),
    "predict": ("predict", "Hashtags of images."),
    "mixtures": ("mixtures", "All mixtures of a study; names and notes for them."),
    "compare": ("mixtures", "Several studies in one table."),
    "bundle": ("bundle", "Whether a bundle is whole and answers."),
    "export": ("export", "A mixture as a folder that travels, or as ONNX files."),
    "search": ("search", "Posts nearest to images, posts and hashtags."),
    "serve": ("serve", "Answer over HTTP."),
    "publish": ("publish", "Publish a mixture, or go back."),
    "doctor": ("doctor", "What this machine has, and what is wrong with it."),
    "reap": ("maintenance", "End runs whose process died."),
    "gc": ("maintenance", "Free disk that nothing needs."),
    "verify": ("maintenance", "Check every byte of the store."),
    "forget": ("maintenance", "Take posts down for good."),
}


class Commands(OneLineErrors):
    """The commands, each imported when it is asked for; --help imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return cast(click.Command, resolve_name(f"pipelines.cli.{COMMANDS[name][0]}:{name}"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hardmoe")
def main() -> None:
    """Hard mixtures of convolutional experts for images with hashtags.

    \b
    hardmoe demo                                        the whole graph on synthetic data
    hardmoe init cats --source photos.parquet           a study of one's own
    hardmoe run --study cats/study.toml
    """


if __name__ == "__main__":
    main()
