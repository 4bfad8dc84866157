"""LiteLLM's proxy and its semantic auto-router in front of a vLLM server, set up to be fast, for comparison.

Of LiteLLM's routers this is the one that goes by the embeddings of example questions; the others judge how hard a
question is. LiteLLM has an environment of its own: what it needs contradicts what vLLM needs.
Source: https://docs.litellm.ai/docs/proxy/auto_routing_semantic, prod, server_tuning.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

MODULE = "litellm.proxy.proxy_cli"
MODEL = "MoM"  # what a client names
HEALTH = "/health/liveliness"  # the path that answers when it is up; their spelling
_EMBEDDINGS = "embeddings"
# Of the mean likeness to those of a route's questions that are among the five likest of all. Theirs is 0.3, below which
# all-MiniLM-L6-v2 puts half of what a route is for.
_THRESHOLD = 0.0

# What their production guide asks for in the environment; it is read before the configuration is.
ENVIRONMENT: Mapping[str, str] = {
    "LITELLM_MODE": "PRODUCTION",  # no .env file
    "LITELLM_LOG": "ERROR",  # no line a request, of theirs or of uvicorn
    "LOG_LEVEL": "ERROR",  # the auto-router's library turns every logger up to INFO as it is imported, theirs too
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no prices from the net at the start
}


def write_config(
    folder: Path, upstream: str, embeddings: str, utterances: Mapping[str, Sequence[str]], default: str
) -> Path:
    """Writes the proxy's configuration into a folder, and gives its path.

    Args:
        upstream: the URL of the vLLM server, without a path.
        embeddings: the URL of a server with OpenAI's /v1/embeddings, without a path.
        utterances: adapter -> questions that stand for it.
        default: the model for what is like none of them.
    """
    routes = [
        {"name": adapter, "utterances": [*examples], "score_threshold": _THRESHOLD}
        for adapter, examples in utterances.items()
    ]
    router = {
        "model": f"auto_router/{MODEL}",
        # Here and not in a file of its own: from a file their library would also build the encoder that it names.
        "auto_router_config": json.dumps({"routes": routes}),
        "auto_router_default_model": default,
        "auto_router_embedding_model": _EMBEDDINGS,
    }
    content = {
        "model_list": [
            *(_model(name, upstream) for name in dict.fromkeys((*utterances, default))),
            {**_model(_EMBEDDINGS, embeddings), "model_info": {"mode": "embedding"}},
            {"model_name": MODEL, "litellm_params": router},
        ],
        "litellm_settings": {
            "set_verbose": False,
            "json_logs": True,  # with it LITELLM_LOG holds for the root logger too
            "request_timeout": 600,
        },
        # An answer that failed is a failure, not a second request: nobody else tries again.
        "router_settings": {"num_retries": 0},
        # Without a key, as vLLM is here: it listens on the loopback only. It refuses to start otherwise.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    path = folder / "litellm.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def arguments(config: Path) -> list[str]:
    """What `MODULE` is started with, beside where it listens, and with `ENVIRONMENT`."""
    # One worker is what they advise where something else scales. Only where the proxy has a machine to itself is it one
    # for each core; here vLLM and the client need theirs. uvicorn is their default; granian is a beta of theirs.
    return ["--config", str(config), "--num_workers", "1"]


def version(python: Path) -> str | None:
    """LiteLLM's version in the environment of an interpreter; None: it is not there."""
    ask = "import importlib.metadata as m; print(m.version('litellm'))"
    try:
        said = subprocess.run([str(python), "-I", "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def _model(name: str, url: str) -> dict[str, object]:
    # hosted_vllm is their own client on aiohttp; openai puts OpenAI's client between, and takes no less.
    parameters = {"model": f"hosted_vllm/{name}", "api_base": f"{url.rstrip('/')}/v1", "api_key": "none"}
    return {"model_name": name, "litellm_params": parameters}
