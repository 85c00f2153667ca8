"""CONNECT through a member, with an HTTP/3 stack that is not ours: PORT TARGET KEY CERT CA."""

import asyncio
import ssl
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.events = asyncio.Queue()

    def quic_event_received(self, event):
        for one in self.http.handle_event(event):
            self.events.put_nowait(one)

    async def request(self, authority):
        stream = self._quic.get_next_available_stream_id()
        self.http.send_headers(stream, [(b":method", b"CONNECT"), (b":authority", authority.encode())])
        self.transmit()
        while True:
            event = await asyncio.wait_for(self.events.get(), 10)
            if isinstance(event, HeadersReceived) and event.stream_id == stream:
                return stream, dict(event.headers)[b":status"].decode()

    async def echo(self, stream, text):
        self.http.send_data(stream, text, end_stream=True)
        self.transmit()
        got = b""
        while True:
            event = await asyncio.wait_for(self.events.get(), 10)
            if isinstance(event, DataReceived) and event.stream_id == stream:
                got += event.data
                if event.stream_ended:
                    return got


async def main():
    port, target, key, cert, ca = sys.argv[1:6]
    config = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="mesh")
    # Identities are SPIFFE URIs, which a browser's rules know nothing of; the chain is not this test's business.
    config.verify_mode = ssl.CERT_NONE
    config.load_cert_chain(cert, key)
    async with connect("127.0.0.1", int(port), configuration=config, create_protocol=Client) as client:
        stream, status = await client.request(target)
        print("status", status)
        text = b"x" * 200_000
        if await client.echo(stream, text) == text:
            print("echoed")
        _, status = await client.request("169.254.169.254:80")
        print("refused", status)


asyncio.run(main())
