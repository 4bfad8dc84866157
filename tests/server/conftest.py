"""Real vLLM servers over the demo's models, as few as the tests can do with."""

import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
    warnings.warn(
        "tests/server is left out, it drives a real vLLM: bash launch/install.sh .venv demo,dev", stacklevel=1
    )

from vllm_lora_router.tools.demo.ask import greet
from vllm_lora_router.tools.demo.build import DemoModels, build
from vllm_lora_router.tools.demo.many import ManyAdapters
from vllm_lora_router.tools.demo.server import FLAGS, Server

ROOT = Path(__file__).parents[2]
API_KEY = "sk-of-the-tests"
BASE = "meta-llama/Llama-2-7b-hf"  # as the guide serves it; its configuration calls it llama2-7b
START_SECONDS = 420
ADMIN_KEY_ENV = "ROUTER_ADMIN_KEY"
# vLLM's engine on a CPU is two processes, and each imports vLLM: one is enough for servers of which no time is taken.
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


@pytest.fixture(scope="session")
def models() -> DemoModels:
    """The demo's models, built on first use and kept."""
    return build(Path(os.environ.get("VLLM_LORA_ROUTER_DEMO", ROOT / ".demo")).resolve())


def lora_modules(models: DemoModels) -> list[str]:
    return ["--lora-modules", *(f"{name}={folder}" for name, folder in models.adapters.items())]


WITHOUT_A_SERVER = {
    f"test_{name}.py" for name in ("classifying", "graphs", "install", "many", "refusals", "salted_paths", "vllm_seam")
}


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in WITHOUT_A_SERVER:
            item.add_marker("alone")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="faults at full length: what launch/faults.sh runs")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether faults are tested at full length, which takes an hour."""
    return request.config.getoption("--full")


@pytest.fixture(scope="session")
def many(models: DemoModels) -> ManyAdapters:
    """Adapters by the thousand, each with an answer of its own."""
    return ManyAdapters(models.base)


@pytest.fixture(scope="session")
def plugin_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of `plugin_server`, which a test may change as long as it puts it back."""
    file = tmp_path_factory.mktemp("plugin") / "config.yaml"
    text = (ROOT / "config/combined.yaml").read_text()
    file.write_text(text.replace("\nrouter:\n", f"\nrouter:\n  admin_key_env: {ADMIN_KEY_ENV}\n"))
    return file


@pytest.fixture(scope="session")
def both_servers(
    models: DemoModels, plugin_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server]]:
    """`server` and `plugin_server`. They start together: each loads on one core."""
    guide = Server(
        [
            *(str(models.base), "--served-model-name", BASE, "--router-config", str(ROOT / "config/guide.yaml")),
            *(*lora_modules(models), "--api-key", API_KEY, *FLAGS),
        ],
        log=tmp_path_factory.mktemp("guide") / "server.log",
        directory=models.directory,
    )
    template = plugin_config.with_name("template.jinja")
    template.write_text(TEMPLATE)
    plugin = Server(
        [
            *("--model", str(models.base), "--served-model-name", "tiny", "--enable-lora", "--max-loras", "3"),
            *(*lora_modules(models), "--chat-template", str(template), "--enable-scale-out"),
            *("--enable-auto-tool-choice", "--tool-call-parser", "pythonic", *FLAGS),
        ],
        log=plugin_config.with_name("server.log"),
        module="vllm.entrypoints.openai.api_server",
        directory=models.directory,
        environment={
            "VLLM_PLUGINS": "lora_router",
            "VLLM_LORA_ROUTER_CONFIG": str(plugin_config),
            ADMIN_KEY_ENV: "boss",
            **ONE_ENGINE_PROCESS,
        },
    )
    with guide, plugin:
        for server in (guide, plugin):
            server.wait(START_SECONDS)
        greet(guide.url, api_key=API_KEY)
        greet(plugin.url)
        yield guide, plugin


@pytest.fixture(scope="session")
def server(both_servers: tuple[Server, Server]) -> Server:
    """`python -m vllm_lora_router.serve` with the guide's configuration and the guide's flags."""
    return both_servers[0]


@pytest.fixture(scope="session")
def plugin_server(both_servers: tuple[Server, Server]) -> Server:
    """vLLM's own server with our plugin named, the configuration that combines all methods, and vLLM's render routes.

    Its chat template is as strict as Qwen's, and listens to what Qwen's, DeepSeek's and gpt-oss's listen to.
    """
    return both_servers[1]
