"""What can go wrong with the database: it is away, or it refuses what it was given."""

from typing import Final

from google.rpc import status_pb2  # type: ignore[import-untyped]  # it ships no type stubs

from services.shared.errors import Internal, Unavailable

__all__ = ["StoreRefused", "StoreUnavailable", "classify", "may_be_the_data"]

_RETRY_SECONDS: Final = 1.0


class StoreUnavailable(Unavailable):
    """The database cannot do it now: away, full, read-only. The same may work later."""

    default_reason = "STORE_UNAVAILABLE"

    def to_status(self, request_id: str = "") -> status_pb2.Status:
        """Give what a client is told: the message, with its SQL and addresses, is for our log."""
        told = Unavailable(
            "the database cannot answer now: it is away or overloaded; retry later",
            reason=self.reason,
            metadata=self.metadata,
            retry_after=self.retry_after or _RETRY_SECONDS,
        )
        return told.to_status(request_id)


class StoreRefused(Internal):
    """The database will not take this statement or this data, however often it is asked.

    For whoever called us it is a fault of ours, unless the caller maps it to a field.

    `code` is ClickHouse's own error code.
    """

    default_reason = "STORE_REFUSED"

    def __init__(self, message: str, code: int, name: str = "") -> None:
        super().__init__(message, metadata={"code": code, "name": name})
        self.code = code
        self.name = name

    def to_status(self, request_id: str = "") -> status_pb2.Status:
        """Give what a client is told: the message, with its SQL, is for our log."""
        told = Internal(
            "the database refuses a question of the service's own; its log tells more",
            reason=self.reason,
            metadata=self.metadata,
        )
        return told.to_status(request_id)


# Codes of ClickHouse that speak of the data of an insert. What is not among them counts as an
# outage: waiting is safe, setting good data aside is not.
# https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp
_DATA: Final = frozenset({
    6,  # CANNOT_PARSE_TEXT
    26,  # CANNOT_PARSE_QUOTED_STRING
    27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
    32,  # ATTEMPT_TO_READ_AFTER_EOF
    33,  # CANNOT_READ_ALL_DATA
    36,  # BAD_ARGUMENTS
    38,  # CANNOT_PARSE_DATE
    41,  # CANNOT_PARSE_DATETIME
    69,  # ARGUMENT_OUT_OF_BOUND
    70,  # CANNOT_CONVERT_TYPE
    72,  # CANNOT_PARSE_NUMBER
    117,  # INCORRECT_DATA
    131,  # TOO_LARGE_STRING_SIZE
    190,  # SIZES_OF_ARRAYS_DONT_MATCH
    321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
    349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
    395,  # FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
    407,  # DECIMAL_OVERFLOW
    436,  # PROTOBUF_BAD_CAST
    441,  # CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING
    444,  # UNKNOWN_PROTOBUF_FORMAT
    469,  # VIOLATED_CONSTRAINT
    691,  # UNKNOWN_ELEMENT_OF_ENUM
})  # fmt: skip

_NO_UTF8: Final = 469
"""A constraint of the tables (VIOLATED_CONSTRAINT)."""

# Codes that mean an outage of the database also when it is asked something.
_OUTAGES: Final = frozenset({
    3,  # UNEXPECTED_END_OF_FILE
    74,  # CANNOT_READ_FROM_FILE_DESCRIPTOR
    75,  # CANNOT_WRITE_TO_FILE_DESCRIPTOR
    76,  # CANNOT_OPEN_FILE
    202,  # TOO_MANY_SIMULTANEOUS_QUERIES
    209,  # SOCKET_TIMEOUT
    210,  # NETWORK_ERROR
    242,  # TABLE_IS_READ_ONLY
    243,  # NOT_ENOUGH_SPACE
    252,  # TOO_MANY_PARTS
    279,  # ALL_CONNECTION_TRIES_FAILED
    319,  # UNKNOWN_STATUS_OF_INSERT
    394,  # QUERY_WAS_CANCELLED
    999,  # KEEPER_EXCEPTION
})  # fmt: skip


def classify(
    error: Exception, what: str, *, inserting: bool = False
) -> StoreUnavailable | StoreRefused:
    """Give the error of ours for one of the driver's; `what` tells what was being done."""
    if inserting and _is_undecodable(error):
        # The embedded engine quotes the row that it refuses, and that cannot be read as text.
        return StoreRefused(
            f"{what}: the database refuses a row that holds text other than UTF-8", _NO_UTF8
        )
    code = int(getattr(error, "code", 0) or 0)
    text = " ".join(str(error).split())[:500]
    refused = code in _DATA if inserting else code not in _OUTAGES
    if code and refused:
        return StoreRefused(
            f"{what}: the database refuses: {text}", code, str(getattr(error, "name", "") or "")
        )
    return StoreUnavailable(
        f"{what}: the database cannot now: {text or type(error).__name__}", metadata={"code": code}
    )


# Codes that are outages of an insert, whatever is inserted.
_EXHAUSTED: Final = frozenset({
    159,  # TIMEOUT_EXCEEDED
    160,  # TOO_SLOW
    173,  # CANNOT_ALLOCATE_MEMORY
    236,  # ABORTED
    241,  # MEMORY_LIMIT_EXCEEDED
})  # fmt: skip


def may_be_the_data(error: StoreUnavailable) -> bool:
    """Tell whether an insert's failure that counts as an outage could be for what is inserted.

    The database has a thousand error codes; one that is not known to speak of the data may do so.
    """
    code = int(error.metadata.get("code", 0))
    return bool(code) and code not in _OUTAGES and code not in _EXHAUSTED


def _is_undecodable(error: BaseException | None) -> bool:
    """Tell whether the driver could not read the text of the database's error."""
    while error is not None and not isinstance(error, UnicodeDecodeError):
        error = error.__cause__ or error.__context__
    return error is not None
