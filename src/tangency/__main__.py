"""`python -m tangency`."""

from tangency.cli import main

main()
