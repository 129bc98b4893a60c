"""`python -m atdata` is the `atdata` command."""

from atdata.cli import main

main()
