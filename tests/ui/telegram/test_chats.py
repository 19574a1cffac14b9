from ui.telegram.chats import Bounds, Chats


def chats(count: int = 2, messages: int = 4, chars: int = 1000, age_s: float = 60) -> Chats:
    return Chats(Bounds(count, messages, chars, age_s))


def said(kept: Chats, chat: int, now_s: float = 0) -> list[str]:
    return [turn["content"] for turn in kept.turns(chat, now_s)]


def test_turns_are_kept_in_order_and_by_chat():
    kept = chats()
    kept.add(1, "a", "b", 0)
    kept.add(2, "x", "y", 0)
    assert kept.turns(1, 0) == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert said(kept, 2) == ["x", "y"] and said(kept, 3) == []


def test_the_oldest_turns_go_when_there_are_too_many_or_too_long():
    kept = chats(messages=4, chars=10)
    for letter in "abc":
        kept.add(1, letter, letter, 0)
    assert said(kept, 1) == ["b", "b", "c", "c"]
    kept.add(1, "d" * 4, "d" * 4, 0)
    assert said(kept, 1) == ["c", "c", "dddd", "dddd"]
    kept.add(1, "e" * 20, "e", 0)
    assert said(kept, 1) == []


def test_the_chat_that_rested_longest_goes_when_there_are_too_many():
    kept = chats(count=2)
    for chat in (1, 2, 1, 3):
        kept.add(chat, "a", "b", 0)
    assert [bool(said(kept, chat)) for chat in (1, 2, 3)] == [True, False, True] and len(kept) == 2


def test_a_conversation_ends_when_it_rested_too_long():
    kept = chats(age_s=60)
    kept.add(1, "a", "b", 0)
    kept.add(2, "a", "b", 30)
    kept.expire(59.9)
    assert len(kept) == 2
    kept.expire(60)
    assert len(kept) == 1 and said(kept, 2, 60)
    assert said(kept, 2, 90) == [] and len(kept) == 0


def test_forget_deletes_the_conversation_and_keeps_the_mode():
    kept = chats()
    kept.set_mode(1, "chat")
    kept.add(1, "a", "b", 0)
    assert (kept.forget(1), kept.forget(1), said(kept, 1), kept.mode(1)) == (True, False, [], "chat")
    kept.leave(1)
    assert kept.mode(1) == "score"


def test_modes():
    kept = chats()
    kept.set_mode(1, "chat")
    assert (kept.mode(1), kept.mode(2)) == ("chat", "score")
    kept.set_mode(1, "score")
    assert kept.mode(1) == "score"
