"""A mixture for elsewhere: export."""

from pathlib import Path

import click

from moe_core.serving.bundle import Bundle
from moe_core.serving.export import export_bundle
from moe_core.serving.onnx_files import export_onnx
from moe_core.store.files import size_of
from pipelines.cli.asking import asks_a_mixture, chosen_mixture
from pipelines.cli.options import JSON
from pipelines.terminal import echo, echo_json


@click.command()
@asks_a_mixture
@click.option("--onnx", "as_onnx", is_flag=True, help="ONNX files in place of a bundle.")
@click.argument("out", type=click.Path(path_type=Path))
@JSON
@click.pass_context
def export(
    ctx: click.Context,
    study_file: Path,
    version: str | None,
    bundle: Path | None,
    as_onnx: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Writes a mixture to the new folder OUT: a bundle that `hardmoe predict --bundle` reads, or ONNX files.

    OUT appears when it is complete; a killed command leaves nothing there.

    \b
    Example: hardmoe export --study cats out/cats
             hardmoe export --study cats --onnx out/cats-onnx
    """
    opened = Bundle(chosen_mixture(ctx, bundle, study_file, version))
    experts = len(opened.published)
    if as_onnx:

        def show(done: int) -> None:
            if done % 100 == 0 and done < experts:
                echo(f"{done:,} of {experts:,} experts", err=True)

        export_onnx(opened, out, report=show)
    else:
        export_bundle(opened, out)
    what, size = "onnx" if as_onnx else "bundle", size_of(out)
    if as_json:
        echo_json({"folder": str(out), "what": what, "experts": experts, "bytes": size})
    else:
        echo(f"{out}: {'ONNX files' if as_onnx else 'a bundle'} of {experts:,} experts, {size / 2**20:,.1f} MiB")
