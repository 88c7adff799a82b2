"""NVIDIA's own compiler, without a GPU."""

import pytest
from fakegpu import nvrtc

from tests.fakegpu import kernel_checks


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES.split(","))
def test_it_takes_our_kernels_and_says_what_they_use(arch):
    used = nvrtc.compile(kernel_checks.TEXT, arch)
    assert set(used) == {"softmax_rows", "layer_norm_rows", "flash_forward"}
    assert all(kernel.registers > 8 and kernel.spilled == 0 for kernel in used.values())
    assert used["softmax_rows"].shared >= 32 * 4        # `scratch`


def test_it_says_what_is_spilled():
    text = """extern "C" __global__ void k(float* x) {
        float all[64];
        for (int i = 0; i < 64; i++) all[i] = x[i * 7];
        __syncthreads();
        for (int i = 0; i < 64; i++) x[i] = all[63 - i];
    }"""
    assert nvrtc.compile(text, options=["-maxrregcount=24"])["k"].spilled > 0


def test_it_refuses_what_is_no_cuda():
    with pytest.raises(RuntimeError, match="undeclared"):
        nvrtc.compile("__global__ void k() { undeclared(); }")


def test_as_a_command(tmp_path, capsys):
    good, bad = tmp_path / "good.cu", tmp_path / "bad.cu"
    good.write_text("__global__ void k(float* x) { x[0] = N; }")
    bad.write_text("__global__ void k() { undeclared(); }")
    assert nvrtc.main(["--arch", "sm_90", "-D", "N=3", str(good)]) == 0
    assert "registers" in capsys.readouterr().out
    assert nvrtc.main(["--arch", "sm_80,sm_90", str(bad)]) == 1
    assert capsys.readouterr().out.count("refused") == 2
