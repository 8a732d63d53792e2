"""Pages for a terminal: tables of 100 columns that lose no number, and plain text where there is no terminal."""

from __future__ import annotations

import io
import sys

from rich.console import Console, ConsoleDimensions, RenderableType

WIDTH = 100


def page_text(page: RenderableType) -> str:
    """Plain text of 100 columns, without colours."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False).print(page)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def print_page(page: RenderableType) -> None:
    """Print to the terminal; plain text where standard output is no terminal or cannot show every character."""
    encoding = sys.stdout.encoding or "utf-8"
    if sys.stdout.isatty() and encoding.lower().startswith("utf"):
        console = Console()
        # A narrower table would cut numbers off; the terminal folds long lines instead.
        console.size = ConsoleDimensions(max(console.width, WIDTH), console.height)
        console.print(page)
    else:
        print(page_text(page).encode(encoding, "replace").decode(encoding), end="")
