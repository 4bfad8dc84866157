"""Regular expressions of users, compiled by RE2, which matches in time linear in the length of a text.

Python's `re` backtracks: `(a+)+$` takes hours for forty letters, and it holds the GIL meanwhile.
"""

import re2

SYNTAX = "https://github.com/google/re2/wiki/Syntax"
# A text of n bytes takes at most n * instructions steps. `\p{L}` alone has 1,200 instructions.
MAX_INSTRUCTIONS = 10_000


class PatternError(ValueError):
    """A pattern cannot be used. The message names the pattern and the cause."""


def compile_linear(pattern: str) -> "re2._Regexp":
    """Return a compiled pattern. Its groups capture nothing, which makes it faster.

    Raises:
        PatternError: The pattern is not in RE2's syntax, or it is too large.
    """
    options = re2.Options()
    options.never_capture = True
    options.log_errors = False  # else RE2 writes to stderr
    try:
        compiled = re2.compile(pattern.encode(), options)
    except UnicodeEncodeError:
        raise PatternError(f"{pattern!r} contains half of a surrogate pair; remove it") from None
    except re2.error as error:
        (cause,) = error.args
        text = cause.decode(errors="replace") if isinstance(cause, bytes) else str(cause)
        raise PatternError(
            f"{pattern!r} is not a regular expression in RE2 syntax: {text}; look-around, backreferences and "
            f"possessive quantifiers do not exist there (see {SYNTAX})"
        ) from None
    if (size := compiled.programsize) > MAX_INSTRUCTIONS:
        raise PatternError(
            f"{pattern!r} compiles to {size:,} instructions, more than {MAX_INSTRUCTIONS:,}; use smaller repetitions "
            "or smaller character classes"
        )
    return compiled
