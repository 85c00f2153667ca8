"""A strict HTTP/3 server that is not ours: prints its port, then the headers of each CONNECT; echoes: KEY CERT CA."""

import asyncio
import ssl
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


class Server(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)

    def quic_event_received(self, event):
        for one in self.http.handle_event(event):
            if isinstance(one, HeadersReceived):
                print(" ".join(f"{name.decode()}={value.decode()}" for name, value in one.headers), flush=True)
                self.http.send_headers(one.stream_id, [(b":status", b"200")])
            elif isinstance(one, DataReceived) and one.data:
                self.http.send_data(one.stream_id, one.data, end_stream=False)
        self.transmit()


async def main():
    key, cert, ca = sys.argv[1:4]
    config = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    config.load_cert_chain(cert, key)
    config.load_verify_locations(ca)
    config.verify_mode = ssl.CERT_NONE
    server = await serve("127.0.0.1", 0, configuration=config, create_protocol=Server)
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
