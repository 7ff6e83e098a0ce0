"""The C engine: the model's function, the same bits on every kind of instructions, and no trust in
a file that says something else.

pytest tests/test_native.py
"""

from __future__ import annotations

import ctypes
import json
import re
import resource
from array import array
from pathlib import Path
from random import Random

import numpy as np
import pytest
from fuzz.tiny import tiny_artifact

from tsm.export import layout, to_onnx, to_tflite, verify
from tsm.export.tolerance import check
from tsm.runtime import artifact as artifacts
from tsm.runtime import engines, sampling
from tsm.runtime.engines import native as native_engine
from tsm.runtime.engines.native import NativeEngine, _library, _Spec
from tsm.training import model
from tsm.training.checkpoint import save_model
from tsm.training.spec import PRESETS, ModelSpec

ROOT = Path(__file__).parent.parent
TEXT = verify.PASSAGE
KINDS = ["int8", "int4"]
# No width is a multiple of what the vectors hold: every row has a rest.
SPEC = PRESETS["tiny"].replace(
    mixer="beam", rotation=False, width=72, heads=5, value_width=16, chunk=16
)
SPECS = {
    "": SPEC,
    "addressed-": SPEC.replace(mixer="beam,addressed", heads=2, key_width=13, value_width=80),
}
FILES = [f"{name}{kind}.{end}" for name in SPECS for kind in KINDS for end in ("tflite", "onnx")]


def spec_of(path: Path) -> ModelSpec:
    return SPECS["addressed-" if path.name.startswith("addressed-") else ""]


def weights_of(spec: ModelSpec) -> dict[str, np.ndarray]:
    random, noise = np.random.default_rng(1), 0.1 if spec.mixer == "beam" else 0.05
    made = {
        name: (value + noise * random.standard_normal(value.shape)).astype(np.float32)
        for name, value in model.initialise(spec, 0).items()
    }
    made["blocks.0.mlp.in"][3] *= np.float32(1e-11)  # a unit that training has silenced
    return made


def exported(
    folder: Path, spec: ModelSpec, kind: str, suffix: str = "tflite", prefix: str = ""
) -> Path:
    out = folder / f"{prefix}{kind}.{suffix}"
    save_model(folder / "model.safetensors", spec, weights_of(spec))
    command = [str(folder / "model.safetensors"), "--quantize", kind, "--out", str(out)]
    assert {"tflite": to_tflite, "onnx": to_onnx}[suffix].main(command) == 0
    return out


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    """FILES by name."""
    folder = tmp_path_factory.mktemp("native")
    return {
        f"{name}{kind}.{end}": exported(folder, spec, kind, end, name)
        for name, spec in SPECS.items()
        for kind in KINDS
        for end in ("tflite", "onnx")
    }


@pytest.fixture(params=FILES)
def path(request, paths) -> Path:
    return paths[request.param]


def native(path: Path, simd: int = 3, threads: int = 1) -> NativeEngine:
    return NativeEngine(artifacts.open_artifact(path), simd, threads)


def logits_of(engine: engines.Engine, data: bytes, piece: int = 10**6) -> np.ndarray:
    pieces = [engine.logits_of(data[i : i + piece]) for i in range(0, len(data), piece)]
    return np.concatenate([np.asarray(p, np.float32).reshape(-1, 256) for p in pieces])


def test_it_is_the_first_choice_and_the_oracle(path):
    engine = engines.open_engine(artifacts.open_artifact(path))
    assert type(engine) is NativeEngine
    spec = spec_of(path)
    wanted, state = verify.run_oracle(spec, weights_of(spec), TEXT)
    row = f"{engine.artifact.quantization} artifact"
    check(row, logits_of(engine, TEXT), wanted, logits=True)
    for name, value in engine.get_state().items():
        check(row, np.frombuffer(value, np.float32).reshape(state[name].shape), state[name])


def test_it_agrees_with_the_other_engine(path):
    artifact = artifacts.open_artifact(path)
    kind, other = engines.kinds(artifact)
    assert kind == "native"
    wanted = logits_of(engines.open_engine(artifact, other), TEXT)
    check("int8 artifact", logits_of(native(path), TEXT), wanted, logits=True)


@pytest.mark.parametrize("kind", [f"{name}{kind}" for name in SPECS for kind in KINDS])
def test_both_formats_hold_the_same_bytes_and_give_the_same_bits(paths, kind):
    both = [paths[f"{kind}.{suffix}"] for suffix in ("tflite", "onnx")]
    one, other = (logits_of(native(path), TEXT) for path in both)
    assert np.array_equal(one, other)
    for path in both:
        offsets = artifacts.open_artifact(path).offsets
        starts = [  # the taps of a convolution lie one after the other
            int(offset)
            for name, parts in offsets.items()
            for offset in (parts[:1] if name.endswith(".short") else parts)
        ]
        assert {start % layout.ALIGNMENT_BYTES for start in starts} == {0}


def test_every_kind_of_instructions_gives_the_same_bits(path):
    found = {engine.simd: logits_of(engine, TEXT) for engine in map(native, [path] * 4, range(4))}
    for logits in found.values():
        assert np.array_equal(logits, found[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_every_length_give_the_same_bits(bits):
    """Through the library alone: a layer whose units are all alike, of codes at their ends, so that
    every activation of the last product is at its end, too, and no sum may saturate."""
    library, random = _library(), np.random.default_rng(bits)
    width, codes = 16, {8: (-127, 127), 4: (0x78, 0x87, 0x77, 0x88)}[bits]

    def matrix(out: int, into: int) -> list[np.ndarray]:
        rows = random.choice(codes, (out, into * bits // 8)).astype(np.uint8)
        return [rows, np.full(out, 1e-3, np.float32)]

    for units in [*range(16, 1800, 40), 4096]:
        spec = _Spec(256, width, 1, width, units, 1, bits, 1, 1)
        normal = [random.standard_normal(n).astype(np.float32) for n in (256 * width, width, width)]
        up, down = matrix(units, width), matrix(width, units)
        up[0][:] = up[0][0]
        parts = [*normal, *matrix(3 * width, width), *matrix(width, width), *up, *down]
        head = random.integers(-127, 128, 256 * width).astype(np.uint8), np.ones(256, np.float32)
        data, places = b"", []
        for part in (*parts, *head):
            places.append(len(data))
            data += part.tobytes() + bytes(-part.nbytes % 64)
        assert len(places) == library.tsm_offset_count(ctypes.byref(spec))
        found = []
        for simd in range(4):
            numbers = (ctypes.c_uint64 * len(places))(*places), len(places)
            made = library.tsm_new(ctypes.byref(spec), data, len(data), *numbers, simd, 1)
            state, logits = np.zeros(width, np.float32), np.zeros((40, 256), np.float32)
            tokens = bytes(range(40))
            read = state.ctypes.data, tokens, len(tokens), logits.ctypes.data
            assert library.tsm_read(made, *read, True) == 0
            library.tsm_free(made)
            found.append(logits)
        assert np.isfinite(found[0]).all() and np.ptp(found[0]) > 0
        assert all(np.array_equal(logits, found[0]) for logits in found)


def test_threads_share_the_work_and_give_the_same_bits(path):
    wanted, tasks = logits_of(native(path), TEXT), Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    engine = native(path, threads=3)
    assert len(list(tasks.iterdir())) == before + 2
    for piece in (1, 3, 64):
        engine.reset()
        assert np.array_equal(logits_of(engine, TEXT, piece), wanted)
    del engine
    assert len(list(tasks.iterdir())) == before


def test_pieces_of_any_length_give_the_same_bits(path):
    wanted = logits_of(native(path), TEXT)
    for piece in (1, 3, 5, 16, 17, 64, 100):
        assert np.array_equal(logits_of(native(path), TEXT, piece), wanted)
    engine = native(path)
    assert np.array_equal(engine.feed(TEXT), wanted[-1])


def test_a_state_continues_to_the_bit_and_can_be_forgotten(path):
    engine, wanted = native(path), logits_of(native(path), TEXT)
    engine.feed(TEXT[:100])
    state = engine.get_state()
    assert np.array_equal(logits_of(engine, TEXT[100:]), wanted[100:])
    other = native(path)
    other.set_state(state)
    assert np.array_equal(logits_of(other, TEXT[100:]), wanted[100:])
    other.reset()
    assert np.array_equal(logits_of(other, TEXT), wanted)


@pytest.mark.parametrize("other", [{"mixer": "mingru"}, {"width": 70}])
@pytest.mark.parametrize(("suffix", "kind"), [("tflite", "litert"), ("onnx", "onnx")])
def test_a_model_of_another_kind_is_left_to_the_others(tmp_path, other, suffix, kind):
    artifact = artifacts.open_artifact(exported(tmp_path, SPEC.replace(**other), "int8", suffix))
    assert engines.kinds(artifact) == [kind]
    with pytest.raises(engines.EngineError, match=f"engine native cannot run it, wanted {kind}"):
        engines.open_engine(artifact, "native")


def resealed(path: Path, out: Path, change) -> Path:
    """The file with other metadata of the same length, under a seal of its own."""
    data = path.read_bytes()
    start = data.index(artifacts.MARKER)
    stored, length = json.JSONDecoder().raw_decode(data[start:].decode("utf-8", "replace"))
    change(stored)
    text = json.dumps(stored).encode()
    assert len(text) == length
    data = data[:start] + text + data[start + length :]
    out.write_bytes(artifacts.seal(data))
    return out


def beyond(stored):
    stored["offsets"]["head"][0] = f"{10**12 - 1:012d}"


def misaligned(stored):
    stored["offsets"]["embed"][0] = f"{int(stored['offsets']['embed'][0]) + 1:012d}"


def without_one(stored):
    stored["offsets"]["heat"] = stored["offsets"].pop("head")


def no_number(stored):
    stored["offsets"]["head"][0] = "abcdefghijkl"


def wider(stored):
    stored["spec"]["width"] = 88


def state_too_small(stored):
    stored["state"]["channels"][-1] -= 16


CHANGES = [beyond, misaligned, without_one, no_number, wider, state_too_small]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_says_something_else_is_one_clear_error(path, tmp_path, change):
    bad = resealed(path, tmp_path / "bad.tflite", change)
    with pytest.raises(engines.EngineError) as refused:
        native(bad)
    assert re.fullmatch(r"[^\n]+ its (offsets|state)[^\n]+", str(refused.value))


def places_within(value, place=()):
    """The keys to every value of a JSON object."""
    if place:
        yield place
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from places_within(value[key], (*place, key))


OTHERS = [None, True, -1, 0, 1, 3, 16, 2**31, 2**64, 1e300, "", "x", "000000000064", [], {}, [1]]


def test_a_thousand_headers_that_say_something_else(tmp_path):
    """Sealed like good ones: each is refused in one line, or says nothing that matters; and none
    makes the process hold more than a little."""
    whole = exported(tmp_path, SPEC, "int8").read_bytes()
    start, choose, refused = whole.index(artifacts.MARKER), Random(0), 0
    stored, length = json.JSONDecoder().raw_decode(whole[start:].decode("utf-8", "replace"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        header = json.loads(json.dumps(stored))
        for _ in range(choose.choice([1, 2])):
            seal = ("tsm_artifact", "file_bytes", "crc32", "sha256")
            *way, last = choose.choice([p for p in places_within(header) if p[0] not in seal])
            parent = header
            for key in way:
                parent = parent[key]
            parent[last] = choose.choice(OTHERS)
        text = json.dumps(header)[:-1].encode().ljust(length - 1) + b"}"
        bad = tmp_path / "bad.tflite"
        bad.write_bytes(artifacts.seal(whole[:start] + text + whole[start + length :]))
        try:
            engines.open_engine(artifacts.open_artifact(bad)).feed(b"abc")
        except (artifacts.ArtifactError, engines.EngineError) as error:
            assert "\n" not in str(error)
            refused += 1
    assert 500 < refused < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 200_000  # KB


def c_spec(spec: dict, quantization: str) -> _Spec:
    made = _Spec(**native_engine._sizes(spec, quantization))
    for layer in range(min(spec["layers"], native_engine.MOST_LAYERS)):
        names = spec["mixer"].split(",")
        made.mixers[layer] = native_engine.MIXERS.index(names[layer % len(names)])
    return made


def test_python_and_c_run_the_same_specs():
    """One field after the other around its limits, and fields together at random."""
    library, sound = _library(), dict(SPEC.to_dict())
    values = {
        "vocabulary": [0, 15, 16, 17, 100, 255, 256, 257, 300],
        "width": [0, 8, 15, 16, 24, 68, 70, 72, 2**14 - 8, 2**14, 2**14 + 8, 2**31],
        "layers": [0, 1, 2, 255, 256, 257, 2**31],
        "heads": [0, 1, 2, 5, 9, 1023, 1024, 1025],
        "value_width": [0, 1, 8, 16, 24, 2**16],
        "mlp_ratio": [0, 0.01, 0.2, 1, 2.7, 8 / 3, 4, 910, 911, 1000],
        "compression": [0, 1, 4, 7, 8, 9, 2**31],
        "mixer": ["beam", "addressed", "beam,addressed", "beam,mingru", "addressed,beam,beam"],
        "key_width": [1, 12, 100, 2**10, 2**14, 2**14 + 1, 2**31],
    }
    specs = [{**sound, name: value} for name in values for value in values[name]]
    draw = Random(0)
    for _ in range(20_000):
        names = draw.sample(sorted(values), draw.randint(2, len(values)))
        specs.append({**sound, **{name: draw.choice(values[name]) for name in names}})
    run = 0
    for spec in specs:
        for quantization in KINDS:
            fits = native_engine.computes(spec, quantization)
            if native_engine.has_known_mixers(spec):  # of others C has no number
                count = library.tsm_offset_count(ctypes.byref(c_spec(spec, quantization)))
                assert (count > 0) == fits, spec
            run += fits
    assert 500 < run < len(specs)
    count = library.tsm_offset_count(ctypes.byref(_Spec(256, 72, 2, 80, 288, 4, 8)))
    assert count == 1 + 2 * (4 + 1 + 8) + 2
    mixed = c_spec({**sound, "mixer": "beam,addressed", "key_width": 12}, "int8")
    assert library.tsm_offset_count(ctypes.byref(mixed)) == count + 3
    assert library.tsm_offset_count(ctypes.byref(_Spec(256, 72, 2, 80, 288, 4, 5))) == 0
    for other in ("none", "int2", ""):
        assert not native_engine.computes(sound, other)


SPEC_CHANGES = [
    {"mixer": mixer}
    for mixer in ("addressed", "beam,beam", "beam,", ",beam", "", "beam,addressed,beam")
] + [
    {},
    {"layers": 3},
    {"rotation": True},
    {"coupling": False},
    {"short": False},
    {"key_width": 0},
    {"key_width": 1 << 20},
    {"mixer": "beam,beam", "key_width": 1 << 20},
    {"value_width": 8, "heads": 4},
    {"mixer": "beam,beam", "value_width": 8, "heads": 4},
]


@pytest.mark.parametrize("changes", SPEC_CHANGES, ids=str)
def test_python_and_c_read_the_same_specs(changes):
    """From the file: what C does not compute it says so of, before it looks at offsets."""
    data = tiny_artifact()
    start = data.index(artifacts.MARKER)
    stored = json.loads(data[start : data.index(b"\0", start)])
    header = {name: stored[name] for name in artifacts._KEYS}
    header["spec"] |= changes
    data = artifacts.seal(data[:start] + artifacts.metadata_json(header).encode())
    opened, message = ctypes.c_void_p(), ctypes.create_string_buffer(160)
    status = _library().tsm_open(
        data, len(data), False, 0, 1, ctypes.byref(opened), ctypes.byref(message)
    )
    assert (status != -7) == native_engine.computes(header["spec"], header["quantization"])
    _library().tsm_free(opened)


@pytest.mark.parametrize(
    "header", [{}, {"mixer": 3}, {"mixer": "beam"}, {"mixer": "beam", "layers": 6.0}]
)
def test_a_header_of_other_kinds_has_no_mixers(header):
    assert not native_engine.has_known_mixers(header)


def test_a_spec_that_does_not_run_has_no_state():
    library, parts = _library(), (ctypes.c_size_t * 4)(1, 1, 1, 1)
    for changes in ({"layers": 100_000}, {"taps": 0}, {"width": 1 << 31}):
        sizes = native_engine._sizes(SPEC.to_dict(), "int8") | changes
        assert library.tsm_state_values(ctypes.byref(_Spec(**sizes)), parts) == 0
        assert list(parts) == [0] * 4


def test_frequencies_are_the_softmax_and_the_same_bits_everywhere(path):
    engine, random = native(path), np.random.default_rng(0)
    for spread in (0.0, 1.0, 5.0, 50.0):
        logits = (spread * random.standard_normal(256)).astype(np.float32)
        found = np.diff(engine.frequencies(array("f", logits)).tolist())
        assert found.min() >= 1 and found.sum() == 1 << 16
        wanted = np.exp(logits - logits.max(), dtype=np.float64)
        wanted *= (65536 - 256) / wanted.sum()
        less = np.delete(found - 1 - wanted, logits.argmax())  # which takes the rest
        assert less.max() <= 0.02 and less.min() >= -1.02
    for damaged in (np.nan, np.inf):
        found = np.diff(engine.frequencies(array("f", [damaged] * 256)).tolist())
        assert found.min() >= 1 and found.sum() == 1 << 16


def test_draw_is_the_sampler_s_to_the_byte(path):
    engine, random = native(path), np.random.default_rng(5)
    for turn in range(3000):
        logits = random.standard_normal(256) * random.choice([0.1, 1, 5, 30])
        logits = np.round(logits) if turn % 3 == 0 else logits  # many equal ones
        adjust = random.choice([0, 0, 1, -1, -np.inf], 256)
        adjust[random.integers(256)] = 0
        arrays = array("f", logits), array("f", adjust) if turn % 2 else None
        choices = [0, 0.3, 1, 2], [0, 1, 5, 2**32 + 1], [1, 0.9, 0.2], [1, 0.9, 0.5], [0, 0.05, 1]
        settings = [one[random.integers(len(one))] for one in choices]
        where = float(random.random())
        assert engine.draw(*arrays, *settings, where) == sampling.draw(*arrays, *settings, where)
