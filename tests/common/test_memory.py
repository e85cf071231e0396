"""Settings of a command's memory."""

import gc

from gmdf_hf.common.memory import objects_to_keep


class Knot:
    """An object that refers to itself."""

    ended = 0

    def __init__(self):
        self.itself = self

    def __del__(self):
        Knot.ended += 1


def test_objects_to_keep_are_no_garbage_and_later_ones_are():
    try:
        with objects_to_keep():
            assert not gc.isenabled()
            Knot()
        assert gc.isenabled()
        gc.collect()
        assert Knot.ended == 0
        Knot()
        gc.collect()
        assert Knot.ended == 1
    finally:
        gc.unfreeze()
    gc.collect()
    assert Knot.ended == 2
