"""The benchmark's parts, on networks small enough to time in a test."""

import json
import os
import sys
import warnings
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import nn

import benchmark
import benchmark_operations
import benchmark_scale
from benchmarking import (
    measures,
    nets,
    notebook,
    on_gpu,
    onednn,
    operations_output,
    output,
    publishing,
    startup,
    worker,
)
from benchmarking.measures import Spread
from benchmarking.worker import BenchmarkError, Together, Worker
from debugnn.build import build
from debugnn.doctor import Doctor

pytestmark = pytest.mark.slow


def test_a_spread_is_the_median_and_its_quartiles():
    assert Spread.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_sides_take_turns_and_every_other_round_goes_backwards():
    order = []
    sides = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    taken = measures.alternate(sides, rounds=3, seconds=60)
    assert "".join(order) == "abccbaabc"
    assert taken == {"a": [1.0] * 3, "b": [1.0] * 3, "c": [1.0] * 3}
    assert len(measures.alternate(sides, rounds=9, seconds=0)["a"]) == 1


def test_ratios_are_of_the_same_round_so_that_drift_cancels():
    assert measures.ratio([2, 20, 6], [1, 10, 3]).median == 2
    assert measures.overhead([1.5, 15], [1, 10]).median == pytest.approx(0.5)


def test_the_article_is_the_sum_of_its_runs():
    mnist = sum(run.steps for run in nets.ARTICLE if run.net.startswith("mnist"))
    cifar = sum(run.steps for run in nets.ARTICLE if run.net.startswith("cifar"))
    assert (mnist, cifar) == (90 * 21 + 605, 60 * 1563)
    steps = {"mnist": 0.06, "cifar": 0.03, "regression": 0.001}
    evaluations = {"mnist": 4.0, "cifar": 5.0}
    whole = measures.article(steps, evaluations)
    assert whole == pytest.approx(0.06 * mnist + 0.03 * cifar + 3.2 + 90 * 4 + 60 * 5)


def test_the_article_side_by_side_takes_as_long_as_its_busiest_process(monkeypatch):
    lengths = (5, 3, 3, 2)  # two processes: 5 then 2 beside 3 then 3
    runs = tuple(nets.Run(str(n), "mnist", n, 1) for n in lengths)
    monkeypatch.setattr(measures, "ARTICLE", runs)
    steps, evaluations = {"mnist": 1.0}, {"mnist": 0.5}
    assert measures.article(steps, evaluations) == sum(lengths) + 4 * 0.5
    assert measures.article(steps, evaluations, at_once=2) == 2 * (5 + 2 + 2 * 0.5)
    assert measures.article(steps, evaluations, at_once=9) == 9 * 5.5  # no run is split


@pytest.mark.parametrize("net", nets.NETS)
def test_both_sides_train_the_same_network(net, compose, prepared):
    shape = nets.NETS[net].shape
    overrides = [word for word in nets.NETS[net].overrides if not word.startswith("data=")]
    stand_in = {"mnist": "digits", "cifar10": "shapes", "regression": "regression"}
    settings = compose(*overrides, f"data={stand_in[nets.NETS[net].data]}")
    ours, theirs = build(settings).model, notebook.MODELS[net]()
    assert sorted(p.numel() for p in ours.parameters()) == sorted(
        p.numel() for p in theirs.parameters()
    )
    # The same weights, layer by layer in the order of the forward pass, give the same outputs.
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    for kind in kinds:
        pairs = zip(
            (m for m in ours.modules() if isinstance(m, kind)),
            (m for m in theirs.modules() if isinstance(m, kind)),
            strict=True,
        )
        for module, other in pairs:
            module.load_state_dict(other.state_dict())
    inputs = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    outputs = ours.eval()(inputs)
    if len(shape) == 3:
        outputs = outputs.log_softmax(dim=1)
    torch.testing.assert_close(outputs, theirs.eval()(inputs), rtol=1e-4, atol=1e-5)


def test_the_sides_are_timed_in_processes_of_their_own(tmp_path):
    (tmp_path / "runs").mkdir()
    common = {"root": None, "directory": str(tmp_path / "runs")}
    plain = Worker("a", "benchmarking.notebook:Notebook", tmp_path / "log.txt", **common)
    ours = Worker(
        "b", "benchmarking.on_gpu:OnGpu", tmp_path / "log.txt", **common, precision="fp32",
        wandb="disabled", device="cpu",
    )  # fmt: skip
    try:
        for side in (plain, ours):
            assert 0 < side.call("steps", net="regression", count=40) < 1
        for variant in ("", "doctor=off", "model.own_layers=false"):
            assert 0 < ours.call("steps", net="regression", count=3, variant=variant) < 1
        for variant in ("watch", "unwatched"):
            assert 0 < plain.call("steps", net="regression", count=3, variant=variant) < 1
        for stacked in (True, False):
            seconds = ours.call(
                "stack_steps", net="regression", members=2, count=30, stacked=stacked
            )
            assert 0 < seconds < 10
        for members in (0, 2):  # alone and stacked
            seconds = ours.call("seeds_steps", net="regression", members=members, count=20)
            assert 0 < seconds < 10
        assert ours.call("stack_differs", net="mlp", members=2, steps=5) < 1e-3
        unchanged = {"with the doctor": 0, "without it again": 0}
        assert ours.call("doctor_changes", net="mlp", steps=5) == unchanged
        waits = ours.call("waits", net="regression", first=5, steps=20)
        assert (waits["steps"], waits["probed"], waits["doctor"]) == (20, 1, {})
        assert ours.call("product", dtype="float32", size=64) > 0
        assert ours.call("convolution", dtype="bfloat16", images=1) > 0
        work = ours.call("work", net="regression")
        assert work["image"] == 2 * (20 * 25 + 25)
        shares = ours.call("profile", net="regression")
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["dense layers"] > 0 == shares["convolutions"]
        with pytest.raises(BenchmarkError, match=r"b: prepare failed: .*no_such"):
            Together([ours]).call("steps", net="no_such", count=1)
        with pytest.raises(BenchmarkError, match=r"b: steps failed: .*no_such"):
            ours.call("steps", net="no_such", count=1)
    finally:
        plain.close()
        ours.close()
    with pytest.raises(BenchmarkError, match="its process has ended"):
        ours.call("product", dtype="float32")


def test_a_wait_for_a_gpu_is_counted_where_it_is_asked_for(compose, prepared):
    """PyTorch's warning is given here by hand, since a CPU is never waited for."""

    class Waiting(nn.Module):
        def forward(self, outputs, targets):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            return nn.functional.cross_entropy(outputs, targets)

    training = build(compose("data=digits", "model=deep_mlp"))
    training.loss = Waiting()
    inputs, targets = next(training.batches(0))
    doctor = Doctor(training.model, training.optimizer, loss_fn=training.loss)
    with on_gpu.waits_of(training) as waits:
        _, loss = training.backward(inputs, targets)
        training.gradient_rule(training.parameters)
        training.optimizer.step()
        assert (waits.doctor, waits.in_steps) == ({}, set())
        assert [place.partition(":")[0] for place in waits.rest] == ["training/loop.py"]
        doctor.step(loss, inputs, targets)
        assert (waits.in_steps, waits.evaluations) == ({0}, set())
        training.step = 1
        doctor.validate(inputs, targets)
    assert (waits.in_steps, waits.evaluations) == ({0}, {1})
    assert all(place.startswith("doctor/observe/") for place in waits.doctor)
    assert waits.rest.total() == 1


def test_processes_together_are_timed_until_the_last_is_done(tmp_path, monkeypatch):
    """The processes of this side sleep, so that their time is known."""
    (tmp_path / "sleeping.py").write_text(
        "import time\n"
        "class Side:\n"
        "    def __init__(self, root, directory): self.pause = float(str(root))\n"
        "    def prepare(self, **given): time.sleep(1)\n"
        "    def steps(self, net, count, variant=''): time.sleep(self.pause * count); return 0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    given = {"side": "sleeping:Side", "log": tmp_path / "log.txt", "directory": None}
    members = [Worker(f"{pause}", root=str(pause), **given) for pause in (0.02, 0.04)]
    try:
        seconds = Together(members).call("steps", net="any", count=10)
    finally:
        for member in members:
            member.close()
    # The slower one's 10 steps take 0.4 s: 0.02 s a step and process, without the preparation.
    assert 0.02 <= seconds < 0.06


def test_a_process_has_the_threads_that_it_is_given():
    assert worker.environment(3)["OMP_NUM_THREADS"] == "3"
    assert worker.environment().get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")
    assert worker.environment()["CUDA_VISIBLE_DEVICES"] == ""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert worker.environment(gpu=True).get("CUDA_VISIBLE_DEVICES") == given


def test_random_images_stand_in_for_missing_data():
    assert nets.net_overrides("cifar", None)[-1].endswith("random_data.cifar10")
    train, test = notebook.data_sets("cifar", None)
    image, label = train[0]
    assert image.shape == (3, 32, 32)
    assert image.abs().max() <= 1
    assert 0 <= label < 10
    assert (len(train), len(test)) == (50_000, 10_000)


def test_a_process_is_timed_and_weighed(tmp_path):
    log = tmp_path / "log.txt"
    program = "import time; block = bytearray(200_000_000); time.sleep(0.2)"
    seconds, megabytes = startup.wall([sys.executable, "-c", program], log)
    assert seconds > 0.2
    assert 190 < megabytes < 300
    with pytest.raises(BenchmarkError, match="ended with 3"):
        startup.wall([sys.executable, "-c", "raise SystemExit(3)"], log)


def test_start_up_and_further_jobs_are_measured_on_train_py(tmp_path, prepared):
    log = tmp_path / "log.txt"
    overrides = [
        f"data.cache={prepared}", "trainer.epochs=1", "trainer.steps_per_epoch=1",
        "trainer.device=cpu", "wandb=disabled", "model=deep_mlp", "doctor=off",
    ]  # fmt: skip
    first = startup.first_step("project", [*overrides, f"output_dir={tmp_path / 'one'}"], log)
    assert 0.5 < first < 120
    extra = startup.extra_jobs(overrides, 3, tmp_path / "sweep", log)
    assert len(extra) == 2
    assert all(0 < seconds < 60 for seconds in extra)


def test_table_and_figure_show_ratios_first(tmp_path):
    results = benchmark.Results(notes=["A processor.", "Rounds."])
    results.add("ratio", "article_fp32", Spread(1.7, 1.6, 1.8, 5))
    results.seconds["article_fp32"] = (3600.0, 2100.0)
    results.add("overhead", "doctor", Spread(0.04, 0.03, 0.05, 5))
    results.add("stack", "mlp", Spread(3.0, 2.8, 3.2, 5))
    results.stack |= {"mlp_alone_per_s": 300.0, "mlp_stacked_per_s": 900.0}
    results.add("startup", "help_s", Spread(0.5, 0.4, 0.6, 3))
    results.peak_rss_mb["mnist"] = 850.0
    results.gflops["step_mnist_fp32"], results.peak_share["step_mnist_fp32"] = 120.0, 0.8
    results.profile["mnist_fp32"] = {"convolutions": 0.7, "else": 0.3}
    results.bound["step_mnist_fp32"] = 2.5
    table = output.markdown(vars(results))
    row = "whole article, fp32, runs side by side | 1.70 | 1.60 – 1.80 | 60.0 min"
    assert table.index(row) < table.index("4.0 %")
    assert "80 % of the matrix product" in table
    assert "| mnist_fp32 | 70 % | 30 % | 2.50 |" in table
    assert "900 members × steps a second, 300 one after the other | 3.00 ×" in table
    output.figure(vars(results), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert json.loads(json.dumps(vars(results)))["ratio"]["article_fp32"] == 1.7


def test_bf16_is_left_out_where_the_processor_has_none(capsys):
    assert benchmark.precisions("flags : fpu avx2 avx512_bf16\n") == ["fp32", "bf16"]
    assert capsys.readouterr().err == ""
    assert benchmark.precisions("flags : fpu avx2\n") == ["fp32"]
    assert "bf16 is left out" in capsys.readouterr().err


def test_the_tables_of_a_processor_without_bf16_say_so(tmp_path):
    """The committed numbers, without those of bf16."""
    results = json.loads((publishing.REFERENCE / "benchmark.json").read_text())
    for group, numbers in results.items():
        if isinstance(numbers, dict):
            results[group] = {key: n for key, n in numbers.items() if "bf16" not in key}
    results["notes"].append(benchmark.NO_BF16)
    for table in (output.markdown(results), output.summary(results)):
        assert "whole article, fp32" in table
        assert [line for line in table.splitlines() if "bf16" in line and "|" in line] == []
        assert "bf16 is left out" in table
    output.figure(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_what_was_measured_before_a_phase_that_fails_is_kept(tmp_path, monkeypatch):
    """The committed numbers, without those of the last phases."""
    kept = json.loads((publishing.REFERENCE / "benchmark.json").read_text())
    effort = replace(benchmark.FULL, stacked=("nope",))
    measured = benchmark.Benchmark(effort, tmp_path)
    measured.results = benchmark.Results(
        **kept | {"stack": {}, "startup": {}, "peak_rss_mb": {}, "notes": []}
    )
    monkeypatch.setattr(benchmark, "net_overrides", lambda *_: ["model=nope"])  # no such net
    with ExitStack() as stack:
        measured.start_alone(stack, "disabled")
        measured.results.notes = ["A machine.", *measured._last_phases()]
    assert measured.failed
    assert [note.partition(":")[0] for note in measured.results.notes[1:]] == [
        "stacks", "start-up", "memory",
    ]  # fmt: skip
    for table in (output.markdown(vars(measured.results)), output.summary(vars(measured.results))):
        assert "whole article, fp32" in table
        assert "start-up: left out" in table


def test_a_machine_is_told_by_its_instruction_sets_and_its_load():
    assert benchmark.instruction_sets("flags : fpu avx2 avx512f amx_tile\n") == "AVX2, AVX-512, AMX"
    assert "none of AVX2" in benchmark.instruction_sets("flags : fpu\n")
    assert benchmark.busy(1.0, 2) == ""
    warning = benchmark.busy(1.1, 2)
    results = json.loads((publishing.REFERENCE / "benchmark.json").read_text()) | {"busy": warning}
    for table in (output.markdown(results), output.summary(results)):
        assert table.startswith("**The machine was busy:** its load was 1.1 on 2")


def test_projections_have_the_quartiles_of_their_rounds(tmp_path):
    """Three rounds, of which this project is 1, 2 and 3 times as fast; one evaluation has two."""
    measured = benchmark.Benchmark(benchmark.QUICK, tmp_path)
    rounds = {"notebook": [6.0, 6.0, 6.0], "fp32": [6.0, 3.0, 2.0]}
    steps = dict.fromkeys((*nets.MAIN, "regression"), rounds)
    evaluations = {"mnist": rounds, "cifar": {side: each[:2] for side, each in rounds.items()}}
    measured.together = ()
    measured.precisions = ["fp32"]
    measured._compare(steps, evaluations)
    assert measured.results.ratio["epoch_mnist_fp32"] == pytest.approx(2)
    assert measured.results.spread["epoch_mnist_fp32"] == pytest.approx((1.5, 2.5))
    assert measured.results.ratio["article_fp32_alone"] == pytest.approx(1.5)
    assert measured.results.spread["article_fp32_alone"] == pytest.approx((1.25, 1.75))


def test_results_are_printed_written_and_put_on_the_results_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    page.write_text("<!-- speed -->\nbefore\n<!-- /speed -->\n")
    monkeypatch.setattr(publishing, "RESULTS_PAGE", page)
    monkeypatch.setattr(publishing, "REFERENCE", tmp_path / "kept")

    def publish(output):
        publishing.publish(
            "benchmark", {"n": 3}, "# page", lambda results: f"n = {results['n']}", mark="speed",
            output=output, draw=lambda folder: (folder / "drawn").touch(),
            numbers=tmp_path / "new" / "numbers.json",
        )  # fmt: skip

    publish(None)
    assert capsys.readouterr().out == "# page\n"
    assert json.loads((tmp_path / "new" / "numbers.json").read_text()) == {"n": 3}
    publish(tmp_path / "other")
    assert "before" in page.read_text()
    publish(tmp_path / "kept")
    assert page.read_text() == "<!-- speed -->\nn = 3\n<!-- /speed -->\n"
    for folder in (tmp_path / "other", tmp_path / "kept"):
        assert {each.name for each in folder.iterdir()} == {
            "benchmark.json", "benchmark.md", "drawn",
        }  # fmt: skip


def test_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        benchmark.main()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert {"--quick", "--json", "--output"} <= set(shown.split())


LINES = """\
step of training
onednn_verbose,v1,info,cpu,isa:Intel AVX-512 with Intel DL Boost and bfloat16 support
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32::blocked:acdb::f0 dst:f32::blocked:Bcda32b::f0,attr-scratchpad:user,,32x32x3x3,0.00610352
onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_bwd:avx512_core+brg_conv_fwd:avx512_core,backward_data,src:f32::blocked:acdb::f0 wei:f32:a:blocked:Bcda32b::f0 bia:undef::undef::: dst:f32::blocked:acdb::f0,attr-scratchpad:user,alg:convolution_direct,mb32_ic32oc32_ih30oh28kh3sh1dh0ph0_iw30ow28kw3sw1dw0pw0,2.05786
step of training
onednn_verbose,v1,primitive,exec,cpu,inner_product,brg_matmul:avx512_core,forward_inference,src:f32::blocked:ab::f0 wei:f32::blocked:ba::f0 bia:undef::undef::: dst:f32::blocked:ab::f0,attr-scratchpad:user,,mb512ic32oc1600,0.757
"""  # noqa: E501  (as oneDNN 3.12 printed them)
LAYERS = {
    "conv2": {"type": "Conv2d", "inputs": [32, 32, 30, 30], "outputs": 32},
    "act2": {"type": "ReLU", "inputs": [32, 32, 28, 28], "outputs": 32},
    "fc1": {"type": "Linear", "inputs": [32, 1600], "outputs": 512},
}


def test_a_step_is_taken_apart_into_the_primitives_that_onednn_prints():
    steps = onednn.by_step(["a library's first words", *LINES.splitlines()])
    (reorder, convolution), (product,) = steps
    assert (reorder.kind, reorder.operations) == ("reorder", 0)
    assert reorder.seconds == pytest.approx(6.10352e-6)
    assert convolution.implementation == "brg_conv_bwd:avx512_core+brg_conv_fwd:avx512_core"
    assert convolution.operations == 2 * 32 * 28 * 28 * 32 * 32 * 9
    assert product.operations == 2 * 512 * 32 * 1600
    found = [benchmark_operations.of_primitive(each, LAYERS) for step in steps for each in step]
    assert [(each.layer, each.what) for each in found] == [
        ("", "reorders"), ("conv2", "gradient of data"), ("fc1", "gradient of weights"),
    ]  # fmt: skip
    assert operations_output.sizes(convolution.problem) == "32×32×30×30 → 32×32×28×28"
    # The same product where MKL computes it, and an operation that is PyTorch's own.
    event = benchmark_operations.of_event("aten::mm", [[512, 32], [32, 1600]], LAYERS)
    assert (event.layer, event.what, event.shape) == ("fc1", "gradient of weights", product.problem)
    event = benchmark_operations.of_event("aten::clamp_min", [[32, 32, 28, 28], []], LAYERS)
    assert (event.layer, event.what) == ("act2", "ReLU")
    assert benchmark_operations.of_event("aten::empty", [[]], LAYERS) is None


def test_the_operations_of_a_step_are_measured_and_drawn(tmp_path):
    assert benchmark_operations.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "operations.json").read_text())
    for net, layers in (("mnist", 2), ("cifar", 4)):
        rows = results["nets"][net]["rows"]
        parts = sum(row["median"] for row in rows)
        assert parts == pytest.approx(results["nets"][net]["step"]["median"])
        convolutions = {(r["layer"], r["what"]) for r in rows if r["layer"].startswith("conv")}
        assert len(convolutions) == 3 * layers - 1  # the first one's input needs no gradient
        products = {(r["layer"], r["what"]) for r in rows if r["layer"] in ("fc1", "fc2", "fc3")}
        assert len(products) == 3 * (2 if net == "mnist" else 3)
    assert "operations.png" in (tmp_path / "operations.md").read_text()
    assert (tmp_path / "operations.png").stat().st_size > 10_000


def test_help_of_the_benchmark_of_operations_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        benchmark_operations.main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_of_the_benchmark_of_sizes_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        benchmark_scale.main(["--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert {"--quick", "--thousand", "--output"} <= set(shown.split())
