# SPDX-License-Identifier: Apache-2.0
"""Additions of rows at indices that may repeat, right and the same on any number of threads.

ONNX Runtime runs the additions of ScatterND in parallel and loses some of them where indices repeat; ScatterElements
adds in order, but finds the place of each element anew. Here the indices are sorted, and each run of equal ones is cut
into segments of a bounded length. Segments of about one length are summed together, a block at a time, so that what
is gathered for them stays in the cache; then the segments of each index that has several are. Each row of the table is
written once: onto zeros by a Gather of the sums, else by a ScatterND without a reduction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from lnbp_onnx.graphs.writer import Writer

_SEGMENT = 32
"""How many rows of one index are summed at once: more would be other lengths, with fewer segments of each."""

_BLOCK = 2**16
"""About how many elements are gathered at once."""

_OUTSIDE = 2**62


def positions(w: Writer, tuples: ir.Value, lengths: ir.Value, depth: int, start: ir.Value | None = None) -> ir.Value:
    """Return index tuples as positions in the axes that they index, read as one axis.

    Args:
        w: Writes the nodes.
        tuples: Index tuples of any integer type, [..., depth]; negative ones count from the end.
        lengths: The lengths of the indexed axes, an int64 vector.
        depth: How many indices a tuple has.
        start: Positions in axes before the indexed ones, which broadcast to the tuples; none by default.

    Returns:
        Positions [...] in int64. A tuple outside of the axes becomes a position after the last, as an error for the
        runtime to find: the sum of its parts could be a place that is there.
    """
    tuples = w.cast(tuples, ir.DataType.INT64)
    boolean: dict[str, Any] = {"element_type": ir.DataType.BOOL}
    position, outside = start, None
    zero = w.ints(0)
    for axis in range(depth):
        index = w.squeeze(w.op("Gather", tuples, w.ints(axis), axis=-1), -1)
        length = w.part(lengths, axis, axis + 1)
        index = w.where(w.compare("Less", index, zero), w.op("Add", index, length), index)
        found = w.op("Or", w.compare("Less", index, zero), w.op("Not", w.compare("Less", index, length)), **boolean)
        outside = found if outside is None else w.op("Or", outside, found, **boolean)
        position = index if position is None else w.op("Add", w.op("Mul", position, length), index)
    assert position is not None
    if outside is None:
        return position
    return w.where(outside, w.ints(_OUTSIDE), position)


def add_rows(
    w: Writer,
    table: ir.Value,
    index: ir.Value,
    rows: ir.Value,
    *,
    is_zero: bool = False,
    is_distinct: bool = False,
) -> ir.Value:
    """Return a table with rows added.

    Args:
        w: Writes the nodes.
        table: [length, ...]; the result has its shape and element type.
        index: [n] in int64, none of them negative: where to add each row.
        rows: [n, width] in float or double, in which the sums are computed.
        is_zero: Whether the table is known to hold zeros, which saves reading it.
        is_distinct: Whether no index is known to repeat.
    """
    if is_distinct:
        return _put(w, table, index, rows, is_zero=is_zero)
    keys, sources, rows = _row_sums(w, index, rows)
    if not is_zero:
        return _put(w, table, keys, w.op("Gather", rows, sources, axis=0), is_zero=False)
    # Rows of the table that nothing is added to come from the last one, -1.
    shape = w.shape(table)
    sources = w.op("ScatterND", w.filled(w.part(shape, 0, 1), -1, ir.DataType.INT64), w.unsqueeze(keys, 1), sources)
    row_shape = w.joined(w.part(w.shape(rows), 0, 1), w.part(shape, 1))
    rows = w.reshape(w.cast(rows, w.element_type(table)), row_shape)
    return w.op("Gather", rows, sources, axis=0)


def _put(w: Writer, table: ir.Value, keys: ir.Value, rows: ir.Value, *, is_zero: bool) -> ir.Value:
    """Return the table with rows added at keys that are all different."""
    rows = w.reshape(rows, w.joined(w.shape(keys), w.part(w.shape(table), 1)))
    if not is_zero:
        rows = w.op("Add", w.cast(w.op("Gather", table, keys, axis=0), w.element_type(rows)), rows)
    return w.op("ScatterND", table, w.unsqueeze(keys, 1), w.cast(rows, w.element_type(table)))


def _length(w: Writer, value: ir.Value) -> ir.Value:
    return w.squeeze(w.shape(value), 0)


def _places(w: Writer, chosen: ir.Value) -> ir.Value:
    """Return where a vector is true. Compress would do in one, but leaves the rank unknown in OpenVINO."""
    return w.flat(w.op("NonZero", chosen, element_type=ir.DataType.INT64))


def _on_grid(w: Writer, length: ir.Value, distance: ir.Value) -> ir.Value:
    return w.compare("Equal", w.op("Mod", w.count_to(length), distance), w.ints(0))


def _both(w: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    return w.op("And", a, b, element_type=ir.DataType.BOOL)


def _row_sums(w: Writer, index: ir.Value, rows: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the distinct indices, which row holds the sum for each, and these rows, the last of which is zeros."""
    segments = _segments(w, index)
    added, added_length = _segment_sums(w, segments, rows)
    single = w.op("Gather", segments.order, w.op("Slice", segments.starts_by_length, w.ints(0), segments.singles))

    # Sums of keys that have several segments, and of nothing.
    runs = _places(w, w.op("Gather", segments.is_first, segments.starts))
    ends = w.joined(w.part(runs, 1), segments.count)
    several = _places(w, w.compare("Less", w.op("Add", runs, w.ints(1)), ends))
    firsts, lasts = (w.op("Pad", w.op("Gather", each, several), w.ints(0, 1)) for each in (runs, ends))
    parts = w.op("Sub", segments.places, segments.singles)

    def of_key(number: ir.Value) -> ir.Value:
        first, last = (w.op("Gather", each, number) for each in (firsts, lasts))
        place = w.op("Gather", parts, w.op("Range", first, last, w.constant(1, ir.DataType.INT64)))
        return w.reduce("ReduceSum", w.op("Gather", added, place, axis=0), [0], keepdims=False)

    totals = _loop(w, firsts, of_key, w.element_type(rows))
    rows = w.joined(w.op("Gather", rows, single, axis=0), added, totals)
    others = w.op("Add", w.count_to(w.shape(several)), w.op("Add", segments.singles, added_length))
    sources = w.op("ScatterElements", w.op("Gather", segments.places, runs), several, others)
    return w.op("Gather", segments.keys, w.op("Gather", segments.starts, runs)), sources, rows


@dataclass(frozen=True, slots=True)
class _Segments:
    """Runs of equal indices, cut where they are long; int64 vectors but for `is_first`, which is of booleans.

    Attributes:
        keys: The indices, sorted.
        order: The row that each of them is for.
        is_first: Whether a run begins with it.
        starts: Where in `keys` the segments begin.
        starts_by_length: The same, the longest segment first.
        lengths: How many rows the segments have, the longest first.
        places: Which place each segment has by length.
        count: How many segments there are.
        singles: How many of them have one row.
    """

    keys: ir.Value
    order: ir.Value
    is_first: ir.Value
    starts: ir.Value
    starts_by_length: ir.Value
    lengths: ir.Value
    places: ir.Value
    count: ir.Value
    singles: ir.Value


def _segments(w: Writer, index: ir.Value) -> _Segments:
    """Sort indices and cut them where a run begins, and where a long one has two rows at least in each part."""
    integer, length = ir.DataType.INT64, w.shape(index)
    keys, order = w.ops("TopK", index, length, outputs=2, element_type=integer, largest=0)
    around = w.joined(w.ints(*[-1] * _SEGMENT), keys, w.ints(-2))
    is_first = w.compare("Less", w.part(around, _SEGMENT - 1, -2), keys)
    is_long = w.compare("Equal", w.part(around, 1, -_SEGMENT), w.part(around, _SEGMENT + 1))
    is_start = w.op("Or", is_first, _both(w, is_long, _on_grid(w, length, w.ints(_SEGMENT))))
    starts = _places(w, is_start)
    count = w.shape(starts)
    lengths = w.op("Sub", w.joined(w.part(starts, 1), length), starts)
    lengths, by_length = w.ops("TopK", lengths, count, outputs=2, element_type=integer, largest=0)
    return _Segments(
        keys,
        order,
        is_first,
        starts,
        starts_by_length=w.op("Gather", starts, by_length),
        lengths=lengths,
        places=w.op("ScatterElements", by_length, by_length, w.count_to(count)),
        count=count,
        singles=w.shape(_places(w, w.compare("Equal", lengths, w.ints(1)))),
    )


def _segment_sums(w: Writer, segments: _Segments, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the sums of the segments of several rows, the longest first, then zeros, one at least; and the length."""
    element_type, width, one = w.element_type(rows), w.part(w.shape(rows), 1), w.ints(1)
    # Blocks of segments of about one length; the last one is filled up with empty segments, one at least: a loop
    # without iterations has no shape in OpenVINO and ONNX's own evaluator.
    longer = w.op("Sub", segments.count, segments.singles)
    budget = w.ints(_BLOCK)
    elements = w.op("Add", w.op("Mul", w.shape(segments.order), width), budget)
    size = w.op("Add", w.op("Div", w.op("Mul", longer, budget), elements), one)
    padding = w.op("Sub", size, w.op("Mod", longer, size))
    pads = w.joined(w.ints(0), padding)

    def in_blocks(of_segments: ir.Value) -> ir.Value:
        padded = w.op("Pad", w.op("Slice", of_segments, segments.singles, segments.count), pads)
        return w.op("Reshape", padded, w.joined(w.ints(-1), size, one))

    block_starts, block_lengths = (in_blocks(each) for each in (segments.starts_by_length, segments.lengths))
    longest, shortest = (
        w.reduce(op_type, block_lengths, [1], keepdims=False) for op_type in ("ReduceMax", "ReduceMin")
    )
    is_mixed = w.squeeze(w.compare("Less", shortest, longest), 1)
    padded_order = w.op("Pad", segments.order, w.ints(0, 2 * _SEGMENT))

    def of_block(number: ir.Value) -> ir.Value:
        length = w.op("Gather", longest, number)
        offsets = w.count_to(length)
        place = w.op("Gather", padded_order, w.op("Add", w.op("Gather", block_starts, number), offsets))
        gathered = w.op("Gather", rows, place, axis=0)
        # Not ReduceSum, whose order in ONNX Runtime depends on whether there are more segments than threads.
        ones = w.filled(length, 1.0, element_type)

        def of_mixed() -> list[ir.Value]:
            is_inside = w.compare("Less", offsets, w.op("Gather", block_lengths, number))
            inside = w.where(w.unsqueeze(is_inside, 2), gathered, w.scalar_like(0.0, rows))
            return [w.op("MatMul", ones, inside)]

        branches: dict[str, Any] = {
            "then_branch": w.graph([], of_mixed),
            "else_branch": w.graph([], lambda: [w.op("MatMul", ones, gathered)]),
        }
        return w.op("If", w.op("Gather", is_mixed, number), element_type=element_type, **branches)

    length = w.op("Add", longer, padding)
    return w.reshape(_loop(w, is_mixed, of_block, element_type), w.joined(length, width)), length


def _loop(w: Writer, over: ir.Value, body: Callable[[ir.Value], ir.Value], element_type: ir.DataType) -> ir.Value:
    """Return what a body makes, of one shape each, for each place in a vector that is not empty."""

    def iteration(number: ir.Value, condition: ir.Value) -> list[ir.Value]:
        return [w.op("Identity", condition), body(number)]

    # Not Scan, which OpenVINO does not let see values from outside.
    graph = w.graph([(ir.DataType.INT64, 0), (ir.DataType.BOOL, 0)], iteration)
    true = w.constant(True, ir.DataType.BOOL)
    return w.op("Loop", _length(w, over), true, element_type=element_type, body=graph)
