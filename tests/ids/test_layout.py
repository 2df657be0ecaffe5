"""Every layout, grid and partial run goes there and back; nested and rows mean what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unicode.ids.layout import Layout

HQ = Layout("hierarchical", ((8, 8), (16, 16)))
ROWS = Layout("hierarchical", ((8, 8), (16, 16)), order="rows")
THREE = Layout("hierarchical", ((2, 3), (4, 6), (8, 12)))
RQ = Layout("residual", ((8, 8),), depth=4)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    if draw(st.booleans()):
        return Layout("residual", ((height, width),), depth=draw(st.integers(1, 5)))
    grids = [(height, width)]
    for _ in range(draw(st.integers(1, 2))):
        factor = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)).filter(lambda pair: pair != (1, 1)))
        grids.append((grids[-1][0] * factor[0], grids[-1][1] * factor[1]))
    return Layout("hierarchical", tuple(grids), order=draw(st.sampled_from(["nested", "rows"])))


def places(layout: Layout) -> list[tuple[int, int, int]]:
    """(level, row, column) of every canonical position of a hierarchical layout."""
    return [(level, row, column) for level, (h, w) in enumerate(layout.grids) for row in range(h) for column in range(w)]


def nested_by_recursion(layout: Layout, level: int, row: int, column: int) -> list[tuple[int, int, int]]:
    """The definition of nested, written down without arrays."""
    run = [(level, row, column)]
    if level + 1 < len(layout.grids):
        down, right = (layout.grids[level + 1][axis] // layout.grids[level][axis] for axis in (0, 1))
        for r in range(row * down, (row + 1) * down):
            for c in range(column * right, (column + 1) * right):
                run += nested_by_recursion(layout, level + 1, r, c)
    return run


@settings(max_examples=150, deadline=None)
@given(layouts(), st.lists(st.integers(1, 3), max_size=2))
def test_round_trips(layout: Layout, leading: list[int]) -> None:
    codes = torch.arange(np.prod([*leading, layout.num_codes])).reshape(*leading, layout.num_codes)
    ordered = layout.arrange(codes)
    assert torch.equal(layout.restore(ordered), codes)
    assert torch.equal(layout.arrange(layout.restore(codes)), codes)
    assert torch.equal(layout.join(layout.split(codes)), codes)
    assert [part.shape for part in layout.split(codes)] == [(*leading, size) for size in layout.level_sizes]
    array = codes.numpy().astype(np.int32)
    np.testing.assert_array_equal(layout.arrange(array), ordered.numpy())
    np.testing.assert_array_equal(layout.restore(layout.arrange(array)), array)
    np.testing.assert_array_equal(layout.join(layout.split(array)), array)
    assert layout.arrange(array).dtype == np.int32
    assert Layout.from_dict(layout.to_dict()) == layout


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_partial_runs_are_images_of_their_own(layout: Layout) -> None:
    codes = torch.arange(layout.num_codes)
    ids = layout.arrange(codes)
    for rows in range(layout.coarse_rows + 1):
        assert layout.rows_of(layout.prefix(rows)) == rows
        if rows == 0:
            continue
        part = layout.resized(rows, layout.grids[0][1])
        assert part.num_codes == layout.prefix(rows)
        expected = [whole[:size] for whole, size in zip(layout.split(codes), part.level_sizes, strict=True)]
        assert torch.equal(part.restore(ids[: layout.prefix(rows)]), part.join(expected))
    assert torch.equal(torch.cat([ids[layout.row_slice(row)] for row in range(layout.coarse_rows)]), ids)


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_levels_and_cells(layout: Layout) -> None:
    levels = layout.levels()
    assert torch.bincount(levels, minlength=layout.num_levels).tolist() == list(layout.level_sizes)
    cells = levels.reshape(-1, layout.cell_length)
    assert (cells == cells[0]).all()
    assert cells[0, 0] == 0
    assert (cells[:, 1:] > 0).all()


@settings(max_examples=100, deadline=None)
@given(layouts().filter(lambda layout: layout.order == "nested"))
def test_nested_is_depth_first(layout: Layout) -> None:
    where = places(layout)
    found = [where[position] for position in layout.arrange(np.arange(layout.num_codes))]
    height, width = layout.grids[0]
    assert found == [place for row in range(height) for column in range(width) for place in nested_by_recursion(layout, 0, row, column)]


def test_nested_puts_the_four_fine_codes_under_each_coarse_cell() -> None:
    groups = HQ.arrange(torch.arange(320)).reshape(64, 5)
    for cell, group in enumerate(groups.tolist()):
        row, column = divmod(cell, 8)
        corner = 64 + 2 * row * 16 + 2 * column
        assert group == [cell, corner, corner + 1, corner + 16, corner + 17]


def test_rows_is_the_published_order() -> None:
    """UniCode-ECCV24: t0, b0..b3, t1, b4..b7, ... with b in raster order."""
    top, bottom = np.arange(64), 1000 + np.arange(256)
    expected = np.concatenate((top[:, None], bottom.reshape(64, 4)), axis=1).reshape(-1)
    np.testing.assert_array_equal(ROWS.arrange(np.concatenate((top, bottom))), expected)
    assert not np.array_equal(HQ.arrange(np.concatenate((top, bottom))), expected)


def test_three_levels() -> None:
    """A 1x1 + 2x2 + 4x4 picture, worked out by hand: canonical 0 | 1..4 | 5..20."""
    nested = Layout("hierarchical", ((1, 1), (2, 2), (4, 4)))
    assert nested.arrange(np.arange(21)).tolist() == [0, 1, 5, 6, 9, 10, 2, 7, 8, 11, 12, 3, 13, 14, 17, 18, 4, 15, 16, 19, 20]
    rows = Layout("hierarchical", nested.grids, order="rows")
    assert rows.arrange(np.arange(21)).tolist() == [0, 1, 5, 6, 7, 8, 2, 9, 10, 11, 12, 3, 13, 14, 15, 16, 4, 17, 18, 19, 20]


def test_sizes() -> None:
    assert (HQ.num_codes, HQ.num_levels, HQ.level_sizes, HQ.cell_length, HQ.row_length, HQ.prefix(3)) == (320, 2, (64, 256), 5, 40, 120)
    assert (RQ.num_codes, RQ.num_levels, RQ.level_sizes, RQ.cell_length, RQ.row_length) == (256, 4, (64,) * 4, 4, 32)
    assert (THREE.num_codes, THREE.cell_length, THREE.row_length, THREE.coarse_rows) == (126, 21, 63, 2)
    assert HQ.row_slice(1) == slice(40, 80)
    assert HQ.levels()[:6].tolist() == [0, 1, 1, 1, 1, 0]
    assert RQ.order == "depth"
    assert HQ.order == "nested"
    assert RQ.levels()[:5].tolist() == [0, 1, 2, 3, 0]
    assert HQ.resized(12, 16).grids == ((12, 16), (24, 32))


def test_residual_split_takes_depths_apart() -> None:
    codes = torch.arange(256).reshape(64, 4)
    assert all(torch.equal(part, codes[:, level]) for level, part in enumerate(RQ.split(codes.flatten())))


def test_layouts_from_files_and_their_mixing() -> None:
    assert Layout("hierarchical", [[8, 8], [16, 16]]) == HQ
    assert hash(HQ) == hash(Layout.from_dict(HQ.to_dict()))
    HQ.check_same(Layout.from_dict(HQ.to_dict()))
    with pytest.raises(ValueError, match=r"'nested'.*'rows'"):
        HQ.check_same(ROWS)
    with pytest.raises(ValueError, match="order"):
        Layout.from_dict({"kind": "residual", "grids": [[8, 8]], "depth": 4})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flat", ((8, 8),)), "layout.kind is 'flat'"),
        (("hierarchical", ((8, 8), (16, 16)), 1, "depth"), "nested, rows"),
        (("residual", ((8, 8),), 4, "nested"), "depth"),
        (("residual", ((8, 8), (16, 16)), 4), "one grid"),
        (("residual", ((8, 8),), 0), "layout.depth is 0"),
        (("hierarchical", ((8, 8), (16, 16)), 2), "depth 1"),
        (("hierarchical", ((8, 8),)), "two or more"),
        (("hierarchical", ((8, 8), (12, 16))), "not a multiple"),
        (("hierarchical", ((8, 8), (8, 8))), "not a multiple"),
        (("hierarchical", ((16, 16), (8, 8))), "not a multiple"),
        (("hierarchical", ()), "pairs"),
        (("residual", ((8, 0),), 4), "positive"),
        (("residual", ((8.0, 8),), 4), "positive"),
        (("residual", (8, 8), 4), "pairs"),
    ],
)
def test_nonsense_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(*arguments)


def test_wrong_lengths_are_refused() -> None:
    for call in (HQ.arrange, HQ.restore, HQ.split):
        with pytest.raises(ValueError, match="320 codes"):
            call(torch.zeros(2, 319, dtype=torch.long))
    with pytest.raises(ValueError, match="do not fit"):
        HQ.join([np.zeros(256), np.zeros(64)])
    for rows in (-1, 9):
        with pytest.raises(ValueError, match="0 to 8"):
            HQ.prefix(rows)
    for num_ids in (39, -40, 360):
        with pytest.raises(ValueError, match="whole rows"):
            HQ.rows_of(num_ids)


def test_permutations_made_in_inference_mode_serve_training() -> None:
    layout = Layout("hierarchical", ((3, 1), (6, 3)))
    with torch.inference_mode():
        layout.arrange(torch.zeros(layout.num_codes))
    weights = torch.ones(layout.num_codes, requires_grad=True)
    layout.arrange(weights).sum().backward()
    assert torch.equal(weights.grad, torch.ones(layout.num_codes))


@given(layouts())
def test_descriptions_are_read_back(layout: Layout) -> None:
    assert Layout.parse(layout.describe()) == layout


@pytest.mark.parametrize("text", ["", "nested", "hierarchical 8x8 + 16 in order 'nested'", "hierarchical 8x8 + 16x16 in order 'nested' "])
def test_other_phrases_describe_no_layout(text: str) -> None:
    with pytest.raises(ValueError, match="describes no layout; expected a phrase as"):
        Layout.parse(text)
