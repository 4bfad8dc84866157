"""The router's encoder behind OpenAI's /v1/embeddings, for a router that has to ask for its embeddings."""

import argparse
import asyncio
import base64
from pathlib import Path

from aiohttp import web

from vllm_lora_router.classifiers.encoder import Encoder, load_encoder
from vllm_lora_router.config import load


def app(encoder: Encoder) -> web.Application:
    """What is served."""

    async def embed(request: web.Request) -> web.Response:
        asked = await request.json()
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        rows = await asyncio.wrap_future(encoder.worker.submit(lambda: encoder.encode(texts)))
        packed = asked.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(row.tobytes()).decode() if packed else row.tolist(),
            }
            for place, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return web.json_response({"object": "list", "model": asked["model"], "data": data, "usage": usage})

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    served = web.Application()
    served.router.add_post("/v1/embeddings", embed)
    served.router.add_get("/health", health)
    return served


def main() -> int:
    """Serves until it is ended."""
    import uvloop

    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.bench.serve.embeddings", description=__doc__)
    parser.add_argument("config", type=Path, help="whose classifier.embedding_model it is")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    web.run_app(
        app(load_encoder(load(args.config))),
        host=args.host,
        port=args.port,
        access_log=None,
        print=lambda *said: None,
        loop=uvloop.new_event_loop(),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
