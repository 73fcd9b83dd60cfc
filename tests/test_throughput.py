"""What makes training fast: programs ahead of the device, many steps a program, half precision, traces."""

from types import SimpleNamespace

import numpy as np
import pytest

from mixtrain_jax.training import pace as pace_module
from mixtrain_jax.training.pace import AHEAD, Pace


class Device:
    """Runs one program after another, each in its time; the host reads the clock and waits."""

    def __init__(self, monkeypatch):
        self.now = self.free = 0.0
        self.waits = []
        monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def dispatch(self, seconds, host=0.0):
        self.now += host
        self.free = max(self.free, self.now) + seconds
        return SimpleNamespace(block_until_ready=lambda at=self.free: self._wait(at))

    def _wait(self, until):
        self.waits.append(until)
        self.now = max(self.now, until)


@pytest.mark.parametrize(("device_seconds", "host_seconds"), [(2.0, 0.5), (0.5, 2.0)])
def test_the_time_of_a_step_is_that_of_the_slower_of_host_and_device(monkeypatch, device_seconds, host_seconds):
    device = Device(monkeypatch)
    pace = Pace(spent=100.0)
    for done in range(1, 31):
        pace.follow(device.dispatch(device_seconds, host_seconds))
        assert len(device.waits) == max(0, done - AHEAD)
    rates = pace.rates(10)
    np.testing.assert_allclose(rates["step_seconds"], 2.0)
    # The device is at most so many steps behind.
    assert device.free - device.now <= AHEAD * device_seconds
    assert rates["seconds"] == 100 + device.now


def test_percentiles_are_of_the_steps_since_the_last_row_without_pauses(monkeypatch):
    device = Device(monkeypatch)
    pace = Pace(spent=0.0)
    times = np.random.default_rng(0).uniform(1, 2, 300)
    for seconds in times:
        pace.follow(device.dispatch(seconds))
    device.now = device.free
    with pace.paused():
        device.now += 1000
    found = pace.rates(7)
    # The first wait starts the clock, and the last ones are never waited for.
    np.testing.assert_allclose(found["step_seconds"], np.percentile(times[1:-AHEAD], (50, 90, 99)))
    np.testing.assert_allclose((found["seconds"], found["examples_per_second"]), (times.sum(), 7 / times.mean()))
    for _ in range(20):
        pace.follow(device.dispatch(10.0), steps=5)
    device.now = device.free
    np.testing.assert_allclose(pace.rates(7)["step_seconds"], 2.0)
    with pace.paused():
        device.now += 1000
    pace.follow(device.dispatch(0, host=3.0))
    with pace.paused():
        device.now += 1000
    pace.follow(device.dispatch(0, host=5.0))
    np.testing.assert_allclose(pace.rates(7)["step_seconds"], 4.0)  # too few: their mean
