"""`python -m conformance`: see docs/conformance.md."""

import sys

from conformance.app import main

sys.exit(main())
