"""An HTTP proxy before a server: refuses some requests with 503 or 409, and cuts the answer to some others."""

import asyncio
import random
import re
import threading
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


def error(status, code):
    body = b"<Error><Code>%s</Code><Message>Try again.</Message></Error>" % code
    return b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


REFUSAL = error(b"503 Slow Down", b"SlowDown")
CONFLICT = error(b"409 Conflict", b"ConditionalRequestConflict")  # as S3 answers to one of two that create at once


@dataclass
class Flaky:
    """Half of `share` of the requests is refused, half of it is answered to nobody; which ones follows from `seed`.

    Of those that create something the first two meet a conflict. With a `share` of 0 it only counts.
    """

    upstream: str
    share: float
    seed: int
    endpoint: str = ""
    counts: Counter = field(default_factory=Counter)  # refused, conflict, cut, passed
    moved: int = 0  # bytes, both ways

    async def serve(self, reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError), closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                draw = random.Random(f"{self.seed}:{self.counts.total()}").random()
                is_create = b"\r\nif-none-match:" in head.lower()
                is_conflict = is_create and draw < self.share / 4
                is_conflict |= is_create and bool(self.share) and self.counts["conflict"] < 2
                if is_conflict or draw < self.share / 2:
                    self.counts["conflict" if is_conflict else "refused"] += 1
                    writer.write(CONFLICT if is_conflict else REFUSAL)
                    await writer.drain()
                    continue
                self.counts["cut" if draw < self.share else "passed"] += 1
                answer = await self.ask(head, body)
                self.moved += len(head) + len(body) + len(answer)
                writer.write(answer[: len(answer) // 2] if draw < self.share else answer)
                await writer.drain()
                break

    async def ask(self, head, body):
        address = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)
        with closing(writer):
            writer.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            await writer.drain()
            return await reader.read()


@contextmanager
def flaky(upstream, seed=0, share=0.2):
    proxy, ready, loop = Flaky(upstream, share, seed), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run():
        async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 26) as server:
            proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await stop.wait()
            server.close()
            for _ in range(3):  # a connection that was just accepted is a task in the next round, and so is its end
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
