"""Products by index, in Triton's interpreter, and the sliced executor that multiplies with them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from helpers.command import train
from helpers.masks import TRITON, all_patterns
from helpers.tiny import layers_of, masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.budget.problem import PruningConfig, make_problem
from pgprune.data.stream import DataConfig
from pgprune.envs.reward import mean_fill
from pgprune.experiments.baseline import Baseline, BaselineSettings
from pgprune.masking.kept_weights import check_kernels
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.methods.common.base import MethodConfig
from pgprune.models.load import ModelConfig
from pgprune.runs.settings import RunConfig

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(18, 32, 12, 5), (40, 48, 70, 37), (3, 33, 33, 33), (2, 8, 9, 0)]
"""Tokens, inputs or outputs that stay, rows or columns there are, and how many are kept."""


def random(dtype: torch.dtype, *sizes: int) -> list[torch.Tensor]:
    """Random matrices (or vectors, where a size is a number) of a number format."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def assert_rounded(found: torch.Tensor, exact: torch.Tensor) -> None:
    """They differ by the rounding of the result's number format."""
    assert found.shape == exact.shape
    near = {torch.float64: 1e-14, torch.float32: 1e-6}.get(found.dtype)
    size = exact.abs().max() if exact.numel() else 0
    near = torch.finfo(found.dtype).eps if near is None else near
    assert bool(((found.double() - exact).abs() <= near * (size + 1)).all())


@TRITON
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "width", "there", "kept"), SHAPES)
class TestProducts:
    def test_of_rows(self, count, width, there, kept, dtype):
        from pgprune.masking.kernels import rows_product

        x, weight, bias = random(dtype, (2, count, width), (there, width), (there,))
        weight[kept:] = torch.inf  # what is not kept is never read
        rows, size = torch.arange(kept).flip(0), kept + 3
        for own in (None, bias):
            kept_bias = None if own is None else own[rows].double()
            exact = F.linear(x.double(), weight[rows].double(), kept_bias)
            found = rows_product(x, weight, rows, own, size)
            assert_rounded(found[..., :kept], exact)
            assert not found[..., kept:].any()
            assert torch.equal(rows_product(x, weight, rows, own), found[..., :kept])

    def test_of_columns(self, count, width, there, kept, dtype):
        from pgprune.masking.kernels import columns_product

        x, weight, bias = random(dtype, (2, count, there + 1), (there, width), (width,))
        columns = torch.arange(there).flip(0)[:kept]
        for own in (None, bias):
            exact = F.linear(
                x[..., :kept].double(),
                weight.t()[:, columns].double(),
                None if own is None else own.double(),
            )
            for layout in (weight.t(), weight.t().contiguous()):
                assert_rounded(columns_product(x, layout, columns, own), exact)


@TRITON
@pytest.mark.parametrize("granularity", ["heads+channels", "blocks"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_means_in_place_of_pruned_inputs(family, granularity):
    model = tiny_model(family)
    units = PruningUnits.of(model, granularity)
    masks = all_patterns(units)
    plain, kernels = (
        lm.losses(masks, tokens(), mean_fill(lm, tokens(batch=4, seed=1)))
        for lm in (MaskedLM(model, units, "sliced", name) for name in ("plain", "triton"))
    )
    torch.testing.assert_close(kernels, plain, rtol=0, atol=1e-12)


@TRITON
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masks_that_share_layers_get_bit_by_bit_the_losses_they_get_alone(dtype):
    lm = MaskedLM(model := tiny_model("qwen3", dtype), PruningUnits.of(model), "sliced", "triton")
    masks = all_patterns(lm.units)
    alone = torch.cat([lm.losses(mask[None], tokens()) for mask in masks])
    assert torch.equal(lm.losses(masks, tokens()), alone)


@TRITON
def test_the_model_and_the_hooks_of_accelerate_are_left_as_they_were():
    hooks = pytest.importorskip("accelerate.hooks")
    model, ids = tiny_model("llama"), tokens()
    lm = masked_lm(model, executor="sliced", kernels="triton")
    masks = all_patterns(lm.units)
    plain, losses = model(ids).logits, lm.losses(masks, ids)
    assert not any("forward" in module.__dict__ for module in model.modules())
    layer = layers_of(model)[1]
    for module in (layer, layer.self_attn, layer.mlp.up_proj, layer.mlp.down_proj):
        hooks.add_hook_to_module(module, hooks.AlignDevicesHook(CPU))
    assert torch.equal(lm.losses(masks, ids), losses)
    assert "forward" in layer.mlp.up_proj.__dict__
    assert torch.equal(model(ids).logits, plain)


def described(arguments, **pruning) -> tuple[ModelConfig, DataConfig, PruningConfig]:
    """The tiny model, its text, and how it is pruned."""
    data = DataConfig(arguments["calibration"], arguments["evaluation"], 16, 2)
    few = replace(data, evaluation_windows=2)
    return ModelConfig(arguments["model"], dtype="float64"), few, PruningConfig(**pruning)


@TRITON
def test_a_run_multiplies_with_kernels_and_says_so(arguments, tmp_path):
    perplexity = {}
    for kernels in ("plain", "triton"):
        model, data, pruning = described(arguments, executor="sliced", kernels=kernels)
        settings = BaselineSettings(
            method=MethodConfig("magnitude", method_samples=2),
            run=RunConfig(output=str(tmp_path / kernels)),
            model=model,
            data=data,
            pruning=pruning,
        )
        run, found = Baseline(settings).run(["python"])
        assert run.config("pruning", PruningConfig).kernels == kernels
        perplexity[kernels] = found["perplexity"]["pruned"]["text"]
    assert perplexity["triton"] == pytest.approx(perplexity["plain"], rel=1e-10)


@TRITON
def test_auto_takes_the_executor_that_has_kernels(arguments):
    assert make_problem(*described(arguments)).lm.executor == "masked"
    assert make_problem(*described(arguments, kernels="triton")).lm.executor == "sliced"


class TestRefusedBeforeTheModelLoads:
    @pytest.fixture(autouse=True)
    def refuses(self, monkeypatch, options, tmp_path):
        monkeypatch.setattr("pgprune.budget.problem.load_model", None)
        self.monkeypatch, self.tried = monkeypatch, [*options, f"--output={tmp_path / 'run'}"]

    def says(self, message: str, *more: str) -> None:
        with pytest.raises(PruningError, match=message):
            train(*self.tried, *more)

    def test_another_executor(self):
        message = "choose --executor sliced or --kernels plain"
        self.says(message, "--kernels=triton", "--executor=masked")

    def test_unknown_kernels(self):
        self.says("fast", "--kernels=fast")
        with pytest.raises(PruningError, match="'fast' .* plain"):
            check_kernels("fast", "sliced", CPU)

    def test_no_triton(self):
        self.monkeypatch.setitem(sys.modules, "triton", None)
        self.says(r"needs Triton; run `pip install 'pgprune\[triton\]'`", "--kernels=triton")

    @TRITON
    def test_no_gpu(self):
        import triton

        self.monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
        self.says("needs a CUDA device and the device is cpu", "--kernels=triton", "--device=cpu")


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pgprune.masking.kernels import launch_options, product_kernel

for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
    for rows in (True, False):
        options = launch_options(dtype, interpreted=False)
        constants = {key: options.pop(key) for key in list(options) if key.isupper()}
        constants["ROWS"] = rows
        types = dict.fromkeys(product_kernel.arg_names, "i32") | {"kept": "*i64"}
        types |= dict.fromkeys(("x", "weight", "bias", "out"), "*" + name)
        types |= dict.fromkeys(constants, "constexpr")
        places = {(product_kernel.arg_names.index(key),): value for key, value in constants.items()}
        source = ASTSource(product_kernel, types, places)
        done = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        assert done.asm["cubin"] and done.metadata.shared <= 99 * 1024
        assert ("mma.sync" in done.asm["ptx"]) == (dtype == torch.bfloat16)  # no tf32
"""
GPU = """
import torch
import torch.nn.functional as F
from pgprune.masking.kernels import columns_product, rows_product

torch.manual_seed(0)
for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)):
    sizes = ((300, 500), (700, 500), (700,))
    x, w, b = (torch.randn(size, device="cuda", dtype=dtype) for size in sizes)
    rows = torch.randperm(700, device="cuda")[:333]
    y = rows_product(x, w, rows, b, 352)
    exact = F.linear(x.double(), w[rows].double(), b[rows].double())
    assert (y[:, :333].double() - exact).norm() <= near * exact.norm() and not y[:, 333:].any()
    z = columns_product(y, w.t(), rows)
    exact = y[:, :333].double() @ w[rows].double()
    assert (z.double() - exact).norm() <= near * exact.norm()
"""


def compiled(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a process whose kernels are not interpreted."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@TRITON
@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its compiler on Linux")
def test_the_kernel_compiles_for_a_gpu_that_is_not_there(tmp_path):
    done = compiled(COMPILE, tmp_path)
    assert done.returncode == 0, done.stderr


@TRITON
@pytest.mark.gpu
def test_products_on_a_gpu(tmp_path):
    done = compiled(GPU, tmp_path)
    assert done.returncode == 0, done.stderr
