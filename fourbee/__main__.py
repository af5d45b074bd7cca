"""`python -m fourbee` is the `fourbee` command."""

from fourbee.cli import main

main()
