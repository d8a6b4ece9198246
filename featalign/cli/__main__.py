"""`python -m featalign.cli`."""

from featalign.cli import main

main()
