"""Trains the built-in model on the running Python's own text, or evaluates one beside a 4-gram.

    python tools/builtin_model/train.py --output model --checkpoints checkpoints
    python tools/builtin_model/train.py --evaluate pgprune/builtin_model

The learning rate is constant until the last quarter of --steps, so a checkpoint of the constant
part can be resumed with another --steps: one training serves shorter and longer ones.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bits_per_byte import DOMAINS, encoded_documents, model_bits_per_byte, ngram_bits_per_byte
from fast_llama import fast_loss
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from pgprune.data.builtin_text import builtin_documents
from pgprune.errors import PruningError
from pgprune.utils.files import read_checkpoint, write_checkpoint, write_file

VOCABULARY = 2048
REPEATS = {"code": 1, "prose": 2}  # prose is rare
BATCH_TOKENS = 4096
LENGTHS = (128,) * 7 + (256,)  # most evaluations use 128; longer prompts must work too
WARMUP_STEPS = 100
DECAY_SHARE = 0.25
AVERAGED_STEPS = 100  # of the weights that are shipped: an average takes the noise of steps out
PRECISION = torch.bfloat16

# Deep and thin with grouped queries: much to prune for few parameters.
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=160,
    intermediate_size=416,
    num_hidden_layers=12,
    num_attention_heads=10,
    num_key_value_heads=5,
    head_dim=16,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
)


def train_tokenizer() -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE on the training text; it puts <s> before every document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    for_training = (builtin_documents(domain, "train") * REPEATS[domain] for domain in DOMAINS)
    tokenizer.train_from_iterator(sum(for_training, []), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


class Batches:
    """Endless shuffled windows of the training text; a batch depends on seed and step only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        """Joins the documents in an order drawn once."""
        documents: list[np.ndarray] = []
        for domain in DOMAINS:
            documents += encoded_documents(tokenizer, domain, "train") * REPEATS[domain]
        order = np.random.default_rng(seed).permutation(len(documents))
        self.tokens = torch.from_numpy(np.concatenate([documents[i] for i in order]))
        self.seed = seed

    def at(self, step: int) -> Tensor:
        """Returns the batch of a step, (windows, length); order and shift differ by epoch."""
        length = LENGTHS[step % len(LENGTHS)]
        count = BATCH_TOKENS // length
        windows = len(self.tokens) // length - 1
        epoch, first = divmod(step * count, windows - windows % count)
        random = np.random.default_rng((self.seed, length, epoch))  # no state to save
        shift = random.integers(length)
        starts = random.permutation(windows)[first : first + count] * length + shift
        return torch.stack([self.tokens[start : start + length] for start in starts])


def rate_share(step: int, steps: int) -> float:
    """Returns the share of the peak learning rate: warm-up, constant, linear decay."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (steps * DECAY_SHARE))


class Trainer:
    """The state of training."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        """Draws the weights."""
        torch.manual_seed(seed)
        self.tokenizer, self.batches = tokenizer, Batches(tokenizer, seed)
        self.model = LlamaForCausalLM(CONFIG)
        for layer in self.model.model.layers:  # each layer starts as the identity
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        matrices = {n: w for n, w in self.weights.items() if ".layers." in n and w.ndim == 2}
        others = [weight for name, weight in self.weights.items() if name not in matrices]
        # Muon for the matrices of layers; it is not made for embeddings and norms.
        self.optimizers: list[tuple[float, torch.optim.Optimizer]] = [
            (0.02, torch.optim.Muon(matrices.values(), momentum=0.95, weight_decay=0.1)),
            (0.005, torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)),
        ]
        self.record: dict[str, Any] = {"step": 0, "seconds": 0.0, "seed": seed, "history": []}

    def advance(self, steps: int) -> float:
        """Takes one step of a training of ``steps`` steps; returns its loss."""
        started, step = time.perf_counter(), self.record["step"]
        loss = fast_loss(self.model, self.batches.at(step), PRECISION)
        loss.backward()
        for rate, optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate * rate_share(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for name, weight in self.weights.items():
                # a plain mean at first, then an exponential one
                self.average[name].lerp_(weight, max(1 / AVERAGED_STEPS, 1 / (step + 1)))
        self.record["step"] += 1
        self.record["seconds"] += time.perf_counter() - started
        return loss.item()

    def evaluate(self) -> None:
        """Adds bits per byte of a part of the held-out text to the history."""
        model, row = self.averaged(), {"step": self.record["step"]}
        for domain in DOMAINS:
            every = 16 if domain == "code" else 2
            bits = model_bits_per_byte(model, self.tokenizer, domain, every=every)
            row[domain] = round(bits, 4)
        self.record["history"].append(row)

    def averaged(self) -> LlamaForCausalLM:
        """Returns a copy of the model with the averaged weights."""
        model = LlamaForCausalLM(CONFIG)
        model.load_state_dict(self.average, strict=False)  # the head is tied to the embedding
        return model.eval()

    def save(self, path: Path) -> None:
        """Writes the whole state."""
        tensors = {f"weight/{name}": weight for name, weight in self.weights.items()}
        tensors |= {f"average/{name}": weight for name, weight in self.average.items()}
        for index, (_, optimizer) in enumerate(self.optimizers):
            for number, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{index}/{number}/{key}": value for key, value in state.items()}
        write_checkpoint(path, tensors, self.record)

    def load(self, path: Path) -> None:
        """Continues from a checkpoint."""
        tensors, self.record = read_checkpoint(path)
        for name, weight in self.weights.items():
            weight.data.copy_(tensors[f"weight/{name}"])
            self.average[name].copy_(tensors[f"average/{name}"])
        for index, (_, optimizer) in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name in (name for name in tensors if name.startswith(f"{index}/")):
                _, number, key = name.split("/")
                state.setdefault(int(number), {})[key] = tensors[name]
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def train(options: argparse.Namespace) -> None:
    """Trains with regular checkpoints, and writes the model."""
    if options.output.exists():
        raise PruningError(f"{options.output} exists; choose another --output")
    vocabulary = options.checkpoints / "tokenizer"
    if not vocabulary.exists():
        train_tokenizer().save_pretrained(vocabulary)
    trainer = Trainer(AutoTokenizer.from_pretrained(vocabulary), options.seed)
    if options.resume:
        trainer.load(options.resume)
    while (step := trainer.record["step"]) < options.steps:
        loss = trainer.advance(options.steps)
        if (step + 1) % 20 == 0:
            print(
                f"step {step + 1}, loss {loss:.3f}, {trainer.record['seconds']:.0f} s", flush=True
            )
        if (step + 1) % 250 == 0 or step + 1 == options.steps:
            trainer.evaluate()
            print(trainer.record["history"][-1], flush=True)
            trainer.save(options.checkpoints / f"{step + 1:05d}-of-{options.steps}.safetensors")
    save_model(trainer, options.output)


def save_model(trainer: Trainer, output: Path) -> None:
    """Writes model, tokenizer and training.json, by one rename of the complete directory."""
    temporary = output.with_name(f".{output.name}.partial")
    trainer.averaged().half().save_pretrained(temporary)
    trainer.tokenizer.save_pretrained(temporary)
    facts = {
        "command": shlex.join(["python", "tools/builtin_model/train.py", *sys.argv[1:]]),
        "tokens": trainer.record["step"] * BATCH_TOKENS,
        "tokens_of_an_epoch": len(trainer.batches.tokens),
        "machine": f"{torch.get_num_threads()} CPU cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    write_facts(temporary, facts | trainer.record)
    temporary.rename(output)


def evaluate(directory: Path) -> None:
    """Measures a model as shipped, and the 4-gram, and writes the figures to training.json."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    bits: dict[str, Any] = {"4-gram": ngram_bits_per_byte(tokenizer)}
    for length in (128, 256):
        bits[f"model, windows of {length}"] = {
            domain: model_bits_per_byte(model, tokenizer, domain, length) for domain in DOMAINS
        }
    print(json.dumps(bits, indent=2))
    facts = json.loads((directory / "training.json").read_text())
    write_facts(directory, facts | {"held_out_bits_per_byte": bits})


def write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Writes training.json."""
    write_file(directory / "training.json", (json.dumps(facts, indent=2) + "\n").encode())


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, help="directory to write the trained model to")
    action.add_argument("--evaluate", type=Path, help="directory of a model to evaluate")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--resume", type=Path, help="checkpoint to continue from")
    parser.add_argument("--steps", type=int, default=4000, help=f"of {BATCH_TOKENS} tokens each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        evaluate(options.evaluate) if options.evaluate else train(options)
    except PruningError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
