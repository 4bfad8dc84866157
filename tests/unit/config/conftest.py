"""A fixture that writes configurations and returns their problems and warnings."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm_lora_router.config import ConfigError, LoadedConfig, load
from vllm_lora_router.config.served_base import ServedBase, served_base
from vllm_lora_router.config.warnings import config_warnings

# Tests append to it or replace a line of it. Keep its line numbers.
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
    """Writes a configuration to a file, and loads it."""

    folder: Path
    good: str = GOOD

    @property
    def file(self) -> Path:
        return self.folder / "config.yaml"

    def load(self, text: str | bytes, adapters: Collection[str] = ()) -> LoadedConfig:
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return load(self.file, adapters=adapters)

    def problems(self, text: str | bytes, adapters: Collection[str] = ()) -> list[str]:
        """Return all problems of a configuration, each as `LINE:COLUMN: message`."""
        with pytest.raises(ConfigError) as error:
            self.load(text, adapters)
        lines = str(error.value).split("\n")
        assert all(line.startswith(f"{self.file}:") for line in lines), lines
        return [line.removeprefix(f"{self.file}:") for line in lines]

    def changed(self, *replacements: tuple[str, str]) -> str:
        """Return the good configuration with parts of it replaced."""
        text = self.good
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new, 1)
        return text

    def base(self, text: str, served: Sequence[str] = ()) -> ServedBase:
        return served_base(self.load(text), served)

    def warnings(self, text: str, served: Sequence[str] = ()) -> list[str]:
        """Return the warnings about a valid configuration, each as `LEVEL: text`."""
        loaded = self.load(text)
        names = {10: "DEBUG", 20: "INFO", 30: "WARNING"}
        warnings = config_warnings(loaded, served_base(loaded, served))
        return [f"{names[warning.level]}: {warning.text}" for warning in warnings]


@pytest.fixture
def configs(tmp_path: Path) -> Configs:
    return Configs(tmp_path)
