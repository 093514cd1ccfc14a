"""Every error a user may meet is one line: what, where, the next move.

XstreamerError
├── UsageError       the command line, recipe or profile asks for something impossible (exit 2)
├── DatasetError     the dataset folder is of another version or recipe, damaged, not writable
├── SourceError      one source file cannot be used; the run goes on
└── ModelError       weights or a backend are missing or wrong
"""

from __future__ import annotations


class XstreamerError(Exception):
    """Base of all errors that are shown as one line; `exit_code` is the command's."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class UsageError(XstreamerError):
    """The request itself is wrong."""

    exit_code = 2


class DatasetError(XstreamerError):
    """The dataset folder cannot be used as asked."""


class SourceError(XstreamerError):
    """A source file cannot be read or exceeds a limit."""


class ModelError(XstreamerError):
    """A model's weights or a backend are missing or wrong."""


def one_line(error: BaseException, limit: int = 400) -> str:
    """`error` as a single line of at most `limit` characters, with its type where it is not ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, XstreamerError):
        text = f"{type(error).__name__}: {text}" if not text.startswith(type(error).__name__) else text
    return text[:limit]
