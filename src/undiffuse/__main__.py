"""`python -m undiffuse`: the same as the `undiffuse` command."""

from __future__ import annotations

from undiffuse.cli.main import main

if __name__ == "__main__":
    main()
