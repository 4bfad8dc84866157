"""Adapter folders made to harm: each is accepted or refused with a reason, in little time and memory.

Folders are mutations of a valid adapter, drawn from a seed. A failure names the seed and the number of its folder, and
`mutate` makes the same folder again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from vllm_lora_router.adapters.files.snapshots import SnapshotStore, SourceChangingError
from vllm_lora_router.adapters.files.sources import NotAllowedError, Source
from vllm_lora_router.adapters.runtime.importer import Importer, MissingFilesError, RejectedError
from vllm_lora_router.adapters.runtime.resolver import Location
from vllm_lora_router.adapters.runtime.version_log import AdapterKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Files

SEED = 2024
CASES, ALL_CASES = 300, 10_000
# A header just below the limits, of 190,000 tensors, takes most. The first bound is asserted with --full alone.
MAX_PROCESSOR_S = 3.0
MAX_GROWTH_BYTES = 200_000_000

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEYS = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "modules_to_save", "bias", "peft_type"),
    *("use_rslora", "use_dora", "init_lora_weights", "base_model_name_or_path", "layers_pattern", "exclude_modules"),
)
NUMBERS = (0, 1, -1, 4, 8, 512, 513, 2**31, 2**63, 2**64, 10**400, 0.0, -0.0, 1e-320, 1e308, 0.5)
WORDS = ("", "none", "LORA", "lora", "q_proj", "score", "all-linear", "\0", "\ud800", "a" * 100_000, "\n", "../..")
DTYPES = ("F32", "F16", "BF16", "F64", "I8", "BOOL", "F4", "F8_E4M3", "U64", "f32", "")

Random = random.Random
Entries = dict[str, Any]


def value(rng: Random, depth: int = 0) -> Any:
    match rng.randrange(8 if depth < 3 else 5):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return rng.choice(WORDS)
        case 2:
            return rng.choice((None, True, False, float("nan"), float("inf"), -float("inf")))
        case 3:
            return pattern(rng)
        case 4:
            return rng.randint(-8, 600)
        case 5:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 6:
            return {pattern(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}
        case _:
            return {pattern(rng): rng.choice((4, 8)) for _ in range(rng.choice((1, 2, 20, 600)))}


PATTERN_PARTS = (
    *("q_proj", "layers", ".", r"\.", "0", "[0-9]", r"\d", "a", "(a+)+", "(a|aa)", "(", ")", "|", "*", "+", "?"),
    *("{2,9}", ".*", "^", "$", "(?i)", "(?=a)", r"\1", "[a-z.]*", "_proj", "self_attn", "(q|k)", "(?:", "{e<=2}"),
    *("[", "\\", "é"),
)


def pattern(rng: Random) -> str:
    return "".join(rng.choice(PATTERN_PARTS) for _ in range(rng.choice((1, 2, 4, 8, 30))))


def mutate_settings(rng: Random, folder: Path) -> None:
    file = folder / CONFIG
    settings = json.loads(file.read_text())
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        key = rng.choice(KEYS)
        if rng.random() < 0.2:
            settings.pop(key, None)
        elif rng.random() < 0.3 and key.endswith("_pattern"):
            settings[key] = {pattern(rng): 4 for _ in range(rng.randint(1, 4))}
        else:
            settings[key] = value(rng)
    file.write_text(json.dumps(settings))


def mutate_settings_text(rng: Random, folder: Path) -> None:
    text = (folder / CONFIG).read_bytes()
    position = rng.randrange(len(text))
    deep = rng.choice((10, 900, 5000, 200_000))
    texts: tuple[Callable[[], bytes], ...] = (
        lambda: text[:position],
        lambda: text[:position] + rng.randbytes(3) + text[position + rng.randrange(3) :],
        lambda: rng.choice((b"[", b'{"r":')) * deep,
        lambda: b'{"rank_pattern":' * min(deep, 900) + b"1" + b"}" * min(deep, 900),
        lambda: text + b" " * rng.choice((10, 1_100_000)),
        lambda: b"\xef\xbb\xbf" + text,
        lambda: text.decode().encode("utf-16"),
        lambda: b'{"r": ' + b"9" * rng.choice((400, 4000, 5000, 900_000)) + b"}",
        lambda: b'{"rank_pattern": {' + b",".join(b'"%x":4' % number for number in range(50_000)) + b"}}",
        lambda: b'{"a":[' + b"[]," * 300_000 + b"1]}",
        lambda: rng.randbytes(100),
    )
    (folder / CONFIG).write_bytes(rng.choice(texts)())


def entries(folder: Path) -> Entries:
    content = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def write_header(folder: Path, header: bytes, data_bytes: int, length: int | None = None) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    os.truncate(folder / WEIGHTS, 8 + len(header) + data_bytes)


def mutate_entries(rng: Random, folder: Path) -> None:
    header = entries(folder)
    data_bytes = max(entry["data_offsets"][1] for entry in header.values())
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(list(header))
        entry = header[name]
        match rng.randrange(8):
            case 0:
                entry["dtype"] = rng.choice(DTYPES)
            case 1:
                entry["shape"] = rng.choice(
                    ([], [2**40, 2**40], [4, 16, 1], [-4, 16], [1.0], [1] * 1000, [0], "x", [True])
                )
            case 2:
                entry["data_offsets"] = [rng.choice((*NUMBERS, 64, 128)) for _ in range(rng.choice((1, 2, 2, 3)))]
            case 3:
                header[rng.choice((pattern(rng), "a" * 600, f"{name}.x", f"layers.{'9' * 400}.lora_A.weight"))] = (
                    header.pop(name)
                )
            case 4:
                header["__metadata__"] = rng.choice(
                    ({"format": "pt"}, {"a": 1}, [], {"\ud800": "a"}, {"a": "b" * 1_000_000})
                )
                break
            case 5:
                header[name] = value(rng)
                break
            case 6:
                entry["more"] = value(rng)
            case _:
                del header[name]
        if not header:
            break
    write_header(folder, json.dumps(header).encode(), data_bytes + rng.choice((0, 0, 0, 1, -1)))


def mutate_header_text(rng: Random, folder: Path) -> None:
    original = json.dumps(entries(folder)).encode()
    position = rng.randrange(len(original))
    tensor = b'{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}'
    number = rng.choice((10, 1000, 19_000, 30_000))
    texts: tuple[Callable[[], bytes], ...] = (
        lambda: original[:position] + rng.randbytes(2) + original[position + 1 :],
        lambda: b"{" + b",".join(b'"%x":%s' % (index, tensor) for index in range(number * 10)) + b"}",
        lambda: b"{" + b",".join(b'"%x.lora_A.weight":%s' % (index // 2, tensor) for index in range(number)) + b"}",
        lambda: b'{"a":' * number,
        lambda: b'{"a":[' + b"[]," * number * 20 + b"1]}",
        lambda: b'{"a":' + b"9" * number * 5 + b"}",
        lambda: b'{"__metadata__":{' + b",".join(b'"%x":"a"' % index for index in range(number * 5)) + b"}}",
        lambda: b'{"' + b"a" * number * 100 + b'":' + tensor + b"}",
        lambda: b'{"a":"' + "\U0001f600".encode() * number * 10 + b'"}',
        lambda: b'{"a":{"dtype":"F32","shape":[' + b"1," * number * 20 + b'1],"data_offsets":[0,4]}}',
    )
    header = rng.choice(texts)()
    length = rng.choice((None, None, None, 0, 1, 2**63, 16_000_001, len(header) + 1))
    write_header(folder, header, rng.choice((0, 4, 1_000_000)), length)


def replace_file(rng: Random, folder: Path) -> None:
    file = folder / rng.choice((CONFIG, WEIGHTS))
    kept = folder.parent / "kept"
    shutil.copy(file, kept)
    file.unlink()
    match rng.randrange(9):
        case 0:
            os.mkfifo(file)
        case 1:
            parent = os.open(file.parent, os.O_PATH)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"/proc/self/fd/{parent}/{file.name}")  # the path of a socket has at most 107 bytes
            os.close(parent)
        case 2:
            file.symlink_to(
                rng.choice(("/dev/zero", "/dev/full", "/dev/tty", "/proc/self/mem", "/proc/kmsg", "/etc/passwd"))
            )
        case 3:
            file.symlink_to(file.name)  # a loop
        case 4:
            file.symlink_to(kept)  # outside of the adapter's boundary if there is one
        case 5:
            file.mkdir()
        case 6:
            shutil.copy(kept, file)
            os.truncate(file, rng.choice((0, 1, 1_000_001, 10**9, 10**13)))  # sparse
        case 7:
            (folder / "real").write_bytes(kept.read_bytes())
            file.symlink_to("real")
        case _:
            (folder / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")


MUTATIONS = (mutate_settings, mutate_settings_text, mutate_entries, mutate_header_text, replace_file)


def mutate(number: int, folder: Path, valid: Path) -> Random:
    """Make the folder of a case from the valid adapter."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder)
    rng = Random(f"{SEED}/{number}")
    rng.choice(MUTATIONS)(rng, folder)
    return rng


def outcome(importer: Importer, root: Path, rng: Random) -> str:
    """Import the adapter in the same steps as a request."""
    key = AdapterKey("case")
    source = Source.parse(str(root / "source"))
    try:
        if rng.random() < 0.8:
            folder = source.find(key.name)
            boundary = source.boundary(key.name, None)
        else:  # a link may have changed after the source was read
            folder, boundary = root / "source/case", rng.choice((root / "source", None))
        if folder is None:
            return "refused"
        location = Location(folder, False, rng.random() < 0.8, False, boundary=boundary)
        importer.signature(location)
        content = importer.import_adapter(key, location)
    except (MissingFilesError, NotAllowedError, RejectedError, SourceChangingError) as error:
        assert 0 < len(str(error)) < 20_000
        return "refused"
    with safe_open(f"{content.folder}/{WEIGHTS}", framework="numpy") as opened:
        assert len(list(opened.keys())) > 0
    return "accepted"


def test_any_folder_is_accepted_or_refused(files: Files, full: bool) -> None:
    base, valid = files.base(), files.adapter()
    (files.root / "source").mkdir()
    importer = Importer(base, SnapshotStore(files.root / "snapshots"), 512, ["base"], ["MoM"])
    outcomes: Counter[str] = Counter()
    slowest, cpu, growth = (0.0, -1), (0.0, -1), (0, -1)
    for number in range(ALL_CASES if full else CASES):
        rng = mutate(number, files.root / "source/case", valid)
        before_bytes = _reset_peak_bytes()  # without the memory of making the folder
        start, start_cpu = time.perf_counter(), time.thread_time()
        try:
            outcomes[outcome(importer, files.root, rng)] += 1
        except Exception as error:
            raise AssertionError(f"seed {SEED}, case {number}: {type(error).__name__}: {error}") from error
        slowest = max(slowest, (time.perf_counter() - start, number))
        cpu = max(cpu, (time.thread_time() - start_cpu, number))
        growth = max(growth, (_memory_bytes("VmHWM") - before_bytes, number))
    print(
        f"\n{outcomes.total()} folders: {dict(outcomes)}; slowest {slowest[0]:.3f} s (case {slowest[1]}); "
        f"most processor time {cpu[0]:.3f} s (case {cpu[1]}); "
        f"most memory {growth[0] / 1e6:.0f} MB (case {growth[1]})"
    )
    assert outcomes["accepted"] > outcomes.total() / 20
    assert outcomes["refused"] > outcomes.total() / 2
    assert growth[0] < MAX_GROWTH_BYTES
    assert not full or cpu[0] < MAX_PROCESSOR_S


def _reset_peak_bytes() -> int:
    """Reset the peak of this process's memory to its present memory, and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory_bytes("VmRSS")


def _memory_bytes(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
