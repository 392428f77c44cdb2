"""Opening the instance, with one line about what is wrong where it cannot be opened."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from moe_core.errors import BadSetting, HardmoeError
from moe_core.store.layout import Layout
from moe_core.store.locks import exclusive
from moe_core.text import shown
from pipelines.instance.databases import AGAIN, damage, remove_empty
from pipelines.instance.home import has_settings, set_home

MISSING = {  # modules that an instance in PostgreSQL needs, or one whose runs go to Ray
    "dagster_postgres": "pip install 'hardmoe[postgres]'",
    "dagster_ray": "pip install 'hardmoe[ray]'",
    "psycopg": "name the driver of dagster-postgres: postgresql+psycopg2://..., or scheme: postgresql+psycopg2",
}


class CannotOpen(HardmoeError):
    """Dagster's instance: its dagster.yaml is wrong, or its database is damaged or not there."""


@contextmanager
def opened(launches: bool = False) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME; where it `launches` runs, with its launcher. Raises CannotOpen.

    One process at a time creates its databases: Dagster does not see to that, and two that do so at once leave tables
    that nobody can open any more.
    """
    home = Path(os.environ["DAGSTER_HOME"])
    try:
        with exclusive(set_home(home) / ".opening.lock"):
            for path in remove_empty(home):
                logging.getLogger("hardmoe").warning(
                    "Dagster's database %s was empty and has been recreated; %s", shown(path, most=None), AGAIN
                )
            instance = dg.DagsterInstance.get()
        if launches:
            _ = instance.run_launcher  # which is created now, and may refuse the instance
    except BadSetting:
        raise
    except Exception as error:  # of YAML, Dagster, SQLAlchemy or the driver: all are the user's to mend
        if damaged := damage(home):
            raise CannotOpen(damaged) from error
        why = " ".join(str(error.__cause__ or error).split())[:600]
        hints = (f" ({hint})" for name, hint in MISSING.items() if re.search(rf"module (named )?'?{name}\b", why))
        why += next(hints, "")
        raise CannotOpen(f"Dagster's instance of {home}/dagster.yaml cannot be opened: {why}") from error
    with instance:
        try:
            yield instance
        except Exception as error:
            of_storage = type(error).__module__.startswith(("sqlalchemy", "dagster"))
            if of_storage and (damaged := damage(home)):
                raise CannotOpen(damaged) from error
            raise


@contextmanager
def opened_if_there(root: Path) -> Iterator[dg.DagsterInstance | None]:
    """The study's instance; None where there is none, for those who look create nothing. Raises CannotOpen."""
    home = Layout(root).used_dagster_home
    if not has_settings(home):
        yield None
        return
    os.environ["DAGSTER_HOME"] = str(home)
    with opened() as instance:
        yield instance
