"""SIGTERM and Ctrl-C: the first signal finishes what is in hand, the second stops at once."""

from __future__ import annotations

import os
import signal

import pytest

from fate_trl.process.stop import Stop, Stopped


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_waits_and_the_second_does_not(number, status, capfd):
    before = signal.getsignal(number)
    stop = Stop()
    stop.check()
    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop.asked == number
        with pytest.raises(Stopped) as second:
            os.kill(os.getpid(), number)
        assert second.value.status == status
        with pytest.raises(Stopped) as checked:
            stop.check()
    assert checked.value.status == status
    assert signal.getsignal(number) == before
    assert "once more to stop at once" in capfd.readouterr().err
