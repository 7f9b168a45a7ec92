"""Whole pruning methods, from a problem to a mask: what the agents compare with."""

from functools import partial

from pgprune.methods.base import BUDGET, GRANULARITY, SLICING, Method, MethodConfig, Pruned
from pgprune.methods.bonsai import bonsai
from pgprune.methods.fasp import fasp
from pgprune.methods.flap import flap
from pgprune.methods.gumbel_softmax import gumbel_softmax
from pgprune.methods.hard_concrete import hard_concrete
from pgprune.methods.one_shot import one_shot
from pgprune.methods.osscar import osscar
from pgprune.methods.sleb import sleb
from pgprune.methods.slicegpt import slicegpt
from pgprune.methods.spap import spap
from pgprune.methods.two_ssp import two_ssp
from pgprune.methods.ziplm import ziplm
from pgprune.metrics import METRICS

__all__ = ["BUDGET", "GRANULARITY", "METHODS", "SLICING", "Method", "MethodConfig", "Pruned"]

METHODS: dict[str, Method] = {
    **{name: partial(one_shot, name) for name in METRICS},
    "flap": flap,  # its metric, and biases
    "sleb": sleb,
    "2ssp": two_ssp,
    "fasp": fasp,
    "spap": spap,
    "ziplm": ziplm,
    "osscar": osscar,
    "bonsai": bonsai,
    "gumbel-softmax": gumbel_softmax,
    "hard-concrete": hard_concrete,
    "slicegpt": slicegpt,
}
"""Every method by its name; every metric is one."""
