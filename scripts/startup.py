"""Imported by a script before all else, since its other imports take seconds."""

import sys
from signal import SIG_DFL, SIGINT, default_int_handler, getsignal, signal

if getsignal(SIGINT) is default_int_handler:  # not where it is ignored, as under nohup
    signal(SIGINT, SIG_DFL)  # until ``run_command``

from pgprune.utils.startup import begin

begin(sys.argv[1:])
