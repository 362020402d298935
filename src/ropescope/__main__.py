"""`python -m ropescope` is the command `ropescope`."""

from ropescope.cli import main

main()
