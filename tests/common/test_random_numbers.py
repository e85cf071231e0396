import itertools

from gmdf_hf.common.random_numbers import random_numbers


def test_streams_that_should_differ_do():
    asked = [("order", 1, 2, 3), ("order", 1, 2, 3, 0), ("order", 1, 2), ("masks", 1, 2, 3), ("order", 1, 2, 4)]
    drawn = [random_numbers(*each).integers(2**62, size=8).tolist() for each in asked]
    assert all(one != other for one, other in itertools.combinations(drawn, 2))
    assert random_numbers("order", 1, 2, 3).integers(2**62, size=8).tolist() == drawn[0]
