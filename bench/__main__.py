"""`python -m bench`: brokers; `python -m bench SUBJECT`: one of the subjects below."""

import importlib
import sys

from bench.run import main

# Each has a `main` that takes the arguments and returns the exit code.
SUBJECTS = {
    "attestation": "bench.attestation.run",
    "builds": "bench.builds",
    "durability": "bench.durability",
    "instructions": "bench.instructions",
    "neighbours": "bench.neighbours",
    "sealing": "bench.sealing",
    "sandbox": "bench.sandbox.run",
    "start": "bench.start",
}

if sys.argv[1:2] and sys.argv[1] in SUBJECTS:
    sys.exit(importlib.import_module(SUBJECTS[sys.argv[1]]).main(sys.argv[2:]))
sys.exit(main())
