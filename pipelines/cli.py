"""The `hardmoe` command: what Dagster's own commands lack. A user's mistake is one line and an exit code."""

import click

from pipelines.commands import asking, keeping, lineage, looking, making, publishing, repartitioning
from pipelines.commands.common import OneLineErrors


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hardmoe")
def main() -> None:
    """Hard mixtures of convolutional experts for images with hashtags.

    \b
    hardmoe demo                                        the whole graph on drawn data
    hardmoe init cats --source photos.parquet           a study of one's own
    hardmoe run --study cats/study.toml
    """


for command in (
    making.demo,
    making.init,
    making.run,
    making.backfill,
    repartitioning.repartition,
    looking.status,
    looking.results,
    looking.report,
    lineage.lineage,
    looking.ui,
    asking.predict,
    publishing.publish,
    keeping.reap,
    keeping.tidy,
    keeping.gc,
    keeping.verify,
    keeping.forget,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
