"""`python -m bench`, and `python -m bench attestation`."""

import sys

from bench.run import main

if sys.argv[1:2] == ["attestation"]:
    from bench.attestation.run import main as attestation

    sys.exit(attestation(sys.argv[2:]))
sys.exit(main())
