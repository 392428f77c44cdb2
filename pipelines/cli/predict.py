"""Asking a mixture: predict."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from moe_core import threads
from moe_core.errors import BadSetting, MissingLibrary
from moe_core.models.cost import multiply_adds
from moe_core.serving.bundle import Bundle
from moe_core.serving.files import BATCH
from moe_core.store.hashing import file_hash
from moe_core.store.layout import BUNDLE_MANIFEST
from moe_core.tagging.answers import Asked, Rows, Wanted
from moe_core.tagging.inputs import TABLES, Files, Unit, open_inputs, records_of, settle
from moe_core.tagging.sidecars import KINDS, sidecar_of, write_sidecar
from moe_core.text import format_duration, shown
from pipelines.cli.asking import asks_a_mixture, chosen_mixture
from pipelines.cli.options import JSON
from pipelines.terminal import Counter, echo, echo_json

LISTED = 10  # errors, and sidecars that were there, that are named where the answers go to a file
TOP, TOP_OF_LIMITED = 5, 50  # hashtags of an image at most; where --precision or --min-p limits them


@click.command()
@asks_a_mixture
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--top",
    type=int,
    default=None,
    help=f"Hashtags an image at most.  [default: {TOP}; {TOP_OF_LIMITED} with --precision or --min-p]",
)
@click.option(
    "--precision",
    type=float,
    default=None,
    help="Only hashtags above their threshold for this precision, by validation posts.",
)
@click.option("--min-p", type=float, default=0.0, help="Only hashtags of at least this p.")
@click.option(
    "--calibrated",
    is_flag=True,
    help="p scaled by the mixture's calibration temperature: the first is how often it is right.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="A file with a row for each picture: .parquet, .csv or .jsonl. The same command resumes one that was killed.",
)
@click.option(
    "--sidecar",
    "sidecars",
    type=click.Choice(KINDS),
    multiple=True,
    help="Also a file beside each picture: its hashtags as lines of a .txt, or as keywords of an .xmp.",
)
@click.option("--force", is_flag=True, help="Replace --out and sidecars that are there; do not resume.")
@click.option("--topk", default=1, show_default=True, help="Experts asked for an image; 1: the published answer.")
@click.option(
    "--temperature",
    type=float,
    default=None,
    help="T of softmax(-d^2/T), the weights of --topk.  [default: the bundle's]",
)
@click.option("--format", "kind", type=click.Choice(TABLES), help="Of tables and tars.  [default: by their names]")
@click.option("--id-column", default="", help="Of tables; #row numbers the rows.  [default: by the usual names]")
@click.option("--image-column", default="", help="Of tables.  [default: by the usual names]")
@click.option(
    "--memory",
    type=int,
    default=None,
    help="MiB of experts held at once.  [default: 4096; on a GPU half of what is free there]",
)
@click.option("--window", default=256, show_default=True, help="MiB kept of the images looked at together.")
@JSON
@click.pass_context
def predict(
    ctx: click.Context,
    study_file: Path,
    version: str | None,
    bundle: Path | None,
    images: tuple[str, ...],
    top: int | None,
    precision: float | None,
    min_p: float,
    calibrated: bool,
    out: Path | None,
    sidecars: tuple[str, ...],
    force: bool,
    topk: int,
    temperature: float | None,
    kind: str | None,
    id_column: str,
    image_column: str,
    memory: int | None,
    window: int,
    as_json: bool,
) -> None:
    """Hashtags of pictures: of files, of all image files in folders, and of the rows of Parquet, Arrow and Lance
    tables, CSV, JSON lines and WebDataset tars.

    What is left out in folders is counted and listed on standard error; with --json it is an entry with "skipped", with
    --out a row.

    \b
    Example: hardmoe predict --study cats cat.jpg holiday/ --top 3
             hardmoe predict --study cats holiday/ --precision 0.9 --sidecar xmp
             hardmoe predict --study cats photos.parquet --out tags.parquet
             hardmoe predict --bundle cats/mixture/1f0c8e holiday/
    """
    for option, value in (("top", top), ("topk", topk), ("memory", memory), ("window", window)):
        if value is not None and value < 1:
            raise BadSetting(f"--{option} {value}: wanted at least 1")
    for option, share in (("precision", precision), ("min-p", min_p)):
        if share is not None and not 0 <= share <= 1:
            raise BadSetting(f"--{option} {share}: wanted a number from 0 to 1")
    if temperature is not None and not 0 < temperature < math.inf:
        raise BadSetting(f"--temperature {temperature}: wanted a number above 0")
    if as_json and out:
        raise BadSetting("--json prints the answers, --out writes them: give one; --out FILE.jsonl has the same lines")
    opened = Bundle(chosen_mixture(ctx, bundle, study_file, version), expert_bytes=memory << 20 if memory else None)
    limited = precision is not None or min_p > 0
    wanted = Wanted(top or (TOP_OF_LIMITED if limited else TOP), min_p, precision, calibrated)
    wanted.check(opened, topk)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    columns = {"id_column": id_column, "image_column": image_column}
    asked = Asked(opened, wanted, topk, temperature, window << 20, device=device)
    command = _Command(asked, images, kind, columns, sidecars, force)
    failed = command.to_file(out) if out else command.to_terminal(as_json)
    if failed:
        sys.exit(1)


class _Command:
    """What was asked for."""

    def __init__(
        self,
        asked: Asked,
        images: Sequence[str],
        kind: str | None,
        columns: dict[str, str],
        sidecars: Sequence[str],
        force: bool,
    ) -> None:
        self.asked, self.images, self.kind, self.columns = asked, images, kind, columns
        self.sidecars, self.force = sorted(set(sidecars)), force
        self.kept: list[str] = []  # the first sidecars that were there already, and say something else

    def to_terminal(self, as_json: bool) -> bool:
        """Prints the answers. True where a picture has none, or a sidecar was there already."""
        answered = failed = left_out = kept = 0
        separator = "["
        with TemporaryDirectory() as folder:
            units = self._units(Path(folder))
            settle(units)
            _show_skipped(units)
            for rows in self._asked(units).rows(records_of(units)):
                kept += self._write_sidecars(rows)
                answered, failed, left_out = answered + rows.answered, failed + rows.failed, left_out + rows.skipped
                for document in self.asked.documents(rows):
                    if as_json:
                        echo_json(document, before=separator, end="")
                        separator = ",\n"
                    _show(document, as_json)
        if as_json:
            echo("]")
        self._show_kept(kept)
        if failed or left_out:
            echo(_counts(answered, failed, left_out), err=True)
        return bool(failed or kept)

    def to_file(self, out: Path) -> bool:
        """Writes the answers. True where a picture has none, or a sidecar was there already."""
        try:
            output_of = resolve_name("moe_core.tagging.output:Output")
        except ModuleNotFoundError as error:
            raise MissingLibrary(
                f"--out needs {error.name}, which is not installed: pip install 'hardmoe[pipeline]'; or leave it out, "
                "and take --json"
            ) from None
        started = time.monotonic()
        with output_of(out, self.force) as output:
            units = self._units(output.folder, {str(out), str(output.folder)})
            before = output.begin(self._made_of(units))
            settle(units)
            _show_skipped(units)
            if before.records:
                echo(f"Resumed: {before.records:,} pictures are done", err=True)
            counts = [unit.count for unit in units]
            total = None if None in counts else sum(count for count in counts if count)
            asked, errors = self._asked(units), 0
            with Counter("pictures", total, before.records) as counter:
                for rows in asked.rows(records_of(units, (before.unit, before.row))):
                    output.add(rows, asked, self._write_sidecars(rows))
                    counter.show(output.done.records)
                    if rows.failed:
                        counter.clear()
                        errors = _show_errors(rows, errors)
            output.finish(asked)
            done = output.done
        if errors > LISTED:
            echo(f"{errors - LISTED:,} more errors are in {shown(out, 300)}", err=True)
        self._show_kept(done.kept)
        took = format_duration(time.monotonic() - started)
        echo(f"Wrote {out} in {took}: {_counts(done.answered, done.failed, done.skipped)}")
        return bool(done.failed or done.kept)

    def _units(self, folder: Path, without: set[str] | None = None) -> list[Unit]:
        units = open_inputs(self.images, folder, self.kind, self.columns, without or set())
        if self.sidecars and not all(isinstance(unit, Files) for unit in units):
            raise BadSetting("--sidecar writes beside picture files, and a table's pictures are none: take --out")
        return units

    def _asked(self, units: Sequence[Unit]) -> Asked:
        """With torch's threads set for the size of the batches."""
        counts = [unit.count for unit in units]
        most = BATCH if None in counts else min(BATCH, sum(count for count in counts if count))
        bundle = self.asked.bundle
        threads.use(multiply_adds(bundle.router, bundle.image_size) * most, threads.whole_number("HARDMOE_THREADS"))
        return self.asked.with_threads(threads.share())

    def _made_of(self, units: Sequence[Unit]) -> dict[str, Any]:
        """What the answers depend on; another command does not continue them."""
        asked, wanted = self.asked, self.asked.wanted
        return {
            "mixture": f"{asked.bundle.folder.name} {file_hash(asked.bundle.folder / BUNDLE_MANIFEST)[:12]}",
            "--top": wanted.top,
            "--precision": wanted.precision,
            "--min-p": wanted.min_p,
            "--calibrated": wanted.calibrated,
            "--topk": asked.topk,
            "--temperature": asked.temperature,
            "--sidecar": self.sidecars,
            "arguments": list(self.images),
            "columns": self.columns,
            "input": [unit.made_of for unit in units],
        }

    def _write_sidecars(self, rows: Rows) -> int:
        """The number of those that were there already, and say something else."""
        kept = 0
        for document in self.asked.documents(rows) if self.sidecars else ():
            for kind in self.sidecars if "tags" in document else ():
                hashtags = [tag["tag"] for tag in document["tags"]]
                if not write_sidecar(document["image"], kind, hashtags, self.force):
                    kept += 1
                    if len(self.kept) < LISTED:
                        self.kept.append(shown(sidecar_of(document["image"], kind), 200))
        return kept

    def _show_kept(self, kept: int) -> None:
        if kept:
            more = f" and {kept - len(self.kept):,} more" if kept > len(self.kept) else ""
            echo(
                f"Kept {kept:,} sidecars that were there and say something else: {', '.join(self.kept)}{more}; --force "
                "replaces them",
                err=True,
            )


def _show(document: dict[str, Any], as_json: bool) -> None:
    """A line of an answer; of an error in any case."""
    if "error" in document:
        echo(f"Error: {document['image']}: {document['error']}", err=True)
    elif "tags" in document and not as_json:
        words = "  ".join(f"{tag['tag']} {tag['p']:.3f}" for tag in document["tags"])
        expert = document["expert"] if document["expert_published"] else f"{document['expert']}: trunk"
        echo(f"{document['image']}  [{expert}]  {words}")


def _show_errors(rows: Rows, before: int) -> int:
    """Names the first LISTED errors of all; the number of errors so far."""
    for record, error in zip(rows.records, rows.errors, strict=True):
        if error and not record.skipped:
            before += 1
            if before <= LISTED:
                where = f"{record.table}: {record.name}" if record.table else record.name
                echo(f"Error: {where}: {error}", err=True)
    return before


def _counts(answered: int, failed: int, skipped: int) -> str:
    return f"{answered:,} answered, {failed:,} failed, {skipped:,} skipped"


def _show_skipped(units: Sequence[Unit]) -> None:
    """A line for each reason, with the first names."""
    together: dict[str, tuple[int, list[str]]] = {}
    for unit in units:
        for why, (number, names) in unit.skipped.items() if isinstance(unit, Files) else ():
            count, known = together.get(why, (0, []))
            together[why] = count + number, [*known, *names][:LISTED]
    for why, (count, names) in together.items():
        more = f" and {count - len(names):,} more" if count > len(names) else ""
        echo(f"Skipped {count:,} ({why}): {', '.join(shown(name, 200) for name in names)}{more}", err=True)
