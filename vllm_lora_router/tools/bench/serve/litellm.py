"""Configure LiteLLM's proxy with its semantic auto-router in front of a vLLM server, for comparison.

This router of LiteLLM compares embeddings of example questions; its other routers estimate the difficulty of a
question. LiteLLM needs its own environment, because its requirements conflict with those of vLLM.
Source: https://docs.litellm.ai/docs/proxy/auto_routing_semantic, prod, server_tuning.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

MODULE = "litellm.proxy.proxy_cli"
MODEL = "MoM"  # the model that clients request
HEALTH = "/health/liveliness"  # the health path, in LiteLLM's spelling
_EMBEDDINGS = "embeddings"
# Threshold of the mean similarity to a route's questions among the five nearest questions of all routes. LiteLLM's
# default is 0.3, which would reject half of a route's own questions with all-MiniLM-L6-v2.
_THRESHOLD = 0.0

# Settings from LiteLLM's production guide; the environment is read before the configuration.
ENVIRONMENT: Mapping[str, str] = {
    "LITELLM_MODE": "PRODUCTION",  # no .env file
    "LITELLM_LOG": "ERROR",  # no log line for each request, from LiteLLM or uvicorn
    "LOG_LEVEL": "ERROR",  # the auto-router's library sets every logger to INFO when imported
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no price list from the network at start
}


def write_config(
    folder: Path, upstream: str, embeddings: str, utterances: Mapping[str, Sequence[str]], default: str
) -> Path:
    """Write the proxy's configuration into a folder and return its path.

    Args:
        upstream: the URL of the vLLM server, without a path.
        embeddings: the URL of a server with OpenAI's /v1/embeddings, without a path.
        utterances: adapter -> example questions.
        default: the model for questions that match no route.
    """
    routes = [
        {"name": adapter, "utterances": [*examples], "score_threshold": _THRESHOLD}
        for adapter, examples in utterances.items()
    ]
    router = {
        "model": f"auto_router/{MODEL}",
        # Inline instead of a separate file: from a file, the library would also build the encoder that it names.
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
            "json_logs": True,  # makes LITELLM_LOG apply to the root logger
            "request_timeout": 600,
        },
        # Failed requests are counted and not retried, as in the other setups.
        "router_settings": {"num_retries": 0},
        # No key, like vLLM here: the proxy listens on the loopback interface only and would not start otherwise.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    path = folder / "litellm.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def arguments(config: Path) -> list[str]:
    """Return the arguments of `MODULE`, without the address; also set `ENVIRONMENT`."""
    # LiteLLM recommends one worker if replicas scale, and one for each core only on a machine of its own; here vLLM and
    # the client need cores too. uvicorn is the default; granian support is a beta.
    return ["--config", str(config), "--num_workers", "1"]


def version(python: Path) -> str | None:
    """Return LiteLLM's version in an interpreter's environment, or None if it is not installed."""
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    try:
        result = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _model(name: str, url: str) -> dict[str, object]:
    # hosted_vllm is LiteLLM's own client on aiohttp; the openai provider adds OpenAI's client and is not faster.
    parameters = {"model": f"hosted_vllm/{name}", "api_base": f"{url.rstrip('/')}/v1", "api_key": "none"}
    return {"model_name": name, "litellm_params": parameters}
