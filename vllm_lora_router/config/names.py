"""Rules for every name in a configuration: of categories, labels, base models and adapters."""

import unicodedata

MAX_CHARACTERS = 256

# Control characters, line and paragraph separators, lone surrogates: they break log lines, headers and JSON.
UNPRINTABLE = frozenset({"Cc", "Zl", "Zp", "Cs"})


def name_problem(name: str) -> str | None:
    """Return what is wrong with a name, with the remedy: `contains a control character; remove it`.

    Names are compared character by character. So only one spelling of each name is valid: Unicode's composed form
    (NFC), in which "é" is one character.
    """
    if not name or name.isspace():
        return "is empty; enter a name"
    if len(name) > MAX_CHARACTERS:
        return f"has more than {MAX_CHARACTERS} characters; use a shorter name"
    if name != name.strip():
        return f"begins or ends with white space; use {name.strip()!r}"
    if any(unicodedata.category(character) in UNPRINTABLE for character in name):
        return "contains a line break or a control character; remove it"
    if name != (composed := unicodedata.normalize("NFC", name)):
        return f"is not in Unicode's composed form (NFC); use {composed!a} instead of {name!a}"
    return None
