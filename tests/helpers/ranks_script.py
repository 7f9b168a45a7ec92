"""Processes that share masks, for the tests: what each answer should be, it looks up itself.

The first argument says what goes wrong: nothing, or on rank 2 there is no model, another one or no
memory, or it is killed, or late.
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch

from helpers.masks import patterns
from helpers.tiny import tiny_model, tokens
from pgprune.agents.training.ranks_team import Ranks, serve
from pgprune.envs.judge import Judge
from pgprune.envs.nearby_repair import NearbyRepair
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.load import fingerprint
from pgprune.utils.process_ids import rank


def judge_of(trouble: str) -> Judge:
    """A judge of a tiny model that repairs masks, or does what is asked for on rank 2."""
    trouble = trouble if rank() == 2 else ""
    if trouble == "no model":
        raise PruningError("there is no model here")
    model = tiny_model("opt" if trouble == "another model" else "llama")
    judge = Judge(MaskedLM(model, PruningUnits.of(model), "sliced"))
    judge.use(NearbyRepair(judge.lm, tokens(4, 12)))
    if trouble == "no memory":
        judge.lm.losses = no_memory
    if trouble == "late":
        judge.lm.losses = late
    if trouble == "killed":
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    return judge


def late(masks: torch.Tensor, input_ids: torch.Tensor, fill: None) -> torch.Tensor:
    time.sleep(3)
    return torch.zeros(len(masks), len(input_ids))


def no_memory(*arguments: object) -> None:
    raise torch.OutOfMemoryError("tried to allocate 20 GiB")


def main(trouble: str) -> None:
    judge, alone = judge_of(""), judge_of("")
    masks = torch.stack(list(patterns(judge.lm.units).values()))  # (K, n)
    assert len(masks) > 3
    patience = timedelta(seconds=1 if trouble == "late" else 600)
    replicas = Ranks(trouble, patience)
    try:
        judge.share(replicas)
        if trouble == "killed":
            time.sleep(20)  # as a metric does that takes its time
        for rows in (masks, masks[:2], masks[[0, 0, 1, 0]], masks[:1]):
            assert torch.equal(judge(rows, tokens()), alone(rows, tokens()))
            assert judge.lm.meter.tokens == alone.lm.meter.tokens
        half = masks[3]
        judge.follow(half)
        alone.follow(half)
        assert torch.equal(judge(masks, tokens()), alone(masks, tokens()))
        assert judge.lm.meter.tokens == alone.lm.meter.tokens
        assert fingerprint(judge(masks, tokens())) != fingerprint(judge.lm.losses(masks, tokens()))
        said = "the same"
    except PruningError as error:
        said = str(error)
    judge.stop()
    replicas.close()
    if trouble == "killed":
        signal.raise_signal(signal.SIGTERM)  # torchrun's may come at any time, also here
    print(said)


if __name__ == "__main__":
    sys.exit(serve(judge_of) if rank() else main(sys.argv[1]))
