"""`python -m models.detector`: makes the bundled calibration and docs/detector.md; see `models.detector`."""

import sys

from models.detector.build import main

sys.exit(main(sys.argv[1:]))
