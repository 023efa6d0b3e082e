"""The suites, and the tests of each that give another result with our classes, with the reason.

docs/compatibility.md has the same list for readers.
"""

from dataclasses import dataclass, field

#: The name of a test, as `module::test` or `module.Class::test`.
Name = str

SERVER_EVENT = (
    "The test sends the event `websocket.receive` through the channel layer, as if the layer were a client. "
    "Ours do not hand an event of the layer to a handler of the server's events: any program that can write "
    "to Redis could then speak for a client."
)
MALFORMED = (
    "The test expects that an event with the name of a private method as its type ends the consumer with "
    "ValueError. Ours log it once and ignore it, so that one message cannot end every member of a group. No "
    "method is called."
)
TRANSACTION = (
    "The test is a TestCase of Django: its data are in a transaction that no other thread sees, and records "
    'are written in a thread. It needs TransactionTestCase, or REALTIME = {"LEDGER": "inline"}.'
)
CAPACITY = (
    "The test expects a default capacity of 100. Ours is 10,000: all connections of a process share one "
    "queue, and a full queue drops group messages without a word. The option `capacity` sets another."
)


@dataclass(frozen=True)
class Suite:
    """The tests of another project.

    Args:
        name: The name of the distribution.
        gets: Names that hold our classes or subclasses of them in the second run, as `module.Class`.
        exceptions: The tests that pass on the classes of Channels and not on ours, with the reason of each.
        left_out: The tests that pass on neither, with the reason of each.
        copied: The files and folders of the source distribution or checkout that the tests need.
        ignored: The folders of tests that do not run, with the reason of each.
        redis: The suite needs a Redis and a Sentinel at their usual ports.
        plugins: Plugins of the folder `inside` for both runs.
        published: The source distribution on PyPI has the tests.
    """

    name: str
    gets: frozenset[str]
    exceptions: dict[Name, str] = field(default_factory=dict)
    left_out: dict[Name, str] = field(default_factory=dict)
    copied: tuple[str, ...] = ("tests", "setup.cfg")
    ignored: dict[str, str] = field(default_factory=dict)
    redis: bool = False
    plugins: tuple[str, ...] = ()
    published: bool = True


CHANNELS = Suite(
    name="channels",
    gets=frozenset(
        {
            "tests.test_generic_websocket.AsyncWebsocketConsumer",
            "tests.test_generic_websocket.AsyncJsonWebsocketConsumer",
            "tests.test_generic_websocket.WebsocketConsumer",
            "tests.test_generic_websocket.JsonWebsocketConsumer",
            "tests.test_inmemorychannel.InMemoryChannelLayer",
        }
    ),
    exceptions={
        "tests.test_generic_websocket::test_websocket_consumer_groups": SERVER_EVENT,
        "tests.test_generic_websocket::test_async_websocket_consumer_groups": SERVER_EVENT,
        "tests.test_generic_websocket::test_async_websocket_consumer_specific_channel_layer": SERVER_EVENT,
        "tests.test_generic_websocket::test_block_underscored_type_function_call": MALFORMED,
        "tests.test_generic_websocket::test_block_leading_dot_type_function_call": MALFORMED,
        "tests.test_database.ConnectionClosingTests::test_websocket": TRANSACTION,
    },
    ignored={"tests/sample_project": "needs Selenium, Chrome and its driver"},
    published=False,
)

CHANNELS_REDIS = Suite(
    name="channels_redis",
    gets=frozenset(
        {
            "test_core.RedisChannelLayer",
            "test_sentinel.RedisChannelLayer",
            "test_pubsub.RedisPubSubChannelLayer",
            "test_pubsub_sentinel.RedisPubSubChannelLayer",
        }
    ),
    exceptions={
        "tests.test_core::test_receive_buffer_respects_capacity": CAPACITY,
        "tests.test_sentinel::test_receive_buffer_respects_capacity": CAPACITY,
    },
    redis=True,
)

DJANGOCHANNELSRESTFRAMEWORK = Suite(
    name="djangochannelsrestframework",
    gets=frozenset({"djangochannelsrestframework.consumers.AsyncJsonWebsocketConsumer"}),
    copied=("tests",),
    # While consumers of earlier tests live, `test_observer_model_instance_mixin` fails on plain Channels too.
    plugins=("garbage_collected",),
)

SUITES = (CHANNELS, CHANNELS_REDIS, DJANGOCHANNELSRESTFRAMEWORK)
