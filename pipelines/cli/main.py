"""The `hardmoe` command: what Dagster's own commands lack. A user's mistake is one line and an exit code."""

import click

from pipelines.cli import inspect, lineage, maintenance, predict, publish, repartition, run
from pipelines.cli.errors import OneLineErrors


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hardmoe")
def main() -> None:
    """Hard mixtures of convolutional experts for images with hashtags.

    \b
    hardmoe demo                                        the whole graph on synthetic data
    hardmoe init cats --source photos.parquet           a study of one's own
    hardmoe run --study cats/study.toml
    """


for command in (
    run.demo,
    run.init,
    run.run,
    run.backfill,
    repartition.repartition,
    inspect.status,
    inspect.results,
    inspect.report,
    lineage.lineage,
    inspect.ui,
    predict.predict,
    publish.publish,
    maintenance.reap,
    maintenance.gc,
    maintenance.verify,
    maintenance.forget,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
