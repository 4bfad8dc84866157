"""`vllm-lora-router explain`: print the meaning, type, default and an example of a configuration key."""

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches

from vllm_lora_router.config.reference import Key, children, find_key, keys
from vllm_lora_router.text import printable

_WIDTH = 100
_SUGGESTIONS = 3


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand to the parser."""
    parser = subparsers.add_parser(
        "explain",
        help="explain a key of the configuration file",
        description="Print the meaning, type, default and an example of a key, or the keys of a block. The exit status "
        "is 1 for an unknown key.",
    )
    parser.add_argument(
        "key",
        nargs="?",
        metavar="KEY",
        help="A key such as router.affinity.margin or categories[].name, or a block (default: list the top level).",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain a key. Return 0, or 1 after an error message if the key does not exist."""
    all_keys = keys()
    if not args.key:
        _print_keys([key for key in all_keys if len(key.path) == 1])
        return 0
    key = find_key(args.key, all_keys)
    if key is None:
        print(f"unknown key {printable(args.key)!r}{_nearest(args.key, all_keys)}", file=sys.stderr)
        return 1
    _print_key(key)
    if key.is_block:
        print("\nKeys:")
        _print_keys(children(key, all_keys))
    return 0


def _print_key(key: Key) -> None:
    print(f"{key.name}: {_type_and_default(key)}")
    print(f"\n{textwrap.fill(key.description, _WIDTH, initial_indent='  ', subsequent_indent='  ')}")
    if key.example:
        print(f"\nExample:\n\n{textwrap.indent(key.example.rstrip(), '  ')}")


def _print_keys(listed: Sequence[Key]) -> None:
    for key in listed:
        if key.is_ignored or key.path[-1].startswith("<"):
            continue
        first_sentence = re.split(r"(?<=\.) ", key.description, maxsplit=1)[0]
        print(f"{key.path[-1]}: {_type_and_default(key)}")
        print(textwrap.fill(first_sentence, _WIDTH, initial_indent="    ", subsequent_indent="    "))


def _type_and_default(key: Key) -> str:
    default = f"default {key.default}" if key.default not in ("", "required") else key.default
    return ", ".join(filter(None, [key.type, default])).replace("`", "")


def _nearest(text: str, all_keys: Sequence[Key]) -> str:
    """Return `; did you mean ...?` with the keys of the same last part, then the most similar paths."""
    names = [key.name for key in all_keys if not key.is_ignored]
    last = text.rpartition(".")[2]
    same_last_part = [name for name in names if name.rpartition(".")[2] == last]
    nearest = dict.fromkeys([*same_last_part, *get_close_matches(text, names, n=_SUGGESTIONS, cutoff=0.6)])
    if not nearest:
        by_last_part = {name.rpartition(".")[2]: name for name in reversed(names)}
        nearest = dict.fromkeys(by_last_part[match] for match in get_close_matches(last, by_last_part, n=_SUGGESTIONS))
    if not nearest:
        return "; `vllm-lora-router explain` lists the top-level keys"
    return f"; did you mean {' or '.join(map(repr, list(nearest)[:_SUGGESTIONS]))}?"
