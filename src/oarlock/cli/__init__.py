"""The commands, thin: arguments in, calls to the parts that do the work, text and an exit code out.

`main` is the entry point. A subcommand's module is imported when the subcommand runs, so that `oarlock version` does
not wait for the server's imports.
"""

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and exit with its code (`oarlock.cli.exits`)."""
    from oarlock.cli.app import run

    run()
