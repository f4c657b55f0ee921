"""Serves a stream's file over HTTP, also while it grows."""

from __future__ import annotations

from fastapi.responses import FileResponse, Response
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from runtime.serve.edge.errors import ApiError, answer
from runtime.serve.streams.stream import Stream


def file_of(stream: Stream) -> Response:
    """The file of `stream` as far as it is written, with support for ranges. Players skip a torn end.

    Raises:
        ApiError: if it has no frames yet.
    """
    if not (stream.index.bytes and stream.folder.video.exists()):
        raise ApiError(409, "no_frames", "no frames are made yet", retry_after=1)
    return GrowingFile(stream.folder.video, media_type="video/mp4", filename=f"{stream.id}.mp4")


class GrowingFile(FileResponse):
    """A file that may grow while it is sent: the body ends where the file ended when it was asked for.

    A `Range` that cannot be read is ignored, as RFC 9110 (14.2) prescribes for unknown units.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sending = _Bounded(send)
        await super().__call__(scope, receive, sending)
        if sending.refused == 400:
            headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await super().__call__({**scope, "headers": headers}, receive, _Bounded(send))
        elif sending.refused == 416:
            error = ApiError(416, "range_not_satisfiable", "the file ends before this range begins")
            response = answer(error)
            response.headers["Content-Range"] = sending.range
            await response(scope, receive, send)


class _Bounded:
    """Sends no more of a body than its `Content-Length`, and holds back a refusal of the range.

    `FileResponse` reads to the end of the file, beyond its length if the file has grown, and refuses in plain
    text.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._left, self._ended = send, 0, False
        self.refused: int | None = None
        self.range = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if message["status"] in (400, 416):
                self.refused, self.range = message["status"], headers.get("content-range", "")
                return
            self._left = int(headers["content-length"])
            await self._send(message)
        elif self.refused is None and not self._ended:
            body = message.get("body", b"")[: self._left]
            self._left -= len(body)
            self._ended = not (message.get("more_body", False) and self._left)
            await self._send({**message, "body": body, "more_body": not self._ended})
