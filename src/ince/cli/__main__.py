"""``python -m ince.cli``, for where the ``ince`` script is not on the path."""

import sys

from ince.cli.app import main

sys.exit(main())
