"""Serve the router's encoder at OpenAI's /v1/embeddings, for routers that request embeddings over HTTP."""

import argparse
import asyncio
import base64
from pathlib import Path

from aiohttp import web

from vllm_lora_router.classifiers.models.encoder import Encoder, load_encoder
from vllm_lora_router.config import load
from vllm_lora_router.tools.bench.serve.aiohttp_server import add_options, health, listen


def app(encoder: Encoder) -> web.Application:
    """Return the application."""

    async def embed(request: web.Request) -> web.Response:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        rows = await asyncio.wrap_future(encoder.worker.submit(lambda: encoder.encode(texts)))
        packed = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.tobytes()).decode() if packed else row.tolist(),
            }
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return web.json_response({"object": "list", "model": body["model"], "data": data, "usage": usage})

    application = web.Application()
    application.router.add_post("/v1/embeddings", embed)
    application.router.add_get("/health", health)
    return application


def main() -> int:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_lora_router.tools.bench.serve.embeddings", description=__doc__
    )
    parser.add_argument("config", type=Path, help="configuration with the classifier.embedding_model to serve")
    add_options(parser)
    args = parser.parse_args()
    listen(app(load_encoder(load(args.config))), args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
