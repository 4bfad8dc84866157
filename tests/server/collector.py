"""An OTLP endpoint that keeps the spans it receives."""

import asyncio
import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """An OTLP endpoint over HTTP, on a free port."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Endpoint(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    content = gzip.decompress(content)
                for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    async def trace(self, trace_id: bytes, spans: int, hang_guard_s: float = 60) -> dict[str, Span]:
        """Return the spans of one trace by name, as soon as there are this many."""
        async with asyncio.timeout(hang_guard_s):
            while (
                len(spans_by_name := {span.name: span for span in list(self.spans) if span.trace_id == trace_id})
                < spans
            ):
                await asyncio.sleep(0.1)
        return spans_by_name

    async def request_span(self, request_id: str, hang_guard_s: float = 60) -> Span:
        """Return the router's span of the request with this id, as soon as there is one."""
        async with asyncio.timeout(hang_guard_s):
            while True:
                for span in list(self.spans):
                    values = [attribute.value.string_value for attribute in span.attributes]
                    if span.name == "lora_router.request" and any(request_id in value for value in values):
                        return span
                await asyncio.sleep(0.1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
