"""`python -m models.train` trains the bundled pair; see `models.train.training`."""

from models.train.training import main

main()
