"""A safetensors header is read as the format's own library reads it, and survives what happens to files meanwhile."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vllm_lora_router.adapters.files.safetensors_header import BITS, HeaderError, Tensor, read_header

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int8), "c": np.zeros((0, 7), np.float16)})
TWO_BYTES = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}

# The same file for every example: only its content matters.
fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return put(folder, struct.pack("<Q", len(text)) + text + data)


def put(folder: Path, content: bytes) -> Path:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(content)
    return file


def ours(file: Path) -> dict[str, Tensor] | None:
    try:
        return read_header(file)
    except HeaderError:
        return None


def theirs(file: Path) -> dict[str, Tensor] | None:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {key: Tensor(one.get_dtype(), tuple(one.get_shape())) for key, one in slices.items()}
    except SafetensorError:
        return None


@pytest.mark.parametrize("dtype", BITS)
def test_every_type_that_the_library_knows_is_read(tmp_path: Path, dtype: str) -> None:
    entry = {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, BITS[dtype]]}
    file = written(tmp_path, {"a": entry}, bytes(BITS[dtype]))
    assert read_header(file) == theirs(file) == {"a": Tensor(dtype, (2, 4))}


def test_no_type_of_the_library_is_forgotten(tmp_path: Path) -> None:
    file = written(tmp_path, {"a": {**TWO_BYTES, "dtype": "none"}}, bytes(2))
    with pytest.raises(SafetensorError, match="expected one of") as refused, safe_open(file, framework="numpy"):
        pass
    known = str(refused.value).split("expected one of")[1].split(" at line")[0]
    assert {word.strip(" `") for word in known.split(",")} == set(BITS)


@given(
    arrays=st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from([np.float16, np.float32, np.int64, np.bool_]), st.lists(st.integers(0, 3), max_size=3)
        ),
        max_size=4,
    ),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=2),
)
@fuzz
def test_what_the_library_writes_is_read(
    tmp_path: Path, arrays: dict[str, tuple[Any, list[int]]], metadata: dict[str, str] | None
) -> None:
    file = put(tmp_path, save({name: np.zeros(shape, kind) for name, (kind, shape) in arrays.items()}, metadata))
    assert read_header(file) == theirs(file)
    assert len(read_header(file)) == len(arrays)


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=3), st.integers(0, 3))
@fuzz
def test_a_file_with_a_few_other_bytes_is_judged_as_the_library_judges_it(
    tmp_path: Path, place: int, new: bytes, gone: int
) -> None:
    file = put(tmp_path, WHOLE[:place] + new + WHOLE[place + gone :])
    assert ours(file) == theirs(file)


@given(st.integers(0, len(WHOLE)), st.binary(max_size=3))
@fuzz
def test_a_file_that_was_cut_off_or_continued_is_refused(tmp_path: Path, length: int, more: bytes) -> None:
    file = put(tmp_path, WHOLE[:length] + more)
    assert (ours(file) is None) == (length + len(more) != len(WHOLE))


counts = st.integers(0, 9) | st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64, 2**70, 1.0, True, None, "2"])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F4", "F6_E2M3", "F33", "f32", 8]),
        "shape": st.lists(counts, max_size=3) | counts,
        "data_offsets": st.lists(counts, min_size=1, max_size=3),
    },
    optional={"more": st.recursive(counts, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))},
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), entries | st.dictionaries(st.text(), st.text())),
    st.integers(0, 20),
)
@fuzz
def test_a_header_of_any_numbers_is_judged_as_the_library_judges_it(
    tmp_path: Path, header: dict[str, Any], data_bytes: int
) -> None:
    file = written(tmp_path, header, bytes(data_bytes))
    assert ours(file) == theirs(file)


@given(st.lists(st.tuples(st.sampled_from(["U8", "F16", "F4"]), st.integers(0, 6)), max_size=4), st.randoms())
@fuzz
def test_tensors_may_be_listed_in_any_order(tmp_path: Path, tensors: list[tuple[str, int]], random: Any) -> None:
    header, end = {}, 0
    for number, (dtype, length) in enumerate(tensors):
        start, end = end, end + length * BITS[dtype] // 8
        header[f"t{number}"] = {"dtype": dtype, "shape": [length], "data_offsets": [start, end]}
    listed = list(header.items())
    random.shuffle(listed)
    file = written(tmp_path, dict(listed), bytes(end))
    assert ours(file) == theirs(file)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "Expecting value"),
        (b"[]", "its header is no JSON object"),
        (b"{" + b" " * 20, "Expecting property name"),
        (b"\xff{}", "can't decode byte 0xff"),
        (b'{"a":' + b"[" * 100_000, "recursion"),
        ({"a": TWO_BYTES, "__metadata__": {"r": 8}}, "its __metadata__ is no object of strings"),
        ({"a": {**TWO_BYTES, "dtype": "F7"}}, "no type, shape and place that make sense for 'a'"),
        ({"a": {**TWO_BYTES, "shape": [True, 2]}}, "no type, shape and place that make sense for 'a'"),
        ({"a": {**TWO_BYTES, "shape": [3]}}, "the data of 'a' is not where its header says"),
        ({"a": {**TWO_BYTES, "data_offsets": [1, 3]}}, "the data of 'a' is not where its header says"),
        ({"a": TWO_BYTES, "b": TWO_BYTES}, "the data of 'b' is not where its header says"),
        ({"a": {**TWO_BYTES, "shape": [2**40, 2**40]}}, "too large for any file"),
        ({"a": {**TWO_BYTES, "shape": [-2]}}, "its header has the number -2"),
        ({"a": {**TWO_BYTES, "shape": [0, 2**64]}}, "its header has the number 18446744073709551616"),
        ({"a": {**TWO_BYTES, "shape": [float("nan")]}}, "its header has the number NaN"),
        ({}, "its header tells of 0 bytes of data, 2 follow it"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}', "surrogates not allowed"),
    ],
)
def test_it_is_said_what_is_wrong_with_a_header(tmp_path: Path, header: object, said: str) -> None:
    with pytest.raises(HeaderError, match=f"is damaged or not complete .*{said}.*; copy or download it again"):
        read_header(written(tmp_path, header, bytes(2)))


@pytest.mark.parametrize("twice", ['"a": {}, "a": @', '"a": @, "a": @', '"__metadata__": {"r": "1", "r": "2"}, "a": @'])
def test_a_key_may_not_be_there_twice(tmp_path: Path, twice: str) -> None:
    header = "{" + twice.replace("@", json.dumps(TWO_BYTES)) + "}"
    with pytest.raises(HeaderError, match=r"its header has '[ar]' twice"):
        read_header(written(tmp_path, header.encode(), bytes(2)))


@pytest.mark.parametrize(
    ("header", "said"), [(2**63, "too few for its header"), (100_000_001, "the format allows 100000000")]
)
def test_a_header_that_is_longer_than_its_file_or_than_the_format_allows_is_not_read(
    tmp_path: Path, header: int, said: str
) -> None:
    file = put(tmp_path, struct.pack("<Q", header) + b"{}")
    os.truncate(file, 200_000_000)
    with pytest.raises(HeaderError, match=said):
        read_header(file)


@pytest.mark.parametrize("start", [b"", WHOLE, b"\x80\x02}q\x00.", b"PK\x03\x04\x00\x00\x08\x08\x00\x00"])
def test_ten_gigabytes_of_garbage_are_refused_in_milliseconds(tmp_path: Path, start: bytes) -> None:
    file = put(tmp_path, start)
    os.truncate(file, 10_000_000_000)
    began = time.process_time()
    with pytest.raises(HeaderError, match="is damaged or not complete"):
        read_header(file)
    assert time.process_time() - began < 0.05


@pytest.mark.parametrize("shape", [[2**63] * 50_000, [1] * 500_000])
def test_a_tensor_of_very_many_dimensions_is_refused_in_no_time(tmp_path: Path, shape: list[int]) -> None:
    began = time.process_time()
    assert ours(written(tmp_path, {"a": {**TWO_BYTES, "shape": shape}}, bytes(2))) is None
    assert time.process_time() - began < 2


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match=r"cannot be read .*No such file"):
        read_header(tmp_path / "nothing")


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match=r"cannot be read .*Is a directory"):
        read_header(tmp_path)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights")
    with pytest.raises(HeaderError, match=r"cannot be read .*not a regular file"):
        read_header(tmp_path / "weights")


OVERWRITTEN = """
import os, sys, time
from pathlib import Path
from vllm_lora_router.adapters.files.safetensors_header import HeaderError, read_header

file, done = Path(sys.argv[1]), time.monotonic() + 0.5
content = file.read_bytes()

if writer := os.fork():
    outcomes = set()
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        try:
            outcomes.add(len(read_header(file)))
        except HeaderError:
            outcomes.add(None)
    print(*sorted(outcomes, key=str))
else:
    while time.monotonic() < done:
        os.truncate(file, 0)
        with file.open("r+b") as opened:
            opened.write(content)
"""


def test_a_file_that_is_overwritten_all_the_time_is_read_whole_or_refused_and_harms_nobody(tmp_path: Path) -> None:
    # Mapped into memory, it would kill the reader with SIGBUS.
    file = put(tmp_path, save({f"tensor {number}": np.zeros(1, np.float32) for number in range(3000)}))
    ran = subprocess.run([sys.executable, "-c", OVERWRITTEN, str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) <= {"3000", "None"}
