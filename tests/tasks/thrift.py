"""Thrift's compact protocol, as far as Parquet uses it: bytes -> a tree that a test can bend -> bytes.

A struct is a dict of field id -> (type, value), a list is (type of its elements, values); numbers and bytes are what
they are, and a flag is a bool.
"""

from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
Struct = dict[int, tuple[int, Any]]


def read_struct(data: bytes, at: int = 0) -> tuple[Struct, int]:
    """The struct that begins at `at`, and where it ends."""
    struct: Struct = {}
    field = 0
    while data[at]:
        kind, delta = data[at] & 15, data[at] >> 4
        at += 1
        if delta:
            field += delta
        else:
            field, at = _read_number(data, at)
        value, at = (kind == TRUE, at) if kind in (TRUE, FALSE) else _read(kind, data, at)
        struct[field] = (TRUE if kind == FALSE else kind, value)
    return struct, at + 1


def write_struct(struct: Struct) -> bytes:
    out = bytearray()
    last = 0
    for field, (kind, value) in sorted(struct.items()):
        of_kind = (TRUE if value else FALSE) if kind == TRUE else kind
        near = 0 < field - last < 16
        out += bytes([(field - last) << 4 | of_kind]) if near else bytes([of_kind]) + _number(field)
        out += b"" if kind == TRUE else _write(kind, value)
        last = field
    return bytes(out) + b"\0"


def _read(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind in (I16, I32, I64):
        return _read_number(data, at)
    if kind == BYTE:
        return data[at], at + 1
    if kind == DOUBLE:
        return data[at : at + 8], at + 8
    if kind == BINARY:
        size, at = _read_varint(data, at)
        return data[at : at + size], at + size
    if kind == STRUCT:
        return read_struct(data, at)
    assert kind == LIST, f"type {kind} stands in no Parquet metadata"
    size, of = data[at] >> 4, data[at] & 15
    at += 1
    if size == 15:
        size, at = _read_varint(data, at)
    values = []
    for _ in range(size):
        value, at = _read(of, data, at)
        values.append(value)
    return (of, values), at


def _write(kind: int, value: Any) -> bytes:
    if kind in (I16, I32, I64):
        return _number(value)
    if kind == BYTE:
        return bytes([value])
    if kind == DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return _varint(len(value)) + value
    if kind == STRUCT:
        return write_struct(value)
    of, values = value
    head = bytes([len(values) << 4 | of]) if len(values) < 15 else bytes([0xF0 | of]) + _varint(len(values))
    return head + b"".join(_write(of, one) for one in values)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _number(value: int) -> bytes:
    return _varint((value << 1 ^ value >> 63) & (2**64 - 1))
