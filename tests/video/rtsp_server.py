# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A small RTSP server, for one client: H.264 over RTP (RFC 6184), inside the TCP connection or over UDP (RFC 2326).

To watch it: ``python -m tests.video.rtsp_server CLIP.mp4`` prints its address.
"""

from __future__ import annotations

import argparse
import itertools
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

_PAYLOAD = 1200  # bytes of a NAL unit in one packet
_CLOCK = 90_000  # ticks of RTP time stamps a second
_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=clip\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
_SDP += "a=fmtp:96 packetization-mode=1\r\na=control:video\r\n"


class RtspServer:
    """Serves frames once, at their rate, from the moment a client asks for them."""

    def __init__(self, frames: Iterable[np.ndarray], fps: int, *, at_end: str = "close", udp: bool = False) -> None:
        """
        Args:
            frames: uint8 (H, W, 3), BGR, of even sides.
            at_end: "close": ends the connection; "reset": breaks it off; "silence": sends no more, keeps it open.
            udp: refuses to send inside the connection.
        """
        self._frames, self._fps, self._at_end, self._udp = frames, fps, at_end, udp
        self._client: tuple[str, int] | None = None  # for UDP
        self._closed = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"rtsp://127.0.0.1:{self._listening.getsockname()[1]}/clip"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._listening.close()
        self._thread.join(5)

    def _serve(self) -> None:
        self._listening.settimeout(60)
        try:
            connection, _ = self._listening.accept()
            with connection:
                self._answer(connection)
                self._send(connection)
                if self._at_end == "silence":
                    self._closed.wait(60)
                elif self._at_end == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            return  # the client is gone, or never came

    def _answer(self, connection: socket.socket) -> None:
        """Answer requests up to PLAY."""
        with connection.makefile("rb") as reader:
            while True:
                request = b"".join(iter(reader.readline, b"\r\n")).decode()
                method, number = request.split()[0], re.findall(r"CSeq: *(\d+)", request)[0]
                status, more, body = "200 OK", "Session: 1\r\n", ""
                if method == "OPTIONS":
                    more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                elif method == "DESCRIBE":
                    body = _SDP
                    more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
                elif method == "SETUP" and self._udp and "/TCP" in request:
                    status = "461 Unsupported Transport"
                elif method == "SETUP" and self._udp:
                    port = int(re.findall(r"client_port=(\d+)", request)[0])
                    self._client = "127.0.0.1", port
                    more += f"Transport: RTP/AVP;unicast;client_port={port}-{port + 1}\r\n"
                elif method == "SETUP":
                    more += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                connection.sendall(f"RTSP/1.0 {status}\r\nCSeq: {number}\r\n{more}\r\n{body}".encode())
                if method == "PLAY":
                    return

    def _send(self, connection: socket.socket) -> None:
        sequence = itertools.count()
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for index, units in enumerate(_encoded(self._frames, self._fps)):
            for last, payload in _payloads(units):
                head = struct.pack(">BBHII", 0x80, 96 | last << 7, next(sequence), index * _CLOCK // self._fps, 1)
                if self._client is not None:
                    sender.sendto(head + payload, self._client)
                else:
                    connection.sendall(b"$\0" + struct.pack(">H", len(head) + len(payload)) + head + payload)
            if self._closed.wait(1 / self._fps):
                break
        sender.close()


def _encoded(frames: Iterable[np.ndarray], fps: int) -> Iterator[list[bytes]]:
    """The NAL units of every frame; parameter sets before every key frame."""
    encoder: Any = None
    for picture in frames:
        if encoder is None:
            encoder = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *picture.shape[:2], "yuv420p"
            encoder.time_base, encoder.gop_size = Fraction(1, fps), 5
            encoder.options = {"tune": "zerolatency", "preset": "ultrafast"}
        for packet in encoder.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")):
            yield [unit for unit in re.split(rb"\x00?\x00\x00\x01", bytes(packet)) if unit]


def _payloads(units: Sequence[bytes]) -> Iterator[tuple[bool, bytes]]:
    """The packets of a frame, and whether each is its last: whole NAL units, or parts of them (FU-A)."""
    for unit in units:
        if len(unit) <= _PAYLOAD:
            yield unit is units[-1], unit
            continue
        kind, rest = unit[0], unit[1:]
        parts = [rest[at : at + _PAYLOAD] for at in range(0, len(rest), _PAYLOAD)]
        for number, part in enumerate(parts):
            first, last = number == 0, number + 1 == len(parts)
            yield last and unit is units[-1], bytes([kind & 0xE0 | 28, first << 7 | last << 6 | kind & 0x1F]) + part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--at-end", default="close", choices=["close", "reset", "silence"])
    args = parser.parse_args()

    def frames() -> Iterator[np.ndarray]:
        with av.open(args.video) as container:
            for frame in container.decode(container.streams.video[0]):
                yield frame.to_ndarray(format="bgr24")

    with av.open(args.video) as container:
        rate = round(container.streams.video[0].average_rate or 25)
    with RtspServer(frames(), rate, at_end=args.at_end) as server:
        print(server.address, flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
