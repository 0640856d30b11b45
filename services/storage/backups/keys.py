"""Keys of backups: who may open them, and where the secrets come from.

Objects are encrypted with age to X25519 recipients. A passphrase opens a backup too: the backup
then has a key pair of its own, whose private half lies beside the objects, encrypted with the
passphrase. So a passphrase costs its second of scrypt once a backup, not once an object.
"""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyrage  # type: ignore[import-untyped]  # it ships no type stubs

from services.shared.errors import FailedPrecondition
from services.storage.backups.errors import KeyMissing, KeyUnsafe, KeyWrong, ObjectDamaged
from services.storage.backups.settings import EncryptionSettings

__all__ = [
    "IDENTITY_VARIABLE",
    "PASSPHRASE_VARIABLE",
    "Keyring",
    "Opener",
    "Sealer",
    "generate_identity",
    "read_secret_file",
]

PASSPHRASE_VARIABLE = "MARKETPRISM_BACKUP_PASSPHRASE"  # noqa: S105 - the name, not the secret
"""Environment variable with the passphrase."""

IDENTITY_VARIABLE = "MARKETPRISM_BACKUP_IDENTITY"
"""Environment variable with a private key, `AGE-SECRET-KEY-1...`."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_secret_file(path: Path, purpose: str) -> str:
    """Read a file that holds a secret.

    Raises `KeyMissing` where it cannot be read and `KeyUnsafe` where others can read it; neither
    tells anything of its content.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _OTHERS:
                raise KeyUnsafe(
                    f"{path} holds {purpose} and has mode {mode:04o}: expected one that only its "
                    f"owner can read; run chmod 600 {path}",
                    metadata={"file": path},
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise KeyMissing(
            f"cannot read {purpose} from {path}: {why}", metadata={"file": path}
        ) from None


def generate_identity() -> tuple[str, str]:
    """Make a key pair; gives the private key (`AGE-SECRET-KEY-1...`) and the recipient."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


@dataclass(frozen=True, slots=True)
class Sealer:
    """Encrypts the objects of one backup."""

    recipients: tuple[str, ...]
    """Public keys that can open them; empty where backups are not encrypted."""

    key_object: bytes | None = field(default=None, repr=False)
    """The backup's own private key, encrypted with the passphrase; None without one."""

    _parsed: tuple[pyrage.x25519.Recipient, ...] = field(default=(), repr=False)

    @property
    def encrypts(self) -> bool:
        """Whether it encrypts at all."""
        return bool(self._parsed)

    def seal(self, data: bytes) -> bytes:
        """Encrypt; gives the data as it is where backups are not encrypted."""
        return bytes(pyrage.encrypt(data, list(self._parsed))) if self._parsed else data


@dataclass(frozen=True, slots=True)
class Opener:
    """Decrypts the objects of one backup."""

    _identities: tuple[pyrage.x25519.Identity, ...] | None = field(repr=False)

    def open(self, data: bytes, name: str) -> bytes:
        """Decrypt an object whose digest was right; raises `KeyWrong` and `ObjectDamaged`."""
        if self._identities is None:
            return data
        try:
            return bytes(pyrage.decrypt(data, list(self._identities)))
        except pyrage.DecryptError as error:
            if "matching keys" in str(error):
                raise KeyWrong(
                    f"none of the keys at hand opens {name}", metadata={"object": name}
                ) from None
            raise ObjectDamaged(
                f"{name} cannot be decrypted: expected a file of age, got something else",
                metadata={"object": name},
            ) from None


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys at hand. Its representation tells none of them."""

    settings: EncryptionSettings
    """What the configuration says."""

    _identities: tuple[pyrage.x25519.Identity, ...] = field(default=(), repr=False)
    _passphrase: str = field(default="", repr=False)

    @classmethod
    def load(
        cls, settings: EncryptionSettings, environ: Mapping[str, str] = os.environ
    ) -> "Keyring":
        """Read what the environment and the files have; raises `KeyMissing`, `KeyUnsafe`."""
        texts = []
        if environ.get(IDENTITY_VARIABLE):
            texts.append(
                (f"the environment variable {IDENTITY_VARIABLE}", environ[IDENTITY_VARIABLE])
            )
        if settings.identity_file is not None:
            text = read_secret_file(settings.identity_file, "the private key of backups")
            texts.append((str(settings.identity_file), text))
        identities = [one for place, text in texts for one in _parse_identities(text, place)]
        passphrase = environ.get(PASSPHRASE_VARIABLE, "")
        if not passphrase and settings.passphrase_file is not None:
            text = read_secret_file(settings.passphrase_file, "the passphrase of backups")
            passphrase = text.partition("\n")[0].rstrip("\r")
            if not passphrase:
                raise KeyMissing(f"{settings.passphrase_file}: expected a passphrase on line 1")
        return cls(settings, tuple(identities), passphrase)

    def check_can_seal(self) -> None:
        """Raise `KeyMissing` where backups are to be encrypted and no key is known for it."""
        if self.settings.enabled and not self.settings.recipients and not self._passphrase:
            raise KeyMissing(
                "backups are to be encrypted, and nobody is named who could open them: put a "
                "public key into backups.encryption.recipients of storage.yaml (`marketprism "
                f"backup keygen` makes one), or a passphrase into {PASSPHRASE_VARIABLE}, or set "
                "backups.encryption.enabled to false"
            )

    def sealer(self) -> Sealer:
        """Give what encrypts a new backup; raises `KeyMissing` where it has nothing to do it with.

        With a passphrase it takes some seconds.
        """
        if not self.settings.enabled:
            return Sealer(())
        self.check_can_seal()
        recipients = list(self.settings.recipients)
        key_object = None
        if self._passphrase:
            private, public = generate_identity()
            recipients.append(public)
            key_object = pyrage.passphrase.encrypt(private.encode(), self._passphrase)
        return Sealer(tuple(recipients), key_object, tuple(map(_parse_recipient, recipients)))

    def opener(self, recipients: Sequence[str], key_object: Callable[[], bytes | None]) -> Opener:
        """Give what decrypts a backup that was encrypted to these recipients, none if empty.

        `key_object` gives the object that a passphrase opens, None where the backup has none.
        Raises `KeyMissing` and `KeyWrong`; with a passphrase it takes some seconds.
        """
        if not recipients:
            return Opener(None)
        known = {str(each.to_public()): each for each in self._identities}
        fitting = [known[one] for one in recipients if one in known]
        if fitting:
            return Opener(tuple(fitting))
        wanted = ", ".join(recipients)
        if self._passphrase and (sealed := key_object()) is not None:
            return Opener(tuple(_unlock(sealed, self._passphrase)))
        if self._identities or self._passphrase:
            has = "the private keys at hand are" if self._identities else "a passphrase is"
            raise KeyWrong(
                f"{has} not among what opens this backup: expected the private key of one of "
                f"{wanted}",
                metadata={"recipients": wanted},
            )
        raise KeyMissing(
            f"the backup is encrypted to {wanted}: name the file with a private key in "
            f"backups.encryption.identity_file or with --identity, or put the key into "
            f"{IDENTITY_VARIABLE} or the passphrase into {PASSPHRASE_VARIABLE}",
            metadata={"recipients": wanted},
        )


def _parse_recipient(text: str) -> pyrage.x25519.Recipient:
    try:
        return pyrage.x25519.Recipient.from_str(text.strip())
    except pyrage.RecipientError as error:
        raise FailedPrecondition(
            f"backups.encryption.recipients: expected public keys of age, got {text!r}: {error}",
            reason="RECIPIENT_INVALID",
        ) from None


def _parse_identities(text: str, place: str) -> list[pyrage.x25519.Identity]:
    lines = [line.strip() for line in text.splitlines()]
    try:
        found = [
            pyrage.x25519.Identity.from_str(line)
            for line in lines
            if line and not line.startswith("#")
        ]
    except pyrage.IdentityError:
        found = []
    if not found:
        # What was read is not repeated: it may be a key with one wrong letter.
        raise KeyMissing(f"{place}: expected private keys of age, AGE-SECRET-KEY-1..., one a line")
    return found


def _unlock(sealed: bytes, passphrase: str) -> list[pyrage.x25519.Identity]:
    try:
        text = pyrage.passphrase.decrypt(sealed, passphrase)
    except pyrage.DecryptError:
        raise KeyWrong("the passphrase does not open this backup") from None
    return _parse_identities(text.decode(errors="replace"), "the key of the backup")
