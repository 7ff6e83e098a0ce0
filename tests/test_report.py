"""What a training shows: report.html, the live view, samples, and other loggers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from commands import shown_by

from tsm.training import model, report, view
from tsm.training.config import RunError
from tsm.training.metrics import Log
from tsm.training.sample import surprise
from tsm.training.spec import PRESETS

ROOT = Path(__file__).parent.parent
TEXT = b"the king <b>speaks</b> & a fool laughs\nbut my lord weeps\n"


def command(folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "training/train.py"), "--data", str(folder / "text.txt")),
        *("--out", str(folder / "run"), "--preset", "tiny", "--steps", "20", "--batch", "2"),
        *("--window", "16", "--eval-windows", "4", "--no-export", *more),
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a text and a run on it, that was shown on a terminal."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_bytes(TEXT * 100)
    done = shown_by(command(folder), stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    (folder / "shown").write_bytes(done.stdout)
    return folder


@pytest.fixture
def folder(tmp_path, finished) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_terminal_shows_figures_a_sparkline_and_the_time_left(finished):
    shown = (finished / "shown").read_text()
    assert re.search(r"step 20 of 20 .*0:00:00", shown)
    assert re.search(r"loss \d\.\d+   [\d,]+ tokens/s   rate [\d.]+   \d+\.\d [MG]B", shown)
    assert re.search(r"validation \d\.\d{4} [▁▂▃▄▅▆▇█]{20}", shown)
    assert "MFU" not in shown  # of a processor the peak is not known


def test_plain_lines_have_ever_fewer_samples(folder):
    done = subprocess.run(
        command(folder, "--out", str(folder / "other")), capture_output=True, text=True, check=True
    )
    assert len(re.findall(r"^step \d+: validation", done.stderr, re.M)) == 20
    lines = map(json.loads, (folder / "other/metrics.jsonl").read_text().splitlines())
    samples = [line["sample"] for line in lines if "sample" in line]
    samples = dict.fromkeys(re.sub("[^ -~]", "", sample)[:20] for sample in samples)
    shown = re.sub("[^ -~]", "", done.stderr)  # what is no text is shown in other ways
    assert 3 <= sum(sample in shown for sample in samples) <= 8
    assert "\x1b" not in done.stderr


def test_the_report_has_all_in_itself_and_escapes_the_text(folder):
    metrics = folder / "run/metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "validation":
            line["sample"] = "<script>alert(1)</script>"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.write(folder / "run").read_text()
    assert not re.search(r"<script|<link|<img|src=|https?:|url\(|@import", page)
    assert "&lt;script&gt;alert(1)" in page and "<b>" not in page
    heat = re.search(r'<pre class="heat">(.*?)</pre>', page, re.S)
    assert heat
    spans = re.findall(
        r'<span style="--h:([\d.]+)" title="([\d.]+) nats">(.*?)</span>', heat[1], re.S
    )
    shown = "".join(character for _, _, character in spans)
    assert "my lord weeps↵\n" in shown and "&lt;b&gt;speaks&lt;/b&gt; &amp; a fool" in shown
    assert all(float(h) == pytest.approx(min(float(n) / 6, 1), abs=0.01) for h, n, _ in spans)
    points = re.findall(r'<polyline class="s0" points="([^"]+)"', page)
    assert [len(line.split()) for line in points] == [20, 20]  # training loss, and the rate


def test_the_report_is_written_again_and_says_what_is_gone(folder):
    (folder / "run/report.html").unlink()
    script = [sys.executable, str(ROOT / "training/report.py"), str(folder / "run")]
    (folder / "text.txt").write_bytes(TEXT * 99)
    record = json.loads((folder / "run/model.json").read_text())
    record["data"]["path"] = str(folder / "text.txt")
    record["plan"] = {"seconds": 61, "tokens_per_second": 1234.5, "nats_per_byte": 2.5}
    (folder / "run/model.json").write_text(json.dumps(record))
    subprocess.run(script, check=True)
    page = (folder / "run/report.html").read_text()
    assert "The text has changed since." in page
    assert "<td>1m 1s</td>" in page and "<td>1,234</td>" in page and "<td>2.50</td>" in page
    (folder / "run/model.json").write_text("[]")
    for wrong in (folder, folder / "run"):
        done = subprocess.run(
            [*script[:2], str(wrong)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_surprise_is_the_loss_of_each_byte():
    spec = PRESETS["tiny"]
    values = model.initialise(spec, 0)  # its head is zero: it knows nothing
    assert surprise(spec, values, np.frombuffer(TEXT, np.uint8)) == pytest.approx(np.log(256))


def test_ticks_are_round_and_enclose_the_values():
    for values, wanted in (
        ([0, 1000], [0, 200, 400, 600, 800, 1000]),
        ([1.31, 5.55], [1, 2, 3, 4, 5, 6]),
        ([0, 0.02], [0, 0.005, 0.01, 0.015, 0.02]),
        ([2.0], [2.0, 2.2]),
    ):
        ticks = report._ticks(values)
        assert ticks[0] <= min(values) and max(values) <= ticks[-1]
        assert ticks == pytest.approx(wanted)


def test_figures_as_one_reads_them():
    assert view.sparkline([3.0, 2.0, 1.0, 1.0]) == "█▅▁▁" and view.sparkline([]) == ""
    assert [view.duration(s) for s in (9.6, 61, 7384)] == ["10s", "1m 1s", "2h 3m"]
    assert [view.size(n) for n in (1500, 2.5e6, 3e9)] == ["1.5 KB", "2.5 MB", "3.0 GB"]
    share = view.share_of_peak("NVIDIA H100 80GB HBM3", 13_600_000, 1.2e6)
    assert share == pytest.approx(6 * 13.6e6 * 1.2e6 / 989e12)
    assert view.share_of_peak("NVIDIA L40S", 1, 1) < view.share_of_peak("NVIDIA L4", 1, 1)  # type: ignore[operator]
    assert view.share_of_peak("CPU", 13_600_000, 1.2e6) is None


def test_other_loggers_are_told_by_their_own_packages(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(log=lambda values, step: told.append((step, values)))
    wandb = types.SimpleNamespace(init=lambda **given: told.append(given) or run)
    mlflow = types.SimpleNamespace(
        set_experiment=told.append,
        start_run=lambda run_name: told.append(run_name),
        log_params=told.append,
        log_metrics=lambda values, step: told.append((step, values)),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    log = Log(tmp_path, -1, {"config": {"steps": 3}}, ["wandb", "mlflow"])
    log.write("validation", 2, nats_per_byte=1.5, sample="a text")
    log.close()
    assert told[0]["config"] == {"config": {"steps": 3}} and {"steps": 3} in told
    assert told[-2:] == [(2, {"validation/nats_per_byte": 1.5})] * 2
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunError, match="--log wandb: "):
        Log(tmp_path, -1, {}, ["wandb"])
