"""Text from outside made harmless to look at: errors, names and paths may hold anything."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""The text with each character that steers instead of being seen written as Python writes it.

    Such are a terminal's control sequences, the marks that turn the direction of reading, and halves of
    characters, which no file in UTF-8 can hold. Line feeds and tabs stay.

    Args:
        text: of whatever origin.

    Example:
        >>> print(visible("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )
