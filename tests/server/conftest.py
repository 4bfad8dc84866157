"""Real vLLM servers over the demo's models. Modules that need the same vLLM flags share one group of servers."""

import json
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any, TypeVar

import httpx
import pytest
import yaml

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
    warnings.warn("tests/server is left out because it needs vLLM: bash launch/install.sh .venv demo,dev", stacklevel=1)

from vllm_lora_router.tools.bench.serve import settings
from vllm_lora_router.tools.bench.serve.models import BaseWithAdapters, classifier_folder
from vllm_lora_router.tools.bench.serve.servers import PLAIN, ROUTED, RunningServers, start_servers
from vllm_lora_router.tools.demo.ask import warm_up
from vllm_lora_router.tools.demo.build import DemoModels, build
from vllm_lora_router.tools.demo.many import ManyAdapters
from vllm_lora_router.tools.demo.server import FLAGS, Server

from ..conversations import TOPICS
from .collector import Collector
from .groups import GROUPS

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
API_KEY = "sk-of-the-tests"
TENANT_KEYS_ENV = "TENANT_KEYS"
TENANT_KEYS = {"sk-acme": "acme", "sk-globex": "globex", "sk-removed": "initrode"}  # API key -> tenant
BASE = "meta-llama/Llama-2-7b-hf"  # as the guide serves it; its configuration calls it llama2-7b
START_SECONDS = 420
HANG_GUARD_S = 120  # no bound on speed: a test that waits longer than this hangs
ADMIN_KEY_ENV = "ROUTER_ADMIN_KEY"
ADMIN_KEY = "boss"
ADMIN = {"x-lora-router-admin-key": ADMIN_KEY}
# By default vLLM runs the engine on a CPU in two processes, and each of them imports vLLM.
ONE_ENGINE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' and not loop.first %}
{{- raise_exception('System message must be at the beginning.') }}
{%- endif %}
{{- '[' + message.role + ']' + (message.content or '') + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '[assistant]' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- if thinking is defined %}
{{- '<think>' if thinking else '</think>' }}
{%- endif %}
{%- if reasoning_effort is defined and reasoning_effort %}
{{- '(effort ' + reasoning_effort + ')' }}
{%- endif %}
{%- endif %}
"""

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the modules that share servers next to each other."""
    here = Path(__file__).parent
    order = list(dict.fromkeys(GROUPS.values()))
    server_items = [item for item in items if item.path.parent == here]
    server_items.sort(key=lambda item: order.index(GROUPS[item.path.name]) if item.path.name in GROUPS else len(order))
    items[:] = [*server_items, *(item for item in items if item.path.parent != here)]


@pytest.fixture(scope="session")
def models() -> DemoModels:
    """The demo's models. They are built on first use and stay on disk."""
    return build(Path(os.environ.get("VLLM_LORA_ROUTER_DEMO", ROOT / ".demo")).resolve())


@pytest.fixture(scope="session")
def many(models: DemoModels) -> ManyAdapters:
    """Adapters by number, each with a different answer."""
    return ManyAdapters(models.base)


def lora_modules(models: DemoModels) -> list[str]:
    return ["--lora-modules", *(f"{name}={folder}" for name, folder in models.adapters.items())]


@dataclass(frozen=True)
class ConfiguredServer:
    """A server and its configuration file, which tests may change."""

    url: str
    file: Path
    server: Server | None = None  # None where the benchmark started it

    @property
    def pid(self) -> int:
        assert self.server is not None
        return self.server.pid

    def is_running(self) -> bool:
        return self.server is None or self.server.process is None or self.server.process.poll() is None

    def configure(self, text: str) -> None:
        """Write the configuration and reload it."""
        self.file.write_text(text)
        response = httpx.post(f"{self.url}/v1/router/reload", headers=ADMIN, timeout=HANG_GUARD_S)
        assert response.status_code == 200, response.text


class Groups:
    """Run one group of servers at a time: starting another one stops the previous one and frees its memory."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._name = ""
        self._group: Any = None

    def use(
        self, name: str, start: Callable[[], AbstractContextManager[T]], is_usable: Callable[[T], bool] = bool
    ) -> T:
        """Return the group of this name. It is started unless it runs already and is usable."""
        if self._name != name or not is_usable(self._group):
            self.stop()
            self._group = self._stack.enter_context(start())
            self._name = name
        return self._group

    def stop(self) -> None:
        self._name, self._group = "", None
        self._stack.close()


@pytest.fixture(scope="session")
def groups() -> Iterator[Groups]:
    groups = Groups()
    yield groups
    groups.stop()


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Start servers at the same time, because each of them loads on one core, and wait until they answer."""
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        for server in servers:
            server.wait(START_SECONDS)
        yield


@dataclass(frozen=True)
class GuideServers:
    guide: Server
    guide_config: Path
    plugin: Server
    plugin_config: Path


@pytest.fixture(scope="module")
def guide_servers(groups: Groups, models: DemoModels, tmp_path_factory: pytest.TempPathFactory) -> GuideServers:
    """`python -m vllm_lora_router.serve` with the guide's configuration, and vLLM's own server with the plugin."""

    @contextmanager
    def start() -> Iterator[GuideServers]:
        folder = tmp_path_factory.mktemp("guide")
        guide_config = folder / "guide.yaml"
        admin = f"router: {{admin_key_env: {ADMIN_KEY_ENV}}}\n"
        guide_config.write_text((ROOT / "config/guide.yaml").read_text() + admin)
        guide = Server(
            [
                *(str(models.base), "--served-model-name", BASE, "--router-config", str(guide_config)),
                *(*lora_modules(models), "--api-key", API_KEY, *list(TENANT_KEYS)[:2], *FLAGS),
            ],
            log=folder / "guide.log",
            directory=models.directory,
            environment={ADMIN_KEY_ENV: ADMIN_KEY, TENANT_KEYS_ENV: json.dumps(TENANT_KEYS)},
        )
        config, template = folder / "config.yaml", folder / "template.jinja"
        text = (ROOT / "config/combined.yaml").read_text()
        config.write_text(text.replace("\nrouter:\n", f"\nrouter:\n  admin_key_env: {ADMIN_KEY_ENV}\n"))
        template.write_text(TEMPLATE)
        plugin = Server(
            [
                *("--model", str(models.base), "--served-model-name", "tiny", "--enable-lora", "--max-loras", "3"),
                *(*lora_modules(models), "--chat-template", str(template), "--enable-scale-out"),
                *("--enable-auto-tool-choice", "--tool-call-parser", "pythonic", *FLAGS),
            ],
            log=folder / "plugin.log",
            module="vllm.entrypoints.openai.api_server",
            directory=models.directory,
            environment={
                "VLLM_PLUGINS": "lora_router",
                "VLLM_LORA_ROUTER_CONFIG": str(config),
                ADMIN_KEY_ENV: ADMIN_KEY,
                **ONE_ENGINE_PROCESS,
            },
        )
        with running(guide, plugin):
            warm_up(guide.url, api_key=API_KEY)
            warm_up(plugin.url)
            yield GuideServers(guide, guide_config, plugin, config)

    return groups.use("guide", start)


@pytest.fixture(scope="module")
def server(guide_servers: GuideServers) -> Server:
    """`python -m vllm_lora_router.serve` with the guide's configuration and flags."""
    return guide_servers.guide


@pytest.fixture(scope="module")
def plugin_server(guide_servers: GuideServers) -> Server:
    """vLLM's own server with the plugin, the configuration with all methods, and vLLM's render routes.

    Its chat template is as strict as that of Qwen, and reads the reasoning settings of Qwen, DeepSeek and gpt-oss.
    """
    return guide_servers.plugin


@contextmanager
def one_server(
    models: DemoModels, folder: Path, config: str, flags: Sequence[str], environment: Mapping[str, str] = {}
) -> Iterator[ConfiguredServer]:
    """Start a server with `config.yaml` in a folder, which is its working directory as well."""
    folder.mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(config)
    server = Server(
        [str(models.base), "--served-model-name", "base", "--router-config", str(file), *flags],
        log=folder / "server.log",
        directory=folder,
        environment={ADMIN_KEY_ENV: ADMIN_KEY, **environment},
    )
    with running(server):
        yield ConfiguredServer(server.url, file, server)


# The configuration that shared servers start with; modules replace it.
SMALLEST_CONFIG = f"""
model_config: {{base: }}
default_model: base
categories: [{{name: general, model_scores: [{{model: base}}]}}]
router: {{admin_key_env: {ADMIN_KEY_ENV}}}
"""
FOUR_SLOTS = ("--max-loras", "4", "--max-cpu-loras", "32")


@pytest.fixture(scope="module")
def four_slots(groups: Groups, models: DemoModels, tmp_path_factory: pytest.TempPathFactory) -> ConfiguredServer:
    """One API-server process, four adapter slots and host memory for 32 adapters.

    Its run directory is in `disk` beside its configuration: a disk of its own where this process may mount one.
    """
    flags = [*FLAGS, *FOUR_SLOTS, *lora_modules(models)]

    @contextmanager
    def start() -> Iterator[ConfiguredServer]:
        folder = tmp_path_factory.mktemp("four-slots")
        run_dir = f"router: {{adapters: {{run_dir: {folder}/disk/run}}, "
        with (
            small_disk(folder / "disk"),
            one_server(models, folder, SMALLEST_CONFIG.replace("router: {", run_dir), flags) as server,
        ):
            yield server

    return groups.use("four slots", start)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of 256 MB at `folder`; an ordinary folder where this process may not mount file systems."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(folder)]
    is_mounted = which("mount") is not None and not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@dataclass(frozen=True)
class ComparedServers:
    """A server with the router, the same without it, and a routing proxy in front of the latter."""

    running: RunningServers
    routed: ConfiguredServer
    bench_config: str
    adapters: Mapping[str, int]  # name -> number

    @property
    def plain_url(self) -> str:
        return self.running.urls[PLAIN]


@pytest.fixture(scope="module")
def compared(
    groups: Groups, models: DemoModels, many: ManyAdapters, tmp_path_factory: pytest.TempPathFactory
) -> ComparedServers:
    """The servers of `bench serve` over adapters of six topics; prefix caching is reported."""

    @contextmanager
    def start() -> Iterator[ComparedServers]:
        folder = tmp_path_factory.mktemp("compared")
        config = yaml.safe_load(settings.configuration("static", classifier_folder("static", models.directory)))
        # No request may miss the deadline because another process uses the cores.
        config["router"] |= {"admin_key_env": ADMIN_KEY_ENV, "deadline_ms": HANG_GUARD_S * 1000}
        file, text = folder / "config.yaml", yaml.safe_dump(config, sort_keys=False)
        file.write_text(text)
        names = dict.fromkeys([*(f"{topic}-lora" for topic in TOPICS), *settings.SUBJECTS])
        numbers = {name: number for number, name in enumerate(names)}
        for name, number in numbers.items():
            many.write(number, folder / name)
        served = BaseWithAdapters(str(models.base), {name: folder / name for name in numbers}, FLAGS, many.write)
        # A slot for each adapter and one more; vLLM takes the last value of a flag.
        flags = ["--max-loras", str(len(numbers) + 1), "--enable-prompt-tokens-details", "--block-size", "32"]
        with ExitStack() as stack:
            with pytest.MonkeyPatch.context() as environment:
                for variable, value in {ADMIN_KEY_ENV: ADMIN_KEY, **ONE_ENGINE_PROCESS}.items():
                    environment.setenv(variable, value)
                flags += ["--enable-scale-out"]
                running = stack.enter_context(
                    start_servers(served, file, folder, flags, proxy=True, litellm_python=None)
                )
            yield ComparedServers(running, ConfiguredServer(running.urls[ROUTED], file), text, numbers)

    return groups.use("comparison", start)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """An OTLP endpoint. The servers with two API processes send their spans to it."""
    collector = Collector()
    yield collector
    collector.close()


TWO_SLOTS = (
    *("--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--max-cpu-loras", "3"),
    "--enable-prefix-caching",
)


@pytest.fixture
def two_processes(
    groups: Groups, models: DemoModels, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> ConfiguredServer:
    """Two API-server processes, two adapter slots, host memory for three adapters, and traces.

    A test that kills the server leaves it dead; the next test gets a new one.
    """
    flags = [*FLAGS, *TWO_SLOTS, "--api-server-count", "2", "--otlp-traces-endpoint", collector.url]
    environment = {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds
        "NO_PROXY": "127.0.0.1",
        **ONE_ENGINE_PROCESS,
    }

    def start() -> AbstractContextManager[ConfiguredServer]:
        return one_server(models, tmp_path_factory.mktemp("two-processes"), SMALLEST_CONFIG, flags, environment)

    return groups.use("two processes", start, ConfiguredServer.is_running)
