"""One reader of /proc/cpuinfo for all that asks for the processor."""

import platform

from debugnn import processor

TWO = "".join(
    f"processor\t: {number}\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC: {number}\n"
    f"flags\t\t: fpu avx2\npower management:\n\n"
    for number in (0, 1)
)


def test_the_first_processor_is_read_and_without_its_file_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert (processor.entries(), processor.features()) == ({}, None)  # not Linux
    assert processor.model_name() in (platform.processor(), platform.machine())
    processor.CPUINFO.write_text(TWO)
    assert processor.entries()["vendor_id"] == "AuthenticAMD"
    assert processor.model_name() == "EPYC: 0"
    assert processor.features() == {"fpu", "avx2"}
    assert processor.features("Features\t: fp asimd\n") == {"fp", "asimd"}  # as Arm says it
    assert processor.features("hart\t\t: 1\n") is None
