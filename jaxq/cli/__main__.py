"""`python -m jaxq.cli`: the shell."""

import sys

from jaxq.cli import main

sys.exit(main())
