"""Answering over HTTP: serve."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EADDRINUSE
from pathlib import Path
from pkgutil import resolve_name

import click
import torch
import uvicorn
from click.core import ParameterSource
from fastapi import FastAPI

from moe_core import threads
from moe_core.errors import BadSetting
from moe_core.service import look
from moe_core.service.app import create_app
from moe_core.service.following import Source, fixed
from moe_core.service.guard import Origins, Token, is_loopback
from moe_core.service.limits import MIB, Limits
from moe_core.service.looking import Looking
from moe_core.service.protocol import BoundedHead
from moe_core.service.service import Service
from moe_core.service.sources import published_of
from moe_core.serving.bundle import Bundle
from moe_core.serving.folders import bundle_folder
from moe_core.serving.publication import bundle_at
from moe_core.store.artifact import Artifact
from moe_core.study_file import load_study
from moe_core.text import shown
from pipelines.cli.options import STUDY_OPTION
from pipelines.terminal import echo
from pipelines.ui.commands import checked_host

TOKEN = "HARDMOE_TOKEN"
SHORTEST_TOKEN = 16
SWITCH_SECONDS = 0.001  # for which a thread of Python keeps others waiting: those that compute ask for little at a time


@click.command()
@STUDY_OPTION
@click.option("--version", default=None, help="This mixture of the study, for ever.  [default: the published one]")
@click.option("--bundle", type=click.Path(path_type=Path), help="In place of --study: a mixture's folder.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", default=8000, show_default=True, help="Port; 0: one that is free.")
@click.option("--allow-host", multiple=True, help="Also a name of this server: that of a proxy before it.")
@click.option("--token-file", type=click.Path(path_type=Path), help=f"File with the token.  [default: ${TOKEN}]")
@click.option("--memory", type=float, default=None, help="MiB of experts held at once.  [default: as predict]")
@click.option("--body", default=64, show_default=True, help="MiB of a request's body, at most.")
@click.option("--images", default=256, show_default=True, help="Images of a request, at most.")
@click.option("--queue", type=int, default=None, help="Images that wait, at most.  [default: 256 MiB of pixels]")
@click.option("--time-limit", default=30.0, show_default=True, help="Seconds for a request.")
@click.option("--poll", default=1.0, show_default=True, help="Seconds between looks for a newly published mixture.")
@click.pass_context
def serve(
    ctx: click.Context,
    study_file: Path,
    version: str | None,
    bundle: Path | None,
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    token_file: Path | None,
    memory: float | None,
    body: int,
    images: int,
    queue: int | None,
    time_limit: float,
    poll: float,
) -> None:
    """Answer over HTTP with the published mixture, until interrupted.

    A mixture that is published meanwhile, or rolled back to, takes over without a failed request. In a browser: a page
    to look at its experts, posts and hashtags.

    \b
    Example: hardmoe serve --study cats
             curl --data-binary @cat.jpg http://127.0.0.1:8000/predict
    """
    if memory is not None and not 0 < memory < 1 << 40:
        raise BadSetting(f"--memory {memory}: wanted MiB, more than 0")
    for option, value in (("body", body), ("images", images), ("queue", queue)):
        if value is not None and value < 1:
            raise BadSetting(f"--{option} {value}: wanted at least 1")
    for option, seconds in (("time-limit", time_limit), ("poll", poll)):
        if not 0.01 <= seconds <= 86_400:
            raise BadSetting(f"--{option} {seconds}: wanted seconds, 0.01 to 86,400")
    if bundle is not None and ctx.get_parameter_source("study_file") == ParameterSource.COMMANDLINE:
        raise BadSetting("--bundle and --study exclude one another: give one")
    token = _token(token_file)
    local = is_loopback(host)
    if token is None and not local:
        raise BadSetting(
            f"--host {shown(host)} is reached by others: give a token, in --token-file or ${TOKEN}, such as that of "
            "`openssl rand -hex 32`"
        )
    allowed = [checked_host(name) for name in allow_host]
    source = _source(study_file, bundle, version, int(memory * MIB) if memory else None)
    threads.use(0, threads.whole_number("HARDMOE_THREADS"))
    limits = Limits(body * MIB, max(256, 2 * body) * MIB, images, queue, time_limit)
    with _listening(host, port) as listener:
        service = Service(source, limits, "cuda" if torch.cuda.is_available() else "cpu", poll)
        port = listener.getsockname()[1]
        origins = Origins(port, allowed, "hardmoe serve --allow-host NAME") if local or allowed else None
        app = create_app(service, origins=origins, token=Token(token) if token else None, routers=[look.router])
        app.state.looking = _looking(service, None if bundle else study_file)
        name = f"[{host}]" if ":" in host else host
        echo(f"Mixture {service.following.now.version} answers at http://{name}:{port}   (Ctrl-C ends it)")
        sys.stdout.flush()
        _run(app, listener, time_limit)
    echo("Ended.")


def _token(file: Path | None) -> str | None:
    """The token that requests must have. Raises BadSetting for one that is short, or no word of ASCII."""
    where, token = (file, file.read_text("utf-8").strip()) if file else (f"${TOKEN}", os.environ.get(TOKEN))
    if token is None:
        return None
    if not (token.isascii() and token.isprintable() and " " not in token and len(token) >= SHORTEST_TOKEN):
        raise BadSetting(
            f"the token in {where} has {len(token)} characters: wanted {SHORTEST_TOKEN} and more of ASCII without "
            "spaces, such as `openssl rand -hex 32` prints"
        )
    return token


def _looking(service: Service, study_file: Path | None) -> Looking:
    """What the page at / shows: also the posts of a study, where what reads them is installed."""
    if study_file is None:
        return Looking(lambda: service.following.now)
    try:
        posts_of = resolve_name("moe_core.search.opening:posts_of")
    except ImportError as error:
        why = f"posts are read by {error.name}, which is not installed: pip install 'hardmoe[cpu]'"
        return Looking(lambda: service.following.now, why=why)
    return Looking(lambda: service.following.now, posts_of(study_file), load_study(study_file).name)


def _source(study_file: Path, bundle: Path | None, version: str | None, expert_bytes: int | None) -> Source:
    if bundle is None and version is None:
        return published_of(study_file, expert_bytes)
    mixture: Path | Artifact = bundle_folder(bundle) if bundle else bundle_at(study_file, version)
    name = mixture.version if isinstance(mixture, Artifact) else mixture.absolute().name
    return fixed(name, Bundle(mixture, expert_bytes))


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens: requests that come before the mixture is open wait. Raises BadSetting."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise BadSetting(f"--host {shown(host)} --port {port}: {error}: wanted an address of this machine") from None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == EADDRINUSE:
                raise BadSetting(f"port {port} is in use; choose another with --port") from None
            raise BadSetting(f"--host {shown(host)} --port {port}: {error}") from None
        yield listener


def _run(app: FastAPI, listener: socket.socket, seconds: float) -> None:
    """Answers until Ctrl-C or SIGTERM; requests under way are answered, for so many seconds at most."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Shown()])
    logging.getLogger("moe_core.service").setLevel(logging.INFO)
    sys.setswitchinterval(SWITCH_SECONDS)
    config = uvicorn.Config(
        app,
        http=BoundedHead,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(seconds) + 1,
    )
    with suppress(KeyboardInterrupt):  # uvicorn ends in order, and then signals again
        uvicorn.Server(config).run([listener])


class _Shown(logging.Handler):
    """Writes what is logged as the command writes all else."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record).strip(), err=True)
