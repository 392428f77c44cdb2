"""Who may ask: requests to a name that is this server's, from no page of another origin, with the token.

A page that is open in a browser on this machine can send requests to 127.0.0.1, also under a name of its own that it
has made lead there (DNS rebinding): so a server on loopback answers to its own names alone. A server that others reach
wants a token of everybody.
"""

import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from http import HTTPStatus

from starlette.types import Scope

from moe_core.text import shown

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
Refusal = tuple[HTTPStatus, str]


class Origins:
    """Refuses what pages of other origins can send. `allow` is the option that adds a host, as messages name it.

    Hosts and origins are compared as whole strings. Browsers send them in one form only; what comes in another form,
    such as with upper case, a trailing dot, a user or a second header, comes from no page of ours.
    """

    def __init__(self, port: int, allowed: Iterable[str], allow: str) -> None:
        own = {f"{name}:{port}" for name in OWN_NAMES} | (set(OWN_NAMES) if port == 80 else set())
        allowed = set(allowed)
        self.hosts, self.allow = own | allowed, allow
        self.origins = {f"http://{host}" for host in self.hosts} | {f"https://{host}" for host in allowed}

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why a request that no page of this server sends is refused; None for one that is to be answered."""
        websocket, method = scope["type"] == "websocket", scope.get("method", "GET")
        if not scope["path"].startswith("/"):
            return HTTPStatus.BAD_REQUEST, "the target of a request must be a path"
        hosts, origins = values(scope, "host"), values(scope, "origin")
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            wanted = " or ".join(sorted(self.hosts))
            return (
                HTTPStatus.MISDIRECTED_REQUEST,
                f"host {_quoted(hosts)} is not served here: wanted {wanted}; `{self.allow}` adds one",
            )
        if len(origins) > 1 or (websocket and not origins) or not self.origins.issuperset(origins):
            return HTTPStatus.FORBIDDEN, f"origin {_quoted(origins)} may not use this server; `{self.allow}` adds one"
        if not is_same_site(scope) and not (method == "GET" and not websocket and _is_navigation(scope)):
            return HTTPStatus.FORBIDDEN, "pages of other sites may not use this server"
        return None


class Token:
    """Refuses requests without `Authorization: Bearer TOKEN`."""

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()

    def refusal(self, scope: Scope) -> Refusal | None:
        """None for a request that has the token; the comparison takes as long for any other of its length."""
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if not sent:
            return HTTPStatus.UNAUTHORIZED, "this server wants a token: send Authorization: Bearer TOKEN"
        if len(sent) > 1 or not hmac.compare_digest(sent[0], self._wanted):
            return HTTPStatus.UNAUTHORIZED, "wrong token"
        return None


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server that listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def values(scope: Scope, name: str) -> list[str]:
    """All values of a header."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name.encode()]


def is_same_site(scope: Scope) -> bool:
    """Whether a browser names this origin, or the user, as the initiator of a request, or a program names none."""
    return set(values(scope, "sec-fetch-site")) <= {"same-origin", "none"}


def _is_navigation(scope: Scope) -> bool:
    """Whether the user follows a link into a tab: the page that has the link sees nothing of the answer."""
    return (values(scope, "sec-fetch-mode"), values(scope, "sec-fetch-dest")) == (["navigate"], ["document"])


def _quoted(found: Sequence[str]) -> str:
    return shown(", ".join(map(repr, found)), 200) or "(none)"
