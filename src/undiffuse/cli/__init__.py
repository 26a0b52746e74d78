"""Floor 6: the `undiffuse` command, one module per sub-command.

Sub-commands are listed in `undiffuse.cli.main.COMMANDS` and imported when they are called; what is slow to import
(torch, numpy, rich) they import inside their functions, so that every `--help` answers at once.
"""
