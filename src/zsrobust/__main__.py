"""`python -m zsrobust`, the same as the command `zsrobust`."""

from zsrobust.cli import main

main()
