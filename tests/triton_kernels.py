"""What test_kernels.py runs where Triton is: its kernels on a CPU by its interpreter (`interpret`),
or compiled for an H100 down to machine code, which takes no GPU (`compile`)."""

import subprocess
import sys
import tempfile
from pathlib import Path

import array_api_compat.torch as xp
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tsm.training.kernels import triton_coupled, triton_scan
from tsm.training.mixers import primitives

H100 = GPUTarget("cuda", 90, 32)
ARRAYS = {"decay", "update", "memory", "out", "value", "radius", "states", "gradient"}
ARRAYS |= {"grad_value", "grad_radius", "grad_memory"}


def interpret():
    assert triton_coupled.agrees("cpu")
    generator = torch.Generator().manual_seed(0)
    for length in (1, 64, 65):
        decay, update = torch.rand((2, 3, length, 40), generator=generator)
        for reverse in (False, True):
            found = triton_scan.scan(decay, update, update[:, 0], reverse)
            turned = [x.flip(1) if reverse else x for x in (decay, update)]
            parts = [x[:, None] for x in (*turned, update[:, 0])]
            before, last = primitives.scan(xp, *parts)
            wanted = torch.cat([before[:, 0], last], dim=1)
            torch.testing.assert_close(found.flip(1) if reverse else found, wanted)
    # A memory of 49,000 tokens, whose decay bf16 would round to 1.
    value, radius = torch.ones(1, 1024, 32).bfloat16(), torch.full((1, 1024, 32), -5.5)
    found = triton_coupled.scan(value, radius, torch.zeros(1, 32))[0]
    wanted = primitives.coupled_scan(xp, value.float(), radius, torch.zeros(1, 32))[0]
    torch.testing.assert_close(found.float(), wanted, atol=1e-2, rtol=1e-2)


def compile_all():
    """Also that no kernel takes more registers than there are."""
    scan = {"reverse": True, "TOKENS": triton_scan.TOKENS, "CHANNELS": triton_scan.CHANNELS}
    coupled = {
        name: getattr(triton_coupled, name) for name in ("TOKENS", "CHANNELS", "QUARTER_TURN")
    }
    for kernel, constants in (
        (triton_scan._kernel, scan),
        (triton_coupled._kernel, coupled),
        (triton_coupled._kernel_back, coupled),
    ):
        # As they are launched: arrays at addresses that 16 divides, channels beside each other.
        names = [parameter.name for parameter in kernel.params]
        values = constants | {name: 1 for name in names if name.endswith("_channel")}
        kinds = {name: "*bf16" if name in ARRAYS else "i32" for name in names}
        kinds |= dict.fromkeys(values, "constexpr")
        places = {name: (place,) for place, name in enumerate(names)}
        source = ASTSource(
            kernel,
            kinds,
            {places[name]: value for name, value in values.items()},
            {places[name]: [["tt.divisibility", 16]] for name in ARRAYS & set(names)},
        )
        made = triton.compile(source, H100, {"num_warps": triton_scan.WARPS})
        assert made.asm["cubin"]
        assert not spilled(made.asm["ptx"]), kernel


def spilled(ptx):
    """Bytes of registers that go to memory."""
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [assembler, "-arch=sm_90a", "-v", file, "-o", file.with_suffix(".cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stderr.split(" bytes spill stores")[0].split()[-1])


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_all}[sys.argv[1]]()
