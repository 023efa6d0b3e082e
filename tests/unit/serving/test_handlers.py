"""Answers about handlers: they hold no class, and their number is bounded."""

import gc
import weakref

from channels.consumer import AsyncConsumer

from realtime.serving import handlers
from realtime.serving.handlers import MAX_ANSWERS, Target, target


def make_consumer() -> type:
    class Chat(AsyncConsumer):
        async def chat_message(self, event: dict[str, object]) -> None:
            pass

    return Chat


def test_an_answer_does_not_keep_the_class_alive() -> None:
    consumer = make_consumer()
    assert target(consumer, "chat.message") is Target.HANDLER
    gone = weakref.ref(consumer)
    del consumer
    gc.collect()
    assert gone() is None


def test_the_answers_of_one_class_are_bounded() -> None:
    consumer = make_consumer()
    for number in range(2 * MAX_ANSWERS + 1):
        assert target(consumer, f"type.{number}") is Target.MISSING
    assert len(handlers._answers[consumer]) <= MAX_ANSWERS
    assert target(consumer, "chat.message") is Target.HANDLER


def test_a_second_question_gets_the_first_answer() -> None:
    consumer = make_consumer()
    assert target(consumer, "late") is Target.MISSING

    async def late(self: object, event: dict[str, object]) -> None:
        pass

    consumer.late = late  # type: ignore[attr-defined] - as an author might, too late
    assert target(consumer, "late") is Target.MISSING
