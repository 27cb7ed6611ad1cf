"""Blocks: counted, shared, named, evicted; none is ever lost or owned twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.engine.block_pool import BlockPool
from qvl.engine.prefix import ROOT, Visual, block_key


def keys(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def test_a_new_pool_hands_out_neighbours():
    pool = BlockPool(8, 16)
    assert pool.allocate(5) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.num_used) == (3, 5)


def test_growing_continues_behind_the_last_block():
    pool = BlockPool(20, 16)
    first, second = pool.allocate(3), pool.allocate(3)
    assert pool.allocate(1, after=first[-1]) == [first[-1] + 1]
    assert pool.allocate(1, after=second[-1]) == [second[-1] + 1]


def test_a_second_sequence_starts_where_both_can_grow():
    pool = BlockPool(20, 16)
    first, second = pool.allocate(2), pool.allocate(2)
    assert second[0] - first[-1] > 5
    assert second == [second[0], second[0] + 1]


def test_a_fragmented_pool_still_gives_every_block():
    pool = BlockPool(6, 4)
    blocks = pool.allocate(6)
    pool.free([blocks[0], blocks[2], blocks[4]])
    assert sorted(pool.allocate(3)) == [0, 2, 4]
    pool.check()


def test_more_blocks_than_free_are_never_given():
    pool = BlockPool(2, 4)
    assert not pool.can_allocate(3)
    with pytest.raises(AssertionError, match="3 blocks asked, 2 free"):
        pool.allocate(3)


def test_a_block_freed_twice_is_noticed():
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(blocks)


def test_a_published_block_is_found_after_its_owner_left():
    pool = BlockPool(4, 4)
    blocks = pool.allocate(2)
    for block, key in zip(blocks, keys("a", "ab")):
        pool.publish(block, key)
    pool.free(blocks)
    assert pool.num_cached == 2
    assert pool.match(keys("a", "ab", "abc")) == blocks
    pool.share(blocks)
    assert pool.num_used == 2
    pool.check([blocks])


def test_match_stops_at_the_first_unknown_block():
    pool = BlockPool(4, 4)
    blocks = pool.allocate(2)
    pool.publish(blocks[1], b"ab")
    assert pool.match(keys("a", "ab")) == []


def test_a_shared_block_is_free_only_after_its_last_reader():
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], b"a")
    pool.share(blocks)
    pool.free(blocks)
    assert pool.num_used == 1
    pool.free(blocks)
    assert pool.num_used == 0


def test_cached_blocks_are_evicted_oldest_first_and_tails_before_heads():
    pool = BlockPool(4, 4)
    old, new = pool.allocate(2), pool.allocate(2)
    for block, key in zip(old + new, keys("a", "ab", "x", "xy")):
        pool.publish(block, key)
    pool.free(old)
    pool.free(new)
    assert pool.allocate(1) == [old[1]]  # the tail of the older one
    assert pool.match(keys("a", "ab")) == [old[0]]
    assert pool.allocate(1) == [old[0]]
    assert pool.match(keys("x", "xy")) == new
    pool.check()


def test_blank_blocks_are_taken_before_anything_known_is_evicted():
    pool = BlockPool(3, 4)
    known = pool.allocate(1)
    pool.publish(known[0], b"a")
    pool.free(known)
    assert known[0] not in pool.allocate(2)
    assert pool.match([b"a"]) == known


def test_two_blocks_of_one_content_keep_the_first_name():
    pool = BlockPool(2, 4)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.publish(first[0], b"a")
    pool.publish(second[0], b"a")
    assert pool.match([b"a"]) == first
    pool.free(second)
    assert pool.num_cached == 0
    pool.check([first])


def test_forget_all_leaves_no_block_findable():
    pool = BlockPool(3, 4)
    blocks = pool.allocate(2)
    for block, key in zip(blocks, keys("a", "ab")):
        pool.publish(block, key)
    pool.free(blocks[1:])
    pool.forget_all()
    assert pool.match([b"a"]) == []
    pool.check([blocks[:1]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=80))
def test_no_sequence_of_calls_loses_a_block(calls):
    pool = BlockPool(12, 4)
    owners: list[list[int]] = []
    for action, number in calls:
        if action == 0 and pool.can_allocate(number % 5):
            owners.append(pool.allocate(number % 5, after=owners[-1][-1] if owners and owners[-1] else None))
        elif action == 1 and owners:
            pool.free(owners.pop(number % len(owners)))
        elif action == 2 and owners:
            for index, block in enumerate(owners[number % len(owners)]):
                pool.publish(block, f"{number % 7}:{index}".encode())
        elif action == 3:
            found = pool.match([f"{number % 7}:{index}".encode() for index in range(4)])
            pool.share(found)
            owners.append(found)
        pool.check(owners)
    for blocks in owners:
        pool.free(blocks)
    assert pool.num_free == pool.num_blocks


# prefix keys


def chain(tokens: list[int], visuals: tuple[Visual, ...] = (), size: int = 4) -> list[bytes]:
    parent, found = ROOT, []
    for start in range(0, len(tokens) - size + 1, size):
        parent = block_key(parent, tokens[start : start + size], start, visuals)
        found.append(parent)
    return found


def test_equal_tokens_have_equal_keys_up_to_the_first_difference():
    one, other = chain(list(range(12))), chain([0, 1, 2, 3, 4, 5, 6, 99, 8, 9, 10, 11])
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[2] != other[2]  # equal tokens, other past


def test_two_images_with_equal_text_share_no_block_from_the_image_on():
    tokens = [1, 2, 3, 4, 5, 9, 9, 9, 9, 9, 9, 6]  # 9 is the placeholder of either picture
    cat, dog = (chain(tokens, (Visual(5, 6, name, name),)) for name in ("cat", "dog"))
    assert cat[0] == dog[0]
    assert cat[1] != dog[1]
    assert cat[2] != dog[2]


def test_the_same_image_further_along_has_other_keys():
    tokens = [9] * 8
    assert chain(tokens, (Visual(0, 8, "a", "a"),)) != chain(tokens, (Visual(-4, 12, "a", "a"),))


def test_one_image_of_two_parts_differs_from_two_images():
    tokens = [9] * 8
    assert chain(tokens, (Visual(0, 8, "a", "a"),)) != chain(
        tokens, (Visual(0, 4, "a", "a"), Visual(4, 4, "a", "a"))
    )


def test_equal_frames_with_other_timing_share_no_block():
    tokens = [9] * 4
    assert chain(tokens, (Visual(0, 4, "f", "f@1.0"),)) != chain(tokens, (Visual(0, 4, "f", "f@0.5"),))
