"""Whether a processor computes in bfloat16 is read from its features."""

import pytest

from debugnn.training import bf16

CPUINFO = {
    "Haswell": (
        "model name\t: Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz\n"
        "flags\t\t: fpu vme sse sse2 ssse3 fma cx16 sse4_1 sse4_2 avx f16c bmi1 avx2 smep bmi2\n",
        False,
    ),
    "Cascade Lake": (
        "model name\t: Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz\n"
        "flags\t\t: fpu sse2 fma avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni\n",
        False,
    ),
    "Zen 4": (
        "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9R14\n"
        "flags\t\t: fpu sse2 fma avx2 avx512f avx512dq avx512_bf16 avx512_vnni avx512_bitalg\n",
        True,
    ),
    "Sapphire Rapids, its AMX alone": (
        "model name\t: Intel(R) Xeon(R) Platinum 8488C\n"
        "flags\t\t: fpu sse2 fma avx2 amx_bf16 amx_tile amx_int8\n",
        True,
    ),
    "Neoverse N1": (
        "BogoMIPS\t: 243.75\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimddp ssbs\n"
        "CPU implementer\t: 0x41\n",
        False,
    ),
    "Neoverse V1": (
        "BogoMIPS\t: 2100.00\n"
        "Features\t: fp asimd atomics fphp asimdhp sve asimdfhm svei8mm svebf16 i8mm bf16 dgh\n"
        "CPU implementer\t: 0x41\n",
        True,
    ),
    "RISC-V, which lists no features by name": ("hart\t\t: 1\nisa\t\t: rv64imafdc\n", True),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_bf16_is_read_off_the_processors_features(name):
    text, expected = CPUINFO[name]
    assert bf16.has_bf16("processor\t: 0\n" + text) is expected
