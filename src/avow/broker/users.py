"""The users' file: one line a user, `name:argon2id-hash:scram-sha-256-verifier`.

Both fields after the name are made from the same password: the first checks a password that a
client sends (inside TLS, one hopes), the second serves SCRAM-SHA-256, where the password never
travels. The file is written whole, with mode 0600, and renamed into place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import InvalidHashError

from avow.broker.scram import ScramVerifier, make_verifier, parse_verifier
from avow.channel.named_files import Read, read_named_file, read_named_text
from avow.errors import MalformedError, UnavailableError, counted

# OWASP's smallest recommendation for argon2id, because a broker checks many logins at once.
ARGON2_TIME_COST = 2
ARGON2_MEMORY_KIB = 19 * 1024
ARGON2_LANES = 1

# They separate fields and levels, or would become wildcards where an access rule says %u.
_FORBIDDEN_IN_NAMES = frozenset(":/+#")
_NAME_BYTES_MAX = 1024
_PASSWORD_BYTES_MAX = 65_535


@dataclass(frozen=True, slots=True)
class User:
    """One line of the file."""

    name: str
    password_hash: str = field(repr=False)
    scram: ScramVerifier


Users = Mapping[str, User]


def password_hasher() -> PasswordHasher:
    """Argon2id with the costs above."""
    return PasswordHasher(
        time_cost=ARGON2_TIME_COST,
        memory_cost=ARGON2_MEMORY_KIB,
        parallelism=ARGON2_LANES,
        type=Type.ID,
    )


def new_user(name: str, password: str) -> User:
    """A user with fresh salts. Raises `MalformedError` for a name or password that cannot be."""
    check_name(name)
    if not password or len(password.encode()) > _PASSWORD_BYTES_MAX:
        raise MalformedError(
            f"expected a password of 1 to {_PASSWORD_BYTES_MAX} bytes, got an empty or longer one; "
            f"choose another"
        )
    return User(name, password_hasher().hash(password), make_verifier(password))


def check_name(name: str) -> None:
    """Raises `MalformedError` unless `name` can be a user's."""
    problem = None
    if not name or len(name.encode()) > _NAME_BYTES_MAX:
        problem = f"{counted(len(name.encode()), 'byte')}"
    elif not name.isprintable() or name != name.strip():
        problem = "spaces around it or characters that cannot be printed"
    elif _FORBIDDEN_IN_NAMES & set(name):
        problem = "one of them"
    elif unicodedata.normalize("NFKC", name) != name:
        # A SCRAM client sends the normalised form, which would be another user.
        problem = "a form that Unicode NFKC changes"
    if problem is not None:
        raise MalformedError(
            f"expected a user name of 1 to {_NAME_BYTES_MAX} printable bytes without : / + #, got "
            f"{problem} in {name[:40]!r}; choose another name"
        )


def read_users(path: Path, *, read: Read = read_named_file) -> dict[str, User]:
    """All users of a file. Raises `UnavailableError` or `MalformedError` with the line's number."""
    users: dict[str, User] = {}
    for number, line in enumerate(
        read_named_text(path, "password", read=read).split("\n"), start=1
    ):
        if not line.strip():
            continue
        user = _parse_line(line, f"{path}, line {number}")
        if user.name in users:
            raise MalformedError(
                f"expected each user once in {path}, got {user.name!r} again in line "
                f"{number}; remove one of the two lines"
            )
        users[user.name] = user
    return users


def add_user(path: Path, user: User) -> bool:
    """Adds or replaces one user; True when the name is new. Makes the file if there is none."""
    with _locked(path):
        users = read_users(path) if path.exists() else {}
        new = user.name not in users
        users[user.name] = user
        _write_users(path, users)
    return new


def remove_user(path: Path, name: str) -> bool:
    """Removes one user; False when there was none of this name."""
    with _locked(path):
        users = read_users(path)
        if users.pop(name, None) is None:
            return False
        _write_users(path, users)
    return True


def _parse_line(line: str, place: str) -> User:
    fields = line.split(":", 2)
    if len(fields) != 3:
        raise MalformedError(
            f"expected `name:argon2id-hash:scram-verifier` in {place}, got "
            f"{counted(len(fields), 'field')}; write the line with `avow user add`"
        )
    name, password_hash, verifier = fields
    check_name(name)
    try:
        kind = extract_parameters(password_hash).type
    except InvalidHashError as error:
        raise _damaged(place, "argon2id hash") from error
    if kind is not Type.ID:
        raise _damaged(place, "argon2id hash")
    try:
        return User(name, password_hash, parse_verifier(verifier))
    except MalformedError as error:
        raise _damaged(place, "SCRAM-SHA-256 verifier") from error


def _damaged(place: str, what: str) -> MalformedError:
    return MalformedError(
        f"expected an {what} in {place}, got something else; write the line with `avow user add`"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two `avow user` at once take turns. The folder is locked: the file itself is replaced."""
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UnavailableError(
            f"expected a folder for the password file {path}, got {error.strerror!r}; "
            f"create it or correct the path"
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write_users(path: Path, users: Users) -> None:
    content = "".join(f"{user.name}:{user.password_hash}:{user.scram}\n" for user in users.values())
    target = Path(os.path.realpath(path))
    try:
        # mkstemp makes the file with mode 0600.
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                _keep_owner(file.fileno(), target)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UnavailableError(
            f"expected to write the password file {path}, got {error.strerror!r}; "
            f"check the permissions of its folder"
        ) from error


def _keep_owner(handle: int, target: Path) -> None:
    """Run by root, a change must not take the file away from the broker's user."""
    if not target.exists():
        return
    before = target.stat()
    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(handle, before.st_uid, before.st_gid)
