"""The servers that are compared: vLLM, vLLM with the router, and what stands in front of vLLM instead."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_lora_router.tools.bench.serve import litellm
from vllm_lora_router.tools.bench.serve.models import RANK, Served
from vllm_lora_router.tools.bench.serve.processes import of_server
from vllm_lora_router.tools.bench.serve.settings import BASE, SUBJECTS, examples
from vllm_lora_router.tools.demo.server import Server

START_SECONDS = 900  # two servers on two cores start together; a large model is read first
PLAIN, ROUTED, PROXY, LITELLM = "vLLM", "router", "proxy", "LiteLLM"


@dataclass(frozen=True)
class Fleet:
    """Servers that are up, by the names above; where they were given, nothing is known of their processes."""

    urls: Mapping[str, str]
    processes: Mapping[str, Mapping[str, psutil.Process]]


@contextmanager
def fleet(
    served: Served,
    config: Path,
    folder: Path,
    flags: Sequence[str],
    *,
    proxy: bool,
    litellm_python: Path | None,
    seed: int = 0,
) -> Iterator[Fleet]:
    """Starts them, and ends them at the end.

    Args:
        config: the router's configuration.
        folder: for their logs.
        flags: of vLLM, for both of its servers.
        litellm_python: the interpreter of an environment with LiteLLM; None: without it.
        seed: of the hashes of both of vLLM's servers. Which of them collide is one of the things by which two processes
            of one program are not equally fast.

    Raises:
        ServerFailed: one did not come up.
    """
    modules = ["--lora-modules", *(f"{name}={to}" for name, to in served.adapters.items())]
    lora = ["--enable-lora", "--max-loras", str(len(SUBJECTS) + 1), "--max-lora-rank", str(RANK)]
    common = [
        "--served-model-name",
        BASE,
        *lora,
        *modules,
        "--disable-uvicorn-access-log",
        *served.flags,
        *flags,
        *_room(flags),
    ]
    hashes = {"PYTHONHASHSEED": str(seed)}
    plain = Server(
        ["--model", served.base, *common],
        log=folder / "vllm.log",
        module="vllm.entrypoints.openai.api_server",
        environment=hashes,
    )
    routed = Server(
        [served.base, "--router-config", str(config), *common], log=folder / "router.log", environment=hashes
    )
    with ExitStack() as running:
        beside: dict[str, Server] = {}
        servers = {PLAIN: running.enter_context(plain), ROUTED: running.enter_context(routed)}
        for server in (plain, routed):
            server.wait(START_SECONDS)
        if proxy:
            module = "vllm_lora_router.tools.bench.serve.proxy"
            servers[PROXY] = Server([str(config), plain.url], log=folder / "proxy.log", module=module)
        if litellm_python is not None:
            module = "vllm_lora_router.tools.bench.serve.embeddings"
            embeddings = Server([str(config)], log=folder / "embeddings.log", module=module)
            running.enter_context(embeddings).wait(START_SECONDS)
            beside[LITELLM] = embeddings
            theirs = litellm.write_config(folder, plain.url, embeddings.url, examples(), next(iter(SUBJECTS)))
            servers[LITELLM] = Server(
                litellm.arguments(theirs),
                log=folder / "litellm.log",
                module=litellm.MODULE,
                environment=litellm.ENVIRONMENT,
                health=litellm.HEALTH,
                python=litellm_python,
            )
        for name in (PROXY, LITELLM):
            if name in servers:
                running.enter_context(servers[name]).wait(START_SECONDS)
        processes = {name: of_server(name, server.pid) for name, server in servers.items()}
        for name, server in beside.items():
            processes[name] |= of_server(f"{name}'s embeddings", server.pid)
        yield Fleet({name: server.url for name, server in servers.items()}, processes)


def _room(flags: Sequence[str]) -> list[str]:
    """How much of a GPU each of the two servers takes, unless that is said."""
    import torch

    said = any(flag.startswith("--gpu-memory-utilization") for flag in flags)
    return ["--gpu-memory-utilization", "0.42"] if torch.cuda.is_available() and not said else []
