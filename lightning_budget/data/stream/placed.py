"""Errors of a piece, which name the row group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lightning_budget.errors import InputError
from lightning_budget.streaming.source import Piece, Source


def placed(source: Source, piece: Piece, work: Callable[[Piece], None]) -> None:
    """Do the work for a piece.

    Raises:
        InputError: that of the work, for the first row group that has one, which it names.
    """
    try:
        work(piece)
    except InputError as error:
        raise _placed(source, piece, work, error) from error


def _placed(source: Source, piece: Piece, work: Callable[[Piece], None], error: InputError) -> InputError:
    if "row group" in str(error):
        return error
    file = source.file_of(piece)
    for group in piece.groups:
        try:
            work(replace(piece, groups=(group,), rows=file.group_rows[group]))
        except InputError as e:
            found, allowed, fix = e.parts
            return InputError(found.replace(f"{file.path}:", f"{file.path}: row group {group}:", 1), allowed, fix)
    return error
