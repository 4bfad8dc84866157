"""Progress bars on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

# Called with a task's name, the steps that are done, and the total number of steps.
ReportProgress = Callable[[str, int, int], None]


def no_progress(task: str, done: int, total: int) -> None:
    """Ignore progress."""


@contextmanager
def progress_bars() -> Iterator[ReportProgress]:
    """Show a bar for each reported task on standard error, if standard error is a terminal."""
    console = Console(stderr=True)
    task_ids: dict[str, TaskID] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def report(task: str, done: int, total: int) -> None:
            if task not in task_ids:
                task_ids[task] = progress.add_task(task, total=total)
            progress.update(task_ids[task], completed=done)

        yield report
