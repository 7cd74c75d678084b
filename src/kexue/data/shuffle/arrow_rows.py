"""Arrow columns, as far as a shuffle of rows needs them: plain types, bytes of every row.

Columns of words with a dictionary, and texts that are views, are plain while they are shuffled: a
bucket would otherwise hold the whole dictionary beside a few rows of it. The bytes of a row follow
from its content alone, not from how a file was cut or encoded.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "arrow",
    "as_arrow",
    "numbers_of",
    "plain_schema",
    "row_bytes",
    "value_bytes",
    "whole",
]

Array = NDArray[Any]


def arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet part."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError('Parquet needs pyarrow: pip install "kexue[shuffle]"') from None
    return pyarrow, pyarrow.parquet


def as_arrow(numbers: Array) -> Any:
    """The same numbers for Arrow, whose own ways from and to numpy load pandas, 50 MB."""
    pyarrow, _ = arrow()
    kind = pyarrow.from_numpy_dtype(numbers.dtype)
    return pyarrow.Array.from_buffers(kind, len(numbers), [None, pyarrow.py_buffer(numbers)])


def as_numpy(column: Any, kind: type) -> Array:
    """The numbers of an Arrow array without nulls."""
    return np.frombuffer(column.buffers()[1], kind)[column.offset :][: len(column)]


def numbers_of(table: Any) -> Array:
    """The last column."""
    chunks = table.column(table.num_columns - 1).chunks
    parts = [as_numpy(one, np.uint64) for one in chunks if len(one)]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def whole(table: Any) -> Any:
    """The table in one piece."""
    return table.combine_chunks()


def plain_schema(schema: Any) -> Any:
    """The same columns without dictionaries and views."""
    pyarrow, _ = arrow()
    return pyarrow.schema([plain_field(one) for one in schema], schema.metadata)


def plain_field(field: Any) -> Any:
    """A field of plain type."""
    return field.with_type(plain_type(field.type))


def plain_type(kind: Any) -> Any:
    """A type without dictionaries and views, at any depth."""
    pyarrow, _ = arrow()
    is_a = pyarrow.types
    if is_a.is_dictionary(kind):
        return plain_type(kind.value_type)
    if is_a.is_string_view(kind):
        return pyarrow.string()
    if is_a.is_binary_view(kind):
        return pyarrow.binary()
    if is_a.is_struct(kind):
        return pyarrow.struct([plain_field(kind.field(j)) for j in range(kind.num_fields)])
    if is_a.is_map(kind):
        return pyarrow.map_(plain_field(kind.key_field), plain_field(kind.item_field))
    if is_a.is_fixed_size_list(kind):
        return pyarrow.list_(plain_field(kind.value_field), kind.list_size)
    if is_a.is_list(kind) or is_a.is_list_view(kind):
        return pyarrow.list_(plain_field(kind.value_field))
    if is_a.is_large_list(kind) or is_a.is_large_list_view(kind):
        return pyarrow.large_list(plain_field(kind.value_field))
    return kind


def row_bytes(rows: Any) -> Array:
    """Bytes of every row once it is decoded, without those that say which are null; shape (n,).

    Args:
        rows: a batch, or a table in one piece.
    """
    pyarrow, _ = arrow()
    edges, fixed = np.arange(rows.num_rows + 1), 0
    total = np.zeros(rows.num_rows, np.int64)
    for column in rows.columns:
        if pyarrow.types.is_primitive(column.type):  # there may be thousands
            fixed += -(-column.type.bit_width // 8)
        elif isinstance(column, pyarrow.ChunkedArray):
            total += value_bytes(column)
        else:
            total += np.diff(bytes_before(column, edges))
    return total + fixed


def value_bytes(column: Any) -> Array:
    """Bytes of every value of one column, an array or the chunks of one; shape (n,)."""
    pyarrow, _ = arrow()
    chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    parts = [np.diff(bytes_before(one, np.arange(len(one) + 1))) for one in chunks]
    return np.concatenate([np.empty(0, np.int64), *parts])


def bytes_before(column: Any, rows: Array) -> Array:
    """Bytes of an array that stand before some of its rows, beside a constant."""
    pyarrow, _ = arrow()
    kind, is_a = column.type, pyarrow.types
    if is_a.is_null(kind) or not len(column):
        return np.zeros(len(rows), np.int64)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return bytes_before(column.storage, rows)
    if is_a.is_dictionary(kind):
        return coded_before(column, rows)
    if is_a.is_string(kind) or is_a.is_binary(kind):
        return added(ends_of(column, np.int32)[rows], 4 * rows)
    if is_a.is_large_string(kind) or is_a.is_large_binary(kind):
        return added(ends_of(column, np.int64)[rows], 8 * rows)
    if is_a.is_string_view(kind) or is_a.is_binary_view(kind):
        return bytes_before(column.cast(plain_type(kind)), rows)
    if is_a.is_struct(kind):
        parts = [bytes_before(column.field(j), rows) for j in range(kind.num_fields)]
        return added(np.zeros(len(rows), np.int64), *parts)
    if is_a.is_list_view(kind) or is_a.is_large_list_view(kind):
        return bytes_before(column.cast(pyarrow.large_list(kind.value_field)), rows)
    if is_a.is_fixed_size_list(kind):
        return bytes_before(column.values, (rows + column.offset) * kind.list_size)
    if is_a.is_map(kind):
        inside = ends_of(column, np.int32)[rows]
        return added(
            bytes_before(column.keys, inside), bytes_before(column.items, inside) + 4 * rows
        )
    if is_a.is_list(kind):
        return added(bytes_before(column.values, ends_of(column, np.int32)[rows]), 4 * rows)
    if is_a.is_large_list(kind):
        return added(bytes_before(column.values, ends_of(column, np.int64)[rows]), 8 * rows)
    return added(rows * (-(-kind.bit_width // 8)))


def added(first: Any, *others: Any) -> Array:
    """The sum of arrays."""
    total: Array = sum(others, start=first)
    return total


def coded_before(column: Any, rows: Array) -> Array:
    """`bytes_before` of indices into a dictionary, as if its values stood in their place."""
    pyarrow, _ = arrow()
    null = value_bytes(pyarrow.nulls(1, column.type.value_type))  # the value where there is none
    choice = np.concatenate((value_bytes(column.dictionary), null))
    indices = column.indices
    taken = as_numpy(indices, indices.type.to_pandas_dtype())
    known = indices.buffers()[0]
    if known is not None:  # at a null any index may stand
        bits = np.unpackbits(np.frombuffer(known, np.uint8), bitorder="little")
        taken = np.where(bits[indices.offset :][: len(indices)], taken, len(choice) - 1)
    ends: Array = np.concatenate((np.zeros(1, np.int64), np.cumsum(choice[taken])))
    return np.take(ends, rows)


def ends_of(column: Any, kind: type) -> Array:
    """Where each value of an array of texts or lists begins, and the last one ends."""
    return np.frombuffer(column.buffers()[1], kind)[column.offset :][: len(column) + 1]
