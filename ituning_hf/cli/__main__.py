"""`python -m ituning_hf.cli`: the command where no script was installed."""

import sys

from . import main

sys.exit(main())
