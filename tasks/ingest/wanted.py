"""What a night wants of a file's columns, and whether it finds it; a file with something else is refused by name."""

from collections.abc import Callable, Mapping

import pyarrow as pa

from tasks.errors import SchemaDrift

WANTED = {
    "user_id": "an integer or a string",
    "item_id": "an integer or a string",
    "rating": "an integer or a floating point number (or ingest.like_threshold=none, if every event is a like)",
    "timestamp": "an integer (seconds since 1970, UTC) or a timestamp",
    "event_type": "text or an integer, as in ingest.event_weights",
    "available": "true or false",
    "categories": "text, or lists of text",
    "genres": "text with | or spaces between the genres, as MovieLens comes, or lists of text",
    "segments": "lists of text",
    "segment": "text",
    "published_at": "a timestamp, a date or an integer (seconds since 1970, UTC)",
}


def check_names(names: list[str], place: str, required: list[str], called: Mapping[str, str]) -> None:
    """`called` is what is wanted -> the name that it must have in the file."""
    for name in names:
        if names.count(name) > 1:
            raise drift(place, name, f"{names.count(name)} times", "once")
    for column, wanted in called.items():
        for name in names:
            if name != wanted and name.casefold() == wanted.casefold() and name not in called.values():
                raise drift(place, wanted, f"the name {name!r}", f"exactly {wanted!r}")
        if wanted not in names and column in required:
            raise drift(place, wanted, "no such column", f"{WANTED[column]}; ingest.columns says what it is called")


def _is_id(found: pa.DataType) -> bool:
    return _is_text(found) or pa.types.is_integer(found)


def _is_text(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        return pa.types.is_string(found.value_type) or pa.types.is_large_string(found.value_type)
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)


def _is_list_of_text(found: pa.DataType) -> bool:
    if not (pa.types.is_list(found) or pa.types.is_large_list(found)):
        return False
    return _is_text(found.value_type) or pa.types.is_null(found.value_type)  # null: every list is empty


def _is_number(found: pa.DataType) -> bool:
    return pa.types.is_integer(found) or pa.types.is_floating(found)


def _is_instant(found: pa.DataType) -> bool:
    return pa.types.is_integer(found) or pa.types.is_timestamp(found)


def _is_day_or_instant(found: pa.DataType) -> bool:
    return _is_instant(found) or pa.types.is_date32(found)


def in_words(found: pa.DataType) -> str:
    """Arrow has several kinds of text, and nobody who wrote a file chose between them."""
    return "text" if "string" in str(found) and not pa.types.is_nested(found) else str(found)


ACCEPTS: dict[str, Callable[[pa.DataType], bool]] = {
    "user_id": _is_id,
    "item_id": _is_id,
    "rating": _is_number,
    "timestamp": _is_instant,
    "event_type": _is_id,
    "available": pa.types.is_boolean,
    "categories": lambda found: _is_text(found) or _is_list_of_text(found),
    "genres": lambda found: _is_text(found) or _is_list_of_text(found),
    "segments": _is_list_of_text,
    "segment": _is_text,
    "published_at": _is_day_or_instant,
}


def drift(place: str, column: str, found: str, wanted: str) -> SchemaDrift:
    return SchemaDrift(
        f"{place}: column {column!r}: found {found}, wanted {wanted}. No row was read and nothing was published. Mend "
        "what writes the file; columns that nobody asks for do no harm."
    )
