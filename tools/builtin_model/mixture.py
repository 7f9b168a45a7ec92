"""Trains a small mixture of experts on the built-in text, in minutes.

    python tools/builtin_model/mixture.py --output mixture

It has the built-in model's tokenizer. The model is small enough to be made where it is needed.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bits_per_byte import DOMAINS, model_bits_per_byte
from torch import Tensor, nn
from train import AVERAGED_STEPS, BATCH_TOKENS, Batches, rate_share, write_facts
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from pgprune.errors import PruningError

BUILTIN = Path(__file__).parents[2] / "pgprune/builtin_model"

CONFIG = Qwen3MoeConfig(
    vocab_size=2048,
    hidden_size=160,
    moe_intermediate_size=96,
    num_experts=16,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    num_hidden_layers=6,
    num_attention_heads=10,
    num_key_value_heads=5,
    head_dim=16,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    router_aux_loss_coef=0.01,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=500, help=f"of {BATCH_TOKENS} tokens each")
    parser.add_argument(
        "--balance",
        choices=("layers", "mean"),
        default="layers",
        help="what sends equally many tokens to each expert: every layer, or their mean",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        train(options)
    except PruningError as error:
        sys.exit(f"error: {error}")


def train(options: argparse.Namespace) -> None:
    """Trains and writes the model, its tokenizer and training.json."""
    if options.output.exists():
        raise PruningError(f"{options.output} exists; choose another --output")
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN)
    batches, model = Batches(tokenizer, options.seed), new_model(options.seed)
    average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    matrices = [matrix for weight in layer_weights(model) for matrix in parts(weight)]
    rest = [weight for name, weight in model.named_parameters() if not is_matrix(name, weight)]
    # Muon for the matrices of layers, also each of an expert; AdamW for embeddings and norms.
    optimizers: list[tuple[float, torch.optim.Optimizer]] = [
        (0.02, torch.optim.Muon(matrices, momentum=0.95, weight_decay=0.1)),
        (0.005, torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0)),
    ]
    seconds = 0.0
    for step in range(options.steps):
        started = time.perf_counter()
        ids = batches.at(step)
        with torch.autocast("cpu", torch.bfloat16):
            result = model(input_ids=ids, output_router_logits=True, use_cache=False)
            loss = model.loss_function(result.logits, ids, CONFIG.vocab_size)
            uneven = imbalance(result.router_logits, options.balance)
            (loss + CONFIG.router_aux_loss_coef * uneven).backward()
        gradients = [part for weight in layer_weights(model) for part in parts(weight.grad)]
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient
        for rate, optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate * rate_share(step, options.steps)
            optimizer.step()
        model.zero_grad()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                average[name].lerp_(weight, max(1 / AVERAGED_STEPS, 1 / (step + 1)))
        seconds += time.perf_counter() - started
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}, loss {loss:.3f}, {seconds:.0f} s", flush=True)
    model.load_state_dict(average, strict=False)  # the head is tied to the embedding
    facts: dict[str, Any] = {"seconds": seconds}
    facts |= {name: getattr(options, name) for name in ("steps", "seed", "balance")}
    facts["held_out_bits_per_byte"] = {
        domain: model_bits_per_byte(model.eval(), tokenizer, domain, every=4) for domain in DOMAINS
    }
    print(facts)
    model.half().save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    write_facts(options.output, facts)


def new_model(seed: int) -> Qwen3MoeForCausalLM:
    """Draws the weights."""
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(CONFIG)
    for layer in model.model.layers:  # each layer starts as the identity
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.experts.down_proj)
    return model


def imbalance(router_logits: tuple[Tensor, ...], balance: str) -> Tensor:
    """Computes how unevenly routers send tokens to experts.

    Training at scale balances each layer (Fedus et al. 2022, "Switch Transformers", arXiv
    2101.03961, Eq. 4). The loss that transformers computes is about the mean over layers, and at
    its least also where each layer sends all tokens to a few experts of its own.

    Args:
        router_logits: of each layer, (N, E).
        balance: ``layers``, the sum over layers, or ``mean``.
    """
    parts = [(logits,) for logits in router_logits] if balance == "layers" else [router_logits]
    count, used = CONFIG.num_experts, CONFIG.num_experts_per_tok
    losses = [load_balancing_loss_func(part, count, used) for part in parts]
    return torch.stack([torch.as_tensor(loss) for loss in losses]).sum()


def is_matrix(name: str, weight: Tensor) -> bool:
    """Tells the matrices of layers, also those of all experts together, from other weights."""
    return ".layers." in name and weight.ndim > 1


def layer_weights(model: nn.Module) -> list[nn.Parameter]:
    """Returns the matrices of layers."""
    return [weight for name, weight in model.named_parameters() if is_matrix(name, weight)]


def parts(weight: Tensor | None) -> list[Tensor]:
    """Returns a matrix, or the matrices of all experts, as views."""
    assert weight is not None
    return list(weight.detach()) if weight.ndim == 3 else [weight.detach()]


if __name__ == "__main__":
    main()
