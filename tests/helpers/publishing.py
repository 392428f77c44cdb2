"""A mixture that is published, and the log of publications."""

from click.testing import CliRunner

from moe_core.engine.build import build
from moe_core.serving import publication
from moe_core.store.documents import FolderDocuments
from moe_core.workspace import open_study
from pipelines.cli.main import main


def version(root, study):
    return open_study(study, root).version("mixture")


def publish(root, study):
    """What `hardmoe run` does; the decision about the study's mixture."""
    context = open_study(study, root)
    build(context, "published")
    return publication.read_log(FolderDocuments(root)).last(context.version("mixture"))


def log_of(root):
    return publication.read_log(FolderDocuments(root))


def hardmoe(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])
