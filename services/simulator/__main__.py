"""`python -m services.simulator`: a simulated venue in a process of its own."""

import sys

from services.simulator.command import main

if __name__ == "__main__":
    sys.exit(main())
