"""Backups in a bucket of an S3 server: Amazon's, or any other that speaks its protocol."""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import boto3  # type: ignore[import-untyped]  # boto3 and botocore ship no type stubs
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from services.shared.masking import mask_text
from services.storage.backups.errors import (
    KeyMissing,
    ObjectMissing,
    TargetFull,
    TargetRefused,
    TargetUnavailable,
)
from services.storage.backups.keys import read_secret_file
from services.storage.backups.settings import S3Settings
from services.storage.backups.targets import Stored, check_key

__all__ = ["S3Target"]

_R = TypeVar("_R")

_MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_FULL: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "507", "InsufficientStorage"})
_AWAY: Final = frozenset(
    {
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "RequestTimeout",
        "500",
        "502",
        "503",
        "504",
    }
)
_DEFAULT_REGION = "us-east-1"


class S3Target:
    """Objects of one bucket below one prefix.

    The server checks the MD5 of each object that it is sent, so what it confirms is what was sent.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        settings: S3Settings,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        access, secret = _credentials(settings, environ)
        session = boto3.session.Session(
            aws_access_key_id=access, aws_secret_access_key=secret, region_name=settings.region
        )
        self._client: Any = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region or session.region_name or _DEFAULT_REGION,
            config=Config(
                connect_timeout=min(settings.timeout_seconds, 10.0),
                read_timeout=settings.timeout_seconds,
                retries={"total_max_attempts": settings.attempts, "mode": "standard"},
                s3={"addressing_style": settings.addressing},
                # Not every server knows the newer checksums; all know MD5.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    @property
    def name(self) -> str:
        """The bucket and the prefix."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def write(self, key: str, data: bytes) -> None:
        """Put the object."""
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._call(
            "write",
            key,
            lambda: self._client.put_object(
                Bucket=self._bucket, Key=self._full(key), Body=data, ContentMD5=digest
            ),
        )

    def read(self, key: str) -> bytes:
        """Get the object."""

        def get() -> bytes:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._full(key))
            with answer["Body"] as body:
                return bytes(body.read())

        return self._call("read", key, get)

    def folders(self) -> list[str]:
        """Give the common prefixes."""

        def pages() -> list[str]:
            return sorted(
                entry["Prefix"][len(self._prefix) :].rstrip("/")
                for page in self._pages(self._prefix, delimiter="/")
                for entry in page.get("CommonPrefixes") or ()
            )

        return self._call("list", "", pages)

    def list(self, folder: str) -> list[Stored]:
        """List the objects below a folder."""

        def pages() -> list[Stored]:
            found = []
            for page in self._pages(f"{self._full(folder)}/"):
                for entry in page.get("Contents") or ():
                    key = entry["Key"][len(self._prefix) :]
                    found.append(Stored(key, int(entry["Size"])))
            return sorted(found, key=lambda stored: stored.key)

        return self._call("list", folder, pages)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects one after another: not every server takes a list without CRC sums."""
        for key in keys:
            self._call(
                "delete",
                key,
                lambda key=key: self._client.delete_object(  # type: ignore[misc]
                    Bucket=self._bucket, Key=self._full(key)
                ),
            )

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _pages(self, prefix: str, delimiter: str = "") -> Any:
        paginator = self._client.get_paginator("list_objects_v2")
        more = {"Delimiter": delimiter} if delimiter else {}
        return paginator.paginate(Bucket=self._bucket, Prefix=prefix, **more)

    def _call(self, verb: str, key: str, work: Callable[[], _R]) -> _R:
        place = f"{self.name}/{key}" if key else self.name
        metadata = {"target": self.name, "object": key}
        try:
            return work()
        except (NoCredentialsError, PartialCredentialsError):
            raise KeyMissing(
                f"cannot {verb} {place}: no S3 keys were found; put them into AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, or into backups.s3.credentials_file",
                metadata=metadata,
            ) from None
        except ClientError as error:
            # The response has the access key id in places: only code and sentence are told.
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            told = mask_text(str(error.response.get("Error", {}).get("Message", "")))
            if code in _MISSING and key:
                raise ObjectMissing(f"{key} is not in {self.name}", metadata=metadata) from None
            why = f"the S3 server answers {code or status}{': ' + told if told else ''}"
            metadata["code"] = code
            if code in _FULL:
                raise TargetFull(f"cannot {verb} {place}: {why}", metadata=metadata) from None
            if code in _AWAY or status >= 500:
                raise TargetUnavailable(
                    f"cannot {verb} {place}: {why}", metadata=metadata
                ) from None
            raise TargetRefused(
                f"cannot {verb} {place}: {why}; check the bucket, its region and what the keys "
                "may do",
                metadata=metadata,
            ) from None
        except (BotoCoreError, OSError) as error:
            raise TargetUnavailable(
                f"cannot {verb} {place}: {mask_text(str(error))}", metadata=metadata
            ) from None


def _credentials(settings: S3Settings, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if access and secret:
        return access, secret
    if settings.credentials_file is None:
        # boto3 looks where the AWS tools do.
        return None, None
    text = read_secret_file(settings.credentials_file, "the S3 keys of backups")
    values = {}
    for line in text.splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.lstrip().startswith("#"):
            values[name.strip().lower().removeprefix("aws_")] = value.strip()
    found = values.get("access_key_id"), values.get("secret_access_key")
    if not all(found):
        raise KeyMissing(
            f"{settings.credentials_file}: expected the lines access_key_id = ... and "
            "secret_access_key = ...",
            metadata={"file": settings.credentials_file},
        )
    return found
