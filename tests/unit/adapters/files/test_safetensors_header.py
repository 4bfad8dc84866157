"""Reading a safetensors header: same results as the format's own library, also while the file is overwritten."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vllm_lora_router.adapters.files.safetensors_header import BITS, HeaderError, HeaderLimits, Tensor, read_header

if TYPE_CHECKING:
    from pathlib import Path

COMPLETE = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int8), "c": np.zeros((0, 7), np.float16)})
TWO_BYTES = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}

# All examples share one file: only its content matters.
fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_header(folder: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return write_bytes(folder, struct.pack("<Q", len(text)) + text + data)


def write_bytes(folder: Path, content: bytes) -> Path:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(content)
    return file


def our_result(file: Path) -> dict[str, Tensor] | None:
    try:
        return read_header(file)
    except HeaderError:
        return None


def library_result(file: Path) -> dict[str, Tensor] | None:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {key: Tensor(item.get_dtype(), tuple(item.get_shape())) for key, item in slices.items()}
    except SafetensorError:
        return None


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_the_library_is_read(tmp_path: Path, dtype: str) -> None:
    entry = {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, BITS[dtype]]}
    file = write_header(tmp_path, {"a": entry}, bytes(BITS[dtype]))
    assert read_header(file) == library_result(file) == {"a": Tensor(dtype, (2, 4))}


def test_no_dtype_of_the_library_is_missing(tmp_path: Path) -> None:
    file = write_header(tmp_path, {"a": {**TWO_BYTES, "dtype": "none"}}, bytes(2))
    with pytest.raises(SafetensorError, match="expected one of") as refused, safe_open(file, framework="numpy"):
        pass
    dtypes = str(refused.value).split("expected one of")[1].split(" at line")[0]
    assert {word.strip(" `") for word in dtypes.split(",")} == set(BITS)


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
def test_file_written_by_the_library_is_read(
    tmp_path: Path, arrays: dict[str, tuple[Any, list[int]]], metadata: dict[str, str] | None
) -> None:
    file = write_bytes(
        tmp_path, save({name: np.zeros(shape, kind) for name, (kind, shape) in arrays.items()}, metadata)
    )
    assert read_header(file) == library_result(file)
    assert len(read_header(file)) == len(arrays)


@given(st.integers(0, len(COMPLETE) - 1), st.binary(max_size=3), st.integers(0, 3))
@fuzz
def test_file_with_changed_bytes_gives_the_librarys_result(
    tmp_path: Path, offset: int, inserted: bytes, removed: int
) -> None:
    file = write_bytes(tmp_path, COMPLETE[:offset] + inserted + COMPLETE[offset + removed :])
    assert our_result(file) == library_result(file)


@given(st.integers(0, len(COMPLETE)), st.binary(max_size=3))
@fuzz
def test_truncated_or_extended_file_is_refused(tmp_path: Path, length: int, appended: bytes) -> None:
    file = write_bytes(tmp_path, COMPLETE[:length] + appended)
    assert (our_result(file) is None) == (length + len(appended) != len(COMPLETE))


counts = st.integers(0, 9) | st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64, 2**70, 1.0, True, None, "2"])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F4", "F6_E2M3", "F33", "f32", 8]),
        "shape": st.lists(counts, max_size=3) | counts,
        "data_offsets": st.lists(counts, min_size=1, max_size=3),
    }
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), entries | st.dictionaries(st.text(), st.text())),
    st.integers(0, 20),
)
@fuzz
def test_header_with_any_numbers_gives_the_librarys_result(
    tmp_path: Path, header: dict[str, Any], data_bytes: int
) -> None:
    file = write_header(tmp_path, header, bytes(data_bytes))
    assert our_result(file) == library_result(file)


@given(st.lists(st.tuples(st.sampled_from(["U8", "F16", "F4"]), st.integers(0, 6)), max_size=4), st.randoms())
@fuzz
def test_tensors_may_be_listed_in_any_order(tmp_path: Path, tensors: list[tuple[str, int]], random: Any) -> None:
    header, end = {}, 0
    for number, (dtype, length) in enumerate(tensors):
        start, end = end, end + length * BITS[dtype] // 8
        header[f"t{number}"] = {"dtype": dtype, "shape": [length], "data_offsets": [start, end]}
    members = list(header.items())
    random.shuffle(members)
    file = write_header(tmp_path, dict(members), bytes(end))
    assert our_result(file) == library_result(file)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "its header is not a JSON object"),
        (b"{" + b" " * 20, "Expecting property name"),
        (b"\xff{}", "can't decode byte 0xff"),
        (b'{"a":' + b"[" * 100_000, "recursion"),
        ({"a": TWO_BYTES, "__metadata__": {"r": 8}}, "its __metadata__ is not an object of strings"),
        ({"a": {**TWO_BYTES, "dtype": "F7"}}, "no valid dtype, shape and data_offsets for 'a'"),
        ({"a": {**TWO_BYTES, "shape": [True, 2]}}, "no valid dtype, shape and data_offsets for 'a'"),
        ({"a": {**TWO_BYTES, "more": 1}}, "no valid dtype, shape and data_offsets for 'a'"),
        ({"a": {**TWO_BYTES, "shape": [3]}}, "the data of 'a' is not where its header says"),
        ({"a": {**TWO_BYTES, "data_offsets": [1, 3]}}, "the data of 'a' is not where its header says"),
        ({"a": TWO_BYTES, "b": TWO_BYTES}, "the data of 'b' is not where its header says"),
        ({"a": {**TWO_BYTES, "shape": [2**40, 2**40]}}, "too large for any file"),
        ({"a": {**TWO_BYTES, "shape": [-2]}}, "its header has the number -2"),
        ({"a": {**TWO_BYTES, "shape": [0, 2**64]}}, "its header has the number 18446744073709551616"),
        ({"a": {**TWO_BYTES, "shape": [float("nan")]}}, "its header has the number NaN"),
        ({}, "its header describes 0 bytes of data, but 2 follow it"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}', "surrogates not allowed"),
    ],
)
def test_invalid_header_is_refused_with_the_reason(tmp_path: Path, header: object, message: str) -> None:
    with pytest.raises(HeaderError, match=f"is damaged or incomplete .*{message}.*; copy or download it again"):
        read_header(write_header(tmp_path, header, bytes(2)))


@pytest.mark.parametrize(
    "members", ['"a": {}, "a": @', '"a": @, "a": @', '"__metadata__": {"r": "1", "r": "2"}, "a": @']
)
def test_duplicate_key_is_refused(tmp_path: Path, members: str) -> None:
    header = "{" + members.replace("@", json.dumps(TWO_BYTES)) + "}"
    with pytest.raises(HeaderError, match=r"its header has '[ar]' twice"):
        read_header(write_header(tmp_path, header.encode(), bytes(2)))


@pytest.mark.parametrize(
    ("length", "message"),
    [(2**63, "fewer than its header needs"), (100_000_001, "its header has 100000001 bytes, more than 100000000")],
)
def test_header_longer_than_its_file_or_than_the_format_allows_is_refused(
    tmp_path: Path, length: int, message: str
) -> None:
    file = write_bytes(tmp_path, struct.pack("<Q", length) + b"{}")
    os.truncate(file, 200_000_000)
    with pytest.raises(HeaderError, match=message):
        read_header(file)


@pytest.mark.parametrize("start", [b"", COMPLETE, b"\x80\x02}q\x00.", b"PK\x03\x04\x00\x00\x08\x08\x00\x00"])
def test_invalid_10_gb_file_is_refused_without_reading_it(tmp_path: Path, start: bytes) -> None:
    file = write_bytes(tmp_path, start)
    os.truncate(file, 10_000_000_000)
    tracemalloc.start()
    with pytest.raises(HeaderError, match="is damaged or incomplete"):
        read_header(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # bytes: the file is not read


@pytest.mark.parametrize("shape", [[2**63] * 50_000, [1] * 500_000])
def test_tensor_of_many_dimensions_is_refused_quickly(tmp_path: Path, shape: list[int]) -> None:
    start = time.process_time()
    assert our_result(write_header(tmp_path, {"a": {**TWO_BYTES, "shape": shape}}, bytes(2))) is None
    assert time.process_time() - start < 60  # a generous limit: quadratic time takes many minutes


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match=r"cannot be read .*No such file"):
        read_header(tmp_path / "nothing")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match=r"cannot be read .*Is a directory"):
        read_header(tmp_path)


def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights")
    with pytest.raises(HeaderError, match=r"cannot be read .*not a regular file"):
        read_header(tmp_path / "weights")


OVERWRITTEN = """
import os, sys, time
from pathlib import Path
from vllm_lora_router.adapters.files.safetensors_header import HeaderError, read_header

file, end = Path(sys.argv[1]), time.monotonic() + 0.5
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
    while time.monotonic() < end:
        os.truncate(file, 0)
        with file.open("r+b") as opened:
            opened.write(content)
"""


def test_file_that_is_overwritten_repeatedly_is_read_completely_or_refused(tmp_path: Path) -> None:
    # If it were mapped into memory, SIGBUS would kill the reader.
    file = write_bytes(tmp_path, save({f"tensor {number}": np.zeros(1, np.float32) for number in range(3000)}))
    result = subprocess.run([sys.executable, "-c", OVERWRITTEN, str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) <= {"3000", "None"}


LIMITS = HeaderLimits(max_bytes=16_000_000, max_tensors=200_000)


def empty_tensors(number: int) -> bytes:
    entries = (f'"{index:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for index in range(number))
    return f"{{{','.join(entries)}}}".encode()


@pytest.mark.parametrize(
    "header",
    [
        empty_tensors(260_000),
        b'{"a":[' + b"[]," * 1_400_000 + b"[]]}",
        b'{"__metadata__":{' + b",".join(b'"%x":""' % number for number in range(1_400_000)) + b"}}",
        b'{"a":{"dtype":"U8","shape":[' + b"1," * 2_000_000 + b'1],"data_offsets":[0,1]}}',
    ],
    ids=["tensors", "lists", "metadata", "dimensions"],
)
def test_header_with_too_many_values_is_refused_before_it_is_parsed(tmp_path: Path, header: bytes) -> None:
    file = write_header(tmp_path, header)
    tracemalloc.start()
    with pytest.raises(HeaderError, match="it has more than 700,000 objects and lists, or 1,300,000 members"):
        read_header(file, LIMITS)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < len(header) + 1_000_000  # only the text itself


def test_header_above_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    file = write_bytes(tmp_path, struct.pack("<Q", 16_000_001))
    os.truncate(file, 20_000_000)
    tracemalloc.start()
    with pytest.raises(HeaderError, match="its header has 16000001 bytes, more than 16000000"):
        read_header(file, LIMITS)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_deeply_nested_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="is damaged or incomplete"):
        read_header(write_header(tmp_path, b'{"a":' + b"[" * 200_000), LIMITS)


def test_long_name_is_shortened_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(HeaderError) as refused:
        read_header(write_header(tmp_path, {"a" * 1_000_000: {}}), LIMITS)
    assert len(str(refused.value)) < 500
