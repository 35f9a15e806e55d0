# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Accepts requests from this server's own pages only. Pages of other sites are refused, also if their host name
resolves to this machine (DNS rebinding), since that name is in the Host header."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    # No external content, no inline scripts: HTML in an object's name would be harmless even if it got into the page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # addresses hold tokens
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Refuses requests with a foreign Host or Origin, and adds security headers to the responses."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """
        Args:
            host: the address that the server listens at.
        """
        self._app = app
        self._names = {"localhost", host.lower()}
        self._addresses = not is_loopback(host)  # reached under any address of this machine, and its names
        if self._addresses:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        error = self._refusal(Headers(scope=scope))
        if error:
            await JSONResponse({"error": error}, 403)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._own(hosts[0]):
            return "this server does not go by that name"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower():
            return "a page of another site may not ask"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "a page of another site may not ask"
        return None

    def _own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._addresses or address.is_loopback
