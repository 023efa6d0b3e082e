"""The context of a task that outlives its caller."""

from contextvars import ContextVar, copy_context

from asgiref.sync import AsyncToSync, SyncToAsync

from realtime.process import tasks

variable = ContextVar("variable", default="unset")


def test_a_caller_outside_of_threads_shares_its_own_context() -> None:
    assert copy_context().run(tasks.outliving) is None


def test_a_task_that_outlives_a_thread_does_not_use_it() -> None:
    def in_a_handlers_thread() -> None:
        variable.set("kept")
        AsyncToSync.executors.current = executor = object()
        context = tasks.outliving()
        assert context is not None
        assert context.run(getattr, AsyncToSync.executors, "current") is None
        assert context[variable] == "kept"
        assert AsyncToSync.executors.current is executor

    copy_context().run(in_a_handlers_thread)


def test_a_task_that_outlives_a_visit_may_make_one() -> None:
    def during_a_visit() -> None:
        SyncToAsync.deadlock_context.set(True)
        context = tasks.outliving()
        assert context is not None
        assert context[SyncToAsync.deadlock_context] is False

    copy_context().run(during_a_visit)
