"""The door: who may come in, how often, and what every answer says to a browser.

A server on loopback is still reached by every page the same machine's browser opens. So a request must name this
server in its Host header (a page that rebinds its own name to 127.0.0.1 names itself), a page from elsewhere may not
post, and no answer may be framed, sniffed, or run anything that did not come from here.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.server.replies import Refused, refusal
from lookalike.server.settings import Settings

__all__ = ["COOKIE", "Door", "RateLimit", "session_of"]

COOKIE = "lookalike"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
}
# What a load balancer asks without a token, and the page itself: it holds nothing, and asks for the token.
PUBLIC = ("/v1/health", "/v1/ready", "/v1/session", "/", "/favicon.ico")
CLIENTS = 10_000  # whose rates are remembered


class RateLimit:
    """A bucket of tokens for each client: `rate` a second, at most ten seconds' worth saved up.

    Args:
        rate: requests per second; 0 is no limit.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = 10 * rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str, cost: float = 1.0, now: float | None = None) -> float:
        """Take `cost` from a client's bucket; 0, or the seconds until there will be enough."""
        if not self._rate:
            return 0.0
        when = time.monotonic() if now is None else now
        left, since = self._buckets.pop(client, (self._burst, when))
        left = min(self._burst, left + (when - since) * self._rate)
        short = max(0.0, cost - left)
        self._buckets[client] = (left if short else left - cost, when)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return short / self._rate


def session_of(token: str) -> str:
    """The cookie of who has shown the token: derived from it, so that sessions outlive a restart."""
    return hmac.new(token.encode(), b"lookalike session 1", hashlib.sha256).hexdigest()


class Door:
    """ASGI middleware: lets a request in, or refuses it before a byte of its body is read.

    Args:
        app: what is behind the door.
        settings: who may come in.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allow_hosts)}
        self._rates = RateLimit(settings.rate)
        token = settings.token
        self._token = None if token is None else token.encode()
        self._session = None if token is None else session_of(token).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except Refused as error:
            await refusal(error, headers)(scope, receive, dressed)
            return
        await self._app(scope, receive, dressed)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise Refused(
                421,
                "unknown_host",
                f"this server is not called {host[:200]!r}",
                "Call it by its IP address or localhost, or start it with --allow-host NAME.",
            )
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            self._check_origin(host, headers)
        path = scope["path"]
        # Many small pictures make one page: they cost a twentieth.
        cost = 0.05 if path == "/v1/thumbnail" or not path.startswith("/v1/") else 1.0
        if self._session is not None and path == "/v1/session":
            cost = 5.0  # guessing tokens is slow
        wait = self._rates.wait((scope.get("client") or ("", 0))[0], cost)
        if wait:
            seconds = str(max(1, round(wait + 0.5)))
            hint = f"Wait {seconds} s, or ask whoever runs the server for a higher --rate."
            raise Refused(429, "too_many_requests", "too many requests from your address", hint, Retry_After=seconds)
        if self._token is not None and path not in PUBLIC and not path.startswith("/web/"):
            self._check_token(headers)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:  # a name can be rebound to this machine, an address cannot
            ip_address(name)
        except ValueError:
            return False
        return True

    def _check_origin(self, host: str, headers: Headers) -> None:
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Refused(
                403, "cross_origin", "another site's page asked for this", "Open the page of this server and ask there."
            )

    def _check_token(self, headers: Headers) -> None:
        assert self._token is not None
        assert self._session is not None
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), self._token):
            return
        cookie: SimpleCookie = SimpleCookie()
        try:
            cookie.load(headers.get("cookie", ""))
        except CookieError:
            cookie.clear()
        session = cookie[COOKIE].value if COOKIE in cookie else ""
        if hmac.compare_digest(session.encode(), self._session):
            return
        raise Refused(
            401,
            "unauthorised",
            "this server wants a token",
            "Send it as 'Authorization: Bearer TOKEN'; whoever runs the server knows it.",
            WWW_Authenticate='Bearer realm="lookalike"',
        )
