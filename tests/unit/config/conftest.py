"""A folder for configurations, and what a user is told of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm_lora_router.config import ConfigError, Loaded, load
from vllm_lora_router.config.served_base import ServedBase, served_base
from vllm_lora_router.config.warnings import notices

# Tests append to it, or replace a line of it: keep the numbers of its lines.
GOOD = """\
model_config:
  base:
    loras:
      - name: technical-lora
      - name: medical-lora
default_model: base
categories:
  - name: technical
    model_scores:
      - model: base
        lora_name: technical-lora
  - name: medical
    model_scores:
      - model: base
        lora_name: medical-lora
keyword_rules:
  - category: technical
    keywords: [Python]
  - category: medical
    keywords: [fever]
"""


@dataclass(frozen=True)
class Configs:
    """Writes one configuration after the other."""

    folder: Path
    good: str = GOOD

    @property
    def file(self) -> Path:
        return self.folder / "config.yaml"

    def load(self, text: str | bytes, adapters: Collection[str] = ()) -> Loaded:
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return load(self.file, adapters=adapters)

    def problems(self, text: str | bytes, adapters: Collection[str] = ()) -> list[str]:
        """Everything that is wrong, each as `LINE:COLUMN: what`."""
        with pytest.raises(ConfigError) as refused:
            self.load(text, adapters)
        said = str(refused.value).split("\n")
        assert all(one.startswith(f"{self.file}:") for one in said), said
        return [one.removeprefix(f"{self.file}:") for one in said]

    def changed(self, *replacements: tuple[str, str]) -> str:
        """The good configuration with parts of it replaced."""
        text = self.good
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new, 1)
        return text

    def base(self, text: str, served: Sequence[str] = ()) -> ServedBase:
        return served_base(self.load(text), served)

    def notices(self, text: str, served: Sequence[str] = ()) -> list[str]:
        """What is said of a configuration that loads, each as `LEVEL: text`."""
        loaded = self.load(text)
        names = {10: "DEBUG", 20: "INFO", 30: "WARNING"}
        return [f"{names[one.level]}: {one.text}" for one in notices(loaded, served_base(loaded, served))]


@pytest.fixture
def configs(tmp_path: Path) -> Configs:
    return Configs(tmp_path)
