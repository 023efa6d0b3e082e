"""`realtime.closing`: the table of close reasons."""

import pytest

from realtime.closing import CloseReason, may_reconnect, of_disconnect


@pytest.mark.parametrize("reason", CloseReason)
def test_the_value_is_the_name_in_lower_case(reason):
    assert reason.value == reason.name.lower()
    assert CloseReason(reason.value) is reason


@pytest.mark.parametrize("label", ["", "IDLE", "idle ", "no_such_reason"])
def test_no_other_text_is_the_value_of_a_reason(label):
    with pytest.raises(ValueError, match="is not a valid CloseReason"):
        CloseReason(label)


@pytest.mark.parametrize("reason", CloseReason)
def test_the_value_fits_the_column_that_holds_it(reason):
    assert len(reason.value) <= 32


@pytest.mark.parametrize("reason", CloseReason)
def test_the_code_is_one_that_daphne_lets_an_application_send(reason):
    assert reason.code == 1000 or 3000 <= reason.code <= 4999


@pytest.mark.parametrize("reason", CloseReason)
def test_the_text_is_one_sentence(reason):
    assert reason.text[0].isupper()
    assert reason.text.endswith(".")
    assert reason.text.count(".") == 1


def test_all_reasons_differ():
    assert len(set(CloseReason)) == len(CloseReason.__members__) == 21
    assert len({reason.text for reason in CloseReason}) == 21


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (CloseReason.CLIENT_CLOSED, 1000),
        (CloseReason.CLIENT_LOST, 1000),
        (CloseReason.APPLICATION_CLOSED, 1000),
        (CloseReason.HANDLER_ERROR, 4000),
        (CloseReason.HANDLER_TIMEOUT, 4000),
        (CloseReason.CANCELLED, 4000),
        (CloseReason.SERVER_RESTART, 4000),
        (CloseReason.SERVER_LOST, 4000),
        (CloseReason.SERVER_UNAVAILABLE, 4000),
        (CloseReason.PING_TIMEOUT, 4008),
        (CloseReason.SEND_FAILED, 4009),
        (CloseReason.SLOW_CONSUMER, 4010),
        (CloseReason.IDLE, 4011),
        (CloseReason.RATE_LIMITED, 4029),
        (CloseReason.PROTOCOL_ERROR, 4500),
        (CloseReason.NOT_AUTHENTICATED, 4501),
        (CloseReason.FORBIDDEN, 4503),
        (CloseReason.KICKED, 4504),
        (CloseReason.SUPERSEDED, 4509),
        (CloseReason.TOO_LARGE, 4513),
    ],
)
def test_the_codes_are_those_of_the_protocol(reason, code):
    assert reason.code == code


def test_no_goodbye_if_the_client_closed_or_does_not_read():
    assert {reason for reason in CloseReason if not reason.goodbye} == {
        CloseReason.CLIENT_CLOSED,
        CloseReason.CLIENT_LOST,
        CloseReason.APPLICATION_CLOSED,
        CloseReason.PING_TIMEOUT,
        CloseReason.SEND_FAILED,
        CloseReason.SLOW_CONSUMER,
    }


def test_reasons_after_which_a_client_stays_away():
    assert {reason for reason in CloseReason if not reason.reconnect} == {
        CloseReason.PROTOCOL_ERROR,
        CloseReason.NOT_AUTHENTICATED,
        CloseReason.FORBIDDEN,
        CloseReason.KICKED,
        CloseReason.SUPERSEDED,
        CloseReason.TOO_LARGE,
    }


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1006, 1011, 1012, 3000, 3999, 4000, 4499, 5000])
def test_a_client_comes_back_after_every_code_below_4500(code):
    assert may_reconnect(code)


@pytest.mark.parametrize("code", [4500, 4501, 4750, 4999])
def test_a_client_stays_away_after_4500_to_4999(code):
    assert not may_reconnect(code)


def test_disconnect_code_1006_is_a_broken_transport():
    assert of_disconnect(1006) is CloseReason.CLIENT_LOST


@pytest.mark.parametrize("code", [None, 1000, 1001, 1005, 3000, 4000, 4501])
def test_any_other_disconnect_code_is_an_orderly_close(code):
    assert of_disconnect(code) is CloseReason.CLIENT_CLOSED
