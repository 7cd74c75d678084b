"""`python -m kexue`, for launchers that start modules."""

from kexue.cli import main

main()
