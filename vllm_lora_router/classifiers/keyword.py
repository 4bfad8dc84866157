"""Keyword rules: the first matching rule in list order decides."""

import asyncio
import hashlib
import heapq
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from vllm_lora_router.classifiers.keyword_automaton import Automaton, with_turns
from vllm_lora_router.classifiers.keyword_text import (
    MATCHING_VERSION,
    SLICE_CHARACTERS,
    characters,
    collapse_white_space,
    fold_case,
    is_substring_keyword,
    normalize,
    normalized_slices,
    words,
)
from vllm_lora_router.config.schema import KeywordRule
from vllm_lora_router.types import Classification, Method, Query

# `classify_now` answers for texts of up to this many characters to scan. One request can call it for several turns and
# prompts in the same iteration of the event loop.
_MAX_INLINE_CHARACTERS = 2048
# Keywords to look up in one step of a classification, which like SLICE_CHARACTERS takes less than a millisecond.
_LOOKUPS_PER_STEP = 1024
# Maximum number of keywords in the evidence. A long text can contain thousands of the keywords of one rule.
MAX_EVIDENCE_KEYWORDS = 20

_NO_MATCH = Classification(None, 0.0, {}, "rule", 1.0, False)


class KeywordClassifier:
    """Classifies texts by keyword rules.

    One pass over a text finds all keywords, so the duration grows with the text and not with the number of keywords. A
    long text is classified in steps, and the event loop runs between them.
    """

    method: Method = "keyword"
    reads = frozenset({"text"})

    def __init__(self, rules: Sequence[tuple[int, KeywordRule]]) -> None:
        """Build the automata.

        This takes seconds for 100,000 keywords, so it must not run on the event loop.

        Args:
            rules: Each rule with its position in the configuration's list, which the evidence names.
        """
        self.rules = dict(sorted(rules))
        self.fingerprint = _fingerprint(self.rules)
        # Equal keywords of several rules share an id. The places of a keyword are its rules and its indexes in their
        # lists, each as one number, because the garbage collector stops all threads but skips numbers.
        ids: defaultdict[_Kind, dict[str, int]] = defaultdict(dict)
        self._place: list[int] = []  # the first place of each keyword
        self._more_places: defaultdict[int, list[int]] = defaultdict(list)  # the others, in ascending order
        ids_of_rule: defaultdict[int, set[int]] = defaultdict(set)
        for position, index, keyword in with_turns(_distinct_keywords(self.rules)):
            kind, text = _compared_form(keyword, case_sensitive=self.rules[position].case_sensitive)
            id = ids[kind].setdefault(text, len(self._place))
            if id == len(self._place):
                self._place.append(_place(position, index))
            else:
                self._more_places[id].append(_place(position, index))
            ids_of_rule[position].add(id)
        self._automata = [(kind, _automaton(kind, ids_of_kind)) for kind, ids_of_kind in ids.items()]
        # OR and AND rules are looked up by a keyword that the text contains; the others cannot match it.
        self._first_or: dict[int, int] = {}
        self._and: defaultdict[int, list[int]] = defaultdict(list)
        self._required: dict[int, frozenset[int]] = {}
        self._excluded: dict[int, frozenset[int]] = {}  # keywords of NOR rules
        for position, rule in self.rules.items():
            keywords = frozenset(ids_of_rule[position])
            if rule.operator == "OR":
                for keyword in keywords:
                    self._first_or.setdefault(keyword, position)
            elif rule.operator == "AND":
                self._required[position] = keywords
                rarest = min(keywords, key=lambda keyword: len(self._more_places.get(keyword, ())))
                self._and[rarest].append(position)
            else:
                self._excluded[position] = keywords
        self._turn = asyncio.Lock()

    def classify_now(self, query: Query) -> Classification | None:
        """Return the classification, or None if the text needs too much work for one iteration of the event loop."""
        if len(query.text) * len(self._automata) > _MAX_INLINE_CHARACTERS:
            return None
        try:
            next(self._steps(query.text))
        except StopIteration as result:
            return result.value
        return None  # normalization made the text much longer

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        return [await self._classify(query.text) for query in queries]

    def match(self, text: str) -> Classification:
        """Return the classification of one text. An empty text matches no rule, not even a NOR rule."""
        steps = self._steps(text)
        while True:
            try:
                next(steps)
            except StopIteration as result:
                return result.value

    async def _classify(self, text: str) -> Classification:
        steps = self._steps(text)
        while True:
            # A thread would not relieve the event loop, because the steps hold the GIL. Concurrent texts take turns, so
            # that an iteration of the event loop runs one step and not one for each text.
            async with self._turn:
                try:
                    next(steps)
                except StopIteration as result:
                    return result.value
                await asyncio.sleep(0)

    def _steps(self, text: str) -> Generator[None, None, Classification]:
        """Classify a text. Yield after each step but the last."""
        found = yield from self._find(text)
        if found is None:
            return _NO_MATCH
        position = yield from self._first_match(found)
        if position is None:
            return _NO_MATCH
        evidence = yield from self._evidence(position, found)
        category = self.rules[position].category
        return Classification(category, 1.0, {category: 1.0}, "rule", 1.0, True, evidence)

    def _find(self, text: str) -> Generator[None, None, set[int] | None]:
        """Return the ids of the keywords that a text contains, or None if nothing of the text is visible."""
        scans = [(kind, automaton.start()) for kind, automaton in self._automata]
        # Other than ASCII text takes more time, even if normalization leaves little of it.
        least = 0 if text.isascii() else min(len(text), SLICE_CHARACTERS // 2)
        scanned, is_blank = 0, True
        for piece in normalized_slices(text):
            is_blank = is_blank and not piece.strip()
            for kind, scan in scans:
                if scanned >= SLICE_CHARACTERS:
                    yield
                    scanned = 0
                folded = kind.fold(piece)
                scan.feed(folded)
                scanned += max(len(folded), least)
        found: set[int] = set()
        for _, scan in scans:
            found |= scan.finish()
            if len(found) > _LOOKUPS_PER_STEP:
                yield
        return None if is_blank else found

    def _first_match(self, found: set[int]) -> Generator[None, None, int | None]:
        """Return the position of the first rule that matches a text with these keywords."""
        first, lookups = float("inf"), 0
        for keyword in found:
            lookups += 1
            if lookups % _LOOKUPS_PER_STEP == 0:
                yield
            first = min(first, self._first_or.get(keyword, first))
        for keyword in found & self._and.keys():
            for position in self._and[keyword]:
                if position > first:
                    break
                lookups += 1
                if lookups % _LOOKUPS_PER_STEP == 0:
                    yield
                if self._required[position] <= found:
                    first = position
                    break
        for position, excluded in self._excluded.items():
            if position > first:
                break
            lookups += 1
            if lookups % _LOOKUPS_PER_STEP == 0:
                yield
            if excluded.isdisjoint(found):
                first = position
                break
        return None if first == float("inf") else int(first)

    def _evidence(self, position: int, found: set[int]) -> Generator[None, None, dict[str, object]]:
        """Return the evidence: the keywords of a rule that the text contains, in the configured order."""
        rule, indexes = self.rules[position], list[int]()
        for lookups, keyword in enumerate(found, 1):
            if lookups % _LOOKUPS_PER_STEP == 0:
                yield
            begin, end = _place(position, 0), _place(position + 1, 0)
            if begin <= self._place[keyword] < end:
                indexes.append(self._place[keyword] - begin)
            if places := self._more_places.get(keyword):
                places = places[bisect_left(places, begin) : bisect_left(places, end)]
                indexes += [place - begin for place in places]
        keywords = [rule.keywords[index] for index in heapq.nsmallest(MAX_EVIDENCE_KEYWORDS, indexes)]
        evidence: dict[str, object] = {"rule": position, "operator": rule.operator, "keywords": keywords}
        if len(indexes) > len(keywords):
            evidence["more_keywords"] = len(indexes) - len(keywords)
        return evidence


class _Kind(NamedTuple):
    """How the keywords of one automaton are compared with a text."""

    case_sensitive: bool
    is_substring: bool  # matches anywhere, as opposed to whole words

    def fold(self, text: str) -> str:
        """Return a normalized text in the form that the keywords have."""
        if not self.case_sensitive:
            text = fold_case(text)
        return text if self.is_substring else collapse_white_space(text)


def _place(position: int, index: int) -> int:
    return position << 32 | index


def _compared_form(keyword: str, *, case_sensitive: bool) -> tuple[_Kind, str]:
    """Return a keyword's kind, and the keyword in the form in which it is compared."""
    text = normalize(keyword)
    if not case_sensitive:
        text = fold_case(text)
    is_substring = is_substring_keyword(text)
    return _Kind(case_sensitive, is_substring), text if is_substring else collapse_white_space(text).strip()


def _distinct_keywords(rules: Mapping[int, KeywordRule]) -> Iterator[tuple[int, int, str]]:
    """Yield the keywords of each rule once, with the rule's position and the keyword's index."""
    for position, rule in rules.items():
        seen: set[str] = set()
        for index, keyword in enumerate(rule.keywords):
            if keyword not in seen:
                seen.add(keyword)
                yield position, index, keyword


def _automaton(kind: _Kind, ids: Mapping[str, int]) -> Automaton:
    if kind.is_substring:
        return Automaton((characters(text), id) for text, id in ids.items())
    return Automaton(_words(ids), words)


def _words(ids: Mapping[str, int]) -> Iterator[tuple[list[str], int]]:
    """Yield the keywords as words: without and with the space that may follow them, which is part of a word."""
    for text, id in ids.items():
        tokens = words(text)
        yield tokens, id
        yield [*tokens[:-1], tokens[-1] + " "], id


def _fingerprint(rules: Mapping[int, KeywordRule]) -> str:
    digest = hashlib.sha256(repr(MATCHING_VERSION).encode())
    for position, rule in rules.items():
        settings = (position, rule.category, rule.operator, rule.case_sensitive, len(rule.keywords))
        digest.update(repr(settings).encode())
    for keyword in with_turns(chain.from_iterable(rule.keywords for rule in rules.values())):
        digest.update(repr(keyword).encode())
    return digest.hexdigest()
