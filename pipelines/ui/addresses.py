"""Names under which the UI may be reached."""

import re

from moe_core.errors import BadSetting
from moe_core.text import shown

HOST_FORM = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?)(:[0-9]{1,5})?")


def checked_host(host: str) -> str:
    """A host as browsers send it: lower case, with its port unless that is the scheme's own. Raises BadSetting."""
    if not HOST_FORM.fullmatch(host.lower()):
        raise BadSetting(
            f"--allow-host {shown(host)}: wanted a name as the browser's address bar shows it, with its port where "
            "there is one, such as ui.example.org or ui.example.org:8443"
        )
    return host.lower()


def checked_prefix(prefix: str) -> str:
    """A path under which a proxy serves the UI, or "". Raises BadSetting for one that is not /name or /name/name."""
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+", prefix):
        raise BadSetting(f"--path-prefix {shown(prefix)}: wanted one such as /hardmoe")
    return prefix
