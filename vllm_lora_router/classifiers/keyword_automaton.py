"""Search for many keywords at once, in time that depends on the text and not on the number of keywords.

This is the algorithm of Aho and Corasick (https://doi.org/10.1145/360825.360855) on tokens instead of characters. Two
properties of libraries for it rule them out here: they report every occurrence, so a text of one repeated character and
keywords of different lengths give millions, and they hold the GIL while they build the automaton, for seconds.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from vllm_lora_router.classifiers.keyword_text import MARKS

T = TypeVar("T")

_TURN_S = 0.002
_ITEMS_PER_CHECK = 32
_NO_CHILDREN: dict[str, int] = {}


class Automaton:
    """A trie of keywords. A node is a number; node 0 is the root.

    `failure` leads from a node to the node of its longest proper suffix. `ends` leads from a node to the longest
    keyword that is a suffix of it; 0 if there is none.
    """

    def __init__(
        self, keywords: Iterable[tuple[Sequence[str], int]], split: Callable[[str], list[str]] | None = None
    ) -> None:
        """Build the automaton.

        Args:
            keywords: Each keyword as tokens, and its id.
            split: Function that splits a text into tokens. Default: a token is a character and the marks after it.
        """
        self._children: list[dict[str, int]] = [{}]
        self._ids: dict[int, int] = {}  # node of a complete keyword -> id of the keyword
        for tokens, keyword in with_turns(keywords):
            self._ids[self._add(tokens)] = keyword
        self._failure = [0] * len(self._children)
        self._ends = [0] * len(self._children)
        self._link()
        self._longest_token = max(len(token) for children in with_turns(self._children) for token in children)
        if split is None:
            # Characters that no keyword contains are skipped in one step.
            characters = re.escape("".join({token[0] for children in self._children for token in children}))
            split = re.compile(f"[{characters}][{MARKS}]*|[^{characters}]+").findall
        self._split = split

    def start(self) -> "Scan":
        """Start the scan of a text."""
        return Scan(self)

    def _add(self, tokens: Sequence[str]) -> int:
        node = 0
        for token in tokens:
            children = self._children[node]
            child = children.get(token)
            if child is None:
                child = len(self._children)
                if children is _NO_CHILDREN:
                    self._children[node] = {token: child}
                else:
                    children[token] = child
                self._children.append(_NO_CHILDREN)
            node = child
        return node

    def _link(self) -> None:
        """Compute `failure` and `ends` of all nodes, in the order of their depth."""
        children, failure, ends, ids = self._children, self._failure, self._ends, self._ids
        level = [0]
        while level:
            edges = ((parent, token, node) for parent in level for token, node in children[parent].items())
            next_level: list[int] = []
            for parent, token, node in with_turns(edges):
                suffix = failure[parent]
                while suffix and token not in children[suffix]:
                    suffix = failure[suffix]
                failure[node] = children[suffix].get(token, 0) if parent else 0
                ends[node] = node if node in ids else ends[failure[node]]
                next_level.append(node)
            level = next_level


class Scan:
    """The scan of one text. It collects the keywords that occur in it, each one once."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._node = 0
        self._rest = ""  # the last token, which the next slice may continue
        self._ends: set[int] = set()  # nodes of the keywords that occur

    def feed(self, text: str) -> None:
        """Scan the next slice of the text."""
        automaton = self._automaton
        tokens = automaton._split(self._rest + text)
        self._rest = ""
        if tokens and not tokens[-1].endswith(" "):
            # A token that is longer than every token of a keyword stays that if it is cut.
            self._rest = tokens.pop()[: automaton._longest_token + 1]
        self._walk(tokens)

    def finish(self) -> set[int]:
        """Return the ids of the keywords that occur in the text."""
        if self._rest:
            self._walk([self._rest])
            self._rest = ""
        ids = self._automaton._ids
        return {ids[node] for node in self._ends}

    def _walk(self, tokens: list[str]) -> None:
        automaton, node, found = self._automaton, self._node, self._ends
        children, failure, ends = automaton._children, automaton._failure, automaton._ends
        for token in tokens:
            child = children[node].get(token)
            while child is None and node:
                node = failure[node]
                child = children[node].get(token)
            if child is None:
                continue
            node = child
            end = ends[node]
            # If a keyword has been found before, so have all keywords that are suffixes of it.
            while end and end not in found:
                found.add(end)
                end = ends[failure[end]]
        self._node = node


def with_turns(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, and give other threads a turn every 2 ms.

    A thread that waits for the GIL, as the event loop does in each iteration, would get it only after 5 ms otherwise.
    """
    began = time.perf_counter()
    for count, item in enumerate(items):
        yield item
        if count % _ITEMS_PER_CHECK == 0 and time.perf_counter() - began > _TURN_S:
            time.sleep(5e-5)  # with 0, this thread would take the GIL again before another thread wakes up
            began = time.perf_counter()
