"""A page and what it asks for, over HTTP, for one person on their own machine.

The only module that needs the packages of requirements-demo.txt. A photo is the body of a POST; it
is held in memory while it is asked about, and never stored. Photos are taken one at a time, so that
two at once need no more memory than one.
"""

import asyncio
import secrets
from collections.abc import Callable
from io import BytesIO
from typing import Any

from jinja2 import Template
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

Answer = dict[str, Any]

LOOPBACK = ["127.0.0.1", "localhost"]
"""Names by which the page may be called: not one that somebody else's DNS leads here."""

READ_ON = 8
"""A photo that is too large is read on, and thrown away, to so many times the limit: most senders
look for an answer only when they have sent everything."""


class RefusedError(Exception):
    """A photo that is not answered; the message says why."""


def demo_app(
    page: Template,
    content: dict[str, Any],
    answer: Callable[[BytesIO, bool], Answer],
    max_bytes: int,
) -> Starlette:
    """The page at /, and at /classify what `answer` says of a photo.

    Args:
        page: is rendered with `content`, and with a `nonce` for its scripts and styles.
        answer: of a photo, and whether one without a face is to be classified. It is called in a
            thread, never twice at once, and may raise `RefusedError`.
        max_bytes: a larger photo is refused while it comes in.
    """
    busy = asyncio.Lock()

    async def show(_: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = page.render(content=content, nonce=nonce)
        return HTMLResponse(html, headers=_closed(f"'nonce-{nonce}'"))

    async def classify(request: Request) -> Response:
        if request.headers.get("origin", _own(request)) != _own(request):
            return _error(403, "only the page of this server may ask it")
        body, size = BytesIO(), 0
        try:
            async for part in request.stream():
                size += len(part)
                if size <= max_bytes:
                    body.write(part)
                elif size > READ_ON * max_bytes:
                    break
        except ClientDisconnect:  # another photo was dropped, or the page closed
            return Response(status_code=499)
        if size > max_bytes:
            return _error(413, f"the photo has more than {max_bytes / 1e6:g} MB")
        try:
            async with busy:
                fallback = request.query_params.get("fallback") == "1"
                said = await run_in_threadpool(answer, body, fallback)
        except RefusedError as error:
            return _error(422, str(error))
        return JSONResponse(said, headers=_closed("'none'"))

    return Starlette(
        routes=[Route("/", show), Route("/classify", classify, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)],
    )


def _own(request: Request) -> str:
    return f"http://{request.headers['host']}"


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status, {**_closed("'none'"), "Connection": "close"})


def _closed(inline: str) -> dict[str, str]:
    """Headers that keep a browser from loading anything from elsewhere, and from storing this."""
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {inline}; style-src {inline}; img-src blob: data:; "
            "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
