"""``python -m dyndeploy.cli``."""

from dyndeploy.cli import main

main()
