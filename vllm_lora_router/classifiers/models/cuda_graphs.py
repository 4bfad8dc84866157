"""Forward passes as CUDA graphs, one for each size of batch.

An encoder of 22 layers has a few hundred kernels, which take Python longer to launch than the device to run; and while
it launches them it holds the interpreter lock that the server's event loop waits for. A graph is one launch.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("vllm_lora_router.classifiers")

COUNTS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128, 256, 512)
# Beyond, the device takes longer for the kernels than Python for launching them.
MOST_TOKENS = 16384
# Between a graph and the same pass launched one by one, as a part of the largest output: bfloat16 has eight bits.
TOLERANCE = 0.02

Forward = Callable[[Any, Any], Any]
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]


@dataclass(frozen=True)
class _Bucket:
    """A pass over tensors that never move."""

    ids: Any  # int64 [count, length]
    mask: Any  # int64 [count, length]
    replay: Callable[[], Any]  # [count, outputs]


class Graphs:
    """A forward pass from token ids and mask to one row a text, which replays what it has captured.

    What fits into no bucket is launched as without graphs, and so is everything when the model cannot be captured.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        pad: int,
        device: str,
        longest: int,
        capture: Capture,
        counts: Sequence[int] = COUNTS,
        lengths: Sequence[int] = LENGTHS,
    ) -> None:
        """Captures all buckets, the largest first: the others find room in what it took.

        Args:
            forward: int64 [texts, tokens] twice, ids and mask, to [texts, outputs]; must not look at what is in them.
            pad: the token that fills rows up.
            longest: the tokens that the model reads.
            capture: makes of a pass over tensors that stay where they are one that can be repeated.
        """
        self._forward, self._pad = forward, pad
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        sizes = [
            (count, length)
            for count in sorted(counts, reverse=True)
            for length in sorted(lengths, reverse=True)
            if length <= longest and count * length <= MOST_TOKENS
        ]
        self._counts = sorted({count for count, _ in sizes})
        self._lengths = sorted({length for _, length in sizes})
        try:
            for size in sizes:
                self._buckets[size] = self._captured(size, device, capture)
        except Exception as error:
            self._buckets.clear()
            logger.warning("the model runs without CUDA graphs: %s: %s", type(error).__name__, error)

    def __len__(self) -> int:
        return len(self._buckets)

    def __call__(self, ids: Any, mask: Any) -> Any:
        """[texts, outputs], valid until the next call."""
        bucket = self._bucket(*ids.shape)
        return self._forward(ids, mask) if bucket is None else self._replay(bucket, ids, mask)

    def _bucket(self, count: int, length: int) -> _Bucket | None:
        size = (_at_least(self._counts, count), _at_least(self._lengths, length))
        return None if size[0] is None or size[1] is None else self._buckets.get((size[0], size[1]))

    def _replay(self, bucket: _Bucket, ids: Any, mask: Any) -> Any:
        count, length = ids.shape
        bucket.ids.fill_(self._pad)
        bucket.mask.zero_()
        bucket.mask[:, 0] = 1  # attention over nothing is not a number, in rows of no text, too
        bucket.ids[:count, :length] = ids
        bucket.mask[:count, :length] = mask
        return bucket.replay()[:count]

    def _captured(self, size: tuple[int, int], device: str, capture: Capture) -> _Bucket:
        import torch

        ids = torch.full(size, self._pad, dtype=torch.int64, device=device)
        mask = torch.zeros(size, dtype=torch.int64, device=device)
        mask[:, : max(size[1] // 2, 1)] = 1
        bucket = _Bucket(ids, mask, capture(lambda: self._forward(ids, mask)))
        right, found = self._forward(ids, mask).float(), bucket.replay().float()
        off = float((found - right).abs().max() / right.abs().max().clamp(min=1e-6))
        if not off <= TOLERANCE:
            raise RuntimeError(f"a graph of {size[0]} texts of {size[1]} tokens is off by {off:.2g}")
        return bucket


def cuda_capture() -> Capture:
    """Captures on the current CUDA device; all graphs share their memory, since only one runs at a time."""
    import torch

    # One side stream for all: what torch keeps for its warm-ups is kept by stream.
    pool, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(run: Callable[[], Any]) -> Callable[[], Any]:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries make their plans and take their workspaces before
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The engine is another process, but other threads of this one may use the device.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            found = run()

        def replay() -> Any:
            graph.replay()
            return found

        return replay

    return capture


def _at_least(sizes: Sequence[int], size: int) -> int | None:
    return next((one for one in sizes if one >= size), None)
