"""Bars for what takes its time, where somebody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

# Called with what is going on, how much of it is done, and of how much.
Told = Callable[[str, int, int], None]


@contextmanager
def bars() -> Iterator[Told]:
    """A bar for each thing that is told of, on standard error; none where that is no terminal."""
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def told(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done)

        yield told
