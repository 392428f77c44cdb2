"""A study of one's own: init."""

import re
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import click
import torch

from moe_core.advice import Seen, propose
from moe_core.data.sources.guessing import absolute, guess_format
from moe_core.data.sources.preview import preview
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Unready
from moe_core.data.sources.shards import find_shards
from moe_core.errors import BadSetting
from moe_core.recipes import RECIPES
from moe_core.recipes import quick as quicker
from moe_core.settings import Source, Study
from moe_core.store.layout import Layout
from moe_core.store.owner import check_owner
from moe_core.store.places import claim
from moe_core.store.protocols import open_store
from moe_core.study_file import dump_study, study_of
from moe_core.text import format_duration, refuse_bytes
from moe_core.training.trial import images_per_second
from pipelines.cli.common import show_keys, study_at, warn_unready, write_study
from pipelines.instance.home import checked_home
from pipelines.terminal import echo


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each of the other texts of [source]: columns, table, images."""
    for name, field in reversed(Source.model_fields.items()):
        if field.annotation is str and name not in ("format", "uri"):
            option = click.option(f"--{name.replace('_', '-')}", default="", help=field.description)
            command = option(command)
    return command


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--source",
    required=True,
    help=f"{'; '.join(format.what for format in FORMATS.values())}.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(FORMATS)),
    help="Format of the source.  [default: by what is there]",
)
@source_options
@click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    help="Named settings as they are.  [default: small, with what suits the source]",
)
@click.option(
    "--store",
    "store_uri",
    default="",
    help="Bucket and prefix for what all machines share, such as s3://bucket/cats.  [default: FOLDER]",
)
@click.option("--endpoint", default="", help="--store: URL of a server that is not Amazon's.")
@click.option("--quick", is_flag=True, help="For a first look: no controls, fewer epochs.")
@click.option("--name", default=None, help="Name of the study.  [default: the folder's]")
@click.option("--force", is_flag=True, help="Replace a study.toml that is there.")
def init(
    folder: Path,
    source: str,
    kind: str | None,
    recipe: str | None,
    store_uri: str,
    endpoint: str,
    quick: bool,
    name: str | None,
    force: bool,
    **settings: str,
) -> None:
    """Reports what is in the source and writes FOLDER/study.toml.

    Proposes the number of experts, the loss and the share of validation posts from what it saw, with the reasons, and
    writes them, unless --recipe asks for named settings.

    Example: hardmoe init cats --source photos.parquet
    """
    by_name = recipe is not None
    recipe = recipe or "small"
    refuse_bytes(folder.absolute(), "the study")
    checked_home(folder.absolute())
    for option, text in {"source": source, **settings}.items():
        refuse_bytes(text, f"--{option.replace('_', '-')}")
    study_file = Layout(folder).study_file
    if study_file.exists() and not force:
        raise BadSetting(f"{study_file} exists: edit it, or replace it with --force")
    check_owner(study_file)
    kind = kind or guess_format(source)
    settings["images"] = settings["images"] and absolute(settings["images"])
    uri = "" if kind == "synthetic" else absolute(source)
    stored = Study().changed(store={"uri": store_uri, "endpoint": endpoint})
    stored = study_of(dump_study(stored), study_file)  # raises BadSetting
    given = Source.model_validate(settings | {"format": kind, "uri": uri})
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.absolute().name).strip("-_") or "study"
    base = quicker(RECIPES[recipe]()) if quick else RECIPES[recipe]()
    if kind == "synthetic":
        given = base.source if base.source.format == "synthetic" else given
    unready: list[Unready] = []
    lines, seen = preview(given, find_shards(given, unready=unready), base.data.image_size)
    for line in lines:
        echo(line)
    warn_unready(unready)
    study = base.model_copy(update={"name": name or plain, "source": given, "store": stored.store})
    if place := open_store(study, folder).place:
        claim(place, study.name)
    if kind != "synthetic":
        study = _as_proposed(study, seen, by_name)
    echo(f"Recipe {recipe}: {(RECIPES[recipe].__doc__ or '').strip().splitlines()[0]}")
    if quick:
        echo(
            f"--quick: no controls, {study.trunk.epochs:g}+{study.expert_training.epochs:g} epochs; whether the "
            "mixture is worth its cost is not measured"
        )
    echo(_training_time(study, seen))
    write_study(study_file, study_of(dump_study(study), study_file))
    echo(f"Wrote {study_file}. Next: hardmoe run --study {quote(str(study_file))}")
    show_keys(study_at(study_file))


def _as_proposed(study: Study, seen: Seen, by_name: bool) -> Study:
    """With what suits the source; a recipe that was asked for by its name stays as it is. Says so, with reasons."""
    proposal = propose(seen, study)
    for why in proposal.why:
        echo(f"Kept as --recipe has it, though the source suggests {why}" if by_name else f"Set {why}")
    return study if by_name else proposal.apply(study)


def _training_time(study: Study, seen: Seen) -> str:
    """An estimate, by a trial of a second or so on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hashtags = max(2, seen.distinct_tags)
    speed = images_per_second(study.network, hashtags, study.data.image_size, study.trunk, device)
    trunk, experts = study.trunk.epochs, study.expert_training.epochs
    seconds = seen.train_of(study) / speed
    where = "on the GPU" if device == "cuda" else "on one core, less on several"
    line = f"Estimate for the training, from a trial: {format_duration((trunk + experts) * seconds)} {where}"
    if study.evaluation.controls:
        controls = 3 * experts + (trunk + experts if study.evaluation.dense_control else 0)
        line += f"; {format_duration(controls * seconds)} more for the controls (--quick leaves them out)"
    return line
