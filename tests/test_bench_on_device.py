"""The benchmark of a GPU, with a device that only notes what is asked of it."""

import contextlib

import pytest
import torch

from funcnets.bench import on_device
from funcnets.bench.cases import Case

CASE = Case("lenet_bn", 8, 28, "cuda")


class Device:
    """Stands in for `torch.cuda`: its time passes by the steps that it is given."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        noted = ("synchronize", "empty_cache", "reset_peak_memory_stats")
        for name in noted:
            monkeypatch.setattr(torch.cuda, name, self.noting(name))
        monkeypatch.setattr(torch.compiler, "reset", self.noting("reset"))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2_000_000)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "Event", lambda **options: Event(self))

    def noting(self, name):
        return lambda *arguments: self.log.append(name)

    def column(self, seconds):
        """A contender whose step takes so many seconds on the device."""

        def step():
            self.log.append("step")
            self.now += seconds

        return lambda case, precision: step


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.device.log.append("event")
        self.at = self.device.now

    def synchronize(self):
        self.device.log.append("wait")

    def elapsed_time(self, ended):
        return 1e3 * (ended.at - self.at)


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


def timed(monkeypatch, columns, order, **options):
    monkeypatch.setattr(on_device, "GPU_COLUMNS", columns)
    rows = on_device.time_steps(CASE, order, ["float32"], operations=10**9, rounds=3, **options)
    return [*rows]


def test_ratios_are_to_the_fastest_module_which_is_timed_before(device, monkeypatch):
    columns = {
        "jit": device.column(0.01),
        "eager": device.column(0.04),
        "reduce-overhead": device.column(0.02),
    }
    rows = timed(monkeypatch, columns, ["jit", "eager", "reduce-overhead"])
    found = [(row.column, round(row.median, 6), row.ratio and round(row.ratio, 6)) for row in rows]
    assert found == [("eager", 200, 1), ("reduce-overhead", 400, 1), ("jit", 800, 2)]
    assert [row.tflops for row in rows] == pytest.approx([0.025, 0.05, 0.1])
    assert {row.memory for row in rows} == {2.0}


def test_nothing_waits_between_the_events_of_a_lap(device):
    seconds = on_device.lap(device.column(0.01)(CASE, "float32"), 3, "cuda")
    assert seconds == pytest.approx(0.01)
    assert device.log == ["synchronize", "event", "step", "step", "step", "event", "wait"]


def test_a_column_that_fails_is_reported_and_every_column_is_freed(device, monkeypatch):
    def fail(case, precision):
        raise MemoryError("out of memory\nby far")

    said = []
    columns = {"eager": fail, "graph": device.column(0.01)}
    (row,) = timed(monkeypatch, columns, ["eager", "graph"], report=said.append)
    assert (row.column, row.ratio) == ("graph", None)
    assert said == ["lenet_bn, eager, float32: failed: out of memory"]
    assert device.log.count("empty_cache") == 2
    assert device.log[-2:] == ["reset", "empty_cache"]
