"""When an engine process is said to hang, and when it only works hard."""

import time

import pytest

from fourbee.server import engine_pulse
from fourbee.server.engine_pulse import Heartbeat, Pulse, Watch


class Worked:
    """A process that works as it is told, second by second; `fault` is what was said of it."""

    def __init__(self, loading: bool = False) -> None:
        self.watch = Watch()
        self.watch.loading = loading
        self.beat = {"in_step": 0, "steps": 0, "operations": 0, "cpu_seconds": 0.0, "disk": 0}

    def after(self, seconds: int, heard: bool = True, in_step: bool = True, **rates) -> str | None:
        """The fault after so many seconds at these rates a second, or the first before."""
        for _ in range(seconds):
            for name, rate in rates.items():
                self.beat[name] += rate
            if heard:
                self.watch.hear()
                beat = self.beat | {"in_step": in_step}
                self.watch.beat(
                    Heartbeat(
                        beat["in_step"], beat["steps"], beat["operations"], beat["cpu_seconds"],
                        beat["disk"],
                    )
                )  # fmt: skip
            if fault := self.watch.tick(1.0):
                return fault
        return None


@pytest.mark.parametrize(
    ("rates", "seconds"),
    [
        ({"in_step": False}, 10_000),  # idle
        ({"steps": 40, "cpu_seconds": 2.0, "operations": 5000}, 10_000),
        ({"operations": 1}, 10_000),  # a slow step of native operations, on a busy machine
        ({"cpu_seconds": 0.5}, 590),  # a long step of NumPy
        ({"disk": 10}, 590),  # weights that are read from a slow disk
    ],
)
def test_work_is_no_fault(rates, seconds):
    assert Worked().after(seconds, **rates) is None


@pytest.mark.parametrize(
    ("rates", "fault"),
    [
        ({"heard": False}, "gave no sign of life for 8 seconds"),
        ({"cpu_seconds": 0.001}, "stood still in a step for 8 seconds"),
    ],
)
def test_what_hangs_is_noticed_within_ten_seconds(rates, fault):
    worked = Worked()
    assert worked.after(1000, steps=40, cpu_seconds=1.0) is None
    assert worked.after(9, **rates) == fault


def test_an_endless_loop_is_noticed_in_the_end():
    worked = Worked()
    assert worked.after(3, operations=100, cpu_seconds=1.0) is None
    assert worked.after(1000, cpu_seconds=1.0) == "did not end a step in 601 seconds"


def test_while_a_model_is_loaded_only_silence_counts():
    assert Worked(loading=True).after(2000) is None
    assert Worked(loading=True).after(119, heard=False) is None
    fault = Worked(loading=True).after(200, heard=False)
    assert fault == "gave no sign of life for 121 seconds"


def test_a_stop_of_the_whole_group_is_no_fault_of_the_engine():
    watch = Watch()
    watch.loading = False
    watch.beat(Heartbeat(True, 1, 0, 0.0, 0))
    assert watch.tick(3600.0) is None


def test_a_pulse_tells_of_steps_and_of_the_processor(monkeypatch):
    monkeypatch.setattr(engine_pulse, "BEAT_SECONDS", 0.02)
    beats: list[Heartbeat] = []
    pulse = Pulse(beats.append)
    with pulse.beating():
        with pulse.step():
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                sum(range(1000))
        time.sleep(0.2)
    assert len(beats) > 4
    assert [beats[0].in_step, beats[0].steps] == [True, 0]
    assert [beats[-1].in_step, beats[-1].steps] == [False, 1]
    assert beats[-1].cpu_seconds - beats[0].cpu_seconds > 0.02
    seen = len(beats)
    time.sleep(0.1)
    assert len(beats) == seen
