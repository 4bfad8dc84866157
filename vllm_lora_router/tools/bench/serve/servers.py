"""Start the compared servers: vLLM, vLLM with the router, and proxies in front of vLLM."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_lora_router.tools.bench.serve import litellm
from vllm_lora_router.tools.bench.serve.models import RANK, BaseWithAdapters
from vllm_lora_router.tools.bench.serve.server_processes import server_processes
from vllm_lora_router.tools.bench.serve.settings import BASE, SUBJECTS, examples
from vllm_lora_router.tools.demo.server import Server

START_SECONDS = 900  # two servers start together on two cores; includes reading a large model
PLAIN, ROUTED, PROXY, LITELLM = "vLLM", "router", "proxy", "LiteLLM"


@dataclass(frozen=True)
class RunningServers:
    """Running servers by name; the processes of servers that were not started here are unknown."""

    urls: Mapping[str, str]
    processes: Mapping[str, Mapping[str, psutil.Process]]


@contextmanager
def start_servers(
    served: BaseWithAdapters,
    config: Path,
    folder: Path,
    flags: Sequence[str],
    *,
    proxy: bool,
    litellm_python: Path | None,
    seed: int = 0,
) -> Iterator[RunningServers]:
    """Start the servers and stop them at the end.

    Args:
        served: the base model and its adapters.
        config: the router's configuration.
        folder: folder for the logs.
        flags: vLLM flags for both vLLM servers.
        proxy: start the lean proxy.
        litellm_python: interpreter of an environment with LiteLLM; None: without LiteLLM.
        seed: hash seed of both vLLM servers, because hash collisions are one reason for different speeds of two
            processes.

    Raises:
        ServerFailedError: a server did not become ready.
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
        *_gpu_memory_flags(flags),
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
        helpers: dict[str, Server] = {}
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
            helpers[LITELLM] = embeddings
            litellm_config = litellm.write_config(folder, plain.url, embeddings.url, examples(), next(iter(SUBJECTS)))
            servers[LITELLM] = Server(
                litellm.arguments(litellm_config),
                log=folder / "litellm.log",
                module=litellm.MODULE,
                environment=litellm.ENVIRONMENT,
                health=litellm.HEALTH,
                python=litellm_python,
            )
        for name in (PROXY, LITELLM):
            if name in servers:
                running.enter_context(servers[name]).wait(START_SECONDS)
        processes = {name: server_processes(name, server.pid) for name, server in servers.items()}
        for name, server in helpers.items():
            processes[name] |= server_processes(f"{name}'s embeddings", server.pid)
        yield RunningServers({name: server.url for name, server in servers.items()}, processes)


def _gpu_memory_flags(flags: Sequence[str]) -> list[str]:
    """Return flags that let two servers share a GPU, unless the user sets the memory."""
    import torch

    is_set = any(flag.startswith("--gpu-memory-utilization") for flag in flags)
    return ["--gpu-memory-utilization", "0.42"] if torch.cuda.is_available() and not is_set else []
