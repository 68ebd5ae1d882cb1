"""Vectors: shapes, unit length and top-k, against the plainest NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import ShapeError
from lookalike.vectors import as_rows, top_k, unit


def test_one_vector_becomes_one_row():
    rows = as_rows([1, 2, 3])
    assert rows.shape == (1, 3)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous


@pytest.mark.parametrize("empty", [[], np.empty((0, 4)), np.empty((0, 9)), np.empty(0)])
def test_no_vectors_are_fine_whatever_their_width(empty):
    assert len(as_rows(empty, 4)) == 0


@pytest.mark.parametrize(
    "bad", [np.ones((2, 5)), np.ones(5), np.ones((2, 2, 4)), 3.0, "abcd", [[1, 2, 3, 4], [1]], [["a"] * 4], None]
)
def test_wrong_shapes_say_what_was_expected(bad):
    with pytest.raises(ShapeError, match=r"\(n, 4\)"):
        as_rows(bad, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_names_the_row(value):
    rows = np.ones((5, 3))
    rows[3, 1] = value
    with pytest.raises(ShapeError, match="row 3"):
        as_rows(rows)


def test_the_message_names_what_the_vectors_are():
    with pytest.raises(ShapeError, match=r"^queries"):
        as_rows(np.ones((2, 5)), 4, "queries")


def test_unit_is_plain_division_by_the_norm():
    rows = np.random.default_rng(0).normal(size=(50, 17)).astype(np.float32) * 1e3
    expected = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(unit(rows), expected, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(unit(rows).astype(np.float64), axis=1), 1, atol=1e-7)


def test_unit_rows_stay_as_they_are():
    rows = unit(np.random.default_rng(1).normal(size=(200, 128)))
    np.testing.assert_allclose(unit(rows), rows, rtol=2e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_unit_neither_overflows_nor_underflows(scale):
    np.testing.assert_allclose(unit([[3 * scale, 4 * scale]]), [[0.6, 0.8]], rtol=1e-6)


def test_zeros_have_no_direction():
    with pytest.raises(ShapeError, match="row 1"):
        unit([[1.0, 0.0], [0.0, 0.0]])


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 30), st.integers(0, 35))
def test_top_k_equals_a_full_stable_sort(seed, n, m, k):
    scores = np.random.default_rng(seed).integers(0, 6, size=(n, m)).astype(np.float32)  # few values: many ties
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_k(scores, k), expected)
