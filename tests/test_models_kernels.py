"""The compiled kernels give what their PyTorch forms give, at any size; where they can't be had, PyTorch does it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from qvl.errors import ConfigError
from qvl.models.kernels import build, ops
from qvl.models.layers import RMSNorm, apply_rope
from qvl.models.linear import QuantizedLinear, linears, row_matrix
from qvl.models.quantized.fp8 import FEW_ROWS, Fp8Linear

needs_kernels = pytest.mark.skipif(ops.functions() is None, reason="no compiler here, or QVL_KERNELS=off")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def by_kernel(layers, x):
    return ops.linear([layer.matrix() for layer in layers], x)


def coded(outputs: int, inputs: int, bits: int, group_size: int, g: torch.Generator, zeros: bool = False):
    shape = (outputs, -(-inputs // min(group_size, inputs)))
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=g, dtype=torch.uint8)
    scales = torch.rand(shape, generator=g) * 0.02 + 0.001
    given = torch.randint(0, 1 << bits, shape, generator=g) if zeros else None
    bias = torch.randn(outputs, generator=g)
    order = torch.randperm(inputs, generator=g)
    return QuantizedLinear.from_codes(
        codes, bits, scales, given, group_size=group_size, bias=bias, input_order=order
    )


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("outputs", "inputs", "group_size"),
    [(1, 32, 32), (33, 100, 32), (65, 256, 128), (130, 200, 64), (40, 97, 999)],
)
def test_codes_times_activations_are_the_dequantised_products(
    outputs, inputs, group_size, bits, zeros, threads, generator
):
    """Activations are rounded to 8 bits inside: 1% of the result's norm; measured 0.6% on normal ones."""
    layer = coded(outputs, inputs, bits, group_size, generator, zeros)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (1, 2, 3, 5, 8, 12, 13, 20):
            x = torch.randn(rows, inputs, generator=generator)
            want = F.linear(x, layer.dequantize(), layer.bias)
            error = (by_kernel([layer], x) - want).norm() / want.norm()
            # a single output has nothing to average over
            assert error < (0.01 if outputs > 1 else 0.05), (rows, float(error))
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
def test_activations_too_small_to_have_a_scale_count_as_nothing(bits, generator):
    layer = coded(24, 64, bits, 32, generator)
    layer.bias = None
    x = torch.full((1, 64), 3e-38)
    assert torch.equal(by_kernel([layer], x), torch.zeros(1, 24))


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_of_codes_does_not_depend_on_its_batch(bits, generator):
    layer = coded(70, 160, bits, 32, generator, zeros=True)
    layer.bias = layer.bias.bfloat16()
    x = torch.randn(20, 160, generator=generator).bfloat16()
    together = by_kernel([layer], x)
    assert torch.equal(together, torch.cat([by_kernel([layer], x[i : i + 1]) for i in range(20)]))


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("outputs", "inputs", "group_size"),
    [(33, 100, 128), (48, 300, 128), (16, 256, 64), (1, 5, 999), (70, 97, 97)],
)
def test_weights_are_rounded_to_the_bit_as_pytorch_does(
    outputs, inputs, group_size, dtype, bits, generator, monkeypatch
):
    weight = torch.randn(outputs, inputs, generator=generator)
    weight[0] = 0  # a scale of nothing
    weight[outputs // 2, : inputs // 2] = 0.75  # ties, one of them negative and first
    weight[outputs // 2, 0] = -0.75
    weight = weight.to(dtype)
    ours = QuantizedLinear.empty(inputs, outputs, bits, group_size)
    theirs = QuantizedLinear.empty(inputs, outputs, bits, group_size)
    for layer in (ours, theirs):
        layer.packed.fill_(99)  # whatever memory held
    ours.put(0, weight)
    monkeypatch.setattr(ops, "functions", lambda: None)
    theirs.put(0, weight)
    assert torch.equal(ours.packed, theirs.packed)
    assert torch.equal(ours.scales, theirs.scales)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("outputs", "inputs"), [(33, 100), (64, 512), (7, 31), (1, 32), (100, 1), (65, 33)])
def test_rows_of_bf16_are_linears_within_a_rounding(outputs, inputs, threads, generator):
    weight = torch.randn(outputs, inputs, generator=generator).bfloat16()
    bias = torch.randn(outputs, generator=generator).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in [*range(1, 18), 31, 33, 47, 48, 49, 57, 97, 128]:
            x = torch.randn(rows, inputs, generator=generator).bfloat16()
            got = ops.linear([row_matrix(weight, bias), row_matrix(weight[:1], None)], x)
            want = F.linear(x.float(), weight.float(), bias.float())
            # bf16 keeps 8 bits
            assert (got[:, :outputs].float() - want).abs().max() <= want.abs().max() * 2**-8
            alone = F.linear(x.float(), weight[:1].float())
            assert (got[:, outputs:].float() - alone).abs().max() <= alone.abs().max() * 2**-8
            # one and two rows are read one by one, more as panels
            height = 1 if rows <= 2 else 3
            for row in range(rows):
                batch = x[row].expand(height, -1)
                assert torch.equal(ops.linear([row_matrix(weight, bias)], batch)[0], got[row, :outputs])
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_what_is_no_number_stays_in_its_row(generator):
    """Rows lie beside each other in a panel."""
    weight = torch.randn(20, 64, generator=generator).bfloat16()
    x = torch.randn(9, 64, generator=generator).bfloat16()
    x[4, 7] = float("nan")
    got = ops.linear([row_matrix(weight, None)], x)
    assert got[4].isnan().all()
    assert got[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


BLOCKS = [(16, 32), (128, 128), (1, 0), (0, 0), (7, 9)]


def fp8_layer(outputs: int, inputs: int, block: tuple[int, int], g: torch.Generator, bias: bool = True):
    """All 254 numbers of e4m3, denormals too, under different scales; the last blocks are short ones."""
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes[(codes & 0x7F) != 0x7F].view(torch.float8_e4m3fn)
    weight = numbers.repeat(-(-outputs * inputs // 254))[: outputs * inputs].view(outputs, inputs)
    grid = (-(-outputs // (block[0] or outputs)), -(-inputs // (block[1] or inputs)))
    scales = torch.rand(grid, generator=g) * 0.01 + 0.001
    return Fp8Linear(weight, scales, block, torch.randn(outputs, generator=g).bfloat16() if bias else None)


@needs_kernels
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 100), (33, 256), (1, 31), (130, 300)])
def test_a_few_rows_of_fp8_are_the_dequantised_products_within_a_rounding(outputs, inputs, block, generator):
    layer = fp8_layer(outputs, inputs, block, generator)
    other = fp8_layer(5, inputs, block, generator, bias=False)
    for rows in range(1, 12):
        x = torch.randn(rows, inputs, generator=generator).bfloat16()
        got = by_kernel([layer, other], x)
        want = F.linear(x.float(), layer.dequantize(), layer.bias.float())
        # bf16 keeps 8 bits
        assert (got[:, :outputs].float() - want).abs().max() <= want.abs().max() * 2**-8
        assert torch.equal(got[:, outputs:], by_kernel([other], x))
        singles = torch.cat([by_kernel([layer], x[i : i + 1]) for i in range(rows)])
        assert torch.equal(got[:, :outputs], singles)


@needs_kernels
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fp8_scales_of_any_dtype_are_read_as_they_are_stored(scale_dtype, generator):
    layer = fp8_layer(40, 100, (16, 32), generator)
    layer.scales = layer.scales.to(scale_dtype)
    x = torch.randn(2, 100, generator=generator).bfloat16()
    want = F.linear(x.float(), layer.dequantize(), layer.bias.float())
    assert (layer(x).float() - want).abs().max() <= want.abs().max() * 2**-8


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", BLOCKS)
def test_fp8_is_widened_to_the_bit_as_pytorch_does(block, dtype, generator):
    layer = fp8_layer(40, 100, block, generator)
    down = layer.block[0]
    for rows in (slice(0, 40), slice(0, down), slice(down, 40)):
        want = layer.dequantize(rows).to(dtype)
        assert torch.equal(layer._widened(rows, torch.empty(0, dtype=dtype)), want)


@needs_kernels
def test_more_rows_of_fp8_and_none_without_kernels_meet_the_widened_weights(generator, monkeypatch):
    layer = fp8_layer(70, 100, (16, 32), generator)
    x = torch.randn(FEW_ROWS + 1, 100, generator=generator).bfloat16()
    want = F.linear(x.float(), layer.dequantize().bfloat16().float()).bfloat16() + layer.bias
    torch.testing.assert_close(layer(x), want, rtol=2**-7, atol=2**-7)
    wide = layer(x.float())
    few = layer(x[:3])
    monkeypatch.setattr(ops, "functions", lambda: None)
    assert torch.equal(layer(x.float()), wide)
    torch.testing.assert_close(layer(x[:3]), few, rtol=2**-6, atol=2**-6)


@needs_kernels
def test_fp8_layers_of_one_input_are_read_in_one_pass(generator, monkeypatch):
    layers = [fp8_layer(n, 100, (16, 32), generator, bias=n != 9) for n in (40, 9, 70)]
    x = torch.randn(2, 100, generator=generator).bfloat16()
    want = [layer(x) for layer in layers]
    calls = []
    once = ops.linear
    monkeypatch.setattr(ops, "linear", lambda matrices, x: calls.append(len(matrices)) or once(matrices, x))
    for got, one in zip(linears(layers, x), want):
        assert torch.equal(got, one)
    assert calls == [3]
    # blocks of another width can't share the activations' order
    linears([layers[0], fp8_layer(9, 100, (16, 64), generator)], x)
    assert calls == [3, 1, 1]


@needs_kernels
@pytest.mark.parametrize("size", [33, 48, 100, 1280, 2048, 3584])
def test_the_norm_rounds_bf16_as_pytorch_does_to_the_bit(size, generator):
    x = torch.randn(9, size, generator=generator).bfloat16()
    weight = torch.randn(size, generator=generator).bfloat16()
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), weight * wide.bfloat16())


@needs_kernels
@pytest.mark.parametrize("size", [8, 20, 80, 128])
@pytest.mark.parametrize("tables", [torch.float32, torch.bfloat16])
def test_rotation_is_pytorchs_to_the_bit_in_slices_too(size, tables, generator, monkeypatch):
    qkv = torch.randn(7, 3 * 2 * size, generator=generator).bfloat16()
    k = qkv[:, 2 * size : 4 * size].unflatten(1, (2, size))
    angles = torch.randn(7, size, generator=generator)
    cos, sin = angles.cos().to(tables), angles.sin().to(tables)
    fast = apply_rope(k, cos, sin)
    monkeypatch.setattr(ops, "functions", lambda: None)
    assert torch.equal(fast, apply_rope(k, cos, sin))


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_the_gated_activation_is_pytorchs_even_far_out(dtype, tolerance, generator):
    gate_up = torch.randn(5, 2 * 37, generator=generator)
    gate_up[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -88.0])
    gate, up = gate_up.to(dtype).split(37, dim=1)
    want = F.silu(gate) * up
    assert torch.allclose(ops.silu_mul(gate, up), want, rtol=tolerance, atol=1e-30)


@needs_kernels
def test_what_is_being_trained_hooked_or_mixed_goes_through_pytorch():
    x = torch.randn(2, 64).bfloat16()
    plain = torch.nn.Linear(64, 8).bfloat16()
    assert linears((plain,), x)[0].requires_grad
    plain.requires_grad_(False)
    seen = []
    plain.register_forward_hook(lambda *_: seen.append(1))
    linears((plain,), x)
    assert seen == [1]
    assert not ops.ready(x, torch.ones(64))
    assert not ops.ready(x.half())


@needs_kernels
def test_without_kernels_a_norm_and_a_coded_layer_answer_the_same(monkeypatch, generator):
    layer, norm = coded(24, 64, 4, 32, generator), RMSNorm(64).bfloat16().requires_grad_(False)
    layer.bias = layer.bias.bfloat16()
    x = torch.randn(3, 64, generator=generator).bfloat16()
    fast = layer(norm(x))
    monkeypatch.setattr(ops, "functions", lambda: None)
    slow = layer(norm(x))
    assert not torch.equal(fast, slow), "the kernel was not used"
    # 8-bit activations on one side, bf16 weights on the other
    assert float((fast - slow).norm() / slow.norm()) < 0.02


def test_fp32_activations_meet_the_dequantised_weights_exactly(generator):
    layer, x = coded(24, 64, 4, 32, generator), torch.randn(3, 64, generator=generator)
    assert torch.equal(layer(x), F.linear(x, layer.dequantize(), layer.bias))


def test_no_compiler_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.Unavailable, match=r"no g\+\+ found"):
        build.compiled()


@needs_kernels
def test_what_does_not_compile_is_said_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.Unavailable, match="no-such-flag"):
        build.compiled((*build.FLAGS, "--no-such-flag"))
    assert list((tmp_path / "qvl" / "kernels").iterdir()) == []


@needs_kernels
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "zeros"])
def test_a_damaged_library_is_compiled_anew_and_never_loaded(monkeypatch, tmp_path, damage):
    """Its code and data are checked: what is mapped beyond a cut file's end is SIGBUS, and wrong code anything."""
    calls = []

    def compiler(command, seconds):
        calls.append(command)
        if "-o" in command:
            Path(command[command.index("-o") + 1]).write_bytes(b"\x7fELF" + bytes(range(256)) * 100)
        return "version"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_run", compiler)
    place = build.compiled()
    content, many = place.read_bytes(), len(calls)
    assert build.compiled() == place
    assert len(calls) == many + 1  # the version alone
    damaged = {
        "empty": b"", "cut": content[:8000], "flipped": content[:500] + bytes([content[500] ^ 1]) + content[501:],
        "zeros": bytes(len(content)),
    }[damage]  # fmt: skip
    place.write_bytes(damaged)
    assert build.compiled() == place
    assert place.read_bytes() == content
    monkeypatch.setattr(build, "_run", fails)
    place.write_bytes(damaged)
    assert build.library.__wrapped__() is None


def fails(command, seconds):
    if "-o" in command:
        raise build.Unavailable("no compiler today")
    return "version"


def test_a_compiler_that_hangs_is_ended_with_what_it_started(monkeypatch, tmp_path):
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\nsleep 600 &\nsleep 600\n")
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "VERSION_SECONDS", 0.5)
    began = time.monotonic()
    assert build.library.__wrapped__() is None
    assert time.monotonic() - began < 30


def test_what_a_killed_compilation_left_is_swept(tmp_path):
    old, new = tmp_path / "unfinished-a", tmp_path / "unfinished-b"
    for folder in (old, new):
        folder.mkdir()
        (folder / "x.o").touch()
    os.utime(old, (0, 0))
    build._sweep(tmp_path)
    assert not old.exists()
    assert new.exists()


@needs_kernels
def test_a_cache_that_others_may_write_into_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "qvl" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(build.Unavailable, match="is writable by others"):
        build.compiled()


def test_an_unknown_setting_is_refused_and_off_means_none(monkeypatch):
    monkeypatch.setenv("QVL_KERNELS", "fast")
    with pytest.raises(ConfigError, match="known: auto, off"):
        build.library.__wrapped__()
    monkeypatch.setenv("QVL_KERNELS", "off")
    assert build.library.__wrapped__() is None
