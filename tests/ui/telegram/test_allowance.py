import asyncio

from ui.telegram.allowance import Allowance


def test_so_many_in_a_minute_for_each_user_and_one_word_about_it():
    async def run() -> None:
        allowance = Allowance(2)
        taken = [await allowance.take(1) for _ in range(4)]
        assert [each.is_allowed for each in taken] == [True, True, False, False]
        assert taken[2].refusal and "2 messages a minute" in taken[2].refusal and taken[3].refusal is None
        assert (await allowance.take(2)).is_allowed

    asyncio.run(run())
