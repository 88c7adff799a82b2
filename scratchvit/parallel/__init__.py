"""Several processes that train one model: communicators, and what they average."""

from scratchvit.parallel.communicator import ALONE, Communicator
from scratchvit.parallel.share import share_of
from scratchvit.parallel.world import world
