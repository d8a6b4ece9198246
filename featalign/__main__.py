"""`python -m featalign`: the command line."""

from featalign.cli import main

main()
