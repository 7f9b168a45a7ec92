"""Whole pruning methods, from a problem to a mask: what the agents compare with.

A new method is one file here, with a function under ``@method(...)``, and one line below. Every
metric is a method already. ``Method`` documents the arguments that all methods share.
"""

from pgprune.methods.bonsai import bonsai
from pgprune.methods.common.base import METHODS, Method, MethodConfig, Pruned, method
from pgprune.methods.fasp import fasp
from pgprune.methods.flap import flap
from pgprune.methods.gisp import gisp
from pgprune.methods.gumbel_softmax import gumbel_softmax
from pgprune.methods.hard_concrete import hard_concrete
from pgprune.methods.modegpt import modegpt
from pgprune.methods.olica import olica
from pgprune.methods.osscar import osscar
from pgprune.methods.putri import putri
from pgprune.methods.sleb import sleb
from pgprune.methods.slicegpt import slicegpt
from pgprune.methods.spap import spap
from pgprune.methods.two_ssp import two_ssp
from pgprune.methods.tyr import tyr
from pgprune.methods.ziplm import ziplm

__all__ = ["METHODS", "Method", "MethodConfig", "Pruned", "method"]

METHODS.whole |= {
    "flap": flap,  # the metric of this name, and biases
    "sleb": sleb,
    "2ssp": two_ssp,
    "putri": putri,
    "olica": olica,
    "modegpt": modegpt,
    "fasp": fasp,
    "spap": spap,
    "ziplm": ziplm,
    "osscar": osscar,
    "tyr": tyr,
    "bonsai": bonsai,
    "gisp": gisp,
    "gumbel-softmax": gumbel_softmax,
    "hard-concrete": hard_concrete,
    "slicegpt": slicegpt,
}
