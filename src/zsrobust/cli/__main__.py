"""`python -m zsrobust.cli`."""

from zsrobust.cli import main

main()
