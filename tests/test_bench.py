"""The command tsm-bench.

pytest tests/test_bench.py
"""

from __future__ import annotations

import json
from array import array

import pytest
from commands import TFLITE, output

from tsm.runtime import bench, command, engines
from tsm.runtime.artifact import open_artifact


@pytest.mark.parametrize(
    ("longest", "wanted"),
    [(10, [10]), (100, [100]), (101, [100, 101]), (10_000, [100, 1000, 10_000])],
)
def test_positions_go_by_tens_to_the_longest(longest, wanted):
    assert bench.positions(longest) == wanted


class Recorded(engines.Engine):
    """Remembers all that was read as its state, and at what length it was asked."""

    def __init__(self) -> None:
        super().__init__(open_artifact(TFLITE))
        self.artifact.state = {}
        self.read, self.asked = b"", []

    def feed(self, data: bytes):
        self.asked.append((len(self.read), len(data)))
        self.read += data
        return array("f", bytes(1024))

    def get_state(self) -> dict[str, bytes]:
        return {"read": self.read}

    def set_state(self, state: dict[str, bytes]) -> None:
        self.read = state["read"]

    def _write_state(self, state): ...

    def _run(self, tokens): ...

    def close(self): ...


def test_a_position_is_reached_by_feeding_and_measured_there(monkeypatch):
    engine = Recorded()
    monkeypatch.setattr(bench, "open_engine", lambda *_: engine)
    monkeypatch.setattr(bench, "first_byte_seconds", lambda *_: 0.5)
    monkeypatch.setattr(bench, "peak_rss_bytes", lambda *_: None)
    found = bench.bench(engine.artifact, ["native"], 1500, 2, 3)
    assert engine.read == (bench.TEXT * 40)[:1500]
    decode = [(100 + i, 1) for i in range(3)]
    assert engine.asked[:9] == [(0, 100), *[(100, 1024), *decode] * 2]
    assert [row["position"] for row in found["speed"]] == [100, 1000, 1500]
    (process,) = found["processes"]
    assert process["first_byte_seconds"] == 0.5
    assert "not readable" in bench.shown(found)


@pytest.mark.parametrize("weight_cache", [False, True])
def test_bench_measures_the_shipped_model(weight_cache, tmp_path):
    settings = ("--longest", 120, "--repeats", 1, "--bytes", 5, "--engine", "native", "litert")
    cache = ("--weight-cache", tmp_path) if weight_cache else ()
    found = json.loads(output("bench", *settings, *cache, "--json"))
    assert found["weight_cache"] == weight_cache == bool(list(tmp_path.iterdir()))
    rows = [(row["engine"], row["position"]) for row in found["speed"]]
    assert rows == [(kind, at) for at in (100, 120) for kind in ("native", "litert")]
    assert all(row["decode_bytes_per_second"] > 1 for row in found["speed"])
    for process in found["processes"]:
        assert 0.01 < process["first_byte_seconds"] < 100
        assert 8_000_000 < process["peak_rss_bytes"] < 56_000_000


def test_energy_is_of_whole_packages_and_may_begin_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "POWERCAP", tmp_path)
    assert bench.energy_counters() == []
    for name, energy in (("intel-rapl:0", 900), ("intel-rapl:1", 5), ("intel-rapl:0:0", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("999\n")
    before = bench.energy_counters()
    assert before == [(900, 1000), (5, 1000)]
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100\n")
    assert bench.joules_between(before, bench.energy_counters()) == pytest.approx(200e-6)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert bench.energy_counters() == []


def test_a_process_that_fails_is_one_clear_line(tmp_path):
    with pytest.raises(command.CommandError, match=r"no such file[^\n]+$"):
        bench.first_byte_seconds(tmp_path / "none.tflite", "native")
    with pytest.raises(command.CommandError, match=r"no such file[^\n]+$"):
        bench.peak_rss_bytes(tmp_path / "none.tflite", "native")
