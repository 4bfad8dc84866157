"""The router's encoder behind OpenAI's /v1/embeddings, for a router that has to ask for its embeddings."""

import argparse
import asyncio
import base64
from pathlib import Path

from aiohttp import web

from vllm_lora_router.classifiers.models.encoder import Encoder, load_encoder
from vllm_lora_router.config import load
from vllm_lora_router.tools.bench.serve.listening import add_options, health, listen


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

    served = web.Application()
    served.router.add_post("/v1/embeddings", embed)
    served.router.add_get("/health", health)
    return served


def main() -> int:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_lora_router.tools.bench.serve.embeddings", description=__doc__
    )
    parser.add_argument("config", type=Path, help="whose classifier.embedding_model it is")
    add_options(parser)
    args = parser.parse_args()
    listen(app(load_encoder(load(args.config))), args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
