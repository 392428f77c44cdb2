"""A mixture for elsewhere: export."""

from pathlib import Path
from pkgutil import resolve_name

import click

from moe_core.errors import BadSetting, MissingInput
from moe_core.serving.bundle import Bundle
from moe_core.serving.export import export_bundle
from moe_core.serving.folders import study_at
from moe_core.serving.onnx_files import export_onnx
from moe_core.store.artifact import Artifact
from moe_core.store.files import size_of, write_text
from moe_core.store.layout import CARD
from pipelines.cli.asking import asks_a_mixture, chosen_mixture
from pipelines.cli.options import JSON
from pipelines.terminal import echo, echo_json

WRITTEN = {"bundle": "a bundle", "onnx": "ONNX files", "card": "the model card"}


@click.command()
@asks_a_mixture
@click.option("--onnx", "as_onnx", is_flag=True, help="ONNX files in place of a bundle.")
@click.option("--card", "card_only", is_flag=True, help="Only the model card: OUT is its file, such as cats.md.")
@click.argument("out", type=click.Path(path_type=Path))
@JSON
@click.pass_context
def export(
    ctx: click.Context,
    study_file: Path,
    version: str | None,
    bundle: Path | None,
    as_onnx: bool,
    card_only: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Writes a mixture to the new folder OUT: a bundle that `hardmoe predict --bundle` reads, or ONNX files.

    Its MODEL_CARD.md says what is known today, where --study names the study: figures on test posts, posts taken down
    since. OUT appears when it is complete; a killed command leaves nothing there.

    \b
    Example: hardmoe export --study cats out/cats
             hardmoe export --study cats --onnx out/cats-onnx
             hardmoe export --study cats --card cats.md
    """
    if as_onnx and card_only:
        raise BadSetting("--onnx and --card exclude one another: give one")
    mixture = chosen_mixture(ctx, bundle, study_file, version)
    card = _card(study_at(bundle or study_file), mixture)
    if card_only:
        if card is None:
            raise MissingInput(f"{mixture} has no {CARD}: name its study with --study", "mixture")
        write_text(out, card)
        what, experts = "card", None
    else:
        opened = Bundle(mixture)
        what, experts = "onnx" if as_onnx else "bundle", len(opened.published)
        if as_onnx:
            export_onnx(opened, out, card, report=lambda done: _show(done, len(opened.published)))
        else:
            export_bundle(opened, out, card)
    size = size_of(out)
    if as_json:
        echo_json({"path": str(out), "what": what, "experts": experts, "bytes": size})
    else:
        of = "" if experts is None else f" of {experts:,} experts"
        echo(f"{out}: {WRITTEN[what]}{of}, {size / 2**20:,.1f} MiB")


def _card(study: Path | None, mixture: Path | Artifact) -> str | None:
    """What is known today, from the study; else what the bundle says itself, None where it has no card."""
    if study is None:
        assert isinstance(mixture, Path)
        return (mixture / CARD).read_text("utf-8") if (mixture / CARD).is_file() else None
    context = resolve_name("pipelines.cli.common:study_at")(study)
    version = mixture.version if isinstance(mixture, Artifact) else mixture.name
    card: str = resolve_name("moe_core.maintenance.card:card_today")(context, version)
    return card


def _show(done: int, experts: int) -> None:
    if done % 100 == 0 and done < experts:
        echo(f"{done:,} of {experts:,} experts", err=True)
