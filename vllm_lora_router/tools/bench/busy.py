"""Keep a device busy with matrix products, as an engine does: `python -m vllm_lora_router.tools.bench.busy DEVICE`."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SIDE = {"cpu": 512, "cuda": 8192}


@contextmanager
def beside_load(device: str) -> Iterator[None]:
    """Run a process that keeps the device busy while the context is open."""
    process = subprocess.Popen([sys.executable, "-m", __name__, device], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"busy\n":
            raise RuntimeError(f"the load process on {device} ended at start")
        yield
    finally:
        process.kill()
        process.wait()


def main(device: str) -> None:
    """Multiply matrices until the process is killed."""
    import torch

    torch.set_num_threads(1)  # one CPU core, like one worker of an engine
    side = SIDE[device.partition(":")[0]]
    matrix = torch.rand(side, side, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    torch.matmul(matrix, matrix)
    print("busy", flush=True)
    while True:
        torch.matmul(matrix, matrix)
        if device != "cpu":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
