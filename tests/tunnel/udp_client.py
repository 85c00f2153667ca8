"""CONNECT-UDP through a member (RFC 9298), with an HTTP/3 stack that is not ours: PORT UDP_PORT CLOSED_PORT KEY CERT CA."""

import asyncio
import ssl
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DatagramReceived, DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamReset

HOST = "10.9.9.9"


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The only way to have aioquic announce HTTP datagrams.
        self.http = H3Connection(self._quic, enable_webtransport=True)
        self.events = asyncio.Queue()

    def quic_event_received(self, event):
        if isinstance(event, StreamReset):
            self.events.put_nowait(event)
        for one in self.http.handle_event(event):
            self.events.put_nowait(one)

    async def next(self, kind, stream):
        while True:
            event = await asyncio.wait_for(self.events.get(), 10)
            if isinstance(event, kind) and event.stream_id == stream:
                return event

    async def request(self, port, host=HOST):
        stream = self._quic.get_next_available_stream_id()
        path = f"/.well-known/masque/udp/{host}/{port}/"
        headers = [(":method", "CONNECT"), (":protocol", "connect-udp"), (":scheme", "https"), (":authority", "peer"),
                   (":path", path), ("capsule-protocol", "?1")]
        self.http.send_headers(stream, [(name.encode(), value.encode()) for name, value in headers])
        self.transmit()
        return stream, dict((await self.next(HeadersReceived, stream)).headers)

    def send_datagram(self, stream, payload):
        self.http.send_datagram(stream, b"\0" + payload)
        self.transmit()

    async def capsule(self, stream, payload):
        value = b"\0" + payload
        self.http.send_data(stream, b"\0" + encode_uint_var(len(value)) + value, end_stream=False)
        self.transmit()
        got = b""
        while True:
            got += (await self.next(DataReceived, stream)).data
            buffer = Buffer(data=got)
            kind, length = buffer.pull_uint_var(), buffer.pull_uint_var()
            if len(got) - buffer.tell() >= length:
                assert kind == 0 and got[buffer.tell()] == 0, got[:16]
                return got[buffer.tell() + 1:buffer.tell() + length]


async def main():
    port, udp, closed, key, cert, ca = sys.argv[1:7]
    config = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="mesh", max_datagram_frame_size=65536)
    # Identities are SPIFFE URIs, which a browser's rules know nothing of; the chain is not this test's business.
    config.verify_mode = ssl.CERT_NONE
    config.load_cert_chain(cert, key)
    async with connect("127.0.0.1", int(port), configuration=config, create_protocol=Client) as client:
        stream, headers = await client.request(udp)
        print("status", headers[b":status"].decode(), headers.get(b"capsule-protocol"))
        client.send_datagram(stream, b"a datagram")
        if (await client.next(DatagramReceived, stream)).data == b"\0a datagram":
            print("a datagram came back")
        large = b"x" * 20_000
        if await client.capsule(stream, large) == large:
            print("a capsule came back")
        for host, asked in [(HOST, 15008), ("169.254.169.254", 80), ("127.0.0.1", udp), ("x%2F", 1)]:
            print("refused", host, (await client.request(asked, host))[1][b":status"].decode())
        stream, headers = await client.request(closed)
        client.send_datagram(stream, b"anybody?")
        print("reset", hex((await client.next(StreamReset, stream)).error_code))


asyncio.run(main())
