"""Files that are not ordinary configuration files: pipes, devices, folders, huge and unreadable files."""

import os
import threading
from pathlib import Path

import pytest

from vllm_lora_router.config import ConfigError, file_content, load

from .conftest import GOOD, Configs


def problem(file: Path) -> str:
    """Return the only problem of a file, without the place."""
    with pytest.raises(ConfigError) as error:
        load(file)
    assert len(error.value.problems) == 1
    return str(error.value).removeprefix(f"{file}:1:1: ")


def test_a_url_is_not_a_file() -> None:
    expected = "a URL is not a file; download the configuration and pass the path of the file"
    assert problem(Path("https://example.com/config.yaml")) == expected


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_not_read(device: str) -> None:
    assert problem(Path(device)) == "cannot be read: it is a character device, not a file"


def test_a_pipe_is_read_until_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(GOOD))
    writer.start()
    assert load(pipe).config.default_model == "base"
    writer.join()


def test_a_pipe_without_a_writer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_content, "PIPE_TIMEOUT_S", 0.05)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert problem(pipe) == "cannot be read: the pipe delivered nothing for 0.05 s"


def test_a_file_beyond_the_limit_is_an_error(configs: Configs) -> None:
    configs.file.write_text(GOOD)
    os.truncate(configs.file, 2**40)  # a sparse file
    assert problem(configs.file) == "cannot be read: it is larger than 32 MiB"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_an_error(configs: Configs) -> None:
    configs.file.touch(0)
    assert problem(configs.file) == "cannot be read: Permission denied"


def test_a_path_that_is_no_path_is_an_error(tmp_path: Path) -> None:
    assert problem(tmp_path / ("x" * 300)) == "cannot be read: File name too long"
    assert "null byte" in problem(Path("a\0b"))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert problem(loop) == "cannot be read: Too many levels of symbolic links"


def test_the_file_of_an_invalid_path_in_the_configuration_does_not_exist(configs: Configs) -> None:
    loaded = configs.load(GOOD)
    for path in ("~nobody-has-this-name/x", "x" * 5000, "a/" * 3000, "nowhere"):
        assert loaded.locate(path) is None
