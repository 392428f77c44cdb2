"""Secrets in clear in an instance's settings: a launcher that hands the settings to other machines shows them there."""

import re
from collections.abc import Iterator
from typing import Any

from dagster._core.instance.ref import InstanceRef
from dagster._serdes import ConfigurableClassData

NAMES = re.compile(r"passw|secret|token|credential|access_?key|api_?key|authorization|cookie", re.IGNORECASE)
VALUES = re.compile(r"://[^/@\s:]*:[^/@\s]+@|passw(or)?d=")  # a database's address that has a password


def is_secret(name: str, value: str) -> bool:
    """Whether a variable or a setting looks like one that nobody else may read."""
    return bool(value) and bool(NAMES.search(name) or VALUES.search(value))


def secrets_in_clear(instance: InstanceRef) -> list[str]:
    """Settings of dagster.yaml that hold a secret itself; not those that name a variable: {env: NAME}."""
    parts = instance._asdict().values()
    configs = [part.config_dict if isinstance(part, ConfigurableClassData) else part for part in parts if part]
    return list(dict.fromkeys(path for config in configs for path in _found(config, "")))


def _found(setting: Any, path: str) -> Iterator[str]:
    if isinstance(setting, dict) and set(setting) != {"env"}:
        for name, value in setting.items():
            yield from _found(value, f"{path}.{name}".lstrip("."))
    elif isinstance(setting, list):
        for value in setting:
            name, _, text = value.partition("=") if isinstance(value, str) and "=" in value else ("", "", value)
            yield from _found(text, f"{path}.{name}".rstrip("."))
    elif isinstance(setting, str) and is_secret(path, setting):
        yield path
