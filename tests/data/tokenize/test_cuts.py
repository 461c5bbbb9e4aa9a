"""What data.length cuts, and that the length which is proposed does what is said of it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.data.conversation import Call, Conversation, Message
from tuner.data.tokenize.cuts import ALLOWED, Cut, Cuts, cuts_calls, proposed_lengths


def cuts(*found: Cut) -> Cuts:
    made = Cuts()
    made.add(found)
    return made


def longer(*wholes: int, calls: bool = False) -> list[Cut]:
    return [Cut(whole=whole, calls=calls) for whole in wholes]


@pytest.mark.parametrize(
    ("found", "of", "context", "words"),
    [
        ([], 100, None, ""),
        (longer(3000), 100, None, ""),  # 1 %
        (
            longer(3000, 3000),
            100,
            None,
            "data.length=2048 cuts 2 of 100 rows (2 %); data.length=4096 would hold all",
        ),
        (
            longer(3000, 3000, 9000),
            100,
            32768,
            "data.length=2048 cuts 3 of 100 rows (3 %); data.length=4096 would hold all but 1 %",
        ),
        (
            longer(9000, 9000, 3000),
            100,
            8192,
            (
                "data.length=2048 cuts 3 of 100 rows (3 %); data.length=8192 is the most that the model was "
                "made for, and would hold all but 2 %"
            ),
        ),
        (
            longer(3000, 3000, 3000),
            100,
            3000,
            "data.length=2048 cuts 3 of 100 rows (3 %); data.length=3000 would hold all",
        ),
        (
            longer(3000, 3000),
            100,
            2048,
            (
                "data.length=2048 cuts 2 of 100 rows (2 %), and the model was made for no more (2,048 "
                "tokens); data.overlong=split trains on the rest too, as documents of their own"
            ),
        ),
        (
            longer(5000, calls=True),
            1000,
            None,
            (
                "data.length=2048 cuts 1 of 1,000 rows (0.1 %), and calls of tools in 1 of them; "
                "data.length=8192 would hold all"
            ),
        ),
        (
            longer(5000, calls=True) + longer(9000),
            1000,
            None,
            (
                "data.length=2048 cuts 2 of 1,000 rows (0.2 %), and calls of tools in 1 of them; "
                "data.length=8192 would hold all but 0.1 %"
            ),
        ),
        (
            longer(9000, calls=True),
            1000,
            8192,
            (
                "data.length=2048 cuts 1 of 1,000 rows (0.1 %), and calls of tools in 1 of them; "
                "data.length=8192 is the most that the model was made for, and would hold all but 0.1 %, "
                "and cut calls in 1 row"
            ),
        ),
        (
            [Cut(whole=2049, calls=False, rows=7)],
            100,
            None,
            "data.length=2048 cuts 7 of 100 rows (7 %); data.length=4096 would hold all",
        ),
    ],
)
def test_it_is_said_what_is_cut_and_what_would_do(
    found: list[Cut], of: int, context: int | None, words: str
) -> None:
    assert cuts(*found).advice(2048, of, context) == words


@given(
    found=st.lists(
        st.builds(Cut, whole=st.integers(65, 5000), calls=st.booleans(), rows=st.integers(1, 3)), max_size=40
    ),
    whole=st.integers(1, 3000),
    context=st.none() | st.integers(64, 6000),
)
def test_the_proposed_length_does_what_is_said_of_it(
    found: list[Cut], whole: int, context: int | None
) -> None:
    made = cuts(*found)
    of = whole + made.rows
    said = made.advice(64, of, context)
    assert bool(said) == (made.rows > ALLOWED * of or made.calls > 0)
    proposed = re.search(r"; data\.length=(\d+)", said)
    if not proposed:
        assert not said or context == 64 or "data.overlong=split" in said
        return
    length = int(proposed[1])
    assert length > 64
    assert context is None or length <= context
    left, lost = (
        sum(cut.rows for cut in found if cut.whole > length),
        any(cut.calls and cut.whole > length for cut in found),
    )
    if "the most that the model was made for" in said:
        assert length == context
        assert left > ALLOWED * of or lost
    else:
        assert left <= ALLOWED * of
        assert not lost
    assert ("would hold all but" in said) == bool(left)
    # And none that is tried before it would do.
    for less in [n for n in proposed_lengths(64, 5000, context) if n < length]:
        assert sum(cut.rows for cut in found if cut.whole > less) > ALLOWED * of or any(
            cut.calls and cut.whole > less for cut in found
        )


def test_a_call_is_cut_where_its_turn_ends_behind_what_is_kept() -> None:
    call = Call(name="f", arguments="{}")
    asks = Message(role="assistant", calls=(call,), trained=True)
    says = Message(role="assistant", content="x", trained=True)
    user = Message(role="user", content="q")
    conversation = Conversation(messages=(user, asks, user, says, user, says))
    assert [cuts_calls(conversation, (10, 20, 30), at) for at in (0, 9, 10, 25)] == [True, True, False, False]
    assert not cuts_calls(Conversation(messages=(user, says)), (10,), 0)
    assert not cuts_calls(None, (), 5)
    # turns that can't be told apart: rather said once too often
    assert cuts_calls(conversation, (10, 15, 20, 30), 25)
