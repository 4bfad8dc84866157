"""Forward passes as CUDA graphs, one graph for each batch shape.

An encoder with 22 layers launches a few hundred kernels. Launching them from Python takes longer than the device needs
to run them, and meanwhile Python holds the interpreter lock that the server's event loop needs. A graph is one launch.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("vllm_lora_router.classifiers")

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
SEQUENCE_LENGTHS = (16, 32, 64, 128, 256, 512)
# Beyond this size, running the kernels takes longer than launching them from Python.
MAX_GRAPH_TOKENS = 16384
# Maximum difference between a graph and the same pass without a graph, relative to the largest output: bfloat16 has
# eight bits of precision.
TOLERANCE = 0.02

Forward = Callable[[Any, Any], Any]
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]


@dataclass(frozen=True)
class _CapturedGraph:
    """A captured pass and its input tensors, whose addresses never change."""

    ids: Any  # int64 [texts, tokens]
    mask: Any  # int64 [texts, tokens]
    replay: Callable[[], Any]  # [texts, outputs]


class CudaGraphs:
    """A forward pass from token ids and mask to one row for each text, which replays captured graphs.

    Batches that exceed every captured shape run without a graph. If the capture fails, all batches do.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        pad: int,
        device: str,
        longest: int,
        capture: Capture,
        counts: Sequence[int] = BATCH_SIZES,
        lengths: Sequence[int] = SEQUENCE_LENGTHS,
    ) -> None:
        """Capture a graph for each shape, the largest first, so that the other graphs reuse its memory.

        Args:
            forward: Maps ids and mask, each int64 [texts, tokens], to [texts, outputs]. It must not depend on the
                values in Python.
            pad: Token id that fills up rows.
            longest: Maximum number of tokens that the model reads.
            capture: Turns a pass over fixed tensors into a function that repeats it.
            counts: Numbers of texts to capture.
            lengths: Numbers of tokens to capture.
        """
        self._forward, self._pad = forward, pad
        self._graphs: dict[tuple[int, int], _CapturedGraph] = {}
        shapes = [
            (count, length)
            for count in sorted(counts, reverse=True)
            for length in sorted(lengths, reverse=True)
            if length <= longest and count * length <= MAX_GRAPH_TOKENS
        ]
        self._counts = sorted({count for count, _ in shapes})
        self._lengths = sorted({length for _, length in shapes})
        try:
            for shape in shapes:
                self._graphs[shape] = self._capture(shape, device, capture)
        except Exception as error:
            self._graphs.clear()
            logger.warning(
                "CUDA graphs: capture failed (%s: %s); the model runs without graphs", type(error).__name__, error
            )

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, ids: Any, mask: Any) -> Any:
        """Return [texts, outputs], which is valid until the next call."""
        graph = self._graph_for(*ids.shape)
        return self._forward(ids, mask) if graph is None else self._replay(graph, ids, mask)

    def _graph_for(self, count: int, length: int) -> _CapturedGraph | None:
        shape = (_next_size(self._counts, count), _next_size(self._lengths, length))
        return None if shape[0] is None or shape[1] is None else self._graphs.get((shape[0], shape[1]))

    def _replay(self, graph: _CapturedGraph, ids: Any, mask: Any) -> Any:
        count, length = ids.shape
        graph.ids.fill_(self._pad)
        graph.mask.zero_()
        graph.mask[:, 0] = 1  # attention over zero tokens is NaN, also in rows without a text
        graph.ids[:count, :length] = ids
        graph.mask[:count, :length] = mask
        return graph.replay()[:count]

    def _capture(self, shape: tuple[int, int], device: str, capture: Capture) -> _CapturedGraph:
        import torch

        ids = torch.full(shape, self._pad, dtype=torch.int64, device=device)
        mask = torch.zeros(shape, dtype=torch.int64, device=device)
        mask[:, : max(shape[1] // 2, 1)] = 1
        graph = _CapturedGraph(ids, mask, capture(lambda: self._forward(ids, mask)))
        expected, actual = self._forward(ids, mask).float(), graph.replay().float()
        difference = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"the graph for {shape[0]} texts of {shape[1]} tokens differs by {difference:.2g} from the model"
            )
        return graph


def cuda_capture() -> Capture:
    """Return a capture function for the current CUDA device.

    All graphs share their memory, because only one of them runs at a time.
    """
    import torch

    # One side stream for all captures, because torch keeps the memory of its warm-ups for each stream.
    pool, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(run: Callable[[], Any]) -> Callable[[], Any]:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # before a capture, libraries have to create their plans and workspaces
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The engine is another process, but other threads of this process may use the device.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = run()

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    return capture


def _next_size(sizes: Sequence[int], size: int) -> int | None:
    return next((candidate for candidate in sizes if candidate >= size), None)
