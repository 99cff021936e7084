"""What is fuzzed of all that reads evidence, and of what else reads a stranger's bytes.

A target takes bytes. Only errors of avow may come out of it, of the kinds that its documentation
names; their messages have to be printable and short, since they end up in logs and on terminals;
and what verifiers accept has to be in the vocabulary. Whatever else happens is a finding: the
exception gets out of `Target.run`.

Much of a verifier is behind a signature. So for each platform there is also a target whose name
ends in "-signed", with which the fuzzer writes what a mock vendor then signs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError, UntrustedError
from avow.testing.mutation import mutated

Parser = Callable[[bytes], object]

MALFORMED = (MalformedError,)
JUDGED = (MalformedError, UntrustedError, UnavailableError)
ANY_ERROR = (*JUDGED, DeniedError)
MESSAGE_CHARACTERS_MAX = 4000


@dataclass(frozen=True)
class Target:
    """`parse` may raise `allowed` and nothing else. `one_line` says that messages are about a
    peer's bytes, so that they have to be printable; others are about a file of the user's own."""

    name: str
    parse: Parser = field(repr=False)
    seeds: Sequence[bytes] = field(repr=False)
    allowed: tuple[type[AvowError], ...] = MALFORMED
    one_line: bool = True

    def run(self, content: bytes) -> bool:
        """True when `content` was parsed. Lets every error out that is not allowed."""
        try:
            self.parse(content)
        except self.allowed as error:
            message = str(error)
            assert len(message) <= MESSAGE_CHARACTERS_MAX, f"{len(message)} characters: {message}"
            assert message.isprintable() or not self.one_line, f"not printable: {message!r}"
            return False
        return True

    def inputs(self, seed: int, count: int) -> Iterator[bytes]:
        """The seeds, cut ones, longer ones, and `count` broken ones: always the same."""
        chance = random.Random(f"{self.name} {seed}")
        for content in self.seeds:
            yield content
            yield content[:-1]
            yield content + b"\0"
        yield b""
        for _ in range(count):
            yield self.mutated(chance.choice(self.seeds), chance)

    def mutated(self, content: bytes, chance: random.Random) -> bytes:
        """`content` broken, with pieces of the seeds perhaps."""
        return mutated(content, self.seeds, chance)
