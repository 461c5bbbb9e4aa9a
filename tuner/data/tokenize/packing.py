"""Documents → packs: best fit, longest first, so that no document is split and few places stay empty.

Each document goes into the pack it fills best, and opens a new one where none has room (best-fit decreasing;
at most 11/9 of the fewest packs possible, and one more: Johnson 1973, Dósa 2007). The result depends on the
lengths, their order and the seed, and on nothing else.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapify, heappop
from typing import Literal

from tuner.data.shares import round_of

VERSION = 2
"""bumped when the same lengths and seed would give other packs, or other documents would be held out; 2:
drawn by distinct content
"""

SHARE, ROWS, TOKENS = 0.05, 1_000, 500_000
"""what data.held_out=auto holds out: this share of the rows, but no more rows and tokens, since evaluation
runs over them twice
"""


def pack(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Put documents of `lengths` tokens into packs of at most `capacity`. Returns each pack's document
    indices, rising.

    >>> sorted(pack([5, 3, 7, 2], capacity=10, seed=0))
    [[0, 3], [1, 2]]

    Here 7 opens a pack (3 left), 5 opens one (5 left), 3 fills the first, 2 goes into the second. The packs
    come shuffled by `seed`, since longest first would be an order. Raises ValueError when a document is
    longer than a pack.
    """
    packs: list[list[int]] = []
    open_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of open_by_room, rising
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[document]
        if length > capacity:
            raise ValueError(f"document {document} has {length} tokens, more than a pack's {capacity}")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            chosen, room = len(packs), capacity
            packs.append([])
        else:
            room = rooms[at]
            chosen = open_by_room[room].pop()
            if not open_by_room[room]:
                del open_by_room[room], rooms[at]
        packs[chosen].append(document)
        left = room - length
        if left not in open_by_room:
            open_by_room[left] = []
            insort(rooms, left)
        open_by_room[left].append(chosen)
    return [sorted(packs[i]) for i in shuffled(len(packs), f"packs/{seed}")]


def pack_pairs(lengths: Sequence[int], follows: Sequence[bool], capacity: int, seed: int) -> list[list[int]]:
    """As `pack`, with documents that stay in the pack of the one in front of them.

    >>> pack_pairs([2, 3, 7, 1], [False, True, False, False], capacity=8, seed=0)
    [[2, 3], [0, 1]]
    """
    if not any(follows):
        return pack(lengths, capacity, seed)
    groups: list[list[int]] = []
    for document, follow in enumerate(follows):
        if follow:
            groups[-1].append(document)
        else:
            groups.append([document])
    packs = pack([sum(lengths[i] for i in group) for group in groups], capacity, seed)
    return [[document for group in members for document in groups[group]] for members in packs]


def draw_held_out(
    firsts: Sequence[int],
    rows: Sequence[int],
    tokens: Sequence[int],
    share: float | Literal["auto"],
    seed: int,
) -> list[int]:
    """The indices, rising, of the contents that are kept out of training: a `share` of the rows, at least one
    content of two, never all.

    firsts  for each content, which row of the data is the first that holds it, from 0, rising
    rows    how many rows hold it
    tokens  of all these rows
    share   `auto` is 5 % of the rows, of which there are at most 1,000, with at most 500,000 tokens

    Each row of the data draws a number in its turn, and contents come by that of their first row, the
    smallest first. One that holds more rows than are still wanted is passed over; so the share is missed by
    less than the rows of the rarest content left, however often others stand there. With tokens the draw ends
    at the first content for which there is no room, since going on would take the short ones. Rows that are
    added at the end move few others.
    """
    total = sum(rows)
    if share == 0 or len(rows) < 2:
        return []
    capped = share == "auto"
    wanted = min(
        max(1, round_of(total, SHARE if share == "auto" else share)), total - 1, ROWS if capped else total
    )
    draws = random.Random(f"held_out/{seed}")
    keys = [draws.random() for _ in range(firsts[-1] + 1)]
    order = [(keys[first], i) for i, first in enumerate(firsts)]
    rarest = min((rows[i], key, i) for key, i in order)[-1]
    heapify(order)
    chosen, left, room = [], wanted, TOKENS if capped else sum(tokens)
    while order and left:
        i = heappop(order)[1]
        if rows[i] > left or (capped and tokens[i] > TOKENS):
            continue
        if tokens[i] > room:
            break
        chosen.append(i)
        left, room = left - rows[i], room - tokens[i]
    return sorted(chosen) or [rarest]


def draw_rows(rows: int, take: int | float, seed: int) -> list[int]:
    """How often each of `rows` rows is used when `take` of them are drawn: a number of rows, or as a float a
    share of them.

    >>> draw_rows(4, 2, seed=0), draw_rows(4, 2.5, seed=0)
    ([1, 1, 0, 0], [3, 3, 2, 2])

    Raises ValueError for more rows than there are; a share above 1.0 takes rows again.
    """
    if isinstance(take, int) and take > rows:
        raise ValueError(f"there are {rows} rows, fewer than the {take} wanted")
    whole, count = (
        (0, take) if isinstance(take, int) else divmod(round_of(rows, take), rows) if rows else (0, 0)
    )
    times = [whole] * rows
    for i in shuffled(rows, f"take/{seed}")[:count]:
        times[i] += 1
    return times


def shuffled(count: int, seed: str) -> list[int]:
    """The numbers below `count` in an order drawn from `seed`; by Random.random() alone, which no Python
    version has changed.
    """
    draws = random.Random(seed)
    keys = [draws.random() for _ in range(count)]
    return sorted(range(count), key=lambda i: (keys[i], i))
