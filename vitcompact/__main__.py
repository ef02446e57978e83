"""`python -m vitcompact`."""

import sys

from vitcompact.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
