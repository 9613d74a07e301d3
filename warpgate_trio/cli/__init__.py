"""The command line: `warpgate-trio`.  Its options, JSON events and exit codes are a contract (docs/command_line.md).

`main` is the entry point, `group` turns every exception into a sentence and an exit code, and one module per family of
commands holds what they do.  Command modules import the package inside their functions, so that ``--version`` and a
mistyped option are answered at once.
"""
