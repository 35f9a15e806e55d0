# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""HTTP: the page's files and its requests. docs/app.md says what is refused and why.

Every address below ``/s/TOKEN`` belongs to one session.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from hmac import compare_digest
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ausm_d2.app.downloads import DOWNLOADS
from ausm_d2.app.guard import Guard
from ausm_d2.app.library import SUFFIXES, Library
from ausm_d2.app.limits import Limits, Refused
from ausm_d2.app.project import Project
from ausm_d2.app.sessions import Sessions
from ausm_d2.errors import UserError
from ausm_d2.streaming.predictor import VideoPredictor

PAGE = Path(__file__).parent / "page"
_FILES = {path.name: path for path in sorted(PAGE.iterdir()) if path.is_file()}
_BODY = 1 << 20  # bytes of a request that is no upload
_BEAT = 10.0  # seconds between two signs of life to a page that listens
_SWEEP = 15.0  # seconds between two looks for idle sessions


def build_app(
    predictor: VideoPredictor, limits: Limits, scratch: Path, *, host: str = "127.0.0.1", key: str | None = None
) -> Starlette:
    """The application.

    Args:
        scratch: folder for the files of sessions.
        host: the address that it will listen at.
        key: required to begin a session; None: not required.
    """
    sessions, library = Sessions(predictor, limits, scratch), Library(limits, scratch)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP)
                await run_in_threadpool(sessions.sweep)

        task = asyncio.create_task(sweep())
        yield
        task.cancel()
        await run_in_threadpool(sessions.close)

    app = Starlette(
        routes=_routes(sessions, library, limits, key),
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={UserError: _refused, 404: _not_found, 405: _not_found},
        lifespan=lifespan,
    )
    app.state.sessions = sessions
    return app


def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, error.status if isinstance(error, Refused) else 400)


def _not_found(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": "there is nothing here"}, getattr(error, "status_code", 404))


def _routes(sessions: Sessions, library: Library, limits: Limits, key: str | None) -> list[Route]:
    Handler = Callable[[Project, Request], Awaitable[Response]]

    def route(path: str, handler: Handler, method: str = "POST") -> Route:
        async def endpoint(request: Request) -> Response:
            return await handler(sessions.get(request.path_params["token"]), request)

        return Route(f"/s/{{token}}/{path}", endpoint, methods=[method])

    async def create(request: Request) -> Response:
        given = (await _body(request)).get("key")
        if key is not None and not (isinstance(given, str) and compare_digest(given.encode(), key.encode())):
            raise Refused(403, "open the address that ausm app has printed: it ends with a key")
        return JSONResponse({"token": await run_in_threadpool(sessions.create)})

    async def listing(_: Project, request: Request) -> Response:
        names, all_of_them = await run_in_threadpool(library.folder)
        more = {"clips": library.clips(), "suffixes": SUFFIXES, "max_bytes": limits.max_bytes, "outputs": DOWNLOADS}
        return JSONResponse({"folder": names, "complete": all_of_them, "has_folder": limits.folder is not None, **more})

    async def choose(project: Project, request: Request) -> Response:
        body = await _body(request)
        name, find = _text(body, "name"), library.shipped if body.get("source") == "clip" else library.in_folder
        path = await run_in_threadpool(find, name)
        with project.incoming() as folder:
            await run_in_threadpool(project.open, path, name, folder)
        return JSONResponse(await run_in_threadpool(project.state))

    async def upload(project: Project, request: Request) -> Response:
        name = request.query_params.get("name", "")
        with project.incoming() as folder:
            try:
                path = await library.upload(name, request.headers.get("content-length"), request.stream(), folder)
            except ClientDisconnect:
                return Response(status_code=400)
            await run_in_threadpool(project.open, path, Path(name).name, folder)
        return JSONResponse(await run_in_threadpool(project.state))

    return [
        Route("/", _file("index.html")),
        *(Route(f"/{name}", _file(name)) for name in _FILES),
        Route("/sessions", create, methods=["POST"]),
        route("videos", listing, "GET"),
        route("open", choose),
        route("upload", upload),
        route("state", _state, "GET"),
        route("events", _events, "GET"),
        route("frames/{frame:int}", _frame, "GET"),
        route("masks/{frame:int}", _masks, "GET"),
        route("click", _click),
        route("box", _box),
        route("undo", _undo),
        route("find", _find),
        route("object", _object),
        route("run", _run),
        route("stop", _stop),
        route("download", _make_download),
        route("download/{number:int}", _download, "GET"),
    ]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        return FileResponse(_FILES[name])

    return endpoint


async def _body(request: Request) -> Mapping[str, Any]:
    """The JSON object of a request.

    Raises:
        Refused: the body is not a JSON object, or too large.
    """
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _BODY:
            raise Refused(413, "a request that is too large")
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "a JSON object expected")
    return body


def _number(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(400, f"{name}: {value!r}, expected a whole number")
    return value


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise Refused(400, f"{name}: {value!r}, expected text")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool):
        raise Refused(400, f"{name}: {value!r}, expected true or false")
    return value


def _object_of(body: Mapping[str, Any]) -> int | None:
    return None if body.get("object") is None else _number(body, "object")


async def _state(project: Project, _: Request) -> Response:
    return JSONResponse(await run_in_threadpool(project.state))


async def _events(project: Project, request: Request) -> Response:
    """Server-sent events: ``changed`` (ask for the state), ``frame``, ``download``, ``error``, ``end``."""

    async def lines() -> AsyncIterator[str]:
        queue = project.events.listen()
        try:
            yield 'data: {"type": "changed"}\n\n'
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), _BEAT)
                except TimeoutError:
                    yield ": alive\n\n"
                    continue
                if event is None:
                    yield 'data: {"type": "end"}\n\n'
                    return
                yield f"data: {json.dumps(event)}\n\n"
        finally:
            project.events.leave(queue)

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _frame(project: Project, request: Request) -> Response:
    frame = request.path_params["frame"]
    project.check_frame(frame)
    return Response(await run_in_threadpool(project.clip.jpeg, frame), media_type="image/jpeg")


async def _masks(project: Project, request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(project.masks, request.path_params["frame"]))


async def _click(project: Project, request: Request) -> Response:
    body = await _body(request)
    given = (_number(body, "frame"), _object_of(body), body.get("x"), body.get("y"), body.get("label", 1))
    return JSONResponse(await run_in_threadpool(project.click, *given))


async def _box(project: Project, request: Request) -> Response:
    body = await _body(request)
    given = (_number(body, "frame"), _object_of(body), body.get("box"))
    return JSONResponse(await run_in_threadpool(project.drag, *given))


async def _undo(project: Project, request: Request) -> Response:
    body = await _body(request)
    return JSONResponse(await run_in_threadpool(project.undo, _number(body, "frame"), _number(body, "object")))


async def _find(project: Project, request: Request) -> Response:
    body = await _body(request)
    return JSONResponse(await run_in_threadpool(project.find, _number(body, "frame"), _flag(body, "on")))


async def _object(project: Project, request: Request) -> Response:
    """``name``, ``hidden`` or ``removed`` of an object."""
    body = await _body(request)
    number = _number(body, "object")
    if "name" in body:
        await run_in_threadpool(project.rename, number, _text(body, "name"))
    if "hidden" in body:
        await run_in_threadpool(project.hide, number, _flag(body, "hidden"))
    if body.get("removed") is True:
        await run_in_threadpool(project.remove, number)
    return JSONResponse({})


async def _run(project: Project, _: Request) -> Response:
    await run_in_threadpool(project.run)
    return JSONResponse({})


async def _stop(project: Project, _: Request) -> Response:
    await run_in_threadpool(project.stop)
    return JSONResponse({})


async def _make_download(project: Project, request: Request) -> Response:
    output = _text(await _body(request), "output")
    await run_in_threadpool(project.download, output)
    return JSONResponse({})


async def _download(project: Project, request: Request) -> Response:
    path, name = project.downloaded(request.path_params["number"])
    return FileResponse(path, filename=name, content_disposition_type="attachment")
