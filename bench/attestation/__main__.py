"""`python -m bench.attestation`."""

import sys

from bench.attestation.run import main

sys.exit(main())
