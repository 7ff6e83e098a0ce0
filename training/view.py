"""What a training shows as it runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..runtime.generate import peak_rss_bytes
from ..runtime.text import printable

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 40  # of the last evaluations
# Dense bf16 operations a second, from the vendors' data sheets.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
FLOPS_PER_WEIGHT = 6  # a token: two forward, four backward


def sparkline(values: list[float]) -> str:
    """A block a value, the highest for the greatest."""
    if not values:
        return ""
    low, span = min(values), (max(values) - min(values)) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in values)


def size(count: float) -> str:
    """Bytes, as one reads them."""
    scale, unit = (1e9, "GB") if count >= 1e9 else (1e6, "MB") if count >= 1e6 else (1e3, "KB")
    return f"{count / scale:.1f} {unit}"


def duration(seconds: float) -> str:
    """As `--budget` takes it: 45s, 4m 10s, 2h 5m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    return f"{minutes}m {rest}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60}m"


def share_of_peak(device: str, parameters: int, tokens_per_second: float) -> float | None:
    """Of what the device can multiply (MFU); None where that is not known."""
    # The longest name first: L40S is no L4.
    found = [name for name in sorted(PEAK_FLOPS, key=len, reverse=True) if name in device]
    if not found:
        return None
    return FLOPS_PER_WEIGHT * parameters * tokens_per_second / PEAK_FLOPS[found[0]]


class View(Progress):
    """A bar with the time that is left, and under it the figures of the last step."""

    def __init__(self, steps: int, silent: bool = False) -> None:
        self._steps, self._figures = steps, ""
        self._validations: list[float] = []
        self._shown_step = 0  # of the last sample on a screen that keeps them all
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        console = Console(stderr=True, quiet=silent)
        super().__init__(
            *columns,
            console=console,
            speed_estimate_period=600,
            refresh_per_second=2,
            disable=silent or not console.is_terminal,
        )
        self._task = self.add_task("", total=steps)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self._figures, style="dim", no_wrap=True, overflow="ellipsis")
        if self._validations:
            line = f"validation {self._validations[-1]:.4f} {sparkline(self._validations)}"
            yield Text(line, style="dim", no_wrap=True, overflow="ellipsis")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(
        self,
        step: int,
        loss: float,
        tokens_per_second: float,
        status: dict[str, float],
        engine: Any,
        parameters: int,
    ) -> None:
        """status: of the schedule, by name."""
        if self.disable:
            return
        figures = [f"loss {loss:.3f}", f"{tokens_per_second:,.0f} tokens/s"]
        figures += [f"{name} {value:.3g}" for name, value in status.items()]
        memory = engine.memory_bytes() or peak_rss_bytes()
        figures += [size(memory)] if memory else []
        share = share_of_peak(engine.device_name(), parameters, tokens_per_second)
        figures += [f"MFU {share:.1%}"] if share else []
        self._figures = "   ".join(figures)
        self.update(self._task, completed=step, description=f"step {step} of {self._steps}")

    def validation(self, step: int, nats: float, more: str = "", sample: str = "") -> None:
        """An evaluation, and what the model writes: where all lines stay, ever more seldom."""
        self._validations = [*self._validations, nats][-SPARKS:]
        self.say(f"step {step}: validation {nats:.4f} nats/byte{more}")
        if sample and (step >= 2 * self._shown_step or step == self._steps):
            self._shown_step = step
            self.say(printable(sample) if self.console.is_terminal else sample)
